"""All layers of a field as programs, and the counts that they add up to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from controller.machine.dosimetry import Corrections
from controller.machine.layer_program import build_layer
from controller.machine.optics import Optics
from controller.machine.program import LayerProgram
from controller.plan.model import PlanField
from drivers.errors import Refused
from sites.schema import Site, Tolerances, TreatmentMachine


@dataclass(frozen=True, slots=True)
class FieldCounts:
    """Counts of a whole field on both monitors: planned, and where delivery must stop."""

    planned_1: int
    planned_2: float
    limit_1: int
    limit_2: int


def treatment_machine(site: Site, field: PlanField) -> TreatmentMachine:
    """Machine that a field means; a field that names none (TRiP98) has the site's choice for its ion.

    Raises `Refused` where the site has none.
    """
    chosen = [name for ion, name in site.trip98_machine.items() if ion == field.ion]
    name = field.machine_name or (chosen[0] if chosen else "")
    machine = site.treatment_machines.get(name)
    if machine is None:
        raise Refused(
            f"[MACHINE_UNKNOWN] beam {field.number}: site {site.name} has no machine {name or 'for ' + field.ion}, "
            f"only {', '.join(site.treatment_machines)}"
        )
    return machine


def build_field(site: Site, field: PlanField, field_index: int, corrections: Corrections) -> tuple[LayerProgram, ...]:
    """Programs of all layers; visit ids run from 1 over the field. Raises `Refused` as `build_layer` does."""
    machine = treatment_machine(site, field)
    optics = Optics(site, machine)
    programs = []
    first_visit = 1
    for layer_index in range(len(field.layers)):
        program = build_layer(
            site,
            machine,
            field,
            field_index=field_index,
            layer_index=layer_index,
            first_visit=first_visit,
            corrections=corrections,
            optics=optics,
        )
        first_visit += len(program.visits)
        programs.append(program)
    return tuple(programs)


def field_counts(programs: Sequence[LayerProgram], tolerances: Tolerances) -> FieldCounts:
    """Planned counts of a field on both monitors, and the limits beyond which delivery trips."""
    planned_1 = sum(int(program.visits["preset_counts"].sum(dtype="u8")) for program in programs)
    planned_2 = sum(float(program.visits["expected_counts_2"].sum()) for program in programs)
    return FieldCounts(
        planned_1,
        planned_2,
        planned_1 + round(max(tolerances.field_dose * planned_1, tolerances.field_dose_counts)),
        round(planned_2 + max(tolerances.field_dose * planned_2, tolerances.field_dose_counts)),
    )
