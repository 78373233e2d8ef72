"""A witness beside the simulated room: whenever there is beam, it looks with the plant's own eyes whether there may be.

It knows nothing of what the controller believes. Each component of S1 has a bound: how long beam may outlast the end
of it (reading, judging, dropping, the chopper). Beam without the component for longer is a breach.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from controller.compose import VirtualWorld
from controller.delivery.run import Run
from controller.delivery.states import State
from interlocks.slow import angle_difference

STEP_NS = 1_000_000
BOUND_MS = {
    "chain closed": 2.0,  # chopper delay, a frame, this step
    "latch clear": 5.0,  # the drop, then as above
    "operator wants beam": 60.0,  # a pause goes to the engine over Modbus
    "permits fresh": 2.0,
    "set up and checked": 2.0,
    "energy": 700.0,  # max_age_ms of the sensors' status, a poll, the interlock task
    "gantry": 2200.0,
    "couch": 2200.0,
    "monitors tested": 2.0,
}


@dataclass
class Witness:
    """What was seen so far."""

    run: Run | None = None
    steps: int = 0
    beam_steps: int = 0
    breaches: list[str] = field(default_factory=list)
    _last_true: dict[str, int] = field(default_factory=dict)
    _particles: int = 0

    def look(self, world: VirtualWorld) -> None:
        """One step of the room has passed."""
        self.steps += 1
        state = world.room.plant.state
        t_ns = int(state["t_ns"])
        beam = int(state["particles"]) > self._particles
        self._particles = int(state["particles"])
        facts = self._facts(world, state, t_ns)
        for name, true in facts.items():
            if true:
                self._last_true[name] = t_ns
        if not beam:
            return
        self.beam_steps += 1
        for name in facts:
            since_ms = (t_ns - self._last_true.get(name, -(10**15))) * 1e-6
            if since_ms > BOUND_MS[name]:
                self.breaches.append(f"{t_ns * 1e-9:.4f} s: beam, and not {name!r} for {since_ms:.1f} ms")

    def _facts(self, world: VirtualWorld, state: Any, t_ns: int) -> dict[str, bool]:
        run = self.run
        if run is None:
            return dict.fromkeys(BOUND_MS, False)
        plan = run.plan.fields[max(run.tally.field_index, 0)]
        visit = int(state["eng_visit"])
        layer = next((p for p in self._programs(run) if len(p.visits) and p.visits["visit"][-1] >= visit), None)
        true_energy = float(world.room.plant.tune[0]["energy_mev_u"]) + float(
            world.room.plant.parameters["energy_offset_mev_u"]
        )
        couch = world.room.couch.axes
        wanted = run.expected.couch
        tests = (run.self_tests.get("electrometer_1"), run.self_tests.get("electrometer_2"))
        return {
            "chain closed": bool(state["closed"]),
            "latch clear": not run.latch.tripped,
            "operator wants beam": run.state is State.DELIVERING,
            "permits fresh": t_ns - int(state["permit_1_ns"]) <= int(state["time_out_ns"]),
            "set up and checked": run.field_set_up == run.tally.field_index and run.changed == () and run.approved,
            "energy": layer is not None and abs(true_energy - layer.energy_mev_u) <= 0.2,
            "gantry": angle_difference(world.room.gantry.angle_deg, plan.gantry_deg) <= 0.35,
            "couch": wanted is not None
            and all(abs(couch[a].position - getattr(wanted, a)) <= 0.6 for a in ("vertical_mm", "lateral_mm")),
            "monitors tested": None not in tests,
        }

    @staticmethod
    def _programs(run: Run) -> Any:
        return run.programs[run.tally.field_index] if 0 <= run.tally.field_index < len(run.programs) else ()


class WitnessedWorld(VirtualWorld):
    """The room in steps of a millisecond, with a witness."""

    witness: Witness

    def run_to(self, t_ns: int) -> int:
        """Never further than a step at once."""
        reached = super().run_to(min(t_ns, int(self.room.plant.state["t_ns"]) + STEP_NS))
        self.witness.look(self)
        return reached
