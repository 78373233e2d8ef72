"""Position feedback: follows a drift, not noise; within its limit; and never hides anything from judge and record."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.delivery.steering import PositionFeedback, offset_currents_a
from controller.machine.optics import Optics
from drivers.errors import BadInput
from sites.adaptation import Adaptation
from sites.loader import load_site
from tests.delivery_rig import Delivery, counts_accounted, fault, run_delivery
from tests.layered_plans import adapting_site, layered_plan
from tests.plan_models import spots
from tests.plant_rig import CARBON, programs_of

DRIFT_1_MM = fault("plant.offset_x_mm", at="at_s = 0", add=1.0, ramp_s=24.0)
SETTINGS = Adaptation(position_feedback=True)


def drifted(path: Path, *, feedback: bool, faults: str = DRIFT_1_MM, layers: int = 11) -> Delivery:
    plan = layered_plan(path / "plan.dcm", layers)
    return run_delivery(plan, adapting_site(position_feedback=feedback), path / "out", faults=faults)


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Delivery:
    return drifted(tmp_path_factory.mktemp("followed"), feedback=True)


def measured(feedback: PositionFeedback, errors_mm: list[tuple[float, float]]) -> None:
    for x, y in errors_mm:
        feedback.take(x, y)


def test_a_spot_that_is_shown_after_the_next_offset_was_decided_counts_with_its_own() -> None:
    site = adapting_site(position_feedback=True)
    feedback = PositionFeedback(site.scanning)
    spots = site.scanning.position_feedback_spots
    measured(feedback, [(1.0, 0.0)] * spots)
    first = feedback.decide()
    assert first is not None
    assert first.after_mm == (-site.scanning.position_feedback_step_mm, 0.0)
    for _ in range(spots):  # of the layer before, armed without an offset
        feedback.take(1.0, 0.0, (0.0, 0.0))
    again = feedback.decide()
    assert again is not None
    assert again.error_mm[0] == pytest.approx(1.0 - site.scanning.position_feedback_step_mm)


def test_with_1_mm_of_drift_over_a_field_95_percent_of_the_spots_are_within_half_a_mm(followed: Delivery) -> None:
    assert followed.outcome.status == "completed"
    drift = followed.world.room.plant.parameters["offset_x_mm"] - followed.run.site.simulation.offset_x_mm
    assert drift == pytest.approx(1.0, abs=0.01)  # all of it came before the end
    assert followed.truth["spot_position_error_mm"]["p95"] <= 0.5
    assert len(followed.named("steering")) >= 3
    assert followed.named("steering")[-1]["x_after_mm"] == pytest.approx(-1.0, abs=0.25)
    counts_accounted(followed, [0])


def test_without_feedback_the_same_drift_stops_the_field(tmp_path: Path) -> None:
    alone = drifted(tmp_path, feedback=False)
    assert alone.first_out == "POSITION_MEAN"
    assert alone.truth["spot_position_error_mm"]["p95"] > 0.5
    assert not alone.named("steering")


def test_every_correction_is_what_the_engine_read_back_and_what_frames_and_magnets_showed(followed: Delivery) -> None:
    offsets = {e["layer"]: (e["x_offset_a"], e["y_offset_a"]) for e in followed.named("layer", phase="armed")}
    now = (0.0, 0.0)
    steered = {e["layer"]: e for e in followed.named("steering")}
    for layer, program in enumerate(followed.run.programs[0]):
        if layer in steered:
            now = (steered[layer]["x_offset_a"], steered[layer]["y_offset_a"])
        rows = followed.visits[followed.visits["layer"] == layer]
        for axis, offset in zip("xy", offsets[layer], strict=True):
            shift = rows[f"{axis}_current_a"] - program.visits[f"{axis}_current_a"]
            np.testing.assert_allclose(shift, offset, atol=0.3)
        if layer in steered:
            assert offsets[layer] == now
    assert any(abs(x) > 0.5 for x, _ in offsets.values())


def test_plan_limits_and_measured_positions_are_untouched_by_it(followed: Delivery) -> None:
    programs = followed.run.programs[0]
    monitor = followed.run.path.monitor
    for program in programs:
        v = program.visits
        np.testing.assert_array_equal(monitor.plan["x_strip_mm"][v["visit"]], v["x_strip_mm"])
        np.testing.assert_array_equal(monitor.plan["position_limit_mm"][v["visit"]], v["position_limit_mm"])
    assert followed.summary["spot_position_error_mm"]["p95"] == pytest.approx(
        followed.truth["spot_position_error_mm"]["p95"], abs=0.1
    )


def test_the_report_shows_the_corrections(followed: Delivery) -> None:
    page = (followed.directory / "report.html").read_text(encoding="utf-8")
    assert "Position feedback" in page
    assert page.count("<tr>") > len(followed.named("steering"))
    armed = [m for topic, m in followed.sink.messages if topic == "layer" and m["phase"] == "armed"]
    assert any(m["x_offset_a"] < -0.5 for m in armed)


def test_the_same_delivery_twice_writes_the_same_bytes(followed: Delivery, tmp_path: Path) -> None:
    again = drifted(tmp_path, feedback=True)
    assert (again.directory / "journal.bin").read_bytes() == (followed.directory / "journal.bin").read_bytes()


def test_a_drift_beyond_the_limit_is_a_trip_with_that_name(tmp_path: Path) -> None:
    far = fault("plant.offset_x_mm", at="at_s = 0", add=3.5, ramp_s=24.0)
    stopped = drifted(tmp_path, feedback=True, faults=far)
    assert stopped.first_out == "POSITION_FEEDBACK_BOUND"
    refused = stopped.named("steering", applied=False)
    assert len(refused) == 1
    trip = stopped.named("trip", id="POSITION_FEEDBACK_BOUND")[0]
    assert trip["limit"] == 2.0
    assert 2.0 < trip["value"] <= 2.5
    assert max(abs(e["x_after_mm"]) for e in stopped.named("steering", applied=True)) <= 2.0
    counts_accounted(stopped, [0])


def test_a_layer_alone_is_never_corrected(tmp_path: Path) -> None:
    one = drifted(tmp_path, feedback=True, layers=1)
    assert not one.named("steering")
    assert one.named("layer", phase="armed")[0]["x_offset_a"] == 0.0


@given(st.lists(st.tuples(st.floats(), st.floats()), max_size=60), st.integers(1, 7))
def test_whatever_is_measured_the_offset_stays_in_its_limit_and_changes_by_a_step_at_most(
    errors_mm: list[tuple[float, float]], layers: int
) -> None:
    feedback = PositionFeedback(SETTINGS)
    for _ in range(layers):
        before = feedback.offset_mm
        measured(feedback, errors_mm)
        decision = feedback.decide()
        assert np.hypot(*feedback.offset_mm) <= SETTINGS.position_feedback_limit_mm
        step = np.hypot(feedback.offset_mm[0] - before[0], feedback.offset_mm[1] - before[1])
        assert step <= SETTINGS.position_feedback_step_mm + 1e-9
        assert decision is None or not decision.beyond or feedback.offset_mm == before


def test_noise_is_not_followed_and_a_shift_is() -> None:
    noise = np.random.default_rng(3).normal(0.0, 0.15, (40, 2))
    feedback = PositionFeedback(SETTINGS)
    measured(feedback, [(x, y) for x, y in noise])
    decision = feedback.decide()
    assert decision is not None
    assert not decision.changed
    measured(feedback, [(x + 0.3, y) for x, y in noise])
    decision = feedback.decide()
    assert decision is not None
    assert feedback.offset_mm[0] == pytest.approx(-0.3, abs=0.06)
    assert feedback.offset_mm[1] == 0.0


def test_one_spot_far_away_and_too_few_spots_move_nothing() -> None:
    feedback = PositionFeedback(SETTINGS)
    measured(feedback, [(0.9, 0.0)] * (SETTINGS.position_feedback_spots - 1))
    assert feedback.decide() is None
    feedback = PositionFeedback(SETTINGS)
    measured(feedback, [(0.0, 0.0)] * 6 + [(0.9, 0.9), (float("nan"), 0.1)])
    decision = feedback.decide()
    assert decision is not None
    assert decision.spots == 7
    assert feedback.offset_mm == (0.0, 0.0)


def test_spots_of_small_layers_add_up_until_they_are_enough() -> None:
    feedback = PositionFeedback(SETTINGS)
    for _ in range(2):
        measured(feedback, [(0.2, -0.1)] * 2)
        assert feedback.decide() is None
    measured(feedback, [(0.2, -0.1)] * 2)
    assert feedback.decide() is not None
    assert feedback.offset_mm == pytest.approx((-0.2, 0.1))


def test_the_offset_in_amperes_moves_every_spot_by_it_and_stays_in_the_supplies_range() -> None:
    program = programs_of(CARBON, spots([(-90.0, 10.0, 1.0), (90.0, 40.0, 1.0), (0.0, 25.0, 1.0)]))[0]
    optics = Optics(CARBON, CARBON.treatment_machines["REF-C"])
    axes = (CARBON.scanning.x, CARBON.scanning.y)
    x_a, y_a = offset_currents_a(optics, axes, program, (1.5, -0.5))
    v = program.visits
    x, y = optics.position_mm(program.energy_mev_u, v["x_current_a"] + x_a, v["y_current_a"] + y_a)
    np.testing.assert_allclose(x - v["x_mm"], 1.5, atol=0.002)
    np.testing.assert_allclose(y - v["y_mm"], -0.5, atol=0.002)
    tight = CARBON.scanning.x.model_copy(update={"max_current_a": float(np.abs(v["x_current_a"]).max()) + 0.1})
    assert offset_currents_a(optics, (tight, axes[1]), program, (1.5, 0.0))[0] == pytest.approx(0.1, abs=0.002)


def test_a_site_cannot_ask_for_more_than_2_mm(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "sites" / "carbon-fixed.toml").read_text(encoding="utf-8")
    path = tmp_path / "site.toml"
    path.write_text(
        text.replace('mode = "raster"', 'position_feedback_limit_mm = 2.5\nmode = "raster"', 1), encoding="utf-8"
    )
    with pytest.raises(BadInput, match="position_feedback_limit_mm"):
        load_site(str(path))
