"""What a resumed part brings: a layer in two programs, a share of its own bounds, visits booked once, spills anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from controller.clock import now_ns
from controller.delivery import treatment
from controller.delivery.account import Ledger
from controller.delivery.adaptation import Adaptation
from controller.delivery.early_table import FIELD_SHARE, spot_bounds
from controller.delivery.layer import READY
from controller.delivery.programs import build_programs
from controller.delivery.run import Run
from controller.machine.program import LayerProgram
from sites.loader import load_site
from sites.schema import Site
from tests.delivery_rig import EXAMPLES, Delivery, counts_accounted, run_delivery
from tests.layered_plans import adapting_site, layered_plan
from tests.plan_models import plan_field, spots
from tests.plant_rig import CARBON, programs_of


def part_of(program: LayerProgram, rows: slice) -> LayerProgram:
    return replace(program, visits=program.visits[rows].copy())


@pytest.fixture
def first_visit_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the rest of a visit needs a lower intensity than what follows it."""

    def split(run: Run, visits: Any) -> None:
        build_programs(run, visits)
        first, *others = run.programs[0]
        run.programs[0] = (part_of(first, slice(0, 1)), part_of(first, slice(1, None)), *others)

    monkeypatch.setattr(treatment, "build_programs", split)


def guarded(site: Site) -> Site:
    permits = site.permits.model_copy(update={"required": ("controller", "guard")})
    return site.model_copy(update={"permits": permits})


@pytest.mark.usefixtures("first_visit_apart")
def test_the_guard_lets_a_layer_run_that_comes_in_two_and_its_beam_offs_are_not_mistaken(tmp_path: Path) -> None:
    plan = layered_plan(tmp_path / "plan.dcm", 3, spots=25, pitch_mm=10.0)
    done = run_delivery(plan, guarded(adapting_site(learn_early=True)), tmp_path / "out")
    assert done.outcome.status == "completed", done.summary["trips"]
    counts_accounted(done, [0])
    for event in done.named("early"):
        assert event["delay_us"] == pytest.approx(250.0, abs=4 * event["uncertainty_us"] + 5)


def adaptation(spent: int, programs: tuple[LayerProgram, ...], whole: tuple[LayerProgram, ...]) -> Adaptation:
    run: Any = SimpleNamespace(
        site=adapting_site(learn_early=True),
        plan=SimpleNamespace(fields=(plan_field(),)),
        planned=[whole],
        carried=SimpleNamespace(early_moved={0: spent}),
    )
    return Adaptation(run, programs)


def test_presets_of_all_parts_of_a_field_move_by_two_per_mille_together() -> None:
    layers = [spots([(4.0 * k, 0.0, 2.0) for k in range(-5, 6)], energy_mev_u=e) for e in (250.0, 240.0)]
    whole = programs_of(CARBON, *layers)
    limit = int(FIELD_SHARE * sum(int(p.visits["preset_counts"].sum()) for p in whole))
    assert limit > 20
    for spent in (0, 15, limit, 10 * limit):
        rest = adaptation(spent, whole[1:], whole)
        assert rest._allowance == max(0, limit - spent)


def test_a_spot_moves_by_two_counts_over_its_paintings_whichever_part_has_them() -> None:
    small = spots([(4.0 * k, 0.0, 2.0) for k in range(5)], paintings=2)
    program = part_of(programs_of(CARBON, small)[0], slice(None))
    program.visits["preset_counts"] = 40  # 2 % of it is less than a count
    last = part_of(program, slice(7, None))
    np.testing.assert_array_equal(spot_bounds(last), spot_bounds(program)[7:])


def test_a_visit_that_the_rings_had_is_not_booked_again_from_frames(tmp_path: Path) -> None:
    booked: list[int] = []

    async def script(d: Delivery) -> None:
        running = d.run.path.monitor.running
        await d.until(lambda: int(running["visit"]) == 5)
        program = d.run.programs[0][0]
        for last in (4, 5):
            ledger = Ledger(d.run)
            ledger._last = (last, 0, 0)
            booked.append(ledger.book_frames(program))
        d.commands.abort("simulated", "test")

    run_delivery(EXAMPLES / "small_carbon.dcm", "carbon-fixed", tmp_path / "out", script=script)
    assert booked == [1, 0]


def slow_registers(d: Delivery, lag_ns: int) -> None:
    """Accelerator and sensors say for some time after a spill what they said in it."""
    accelerator, chain = d.run.devices.accelerator, d.run.devices.safety_chain
    honest, honest_chain = accelerator.status, chain.status
    ready_ns, energy, energy_ns = [-(10**12)], [0.0], [-(10**12)]

    async def status(deadline: Any) -> Any:
        got = await honest(deadline)
        if got.state == READY:
            ready_ns[0] = now_ns()
        elif now_ns() - ready_ns[0] < lag_ns:
            return replace(got, state=READY)
        return got

    async def chain_status(deadline: Any) -> Any:
        got = await honest_chain(deadline)
        if got.energy_sensor_mev_u > 0:
            energy[0], energy_ns[0] = got.energy_sensor_mev_u, now_ns()
        elif now_ns() - energy_ns[0] < lag_ns:
            return replace(got, energy_sensor_mev_u=energy[0], ion_sensor="12C")
        return got

    accelerator.status, chain.status = status, chain_status  # type: ignore[method-assign]


def test_a_spill_is_verified_in_that_spill_however_slow_the_registers_are(tmp_path: Path) -> None:
    site = load_site("carbon-fixed")
    short = site.accelerator.model_copy(update={"flat_top_s": 0.05, "gap_s": 0.4})

    async def script(d: Delivery) -> None:
        slow_registers(d, 150_000_000)

    plan = EXAMPLES / "small_carbon.dcm"
    done = run_delivery(plan, site.model_copy(update={"accelerator": short}), tmp_path / "out", script=script)
    phases = [e["phase"] for e in done.named("spill")]
    verified = [at for at, phase in enumerate(phases) if phase == "verified"]
    assert verified
    assert {phases[at - 1] for at in verified} == {"begin"}


def test_what_the_accelerator_says_of_a_spill_that_has_ended_verifies_no_other(tmp_path: Path) -> None:
    """Its registers are slower than the gap is long: when the next spill is there, they still show the one before."""
    site = load_site("carbon-fixed")
    quick = site.accelerator.model_copy(update={"gap_s": 0.1})

    async def script(d: Delivery) -> None:
        accelerator = d.run.devices.accelerator
        honest = accelerator.status
        said: list[Any] = []

        async def status(deadline: Any) -> Any:
            said.append(await honest(deadline))
            old = [s for s in said if s.t_ns <= now_ns() - 110_000_000 and s.request_id == said[-1].request_id]
            return replace(old[-1], t_ns=said[-1].t_ns) if old else said[-1]

        accelerator.status = status  # type: ignore[method-assign]

    done = run_delivery(
        EXAMPLES / "small_carbon.dcm",
        site.model_copy(update={"accelerator": quick}),
        tmp_path / "out",
        faults='[[fault]]\nname = "spill_ends_early"\nfor_s = 0.001\nat = { field = 1, visit = 6 }\n',
        script=script,
    )
    events = [e for e in done.events if e["event"] == "spill" or (e["event"] == "layer" and e["phase"] == "ready")]
    numbers = [e["spill"] for e in events if "spill" in e]
    assert any(e["event"] == "spill" and e["phase"] == "verified" for e in events)
    assert len(set(numbers)) == len(numbers)
    assert done.outcome.status == "completed"
