"""Real-time conditions at places where one part of a judgement matters alone: each of its parts is needed."""

from __future__ import annotations

import math

import pytest

from interlocks import numbers
from interlocks.realtime import VISIT_APART_FRAMES, bounded_pedestal, visit_pedestal
from tests.frame_script import SETTLE_TICKS, Script
from tests.plan_models import spots
from tests.plant_rig import CARBON, TOKEN, monitor_path, programs_of

PROGRAM = programs_of(CARBON, spots([(2.0 * k, 0.0, 2.0) for k in range(25)]))[0]


@pytest.fixture
def script() -> Script:
    """All streams alive, permits on, no visit yet."""
    script = Script(monitor_path(CARBON, [PROGRAM]), PROGRAM)
    script.tick(SETTLE_TICKS)
    script.path.permit(TOKEN)
    return script


def rate_limit(script: Script) -> int:
    return math.floor(float(script.path.monitor.plan[1]["rate_limit"]))


def tripped(script: Script) -> int | None:
    trip = script.path.trip()
    return None if trip is None else trip.number


def test_visit_lines_are_compared_only_while_electrometer_1_has_spoken_lately(script: Script) -> None:
    script.tick((script.t_ns // 100_000) % 2)
    for _ in range(2 * VISIT_APART_FRAMES):  # whenever the engine speaks, electrometer 1's frame is 0.3 ms old
        script.tick(without=(3,))
        script.tick(2, without=(1, 3))
        script.visit = 1
        script.tick(without=(1, 2))
        script.visit = 0
    assert tripped(script) is None


@pytest.mark.parametrize("stream", [1, 2])
def test_a_counter_that_falls_in_a_visit_runs_backwards_although_it_is_ahead_of_its_latch(
    script: Script, stream: int
) -> None:
    script.deliver(1, 10)
    script.counts[stream] -= 4
    script.tick()
    assert tripped(script) == numbers.COUNTS_BACKWARDS


@pytest.mark.parametrize("stream", [1, 2])
def test_a_counter_behind_its_latch_has_run_backwards_although_it_does_not_fall(script: Script, stream: int) -> None:
    script.tick()
    script.change[stream] = script.counts[stream] + 4
    script.tick()
    assert tripped(script) == numbers.COUNTS_BACKWARDS


def test_frames_of_too_high_rate_count_in_a_row_only(script: Script) -> None:
    script.begin(1)
    for _ in range(3):
        script.tick(add_1=rate_limit(script) + 1)
        script.tick()
    assert tripped(script) is None


@pytest.mark.parametrize("stream", [1, 2])
def test_what_a_field_got_is_judged_while_something_is_permitted(script: Script, stream: int) -> None:
    script.path.monitor.limits[f"field_counts_{stream}"] = 500.0
    script.path.withhold()
    script.beam(True)  # else what is counted is pedestal
    script.tick(6, **{f"add_{stream}": 100})  # type: ignore[arg-type]
    assert tripped(script) is None
    script.path.permit(TOKEN)
    script.tick()
    assert tripped(script) == (numbers.FIELD_DOSE_PRIMARY if stream == 1 else numbers.FIELD_DOSE_SECONDARY)


@pytest.mark.parametrize(
    ("quiet_counts", "quiet_ns", "less"),
    [(50, 10**8, 50.0), (-50, 10**8, -50.0), (500, 10**8, 100.0), (-500, 10**8, -100.0), (50, 0, 0.0)],
)
def test_a_pedestal_is_bounded_by_what_its_own_condition_lets_pass(
    script: Script, quiet_counts: int, quiet_ns: int, less: float
) -> None:
    rate = bounded_pedestal(script.path.monitor.memory[0], quiet_counts, quiet_ns)
    assert rate * 1e8 == pytest.approx(less)  # 0.1 s, in which the site allows 100 counts


def test_a_visits_pedestal_is_what_it_counted_while_it_waited_and_the_rate_for_the_rest() -> None:
    assert visit_pedestal(2e-6, 5_000_000, 7, 3_000_000) == pytest.approx(7 + 4)


def test_a_visit_that_electrometer_2_has_not_begun_yet_is_not_judged_on_it(script: Script) -> None:
    script.begin(1)
    script.tick(without=(2,))
    script.visit, script.change_ns = 0, 0  # electrometer 2 still shows what was before
    script.tick(without=(1, 3))
    assert int(script.path.monitor.running["counts_2"]) == -1
    assert tripped(script) is None
