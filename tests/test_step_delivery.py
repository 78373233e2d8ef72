"""Step mode delivers: magnets and presets set by the PC, spot by spot, against what the plant really got."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drivers.contracts import SELF_TEST_VISIT, MagnetReadback, SpotStatus
from drivers.deadline import Deadline
from drivers.errors import Stopped
from drivers.preset_electrometer import Preset
from drivers.step_engine import StepEngine
from simulators.plant.state import ENG_RUNNING, ION_UNIT, SUB_DELIVER, SUB_MOVE, SUB_TAIL
from tests.delivery_rig import EXAMPLES, Delivery, counts_accounted, fault, run_delivery

PLAN = EXAMPLES / "small_carbon.dcm"
SITE = "step-lab"
OPERATOR = "simulated"


def true_particles(delivery: Delivery, field: int) -> np.ndarray:
    """Particles that the plant gave each visit of a field; index 0: outside of any visit."""
    return delivery.world.room.truths()[field]["units"] / ION_UNIT


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Delivery:
    return run_delivery(PLAN, SITE, tmp_path_factory.mktemp("step") / "t")


def test_a_plan_is_delivered_whole_and_every_count_is_accounted_for(whole: Delivery) -> None:
    assert whole.summary["outcome"] == "completed", whole.summary["trips"]
    assert whole.summary["spots_delivered"] == whole.summary["spots_planned"] == 48
    counts_accounted(whole, [0, 1])
    engine = whole.run.devices.scan_controller
    assert isinstance(engine, StepEngine)
    assert engine._rows == {}  # what was acknowledged is not kept
    assert set(engine._currents) <= {SELF_TEST_VISIT}


def test_every_spot_is_right_against_the_plant(whole: Delivery) -> None:
    assert whole.truth["spot_dose_error_pct"]["max"] < 1.0
    assert whole.truth["spot_position_error_mm"]["p95"] < 0.5
    assert all(abs(f["particles_error_pct"]) < 0.5 for f in whole.truth["per_field"])


def test_a_weak_beam_is_seen_as_wide_as_it_is_on_strips_with_noise(whole: Delivery) -> None:
    site = whole.run.site
    assert site.simulation.strip_noise_counts > 0
    programs = [p for field in whole.run.programs for p in field]
    for axis in ("x", "y"):
        expected = np.concatenate([np.full(len(p.visits), getattr(p, f"sigma_{axis}_mm")) for p in programs])
        ratio = whole.visits[f"sigma_{axis}_mm"] / expected / site.simulation.sigma_scale
        # the plant's strips drop what is less than a unit a frame: at 200 ions the flanks of the beam are that weak
        assert np.mean(ratio) == pytest.approx(1.0, abs=0.06)
        assert np.std(ratio) < 0.03
        assert np.abs(ratio - 1.0).max() < 0.15


def test_beam_is_off_between_spots_and_the_read_back_that_let_each_go_is_journalled(whole: Delivery) -> None:
    tail_ns = int(whole.world.room.plant.parameters["tail_ns"])
    visits = whole.visits
    assert np.all(visits["t_end_ns"] - visits["t_start_ns"] >= visits["beam_on_ns"] + tail_ns)
    planned = np.concatenate([p.visits["x_current_a"] for programs in whole.run.programs for p in programs])
    window_a = whole.run.site.scanning.x.window_a
    assert np.abs(visits["x_current_a"] - planned).max() <= window_a
    assert len(np.unique(visits["x_current_a"])) > 10


def test_the_same_seed_gives_the_same_bytes(whole: Delivery, tmp_path: Path) -> None:
    again = run_delivery(PLAN, SITE, tmp_path / "t")
    assert (again.directory / "journal.bin").read_bytes() == (whole.directory / "journal.bin").read_bytes()


@pytest.mark.parametrize("device", ["electrometer_1", "scan_controller"])
@pytest.mark.parametrize("at_s", [2.01, 2.03, 2.05, 2.07, 2.09])
def test_a_link_cut_at_any_moment_gives_no_visit_more_than_its_preset(device: str, at_s: float, tmp_path: Path) -> None:
    stopped = run_delivery(PLAN, SITE, tmp_path / "t", faults=fault(f"wire.{device}", at=f"at_s = {at_s}", kind="cut"))
    assert stopped.summary["outcome"] == "interrupted"
    assert stopped.first_out in {"LINK_LOST", "STATUS_STALE", "DEVICE_ERROR"}
    planned = stopped.run.programs[0][0].visits["particles"]
    got = true_particles(stopped, 0)
    assert np.all(got[1 : len(planned) + 1] < 1.01 * planned)
    assert not got[len(planned) + 1 :].any()


@pytest.mark.parametrize("sub", [SUB_MOVE, SUB_DELIVER, SUB_TAIL], ids=["move", "beam", "tail"])
def test_an_abort_in_any_phase_ends_beam_and_books_what_was_given(sub: int, tmp_path: Path) -> None:
    async def script(d: Delivery) -> None:
        plant = d.plant
        await d.until(lambda: plant["eng_state"] == ENG_RUNNING and plant["eng_visit"] == 5 and plant["eng_sub"] == sub)
        d.commands.abort(OPERATOR, "test")

    stopped = run_delivery(PLAN, SITE, tmp_path / "t", script=script)
    assert stopped.first_out == "OPERATOR_ABORT"
    assert stopped.plant["beam_present"] == 0
    planned = stopped.run.programs[0][0].visits["particles"]
    got = true_particles(stopped, 0)
    assert np.all(got[1:7] < 1.01 * planned[:6])
    assert not got[7:].any()
    counts_accounted(stopped, [0])


@pytest.mark.parametrize("sub", [SUB_MOVE, SUB_DELIVER, SUB_TAIL], ids=["move", "beam", "tail"])
def test_a_pause_in_any_phase_holds_beam_and_resumes_to_the_same_dose(sub: int, tmp_path: Path) -> None:
    paused: list[float] = []

    async def script(d: Delivery) -> None:
        plant = d.plant
        await d.until(lambda: plant["eng_state"] == ENG_RUNNING and plant["eng_visit"] == 5 and plant["eng_sub"] == sub)
        await d.commands.pause(OPERATOR)
        await asyncio.sleep(0.01)
        before = int(plant["particles"])
        await asyncio.sleep(0.5)
        paused.append(int(plant["particles"]) - before)
        await d.commands.resume(OPERATOR)

    delivery = run_delivery(PLAN, SITE, tmp_path / "t", script=script)
    assert paused == [0]
    assert delivery.summary["outcome"] == "completed", delivery.summary["trips"]
    assert delivery.truth["spot_dose_error_pct"]["max"] < 1.5
    counts_accounted(delivery, [0, 1])


@pytest.mark.parametrize("where", ["between set-points and their proof", "between proof and go", "in mid-spot"])
def test_a_pc_that_stalls_gives_nothing_beyond_the_preset_of_the_visit_that_runs(where: str, tmp_path: Path) -> None:
    forever = asyncio.Event()
    beyond: list[np.ndarray] = []

    async def script(d: Delivery) -> None:
        engine = d.run.devices.scan_controller
        assert isinstance(engine, StepEngine)
        step, readback, plant = engine.electrometer.step, engine.supply.readback, d.plant
        stalled = asyncio.Event()

        async def stalling_step(go: int, following: Preset | None, deadline: Deadline) -> None:
            if go == 6 and where == "between proof and go":
                stalled.set()
                await forever.wait()
            await step(go, following, deadline)
            if go == 5 and where == "in mid-spot":
                stalled.set()
                await forever.wait()

        async def stalling_readback(deadline: Deadline) -> MagnetReadback:
            if plant["eng_visit"] == 6 and plant["eng_sub"] == SUB_MOVE and where.startswith("between set"):
                stalled.set()
                await forever.wait()
            return await readback(deadline)

        engine.electrometer.step = stalling_step  # type: ignore[method-assign]
        engine.supply.readback = stalling_readback  # type: ignore[method-assign]
        await stalled.wait()
        await asyncio.sleep(0.3)  # permits go on all the while, the chain stays closed
        assert plant["closed"] == 1
        beyond.append(true_particles(d, 0)[1:].copy())
        d.commands.abort(OPERATOR, "test")

    stopped = run_delivery(PLAN, SITE, tmp_path / "t", script=script)
    planned = stopped.run.programs[0][0].visits["particles"]
    assert np.all(beyond[0][:5] < 1.01 * planned[:5])
    assert np.all(beyond[0][:5] > 0.99 * planned[:5])
    assert not beyond[0][5:].any()
    counts_accounted(stopped, [0])


def test_a_magnet_that_does_not_arrive_gets_no_beam(tmp_path: Path) -> None:
    stopped = run_delivery(PLAN, SITE, tmp_path / "t", faults=fault("plant.stuck_x", at="after_visits = 3", value=1))
    assert stopped.first_out == "DEVICE_ERROR"
    message = stopped.named("trip")[0]["detail"]
    assert "x_current_a" in message
    assert "check the supply" in message
    assert not true_particles(stopped, 0)[6:].any()


def test_a_magnet_that_drifts_in_a_pause_gets_no_beam_back(tmp_path: Path) -> None:
    async def script(d: Delivery) -> None:
        plant = d.plant
        await d.until(lambda: plant["eng_visit"] == 5 and plant["eng_sub"] == SUB_DELIVER and plant["request"] == 1)
        await d.commands.pause(OPERATOR)
        await asyncio.sleep(0.01)
        d.world.room.plant.parameters["stuck_x"] = 1
        plant["current_x_ma"] += 5000.0
        with pytest.raises(Stopped):
            await d.commands.resume(OPERATOR)

    stopped = run_delivery(PLAN, SITE, tmp_path / "t", script=script)
    assert stopped.first_out == "DEVICE_ERROR"
    assert "no resume" in stopped.named("trip")[0]["detail"]


def test_a_spot_that_ends_while_its_place_is_proved_for_a_resume_is_no_error(tmp_path: Path) -> None:
    """The magnets are then already sent to the next place, which is proved before it gets beam."""

    async def script(d: Delivery) -> None:
        plant = d.plant
        await d.until(lambda: plant["eng_visit"] == 5 and plant["eng_sub"] == SUB_DELIVER and plant["request"] == 1)
        await d.commands.pause(OPERATOR)
        engine = d.run.devices.scan_controller
        assert isinstance(engine, StepEngine)
        resuming, readback, spot = asyncio.current_task(), engine.supply.readback, engine.electrometer.spot
        over = False

        async def moved_on(deadline: Deadline) -> MagnetReadback:
            nonlocal over
            got = await readback(deadline)
            if asyncio.current_task() is not resuming:
                return got
            over = True
            return replace(got, x_set_a=got.x_set_a + 1.0)

        async def ended(deadline: Deadline) -> SpotStatus:
            got = await spot(deadline)
            return replace(got, waiting=True) if over and asyncio.current_task() is resuming else got

        engine.supply.readback = moved_on  # type: ignore[method-assign]
        engine.electrometer.spot = ended  # type: ignore[method-assign]
        await d.commands.resume(OPERATOR)
        assert over

    assert run_delivery(PLAN, SITE, tmp_path / "t", script=script, whole=False).outcome.status == "completed"


@pytest.mark.parametrize(
    ("scenario", "named"),
    [
        (fault("plant.gain_1", scale=0.7), {"BACKUP_TRIPPED", "MONITORS_DISAGREE", "SPOT_DOSE_SECONDARY"}),
        (fault("plant.chopper_stuck", value=1), {"BEAM_WITHOUT_REQUEST", "SPOT_DOSE_PRIMARY", "BACKUP_TRIPPED"}),
        # silent between two spots: the next one's beam comes with no request that anybody has seen. That is said after
        # 2 ms (beam_off_proof_ms), long before the silence itself (stale_ms), and with the name of the silent stream
        (fault("plant.silent_3", value=1), {"STREAM_SILENT_3", "FRAME_LOSS_3", "BEAM_WITHOUT_REQUEST"}),
        (fault("plant.emergency_stop", value=1), {"CHAIN_OPENED", "CHAIN_INPUT"}),
        (fault("plant.offset_x_mm", value=3), {"SPOT_POSITION", "POSITION_MEAN"}),
    ],
    ids=["primary low", "chopper stuck", "supply silent", "emergency stop", "beam off place"],
)
def test_the_other_protections_are_as_in_any_room(scenario: str, named: set[str], tmp_path: Path) -> None:
    stopped = run_delivery(PLAN, SITE, tmp_path / "t", faults=scenario)
    assert stopped.first_out in named
    assert stopped.plant["beam_present"] == 0
    counts_accounted(stopped, [0])
