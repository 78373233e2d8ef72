"""The benches: their yardsticks compute the same, their figures have the promised keys. No time is asserted."""

from __future__ import annotations

import functools
import json
import math
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from controller.bench import yardstick_c
from controller.bench.bluesky_scan import bluesky_version
from controller.bench.command import PLAIN, run
from controller.bench.figures import percentiles, ratio, rounded
from controller.bench.integrator import c_job, chunks, compiled_job
from controller.bench.layers import pauses_ms
from controller.bench.plan import LAYERS, SPOTS_PER_LAYER, particles_per_point, raster_points, write_plan
from controller.bench.recorded import Recording, record_layer
from controller.bench.yardstick_numpy import NumpyIntegrator
from controller.cli import BENCHES, main
from controller.dose.memory import MEMORY
from controller.plan.check import check_plan
from drivers.errors import BadInput
from drivers.wires.frames import decode
from sites.loader import load_site

pytestmark = pytest.mark.real_clock

PERCENTILES = {"p50", "p99", "p999"}
YARDSTICKS = {
    "integrator": {"c", "numpy"},
    "reaction": {"echo"},
    "download": {"raw", "raw_in_flight"},
    "step": {"bluesky"},
    "layers": set(),
    "simulation": set(),
}
needs_c = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler 'cc' on this PC")


@functools.cache
def recording() -> Recording:
    return record_layer(spots=25)


def judged(before: NDArray[Any]) -> NDArray[Any]:
    memory = before.copy()
    compiled_job(memory)(recording().data, recording().times_ns)
    return memory


def hostile() -> list[tuple[str, Recording]]:
    """The recorded stream with things in it that trip; which ones is not the point, that all see them alike is."""
    good = recording()
    middle = len(good.data) // 2
    cases: list[tuple[str, Recording]] = []

    def case(name: str, data: NDArray[np.uint8], times: NDArray[np.int64], before: NDArray[Any]) -> None:
        cases.append((name, Recording(data, times, before, good.visits, good.rate_per_s)))

    case("whole", good.data, good.times_ns, good.before)
    kept = np.r_[0:middle, middle + 11 : len(good.data)]
    case("a gap", good.data[kept], good.times_ns[kept], good.before)
    twice = np.r_[0:middle, middle - 5 : len(good.data)]
    case("repeated frames", good.data[twice], good.times_ns[twice], good.before)
    flagged = good.data.copy()
    flagged[middle:, 36] ^= 64 + 128  # high voltage gone, saturated
    case("flags", flagged, good.times_ns, good.before)
    restarted = good.data.copy()
    restarted[middle:, 8] ^= 1
    case("another nonce", restarted, good.times_ns, good.before)
    counted = good.data.copy()
    counted[middle:, 42] += 1  # 65,536 counts more
    case("a jump of counts", counted, good.times_ns, good.before)
    for limit in ("spot_dose", "position_mean_mm", "width", "disagreement", "window_ma", "blind_ns", "pedestal_per_s"):
        before = good.before.copy()
        before["limits"][limit] = 0
        case(f"limit {limit} 0", good.data, good.times_ns, before)
    cleared = good.before.copy()
    cleared["control"]["clear"] += 1
    cleared["control"]["reset"] += 1
    case("field and latch cleared", good.data, good.times_ns, cleared)
    return cases


def differences(ours: NDArray[Any], theirs: NDArray[Any]) -> list[str]:
    """Parts of the memory that differ; NaN equals NaN only bit by bit."""
    return [name for name in MEMORY.names or () if ours[name].tobytes() != theirs[name].tobytes()]


def test_the_recorded_stream_is_a_whole_layer_of_intact_frames() -> None:
    r = recording()
    frames = [decode(bytes(row[: int.from_bytes(row[6:8], "little")])) for row in r.data]
    assert all(frame is not None for frame in frames)
    visits = {frame.visit for frame in frames if frame is not None}
    assert visits >= set(range(1, r.visits + 1))
    assert r.rate_per_s == 5e7  # the highest that keeps a runaway below 0.25 Gy at these energies
    after = judged(r.before)
    assert after["state"]["trip"] == 0
    assert after["state"]["measured"] - r.before["state"]["measured"] == r.visits
    assert after["state"]["rows"] > r.periods // 2 - 2


def test_chunks_are_the_whole_stream_in_order() -> None:
    pieces = chunks(recording())
    assert pieces[0].start == 0
    assert pieces[-1].stop == len(recording().data)
    assert all(a.stop == b.start for a, b in pairwise(pieces))


