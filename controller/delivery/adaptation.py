"""What one field learns from its own spots for the layers still to come: presets (`early`), position (`steering`).

Both look at every measured visit as it comes, change nothing in a layer that is armed or runs, and write each change
down. A site that asks for neither has a field without any of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.delivery.early import BeamOffLearner, Estimate, LayerMeter, counts_after
from controller.delivery.early_table import FIELD_SHARE, Table, adapted, planned
from controller.delivery.run import Run
from controller.delivery.steering import Decision, PositionFeedback, offset_currents_a
from controller.machine.field_program import treatment_machine
from controller.machine.optics import Optics
from controller.machine.program import LayerProgram
from controller.record.schema import QUALITY_FRAMES_LOST, QUALITY_NO_POSITION, QUALITY_SATURATED

BAD_POSITION = QUALITY_NO_POSITION | QUALITY_FRAMES_LOST | QUALITY_SATURATED


class Adaptation:
    """One part of one field."""

    def __init__(self, run: Run, programs: Sequence[LayerProgram]) -> None:
        site = run.site
        self._run = run
        self._programs = tuple(programs)
        self._firsts = np.array([int(p.visits["visit"][0]) for p in programs])
        # step mode ends each spot by a preset of its own: there is no target from which a beam-off could be measured
        learns = site.scanning.learn_early and site.scanning.engine == "device"
        self._learner = BeamOffLearner(site) if learns else None
        self._feedback = PositionFeedback(site.scanning) if site.scanning.position_feedback else None
        self._optics = Optics(site, treatment_machine(site, run.plan.fields[programs[0].field_index]))
        self._tail_ns = (site.accelerator.beam_off_delay_us + 8 * site.dosimetry.primary.lag_us) * 1e3
        self._meters: dict[int, LayerMeter] = {}
        """By first visit, since a resumed layer may come as two programs: of those whose table went to the engine."""
        field = programs[0].field_index
        total = sum(int(p.visits["preset_counts"].sum(dtype="u8")) for p in run.planned[field])
        spent = 0 if run.carried is None else run.carried.early_moved.get(field, 0)
        # a field's, over all its parts: a resumed one gets what is left of it, never a fresh share
        self._allowance = max(0, int(FIELD_SHARE * total) - spent)
        self._estimates: dict[int, Estimate] = {}
        self._armed_mm: dict[int, tuple[float, float]] = {}
        """Offset with which each layer was armed, by first visit: electrometer 2 may show a layer's last visit late."""

    def observe(self, rows: NDArray[Any]) -> None:
        """Measured visits of the real-time path, in their order."""
        if self._learner is None and self._feedback is None:
            return
        for row in rows:
            at = int(np.searchsorted(self._firsts, int(row["visit"]), side="right")) - 1
            if at < 0:
                continue
            program = self._programs[at]
            v = program.visits
            index = int(np.searchsorted(v["visit"], int(row["visit"])))
            if index >= len(v) or int(v["visit"][index]) != int(row["visit"]):
                continue
            if self._feedback is not None and not int(row["quality"]) & BAD_POSITION:
                planned_at = v[index]
                self._feedback.take(
                    float(row["x_mm"]) - float(planned_at["x_mm"]),
                    float(row["y_mm"]) - float(planned_at["y_mm"]),
                    self._armed_mm.get(_first(program)),
                )
            if self._learner is not None and _first(program) in self._meters:
                self._measure(self._learner, program, row)

    def _measure(self, learner: BeamOffLearner, program: LayerProgram, row: Any) -> None:
        for time_us in self._meters[_first(program)].take(row):
            change = learner.take(program.intensity_level, program.layer_index, time_us)
            if change is not None:
                self._run.trip(
                    "BEAM_OFF_CHANGED",
                    value=change.difference_us,
                    limit=self._run.site.scanning.beam_off_change_us,
                    detail=f"against {change.reference}, visit {int(row['visit'])}",
                )

    def table(self, program: LayerProgram) -> Table:
        """The presets with which a layer shall be downloaded now."""
        table = planned(program)
        learner = self._learner
        if learner is None:
            return table
        estimate = learner.estimate(program.intensity_level)
        if estimate is not None:
            late = counts_after(program, learner.learn(program.intensity_level, estimate))
            table = adapted(program, late, self._allowance)
            self._allowance -= abs(table.moved_counts)
            self._estimates[_first(program)] = estimate
        self._meters[_first(program)] = LayerMeter(program, table, self._tail_ns)
        return table

    def downloaded(self, program: LayerProgram, table: Table) -> None:
        """The layer's table has been read back from the engine: what was learned and changed goes to the journal."""
        estimate = self._estimates.pop(_first(program), None)
        if estimate is None:
            return
        site, v = self._run.site, program.visits
        moved = np.flatnonzero(table.preset_counts != v["preset_counts"])
        self._run.event(
            "early",
            field=program.field_index,
            layer=program.layer_index,
            energy_mev_u=program.energy_mev_u,
            intensity_level=program.intensity_level,
            delay_us=round(estimate.after_us - site.dosimetry.primary.lag_us, 3),
            uncertainty_us=round(estimate.uncertainty_us, 3),
            tail_counts=round(counts_after(program, estimate.after_us), 3),
            spots=estimate.spots,
            learned_in=list(estimate.layers),
            early_off_before=program.early_off_counts,
            early_off_after=table.early_off_counts,
            visits=[int(n) for n in v["visit"][moved]],
            preset_before=[int(n) for n in v["preset_counts"][moved]],
            preset_after=[int(n) for n in table.preset_counts[moved]],
            moved_counts=table.moved_counts,
            allowance_counts=self._allowance,
        )

    def steer(self, program: LayerProgram) -> tuple[float, float]:
        """Offsets (A) with which a layer shall be armed now, by all spots measured so far.

        A correction beyond the site's limit is a trip, and the offset stays what it was.
        """
        feedback = self._feedback
        if feedback is None:
            return 0.0, 0.0
        decision = feedback.decide()
        self._armed_mm[_first(program)] = feedback.offset_mm
        site = self._run.site
        axes = (site.scanning.x, site.scanning.y)
        offset_a = offset_currents_a(self._optics, axes, program, feedback.offset_mm)
        if decision is not None:
            self._say(program, decision, offset_a)
        return offset_a

    def _say(self, program: LayerProgram, decision: Decision, offset_a: tuple[float, float]) -> None:
        run = self._run
        if decision.changed:
            run.event(
                "steering",
                field=program.field_index,
                layer=program.layer_index,
                spots=decision.spots,
                x_error_mm=round(decision.error_mm[0], 6),
                y_error_mm=round(decision.error_mm[1], 6),
                x_uncertainty_mm=round(decision.uncertainty_mm[0], 6),
                y_uncertainty_mm=round(decision.uncertainty_mm[1], 6),
                x_before_mm=round(decision.before_mm[0], 6),
                y_before_mm=round(decision.before_mm[1], 6),
                x_after_mm=round(decision.after_mm[0], 6),
                y_after_mm=round(decision.after_mm[1], 6),
                x_offset_a=offset_a[0],
                y_offset_a=offset_a[1],
                applied=not decision.beyond,
            )
        if decision.beyond:
            size = float(np.hypot(*decision.after_mm))
            limit = run.site.scanning.position_feedback_limit_mm
            run.trip("POSITION_FEEDBACK_BOUND", value=size, limit=limit, detail=f"for layer {program.layer_index + 1}")


def _first(program: LayerProgram) -> int:
    return int(program.visits["visit"][0])
