"""A plan as a journal's header holds it, made a `Plan` again; its hash proves that nothing was lost or changed."""

from __future__ import annotations

from typing import Any

from controller.plan.model import CouchPosition, Layer, Plan, PlanField, RangeShifterSetting
from drivers.errors import BadInput


def plan_from_header(stored: dict[str, Any], content_sha256: str) -> Plan:
    """Build the plan. Raises `BadInput` where it is not the one with this hash, or of another version's shape."""
    try:
        plan = _plan(stored)
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(
            f"journal: HEADER: the plan cannot be read: {error!r}; was it written by another version?"
        ) from error
    if plan.content_sha256() != content_sha256:
        raise BadInput(
            f"journal: HEADER: the plan has hash {plan.content_sha256()[:16]}..., "
            f"the header says {content_sha256[:16]}..."
        )
    return plan


def _plan(stored: dict[str, Any]) -> Plan:
    values = dict(stored)
    values["fraction_groups"] = tuple(values["fraction_groups"])
    values["gating"] = _tuple(values["gating"])
    values["setup_beams"] = tuple(values["setup_beams"])
    values["shown"] = tuple(tuple(pair) for pair in values["shown"])
    values["fields"] = tuple(_field(field) for field in values["fields"])
    return Plan(**values)


def _field(stored: dict[str, Any]) -> PlanField:
    values = dict(stored)
    values["couch"] = CouchPosition(**values["couch"])
    values["vsad_mm"] = _tuple(values["vsad_mm"])
    values["isocenter_mm"] = _tuple(values["isocenter_mm"])
    values["lateral_spreaders"] = tuple(tuple(pair) for pair in values["lateral_spreaders"])
    values["layers"] = tuple(_layer(layer) for layer in values["layers"])
    return PlanField(**values)


def _layer(stored: dict[str, Any]) -> Layer:
    values = dict(stored)
    for name in ("x_mm", "y_mm", "meterset"):
        values[name] = tuple(values[name])
    values["spot_fwhm_mm"] = _tuple(values["spot_fwhm_mm"])
    values["range_shifters"] = tuple(RangeShifterSetting(**setting) for setting in values["range_shifters"])
    return Layer(**values)


def _tuple(value: list[Any] | None) -> tuple[Any, ...] | None:
    return None if value is None else tuple(value)
