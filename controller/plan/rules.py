"""The registry of rules: every reason for which Spotwise turns a plan down or comments on it, as data.

Five lists, by what follows. `MALFORMED_RULES`: the file cannot be used (exit 2). `UNSUPPORTED_RULES`: the file
is sound, but asks for something that Spotwise does not deliver (exit 3). `PLAN_RULES`: about the plan as a
whole, whatever the machine (exit 3 where the severity is refuse). Rules that need the numbers of a machine
live in `controller.machine.deliverable.SITE_RULES`. `ROOM_RULES`: what `deliver` will ask for beside the plan; the
plan may be delivered all the same. `docs/rules.md` is made from all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from controller.plan.findings import Finding, Severity
from drivers.errors import BadInput, Refused


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: its name, how bad it is, what it means, and what a reader of the finding should do."""

    name: str
    severity: Severity
    meaning: str
    action: str


def _refuse(name: str, meaning: str, action: str) -> Rule:
    return Rule(name, "refuse", meaning, action)


_EXPORT_AGAIN = "Export the plan again from the planning system; do not repair the file by hand."
_REPLAN = "Plan again without it, or deliver on a machine that supports it."

MALFORMED_RULES: tuple[Rule, ...] = (
    _refuse(
        "WRONG_USAGE",
        "An option does not fit this file, such as an angle given for a plan that has its own.",
        "Leave the option out.",
    ),
    _refuse(
        "FILE_UNREADABLE",
        "The file cannot be opened or read, is empty, or is not a regular file.",
        "Check path, permissions and disk.",
    ),
    _refuse(
        "FORMAT_UNKNOWN",
        "The content is neither DICOM (128-byte preamble, then DICM) nor a TRiP98 raster file (first word rstfile).",
        "Give an RT Ion Plan or an .rst file.",
    ),
    _refuse(
        "LIMIT_EXCEEDED",
        "Something in the file is larger than any plan needs: the file, a value, nesting, or the number of "
        "elements, fields, layers or spots.",
        "Split the plan, or find out who made this file.",
    ),
    _refuse(
        "TRANSFER_SYNTAX",
        "The data set is not in Implicit or Explicit VR Little Endian. Deflated, big-endian and image "
        "transfer syntaxes are not read.",
        "Export the plan as Implicit or Explicit VR Little Endian.",
    ),
    _refuse("TRUNCATED", "The file ends inside an element, a sequence or a list.", _EXPORT_AGAIN),
    _refuse(
        "DICOM_STRUCTURE",
        "The file breaks the encoding rules of DICOM PS3.5: order of elements, repeated elements, lengths, "
        "value representations, or delimiters.",
        _EXPORT_AGAIN,
    ),
    _refuse(
        "NOT_AN_ION_PLAN",
        "The SOP class is not RT Ion Plan Storage. The modality does not decide: photon plans are RTPLAN too.",
        "Give the RT Ion Plan.",
    ),
    _refuse(
        "MISSING_VALUE",
        "An attribute that delivery depends on is absent or empty. Nothing is assumed for it.",
        _EXPORT_AGAIN,
    ),
    _refuse("BAD_VALUE", "A value is not of its type, out of its range, or none of its defined terms.", _EXPORT_AGAIN),
    _refuse("NON_FINITE_VALUE", "A number is NaN or infinite.", _EXPORT_AGAIN),
    _refuse("NEGATIVE_WEIGHT", "A spot has a negative weight or particle number.", _EXPORT_AGAIN),
    _refuse(
        "DUPLICATE_NUMBER", "Two items carry the same number, such as two beams with one BeamNumber.", _EXPORT_AGAIN
    ),
    _refuse("COUNT_MISMATCH", "A declared number differs from the number of items that follow.", _EXPORT_AGAIN),
    _refuse(
        "POSITION_MAP_LENGTH",
        "The length of ScanSpotPositionMap is not 2 x NumberOfScanSpotPositions.",
        _EXPORT_AGAIN,
    ),
    _refuse(
        "SPOT_COUNT_MISMATCH",
        "The number of spot weights differs from NumberOfScanSpotPositions. Nothing is cut to fit.",
        _EXPORT_AGAIN,
    ),
    _refuse("CONTROL_POINT_INDEX", "Control points are not numbered 0, 1, 2 ... in their order.", _EXPORT_AGAIN),
    _refuse(
        "CUMULATIVE_NOT_MONOTONIC",
        "The cumulative meterset weight does not start at 0, or goes down between control points.",
        _EXPORT_AGAIN,
    ),
    _refuse(
        "FINAL_WEIGHT_MISMATCH",
        "The last cumulative meterset weight differs from FinalCumulativeMetersetWeight.",
        _EXPORT_AGAIN,
    ),
    _refuse(
        "WEIGHT_SUM_MISMATCH",
        "Spot weights of a control point do not add up to the step of the cumulative weight "
        "(tolerance 1e-5 of the final weight), or the last control point has weights.",
        _EXPORT_AGAIN,
    ),
    _refuse(
        "END_POINT_DIFFERS",
        "The control point that closes a layer repeats its spots, but with other positions, energy, tune or "
        "paintings than the one that opens it: one of the two is damaged.",
        _EXPORT_AGAIN,
    ),
    _refuse(
        "FRACTION_GROUP_UNKNOWN",
        "The fraction group asked for is not in the plan.",
        "Choose one of the numbers that the message lists.",
    ),
    _refuse("REFERENCED_BEAM_MISSING", "A fraction group references a beam that is not in the plan.", _EXPORT_AGAIN),
    _refuse(
        "BEAM_NOT_REFERENCED",
        "A treatment beam is in no fraction group, so that nothing says how much of it to deliver.",
        _EXPORT_AGAIN,
    ),
    _refuse("METERSET_MISSING", "A referenced treatment beam has no, or zero, BeamMeterset.", _EXPORT_AGAIN),
    _refuse("SETUP_BEAM_METERSET", "A set-up beam has a meterset: it is one or the other.", _EXPORT_AGAIN),
    _refuse(
        "PATIENT_SETUP_UNCLEAR",
        "A beam references a patient set-up that is not in the plan, or none where several differ.",
        _EXPORT_AGAIN,
    ),
    _refuse(
        "RANGE_SHIFTER_SETTING",
        "A range shifter is listed without a setting, or a setting refers to none, or says neither IN nor OUT.",
        _EXPORT_AGAIN,
    ),
    _refuse("TRIP98_SYNTAX", "A line of the raster file is not what the format wants at this place.", _EXPORT_AGAIN),
    _refuse(
        "TRIP98_TOTALS",
        "Declared least, greatest or total particles differ from the points by more than print rounding.",
        _EXPORT_AGAIN,
    ),
)