@needs_c
def test_the_c_yardstick_computes_the_same_memory_to_the_bit() -> None:
    c = yardstick_c.build()
    tripped = set()
    for name, r in hostile():
        ours, theirs = r.before.copy(), r.before.copy()
        actions = compiled_job(ours)(r.data, r.times_ns)
        assert c_job(c, theirs)(r.data, r.times_ns) == actions, name
        assert differences(ours, theirs) == [], name
        tripped.add(int(ours["state"]["trip"][0]))
    assert len(tripped) > 5  # the cases are different ones


def test_the_numpy_yardstick_computes_the_same_memory_to_the_bit() -> None:
    for name, r in hostile():
        ours, theirs = r.before.copy(), r.before.copy()
        actions = compiled_job(ours)(r.data, r.times_ns)
        numpy_integrator = NumpyIntegrator(r.before)
        assert numpy_integrator(r.data, r.times_ns) == actions, name
        numpy_integrator.store(theirs)
        assert differences(ours, theirs) == [], name


def test_without_a_compiler_the_comparison_with_c_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(yardstick_c.NoCompilerError, match="no C compiler"):
        yardstick_c.build()


def test_the_plan_is_the_size_of_a_real_one_and_deliverable(tmp_path: Path) -> None:
    report = check_plan(write_plan(tmp_path / "plan.rst"), load_site("carbon-fixed"), gantry_deg=0.0, couch_deg=0.0)
    assert report.outcome == "deliverable"
    assert report.loaded is not None
    (field,) = report.loaded.plan.fields
    assert len(field.layers) == LAYERS
    assert sum(len(layer.meterset) for layer in field.layers) == LAYERS * SPOTS_PER_LAYER == 13_243
    assert len(set(raster_points(SPOTS_PER_LAYER))) == SPOTS_PER_LAYER
    weights = [particles_per_point(layer) for layer in range(LAYERS)]
    assert weights == sorted(weights)


@pytest.mark.parametrize("name", BENCHES)
def test_a_quick_run_gives_all_keys(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", name, "--quick", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {"name", "unit", "ours", "yardsticks", "ratios", "controller_share", "real_time_factor", "context"} <= set(
        result
    )
    assert result["name"] == name
    expected = YARDSTICKS[name] - ({"c"} if shutil.which("cc") is None else set())
    expected -= {"bluesky"} if bluesky_version() is None else set()
    assert set(result["yardsticks"]) == set(result["ratios"]) == expected
    for row in (result["ours"], *result["yardsticks"].values(), *result["ratios"].values()):
        assert set(row) == PERCENTILES
        assert all(math.isfinite(value) for value in row.values())
    assert (result["controller_share"] is not None) == (name == "layers")
    assert (result["real_time_factor"] is not None) == (name in ("integrator", "simulation"))
    assert {"cpu", "cores", "versions", "load_before", "load_after", "steal_ticks"} <= set(result["context"])
    assert "host" not in result["context"]
    if name == "reaction":
        assert result["unit"] == "us"
        assert result["details"]["frames_lost"] == [0, 0, 0]
        assert result["details"]["trip"] == 0
        assert result["details"]["collections"]["in_layers"] == 0
        assert result["details"]["telemetry"]["dropped"] == 0
        assert len(result["details"]["received_by_readers"]) == 2
        assert all(count > 0 for count in result["details"]["received_by_readers"])
    if name in ("layers", "simulation"):
        assert "10 Hz: " in result["context"]["poll_plan"]
    if name == "download":
        assert result["details"]["functions"]["FC16"] > 0


def test_every_bench_of_the_command_line_exists() -> None:
    assert set(BENCHES) == {*PLAIN, "reaction"}


def test_an_option_of_another_bench_is_refused() -> None:
    with pytest.raises(BadInput, match="--seconds is for reaction"):
        run("layers", seconds=5.0)


@pytest.mark.parametrize(("values", "p50"), [([1.0, 2.0, 3.0], 2.0), ([5.0], 5.0)])
def test_percentiles_and_ratios(values: Sequence[float], p50: float) -> None:
    row = percentiles(values)
    assert row["p50"] == p50
    assert ratio(row, row) == dict.fromkeys(PERCENTILES, 1.0)
    assert rounded(123456.0) == 123500.0


def test_the_pause_of_a_layer_change_is_from_last_ion_to_first() -> None:
    visits = np.zeros(4, [("layer", "<u2"), ("t_start_ns", "<i8"), ("t_end_ns", "<i8")])
    visits["layer"] = (0, 0, 1, 1)
    visits["t_start_ns"] = (0, 10_000_000, 2_030_000_000, 2_040_000_000)
    visits["t_end_ns"] = (10_000_000, 20_000_000, 2_040_000_000, 2_050_000_000)
    assert pauses_ms(visits) == [2010.0]
