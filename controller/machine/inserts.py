"""Which snout, range shifter and ripple filter of the machine a field means; None where the machine has no such thing.

The nozzle holds one of each at a time, and reads each back by its code.
"""

from __future__ import annotations

import math
import re

from controller.plan.model import PlanField, RangeShifterSetting
from sites.schema import RangeShifter, RippleFilter, Snout, TreatmentMachine

WET_TOLERANCE_MM = 0.5
"""A plan may state the shifter's water-equivalent thickness rounded, but not another one."""

_MILLIMETRES = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)\s*mm\b", re.IGNORECASE)


def match_snout(machine: TreatmentMachine, field: PlanField) -> Snout | None:
    """Snout that the field names, or the machine's only one where the field names none."""
    if field.snout_id is None:
        return machine.snouts[0] if len(machine.snouts) == 1 else None
    return next((snout for snout in machine.snouts if snout.id == field.snout_id), None)


def wanted_range_shifters(field: PlanField) -> set[tuple[RangeShifterSetting, ...]]:
    """Distinct range shifter settings of the field's layers; one element where none changes within the field."""
    return {layer.range_shifters for layer in field.layers}


def match_range_shifter(machine: TreatmentMachine, setting: RangeShifterSetting) -> RangeShifter | None:
    """Range shifter of that id, if its thickness is also the plan's (where the plan states it)."""
    for shifter in machine.range_shifters:
        if shifter.id == setting.id:
            same = setting.wet_mm is None or math.isclose(setting.wet_mm, shifter.wet_mm, abs_tol=WET_TOLERANCE_MM)
            return shifter if same else None
    return None


def match_ripple_filter(machine: TreatmentMachine, text: str) -> RippleFilter | None:
    """Ripple filter with that id, or the only one of the thickness in a text such as '3 mm RIFI'."""
    for ripple_filter in machine.ripple_filters:
        if ripple_filter.id == text.strip():
            return ripple_filter
    stated = _MILLIMETRES.search(text)
    if stated is None:
        return None
    thickness = float(stated.group(1))
    fitting = [item for item in machine.ripple_filters if math.isclose(item.thickness_mm, thickness, abs_tol=1e-6)]
    return fitting[0] if len(fitting) == 1 else None
