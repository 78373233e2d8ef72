"""Where the controller's understanding of a plan and the second reader's differ: a list of sentences."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from controller.plan.model import Plan, PlanField
from tests.plan_reader import ReadField, ReadPlan


def differences(plan: Plan, other: ReadPlan) -> list[str]:
    """Return what differs; empty if both understood the same."""
    found = list(_plan(plan, other))
    for field, read in zip(plan.fields, other.fields, strict=False):
        found.extend(f"beam {field.number}: {difference}" for difference in _field(field, read))
    return found


def _plan(plan: Plan, other: ReadPlan) -> Iterator[str]:
    if plan.approval != other.approval:
        yield f"approval {plan.approval} is {other.approval}"
    if plan.fraction_group != other.group:
        yield f"fraction group {plan.fraction_group} is {other.group}"
    if {plan.gating} - {None} != other.motions:
        yield f"gating {plan.gating} is {other.motions}"
    if [f.number for f in plan.fields] != [f.number for f in other.fields]:
        yield f"beams {[f.number for f in plan.fields]} are {[f.number for f in other.fields]}"


def _field(field: PlanField, read: ReadField) -> Iterator[str]:
    pairs = [
        ("machine", field.machine_name, read.machine),
        ("ion", field.ion, read.ion),
        ("unit", field.unit, read.unit),
        ("VSAD", field.vsad_mm or (), read.vsad_mm),
    ]
    for what, ours, theirs in pairs:
        if ours != theirs:
            yield f"{what} {ours!r} is {theirs!r}"
    if not np.isclose(field.meterset, read.meterset, rtol=1e-12):
        yield f"meterset {field.meterset} is {read.meterset}"
    for what, ours_deg, theirs_deg in (
        ("gantry", field.gantry_deg, read.gantry_deg),
        ("couch", field.couch.rotation_deg, read.couch_deg),
    ):
        if not np.isnan(theirs_deg) and not np.isclose(ours_deg, theirs_deg % 360.0 % 360.0, rtol=0, atol=1e-9):
            yield f"{what} {ours_deg} is {theirs_deg}"
    layers = [layer for layer in field.layers if any(layer.meterset)]
    if len(layers) != len(read.layers):
        yield f"{len(layers)} layers are {len(read.layers)}"
    for ours_l, theirs_l in zip(layers, read.layers, strict=False):
        where = f"control point {ours_l.control_point}"
        for what, a, b in (
            ("control point", ours_l.control_point, theirs_l.point),
            ("energy", ours_l.energy_mev_u, theirs_l.energy_mev_u),
            ("tune", ours_l.tune_id, theirs_l.tune),
            ("paintings", ours_l.paintings, theirs_l.paintings),
            ("range shifters", tuple(s.number for s in ours_l.range_shifters), theirs_l.shifters_in),
        ):
            if a != b:
                yield f"{where}: {what} {a!r} is {b!r}"
        if not (np.array_equal(ours_l.x_mm, theirs_l.x_mm) and np.array_equal(ours_l.y_mm, theirs_l.y_mm)):
            yield f"{where}: positions differ"
        if len(ours_l.meterset) != len(theirs_l.meterset) or not np.allclose(
            ours_l.meterset, theirs_l.meterset, rtol=1e-12, atol=0
        ):
            yield f"{where}: metersets differ"
