"""Summary, report and the whole directory: all from the journal, always the same, nobody's name outside DICOM."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controller.record.identity import write_identity
from controller.record.journal import read_journal
from controller.record.rebuild import rebuild, verify_directory
from controller.record.summary import summarise
from drivers.errors import BadInput
from tests.journal_builder import IDENTITY, Builder, complete, interrupted, layer, make_plan

KEYS = {
    "outcome",
    "plan_sha256",
    "fields",
    "layers",
    "spots_planned",
    "spots_delivered",
    "mu_planned",
    "mu_primary",
    "mu_secondary",
    "spot_dose_error_pct",
    "spot_position_error_mm",
    "per_field",
    "time_s",
    "controller_share",
    "trips",
    "files",
}


def directory(tmp_path: Path, make: Callable[..., Path] = complete, **options: Any) -> Path:
    folder = tmp_path / "treatment"
    folder.mkdir(exist_ok=True)
    make(folder / "journal.bin", **options)
    write_identity(folder / "identity.dcm", IDENTITY)
    return folder


def summary_of(path: Path) -> dict[str, Any]:
    with read_journal(path) as journal:
        return summarise(journal, None)


def test_a_summary_has_exactly_its_keys(tmp_path: Path) -> None:
    summary = summary_of(complete(tmp_path / "journal.bin"))
    assert summary.keys() == KEYS
    assert summary["outcome"] == "completed"
    assert (summary["fields"], summary["layers"]) == (2, 5)
    assert summary["spots_planned"] == summary["spots_delivered"] == 5 * 8
    assert summary["time_s"].keys() == {"beam_on", "machine", "controller", "total", "ideal"}
    assert [f["spots_delivered"] for f in summary["per_field"]] == [24, 16]


def test_errors_are_those_of_the_visits(tmp_path: Path) -> None:
    path = complete(tmp_path / "journal.bin")
    with read_journal(path) as journal:
        visits = journal.visits
    dose, offsets = [], []
    for f, field in enumerate(make_plan().fields):
        for i, planned_layer in enumerate(field.layers):
            for spot, planned in enumerate(planned_layer.meterset):
                mine = visits[(visits["field"] == f) & (visits["layer"] == i) & (visits["spot"] == spot)]
                if planned == 0:
                    assert len(mine) == 0
                    continue
                assert len(mine) == planned_layer.paintings
                dose.append(100 * (mine["meterset_1"].sum() / planned - 1))
                for axis in "xy":
                    mean = np.average(mine[f"{axis}_mm"], weights=mine["counts_1"])
                    offsets.append(mean - mine[f"planned_{axis}_mm"][0])
    summary = summary_of(path)
    assert summary["spot_dose_error_pct"]["mean"] == pytest.approx(np.mean(dose), rel=1e-6)
    assert summary["spot_dose_error_pct"]["sd"] == pytest.approx(np.std(dose), rel=1e-6)
    assert summary["spot_dose_error_pct"]["max"] == pytest.approx(np.abs(dose).max(), rel=1e-6)
    radial = np.hypot(offsets[::2], offsets[1::2])
    assert summary["spot_position_error_mm"]["sd"] == pytest.approx(np.std(offsets), rel=1e-6)
    assert summary["spot_position_error_mm"]["p95"] == pytest.approx(np.percentile(radial, 95), rel=1e-6)
    assert summary["mu_primary"] == pytest.approx(visits["meterset_1"].sum(), rel=1e-8)
    assert summary["mu_secondary"] == pytest.approx(visits["meterset_2"].sum(), rel=1e-8)
    assert summary["mu_planned"] == pytest.approx(sum(f.meterset for f in make_plan().fields), rel=1e-8)


def test_particles_are_converted_to_mu_by_the_site(tmp_path: Path) -> None:
    plan = make_plan(("NP", "NP"))
    summary = summary_of(complete(tmp_path / "journal.bin", plan=plan))
    expected = sum(
        sum(layer.meterset) / (1.25e5 * (layer.energy_mev_u / 100.0) ** 0.77) for f in plan.fields for layer in f.layers
    )
    assert summary["mu_planned"] == pytest.approx(expected, rel=1e-8)
    assert summary["mu_primary"] == pytest.approx(expected, rel=0.01)
    assert summary["per_field"][0]["unit"] == "NP"


def test_time_adds_up_and_the_controller_owns_what_the_machine_waited(tmp_path: Path) -> None:
    times = summary_of(complete(tmp_path / "journal.bin"))["time_s"]
    assert times["total"] == pytest.approx(times["beam_on"] + times["machine"] + times["controller"])
    assert times["ideal"] == pytest.approx(times["beam_on"] + times["machine"])
    # Five layers with 15 ms from ready to start; 20 ms from end to request, three times within a field.
    assert times["controller"] == pytest.approx(5 * 0.015 + 3 * 0.020)


def test_waiting_for_the_operator_is_nobodys_share(tmp_path: Path) -> None:
    build = Builder(tmp_path / "journal.bin")
    build.begin()
    build.setup(0)
    build.deliver_layer(0, 0)
    build.event("state", state="INTERRUPTED", previous="DELIVERING", cause="operator")
    build.t_ns += 30_000_000_000
    build.event("state", state="DELIVERING", previous="INTERRUPTED", cause="operator")
    build.deliver_layer(0, 1)
    build.journal.close()
    times = summary_of(tmp_path / "journal.bin")["time_s"]
    assert times["controller"] == pytest.approx(2 * 0.015 + 0.020)
    assert times["total"] < 10


def test_an_interrupted_treatment_counts_whole_spots_only(tmp_path: Path) -> None:
    summary = summary_of(interrupted(tmp_path / "journal.bin", after=20))
    assert summary["outcome"] == "interrupted"
    # 8 of layer 1; the second painting of layer 2 stopped in its fourth spot.
    assert summary["spots_delivered"] == 8 + 3
    assert summary["trips"] == [
        {"id": "SPOT_POSITION", "at_s": pytest.approx(5.1, abs=0.2), "value": 1.4, "limit": 1.0, "first_out": True}
    ]


def test_a_resumed_treatment_is_one(tmp_path: Path) -> None:
    summary = summary_of(interrupted(tmp_path / "journal.bin", resumed=True))
    assert summary["outcome"] == "completed"
    assert [part["part"] for part in summary["parts"]] == [1, 2]
    assert summary["spots_delivered"] == summary["spots_planned"]
    assert summary["time_s"]["total"] < 60  # the minute between the parts is nobody's


def test_nothing_delivered_has_no_errors_but_null(tmp_path: Path) -> None:
    build = Builder(tmp_path / "journal.bin")
    build.begin()
    build.journal.close()
    summary = summary_of(tmp_path / "journal.bin")
    assert summary["outcome"] == "interrupted"
    assert summary["spot_dose_error_pct"] == dict.fromkeys(("mean", "sd", "rms", "p95", "p99", "max"))
    assert summary["controller_share"] is None


MAKERS: dict[str, tuple[Callable[..., Path], dict[str, Any]]] = {
    "complete": (complete, {}),
    "tripped": (interrupted, {}),
    "crashed": (interrupted, {"how": "crash"}),
    "resumed": (interrupted, {"resumed": True}),
    "mixed": (complete, {"plan": make_plan(("MU", "NP"))}),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_everything_is_rebuilt_from_the_journal_to_the_byte(kind: str, tmp_path: Path) -> None:
    make, options = MAKERS[kind]
    folder = directory(tmp_path, make, **options)
    (folder / "truth.json").write_text('{"spot_dose_error_pct": {"mean": 0.1}}')
    summary = rebuild(folder)
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert summary["truth"] == {"spot_dose_error_pct": {"mean": 0.1}}
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert before.keys() >= {"log.h5", "record.dcm", "summary.json", "events.jsonl", "report.html"}
    for name in before.keys() - {"journal.bin", "identity.dcm", "truth.json"}:
        (folder / name).unlink()
    rebuild(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_rebuilt_treatment_is_verified(tmp_path: Path) -> None:
    folder = directory(tmp_path, interrupted, resumed=True)
    rebuild(folder)
    assert verify_directory(folder) == []


@pytest.mark.parametrize("name", ["journal.bin", "log.h5", "record.dcm", "events.jsonl", "report.html"])
def test_one_changed_byte_in_any_file_is_found(name: str, tmp_path: Path) -> None:
    folder = directory(tmp_path)
    rebuild(folder)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    assert any(name in line for line in verify_directory(folder))


def test_a_changed_figure_is_found(tmp_path: Path) -> None:
    folder = directory(tmp_path)
    rebuild(folder)
    summary = json.loads((folder / "summary.json").read_text())
    summary["mu_primary"] += 1
    (folder / "summary.json").write_text(json.dumps(summary))
    assert any("mu_primary" in line for line in verify_directory(folder))


def test_a_consistent_forgery_of_record_and_hash_is_found(tmp_path: Path) -> None:
    folder = directory(tmp_path)
    summary = rebuild(folder)
    events = (folder / "events.jsonl").read_bytes().replace(b"1.0151", b"1.0150")
    (folder / "events.jsonl").write_bytes(events)

    summary["files"]["events.jsonl"] = hashlib.sha256(events).hexdigest()
    (folder / "summary.json").write_text(json.dumps(summary))
    assert any("differs from the events of the journal" in line for line in verify_directory(folder))


def test_missing_files_and_an_unclosed_journal_are_named(tmp_path: Path) -> None:
    folder = directory(tmp_path, interrupted, how="crash")
    rebuild(folder)
    (folder / "record.dcm").unlink()
    found = verify_directory(folder)
    assert any("never closed" in line for line in found)
    assert any("record.dcm: is missing" in line for line in found)


def test_a_damaged_journal_is_not_rebuilt_from(tmp_path: Path) -> None:
    folder = directory(tmp_path)
    data = bytearray((folder / "journal.bin").read_bytes())
    data[500] ^= 1
    (folder / "journal.bin").write_bytes(data)
    with pytest.raises(BadInput, match="damaged at byte"):
        rebuild(folder)
    assert not (folder / "record.dcm").exists()
    assert verify_directory(folder)


def test_no_identity_outside_dicom_files(tmp_path: Path) -> None:
    folder = directory(tmp_path, interrupted, resumed=True)
    rebuild(folder)
    planted = [v.encode() for v in vars_of(IDENTITY) if "PLANTED" in v] + [b"19610203"]
    seen = 0
    for path in folder.iterdir():
        content = path.read_bytes()
        for secret in planted:
            if path.suffix == ".dcm":
                seen += secret in content
            else:
                assert secret not in content, f"{path.name} holds {secret!r}"
    assert seen >= 2 * len(planted)


def vars_of(value: Any) -> list[str]:
    return [str(getattr(value, name)) for name in value.__dataclass_fields__]


def test_the_report_is_one_file_without_links_that_says_what_happened(tmp_path: Path) -> None:
    folder = directory(tmp_path, interrupted)
    rebuild(folder)
    page = (folder / "report.html").read_text()
    assert "Every device was simulated" in page
    assert "SPOT_POSITION" in page
    assert "check the scan magnets" in page
    assert "first out" in page
    assert page.count("data:image/png;base64,") == 5
    for link in ("http://", "https://", 'src="/', "<script", "<link"):
        assert link not in page


def test_the_report_escapes_what_a_plan_says(tmp_path: Path) -> None:

    plan = make_plan()
    field = dataclasses.replace(plan.fields[0], name="<script>$x_1$</script>")
    plan = dataclasses.replace(plan, fields=(field, plan.fields[1]), label="<b>&")
    folder = directory(tmp_path, complete, plan=plan)
    rebuild(folder)
    page = (folder / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_a_report_of_160_layers_stays_readable_in_size(tmp_path: Path) -> None:

    plan = make_plan()
    layers = tuple(layer(i, 300.0 - i, "MU", spots=400) for i in range(160))
    field = dataclasses.replace(plan.fields[0], layers=layers, control_points=320)
    folder = directory(tmp_path, interrupted, plan=dataclasses.replace(plan, fields=(field,)), after=500)
    rebuild(folder)
    assert (folder / "report.html").stat().st_size < 4_000_000
