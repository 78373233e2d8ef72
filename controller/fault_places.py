"""Whether a scenario's places exist in a plan: a fault of a field, layer or visit that there is none of never fires."""

from __future__ import annotations

from typing import Protocol

from controller.plan.model import Plan, PlanField


class Place(Protocol):
    """Where a fault happens (`simulators.fault_places`): numbers from 1 on, None: not asked for."""

    @property
    def field(self) -> int | None: ...
    @property
    def layer(self) -> int | None: ...
    @property
    def visit(self) -> int | None: ...
    @property
    def visits(self) -> int | None: ...


def why_never(place: Place, plan: Plan) -> str:
    """What of a place the plan does not have; '' where it has all of it."""
    fields = plan.fields
    if place.field is not None:
        if place.field > len(fields):
            return f"field {place.field}: the plan has {_number(len(fields), 'field')}"
        fields = fields[place.field - 1 : place.field]
    where = "the plan has" if len(fields) != 1 else f"field {fields[0].name} has"
    most = "at most " if len(fields) > 1 else ""
    layers, visits = max(len(f.layers) for f in fields), max(_visits(f) for f in fields)
    if place.layer is not None and place.layer > layers:
        return f"layer {place.layer}: {where} {most}{_number(layers, 'layer')}"
    if place.visit is not None and place.visit > visits:
        return f"visit {place.visit}: {where} {most}{_number(visits, 'visit')}"
    total = sum(_visits(f) for f in plan.fields)
    if place.visits is not None and place.visits > total:
        return f"visits {place.visits}: the plan has {total} in all"
    return ""


def _visits(field: PlanField) -> int:
    return sum(sum(w > 0 for w in layer.meterset) * layer.paintings for layer in field.layers)


def _number(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