UNSUPPORTED_RULES: tuple[Rule, ...] = (
    _refuse(
        "ARC_NOT_SUPPORTED",
        "Gantry, couch, snout or isocentre change within a field, or its BeamType is DYNAMIC.",
        "Plan again with static fields.",
    ),
    _refuse(
        "SCAN_MODE_NOT_SUPPORTED",
        "ScanMode is neither MODULATED nor MODULATED_SPEC with STATIONARY spots.",
        _REPLAN,
    ),
    _refuse(
        "MODIFIER_NOT_SUPPORTED",
        "The field needs a wedge, block, compensator, bolus, collimator, scatterer, analog range shifter or "
        "modulator wheel.",
        _REPLAN,
    ),
    _refuse("RADIATION_NOT_SUPPORTED", "The field is not of fully stripped ions or protons.", _REPLAN),
    _refuse(
        "DELIVERY_TYPE_NOT_SUPPORTED",
        "A referenced beam is neither TREATMENT nor SETUP, or the group has brachytherapy set-ups.",
        "Interrupted treatments are continued from their treatment directory, not from a plan.",
    ),
    _refuse(
        "MOTION_NOT_SUPPORTED",
        "Motion compensation other than NONE, GATING or BREATH_HOLD, or fields that differ in it.",
        "Plan again with one gating technique for all fields of the fraction group.",
    ),
    _refuse(
        "PATIENT_SUPPORT_NOT_SUPPORTED",
        "The patient support is not a table, or its eccentric axis or gantry pitch is used.",
        _REPLAN,
    ),
)

