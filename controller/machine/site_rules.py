"""The rules that compare a plan with a room, as data: `find_problems` reports by these names."""

from __future__ import annotations

from controller.plan.findings import Finding, Severity
from controller.plan.rules import Rule

_OTHER_ROOM = "Deliver in the room that the plan was made for, or plan again for this one."
_REPLAN = "Plan again within the machine's limits."


def _refuse(name: str, meaning: str, action: str) -> Rule:
    return Rule(name, "refuse", meaning, action)


SITE_RULES: tuple[Rule, ...] = (
    _refuse(
        "MACHINE_UNKNOWN",
        "The plan names a treatment machine that the site file does not have; or, for a raster file, the site has "
        "no machine for its ion.",
        _OTHER_ROOM,
    ),
    _refuse("ION_UNAVAILABLE", "The field's ion (particle) is not available on its machine.", _OTHER_ROOM),
    _refuse(
        "ENERGY_UNAVAILABLE",
        "A layer's energy is outside the machine's range, or farther from all its energies than the site tolerates.",
        _REPLAN,
    ),
    _refuse("FIELD_SIZE", "A spot lies outside the machine's scan field.", _REPLAN),
    _refuse(
        "MAGNET_RANGE",
        "A spot needs more current than a scan magnet's supply gives at that energy.",
        _REPLAN,
    ),
    _refuse(
        "SPOT_BELOW_MINIMUM",
        "A spot has, in each painting, less than the machine's minimum: MU for plans in MU, particles for plans in "
        "NP. Such spots are neither dropped nor raised.",
        "Plan again with the machine's minimum, or with fewer paintings.",
    ),
    _refuse("SPOT_ABOVE_MAXIMUM", "A spot has, in one painting, more than the machine's maximum.", _REPLAN),
    _refuse(
        "SPOT_TOO_SHORT",
        "Even at the lowest intensity the smallest visit of a layer would be over before it can be measured and "
        "ended: 1 ms, three drift times of the chambers, or what still comes after the decision.",
        "Plan again with larger spots or fewer paintings.",
    ),
    _refuse(
        "RATE_UNSAFE",
        "Even at the lowest intensity a beam that runs away would give 0.25 Gy too much at a spot's centre before it "
        "is stopped: a spike of ten times the intensity until electrometer 2 has cut it, a chopper that stays open "
        "until the accelerator has stopped, or a beam beside its place until that has been judged. The intensity of a "
        "layer is chosen below all three bounds.",
        "Deliver in a room with a lower intensity, or a faster chopper.",
    ),
    _refuse(
        "STEP_EXCESS",
        "Step mode: what may come after a spot's preset (ripple while the beam goes off, the electrometer's reaction, "
        "late charge) is more than the site's tolerance of a spot's dose.",
        "Plan again with larger spots, or deliver in a room with a lower intensity.",
    ),
    _refuse(
        "STEP_DEAD_TIME",
        "Step mode: beam would be off for longer before a spot than the site tolerates. `check` counts the devices "
        "alone; prepare adds PC and links as it finds them.",
        "A quieter PC, a shorter link, smaller moves, or a greater `scanning.stepping.dead_time_ms`.",
    ),
    _refuse(
        "SPOT_TOO_LONG",
        "At the intensity that the layer's smallest visit allows, its largest takes longer than the engine's timer, "
        "or more counts than its counter holds.",
        "Plan again with less difference between the spots of a layer, or with more paintings.",
    ),
    _refuse(
        "SPOT_NOT_MEASURABLE",
        "A visit is smaller than one monitor count.",
        "Plan again with larger spots or fewer paintings.",
    ),
    _refuse(
        "LAYER_TOO_LONG",
        "A layer has more visits (spots x paintings) than the spot engine's table.",
        "Plan again with fewer paintings, or split the layer.",
    ),
    _refuse(
        "GANTRY_ANGLE",
        "The room has no port at the field's gantry angle, or its gantry does not reach it.",
        _OTHER_ROOM,
    ),
    _refuse("COUCH_ROTATION", "The couch does not turn to the field's angle (0 to 360 degrees).", _REPLAN),
    _refuse("COUCH_PITCH_ROLL", "The couch does not pitch or roll that far.", _REPLAN),
    _refuse("COUCH_RANGE", "A couch position is outside the couch's range.", _REPLAN),
    _refuse("SNOUT", "The machine has no such snout, or the snout does not reach the position.", _OTHER_ROOM),
    _refuse(
        "RANGE_SHIFTER",
        "The machine has no range shifter of that id and thickness; or the plan wants several at once, or another "
        "one within the field.",
        _OTHER_ROOM,
    ),
    _refuse("RIPPLE_FILTER", "The machine has no ripple filter of that id or thickness.", _OTHER_ROOM),
    _refuse("TUNE_ID", "The machine has no such tune (ScanSpotTuneID; in raster files, the focus).", _OTHER_ROOM),
    _refuse(
        "VSAD_MISMATCH",
        "The plan was made for other virtual source distances than the machine's: its spots would land elsewhere.",
        _OTHER_ROOM,
    ),
    _refuse("GATING_SOURCE", "The room has no such respiratory signal source.", _OTHER_ROOM),
    Rule(
        "SPOT_SIZE_DIFFERS",
        "warn",
        "The plan's spot size differs from the machine's by more than 25 %. The machine's is delivered.",
        "Make sure that the plan was made with this machine's beam model.",
    ),
    Rule(
        "SPOT_DOSE_UNCERTAIN",
        "warn",
        "A visit gives so much dose that 0.25 Gy of it is less than the uncertainty of the two monitors' gains. Should "
        "monitor 1 read low, electrometer 2 can end the visit only at the excess that the finding states: a lower "
        "limit would stop good beam.",
        "Verify both monitors' calibration, or this field's dose by another method, before it is delivered.",
    ),
    Rule(
        "LAYER_EMPTY",
        "note",
        "A layer has no spot with weight and is not delivered.",
        "Nothing.",
    ),
    Rule(
        "DUPLICATE_SPOTS",
        "note",
        "Spots of a layer are at the same place. Each gets its own visit.",
        "Nothing, if rescanning by repeated spots is meant.",
    ),
)

_SEVERITIES: dict[str, Severity] = {rule.name: rule.severity for rule in SITE_RULES}


def site_finding(name: str, where: str, message: str) -> Finding:
    """Make a finding of a rule of this module. Raises KeyError for a name that is none."""
    return Finding(name, _SEVERITIES[name], where, message)
