"""What is left of a field after earlier parts: the visits that are not complete, the first of them cut to its rest.

Visits keep their ids over all parts, so that "visit 37 of field 2" is one thing everywhere. A part delivers a layer's
visits in order, hence what is left of a layer is its end, and one visit at most was begun and not finished. Before it
there may be visits that the machine ended short of their plan; the rest of each is a program of its own.

The rest of a visit is given when some intensity of the site can give it (`machine.intensity`, where the rules for rests
are): of one that was stopped together with what follows in the layer, where the usual rules allow it at no lower
intensity than that, else as a program of its own. Where no intensity can, or where the rest is no whole monitor count,
it is forgone, and said: no spot ever gets more than its plan to make up for it, nor does another one. So is what a
short visit lacks where a later layer was begun already: the guard's limits rise layer by layer, and there is no way
back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.machine.dosimetry import Corrections
from controller.machine.field_program import treatment_machine
from controller.machine.intensity import choose_intensity
from controller.machine.layer_program import LayerRefused, program_of
from controller.machine.optics import Optics
from controller.machine.overdose import peak_dose_gy_per_particle
from controller.machine.program import LayerProgram
from controller.plan.model import PlanField
from drivers.errors import Refused
from sites.schema import Site


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """What the visits of one field got in earlier parts; arrays by visit id (entry 0 is not used)."""

    particles_1: NDArray[np.float64]
    """By electrometer 1, all parts together."""
    particles_2: NDArray[np.float64]
    begun: NDArray[np.bool_]
    complete: NDArray[np.bool_]
    short: NDArray[np.bool_]
    """Ended by the machine itself, below the tolerance: not complete."""

    @classmethod
    def nothing(cls, visits: int) -> Given:
        """A field of so many visits that nobody began."""
        zero, no = np.zeros(visits + 1), np.zeros(visits + 1, np.bool_)
        return cls(zero, zero.copy(), no, no.copy(), no.copy())

    @property
    def any(self) -> bool:
        """Some visit was begun."""
        return bool(self.begun.any())


@dataclass(frozen=True, slots=True)
class Forgone:
    """The rest of a visit that no intensity can give."""

    program: LayerProgram
    """The layer's program, whole."""
    row: int
    """Of the visit in it."""
    particles: float
    """What it lacks; not above zero where it got more than its plan."""
    reason: str


@dataclass(frozen=True, slots=True)
class Remaining:
    """What is left of a field."""

    programs: tuple[LayerProgram, ...]
    """In the order of delivery; a layer may appear twice, a finished one not at all."""
    forgone: tuple[Forgone, ...]


def remaining_field(
    site: Site, field: PlanField, planned: Sequence[LayerProgram], given: Given, corrections: Corrections
) -> Remaining:
    """Cut the programs of a whole field to what `given` leaves.

    Raises `Refused` where what was given is no beginning of each layer: visits after an unfinished one, which did not
    end by itself, are begun. `planned` must have been built with the same `corrections`.
    """
    if not given.any:
        return Remaining(tuple(planned), ())
    programs: list[LayerProgram] = []
    forgone: list[Forgone] = []
    optics = Optics(site, treatment_machine(site, field))
    begun_layers = [k for k, program in enumerate(planned) if given.begun[program.visits["visit"]].any()]
    for at, program in enumerate(planned):
        ids = program.visits["visit"]
        undone = np.flatnonzero(~given.complete[ids])
        if len(undone) == 0:
            continue
        last_begun = int(np.flatnonzero(given.begun[ids]).max(initial=-1))
        lost = undone[(undone < last_begun) & ~given.short[ids[undone]]]
        if len(lost):
            raise Refused(
                f"field {field.name}, layer {program.layer_index + 1}: visit {int(ids[lost[0]])} is not finished, but "
                "later ones of its layer were begun; a physicist must look at the journal"
            )
        later = any(k > at for k in begun_layers)
        after = program.visits[last_begun + 1 :].copy()
        for row in undone[undone <= last_begun]:
            # what a pedestal left below zero is not given on top
            lacks = float(program.visits["particles"][row] - max(0.0, given.particles_1[ids[row]]))
            passed = later and bool(given.short[ids[row]])
            reason = "a later layer was begun" if passed else _cannot_be_given(site, program, int(row), lacks)
            if reason:
                forgone.append(Forgone(program, int(row), lacks, reason))
                continue
            rest = program.visits[row : row + 1].copy()
            rest["meterset"] *= lacks / rest["particles"][0]
            rest["particles"] = lacks
            if row == last_begun and len(after):
                apart = _build(site, field, program, after, corrections, optics)
                together = _together(site, field, program, np.concatenate([rest, after]), corrections, optics)
                if together is not None and together.intensity_level == apart.intensity_level:
                    programs.append(together)
                    after = after[:0]
                    continue
            whole = float(program.visits["particles"][row])
            programs.append(_build(site, field, program, rest, corrections, optics, rest_of=whole))
        if last_begun < 0:
            programs.append(program)
        elif len(after):
            programs.append(_build(site, field, program, after, corrections, optics))
    return Remaining(tuple(programs), tuple(forgone))


def _cannot_be_given(site: Site, program: LayerProgram, row: int, particles: float) -> str:
    """Why a rest of so many particles of the visit in `row` cannot be given; empty where it can."""
    counts = particles * program.counts_per_particle
    if counts < 1.0:
        return f"{counts:.3g} monitor counts are left, less than one"
    peak_gy = peak_dose_gy_per_particle(program.ion, program.energy_mev_u, program.sigma_x_mm, program.sigma_y_mm)
    whole = float(program.visits["particles"][row])
    alone = choose_intensity(
        site, program.ion, program.energy_mev_u, np.array([particles]), np.array([True]), peak_gy, rest_of=whole
    )
    if alone.level is None:
        return f"{alone.bound.reason}; the lowest intensity is {alone.rate_per_s:.4g}/s"
    return ""


def _build(
    site: Site,
    field: PlanField,
    program: LayerProgram,
    visits: NDArray[np.void],
    corrections: Corrections,
    optics: Optics,
    rest_of: float | None = None,
) -> LayerProgram:
    visits["flags"] = 0
    return program_of(
        site,
        treatment_machine(site, field),
        field,
        visits,
        field_index=program.field_index,
        layer_index=program.layer_index,
        energy_mev_u=program.energy_mev_u,
        corrections=corrections,
        optics=optics,
        rest_of=rest_of,
    )


def _together(
    site: Site,
    field: PlanField,
    program: LayerProgram,
    visits: NDArray[np.void],
    corrections: Corrections,
    optics: Optics,
) -> LayerProgram | None:
    """The rest and what follows it as one program; None where the rest is too small for any usual visit."""
    try:
        return _build(site, field, program, visits, corrections, optics)
    except LayerRefused:
        return None