PLAN_RULES: tuple[Rule, ...] = (
    _refuse(
        "PLAN_NOT_APPROVED",
        "ApprovalStatus is not APPROVED; a DICOM plan without one counts as not approved. On a research site "
        "with --allow-unapproved this is a warning, except for a REJECTED plan, which nothing overrides.",
        "Have the plan approved.",
    ),
    Rule(
        "NO_APPROVAL",
        "warn",
        "TRiP98 raster files carry no approval. A research site delivers them with this warning; others refuse them.",
        "Make sure that this file is the one that was reviewed.",
    ),
    Rule(
        "FRACTION_GROUP_DEFAULTED",
        "warn",
        "The plan has several fraction groups, none was chosen, and the lowest is used.",
        "Give --fraction-group.",
    ),
    Rule("SETUP_BEAMS_IGNORED", "note", "The plan lists set-up beams. They are never delivered.", "Nothing."),
    Rule(
        "SEVERAL_ISOCENTRES",
        "note",
        "Fields have different isocentres.",
        "Move the patient between fields as the plan says.",
    ),
    Rule(
        "PATIENT_POSITION_VARIES",
        "warn",
        "Fields reference set-ups with different patient positions.",
        "Reposition the patient between fields as the plan says.",
    ),
    Rule(
        "COUCH_LEVEL_ASSUMED",
        "note",
        "The plan gives no pitch or roll of the couch; a level couch is set.",
        "Nothing, if the plan was made for a level couch.",
    ),
    Rule("ZERO_WEIGHT_SPOTS", "note", "Spots with zero weight are kept in the record and not delivered.", "Nothing."),
    Rule(
        "MIXED_UNITS",
        "note",
        "Fields in MU and in particles are mixed; the record is written in two parts.",
        "Nothing.",
    ),
    Rule(
        "ANGLES_NOT_OBEYED",
        "note",
        "Angles in a raster file follow its own convention. They are shown; the site or the command line gives "
        "the port.",
        "Compare the angles in use with the plan.",
    ),
)


ROOM_RULES: tuple[Rule, ...] = (
    Rule(
        "ROOM_WANTS",
        "warn",
        "What deliver will ask for in this room beside a deliverable plan: qualification and output QA of the day, key "
        "files, the ledger, a terminal with a named operator, a patient id to confirm. A note where it is only to be "
        "brought, a warning where it is missing now, and deliver would refuse.",
        "Bring or make it before the patient is there.",
    ),
)


def rule(name: str) -> Rule:
    """Return the registered rule of this module. Raises KeyError for a name that is none."""
    return _BY_NAME[name]


_BY_NAME = {r.name: r for r in (*MALFORMED_RULES, *UNSUPPORTED_RULES, *PLAN_RULES, *ROOM_RULES)}


def finding(name: str, where: str, message: str, severity: Severity | None = None) -> Finding:
    """Make a finding of a registered rule; `severity` replaces the registered one where a rule says so."""
    return Finding(name, severity or rule(name).severity, where, message)


def _text(file: str, findings: tuple[Finding, ...]) -> str:
    parts = [f"[{f.rule}] {f.where + ': ' if f.where else ''}{f.message}. {rule(f.rule).action}" for f in findings]
    return f"{file}: " + " ".join(parts)


class MalformedPlan(BadInput):
    """A plan file that cannot be used; `findings` says why, rule by rule."""

    def __init__(self, file: str, *findings: Finding) -> None:
        super().__init__(_text(file, findings))
        self.findings = findings


class UnsupportedPlan(Refused):
    """A sound plan that asks for something that Spotwise does not deliver; `findings` says what."""

    def __init__(self, file: str, *findings: Finding) -> None:
        super().__init__(_text(file, findings))
        self.findings = findings
