"""Charge while no beam is asked for, and the pedestal of a field: at the limit nothing latches, beyond it it does."""

from __future__ import annotations

from typing import Any

import pytest

from controller.dose.integrator import handle_silence
from interlocks import numbers
from interlocks.realtime import bounded_pedestal, judge_idle
from tests.frame_script import Script
from tests.plan_models import spots
from tests.plant_rig import CARBON, TOKEN, monitor_path, programs_of

PROGRAM = programs_of(CARBON, spots([(2.0 * k, 0.0, 2.0) for k in range(25)]))[0]
IDLE = ("idle_ns", "idle_counts", "idle_frames", "idle_new")


@pytest.fixture
def script() -> Script:
    script = Script(monitor_path(CARBON, [PROGRAM]), PROGRAM)
    script.tick(4)
    script.path.permit(TOKEN)
    return script


def found(script: Script) -> int:
    """What has been latched; forgotten with that."""
    state: Any = script.path.monitor.state
    number, state["trip"] = int(state["trip"]), 0
    return number


@pytest.mark.parametrize("stream", [1, 2])
@pytest.mark.parametrize("sign", [-1, 1])
def test_each_monitor_may_count_its_own_limit_above_or_below_its_pedestal(
    script: Script, stream: int, sign: int
) -> None:
    monitor = script.path.monitor
    limits, state = monitor.limits, monitor.streams[stream]
    limits["idle_counts_1"], limits["idle_counts_2"] = 64.0 * stream, 128.0 / stream
    limit = 64
    state["base"], state["idle_ns"] = 2.0**-20, 1 << 28  # 256 counts
    for beyond, number in ((0, numbers.NONE), (1, numbers.IDLE_CHARGE)):
        state["idle_counts"] = 256 + sign * (limit + beyond)
        judge_idle(monitor.memory[0], stream, 10, 20)
        assert found(script) == number
    script.path.withhold()
    judge_idle(monitor.memory[0], stream, 10, 20)
    assert found(script) == numbers.NONE


def test_a_pedestal_is_believed_within_the_sites_bound(script: Script) -> None:
    m = script.path.monitor.memory[0]
    script.path.monitor.limits["pedestal_per_s"] = 1000.0
    for counts, per_ns in ((500, 5e-7), (-500, -5e-7), (5000, 1e-6), (-5000, -1e-6)):
        assert bounded_pedestal(m, counts, 10**9) == pytest.approx(per_ns)
    assert bounded_pedestal(m, 500, 0) == 0.0
    assert bounded_pedestal(m, 1, 1) == pytest.approx(1e-6)


@pytest.mark.parametrize("stream", [1, 2])
def test_what_a_field_got_is_counted_less_the_pedestal_of_its_time(script: Script, stream: int) -> None:
    monitor = script.path.monitor
    monitor.limits[f"field_counts_{stream}"] = 500.0
    monitor.streams[stream]["base"] = 1e-4  # ten counts a frame
    monitor.state[f"field_start_{stream}"] = script.counts[stream]
    monitor.state[f"field_start_{stream}_ns"] = script.t_ns
    script.beam(True)
    script.tick(5, **{f"add_{stream}": 110})  # type: ignore[arg-type]
    assert found(script) == numbers.NONE
    script.tick(**{f"add_{stream}": 11})  # type: ignore[arg-type]
    assert found(script) == (numbers.FIELD_DOSE_PRIMARY if stream == 1 else numbers.FIELD_DOSE_SECONDARY)


def test_a_new_field_has_no_idle_charge_yet_and_its_own_pedestals(script: Script) -> None:
    monitor = script.path.monitor
    for stream in (1, 2):
        for name in IDLE:
            monitor.streams[stream][name] = 7
        monitor.state[f"quiet_counts_{stream}"], monitor.state[f"quiet_ns_{stream}"] = 100 * stream, 10**9
    monitor.state["begun"] = 9
    script.path.load_field(CARBON.treatment_machines["REF-C"], [PROGRAM])
    handle_silence(monitor.memory[0], script.t_ns)
    assert [int(monitor.streams[s][name]) for s in (1, 2) for name in IDLE] == [0] * 8
    assert [float(monitor.streams[s]["base"]) for s in (1, 2)] == pytest.approx([1e-7, 2e-7])
    assert int(monitor.state["begun"]) == 0


@pytest.mark.parametrize("stream", [1, 2])
def test_a_request_begins_the_count_of_idle_frames_anew(script: Script, stream: int) -> None:
    state = script.path.monitor.streams[stream]
    script.tick(4, add_1=1, add_2=1)
    assert int(state["idle_frames"]) > 0
    assert int(state["idle_new"]) == 4
    script.beam(True)
    script.tick(4)
    assert (int(state["idle_frames"]), int(state["idle_new"])) == (0, 0)
