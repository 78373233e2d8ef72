"""Which beams a plan has, and which of them a fraction group delivers, with how much.

Metersets are looked up by ReferencedBeamNumber, never by position: set-up beams need not be referenced. All faults
of the references are reported together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from controller.plan.dicom_beam import MAX_METERSET, BeamHead, read_head
from controller.plan.dicom_values import Node
from controller.plan.findings import Finding
from controller.plan.rules import MalformedPlan, UnsupportedPlan, finding

MAX_BEAMS: Final = 64


@dataclass(frozen=True, slots=True)
class FractionGroup:
    """A fraction group: metersets by beam number, None where the group gives none."""

    number: int
    fractions: int | None
    metersets: dict[int, float | None]
    has_brachytherapy: bool
    where: str


def read_heads(top: Node) -> dict[int, BeamHead]:
    """Return number, name and delivery type of all beams, by number, in the order of the file."""
    heads: dict[int, BeamHead] = {}
    for node in top.items("IonBeamSequence", "beam item", most=MAX_BEAMS):
        head = read_head(node)
        if head.number in heads:
            raise node.fail("DUPLICATE_NUMBER", f"BeamNumber {head.number} occurs twice")
        heads[head.number] = head
    if not heads:
        raise top.missing("IonBeamSequence")
    return heads


def read_groups(top: Node, heads: dict[int, BeamHead]) -> dict[int, FractionGroup]:
    """Return all fraction groups by number; every treatment beam is in one of them, with a meterset."""
    groups: dict[int, FractionGroup] = {}
    problems: list[Finding] = []
    for item in top.items("FractionGroupSequence", "fraction group item", most=MAX_BEAMS):
        number = item.integer("FractionGroupNumber", -(2**31), 2**31 - 1)
        if number in groups:
            raise item.fail("DUPLICATE_NUMBER", f"FractionGroupNumber {number} occurs twice")
        groups[number] = _group(item.at(f"fraction group {number}"), number, heads, problems)
    if not groups:
        raise top.missing("FractionGroupSequence")
    referenced = {number for group in groups.values() for number in group.metersets}
    for head in heads.values():
        if head.delivery == "TREATMENT" and head.number not in referenced:
            problems.append(
                finding("BEAM_NOT_REFERENCED", head.node.where, f"beam {head.number} is not in any fraction group")
            )
    if problems:
        raise MalformedPlan(top.file, *problems)
    return groups


def _group(node: Node, number: int, heads: dict[int, BeamHead], problems: list[Finding]) -> FractionGroup:
    references = node.items("ReferencedBeamSequence", "referenced beam", most=MAX_BEAMS)
    count = node.integer("NumberOfBeams", 0, 10_000)
    if count != len(references):
        raise node.fail("COUNT_MISMATCH", f"NumberOfBeams is {count}, ReferencedBeamSequence has {len(references)}")
    metersets: dict[int, float | None] = {}
    for reference in references:
        beam = reference.integer("ReferencedBeamNumber", -(2**31), 2**31 - 1)
        if beam in metersets:
            raise reference.fail("DUPLICATE_NUMBER", f"beam {beam} is referenced twice")
        metersets[beam] = reference.optional_decimal("BeamMeterset")
        problem = _reference_problem(beam, heads.get(beam), metersets[beam])
        if problem is not None:
            problems.append(finding(problem[0], node.where, problem[1]))
    fractions = node.optional_integer("NumberOfFractionsPlanned", 0, 10_000)
    brachy = node.optional_integer("NumberOfBrachyApplicationSetups", 0, 10_000)
    return FractionGroup(number, fractions or None, metersets, bool(brachy), node.where)


def _reference_problem(number: int, head: BeamHead | None, meterset: float | None) -> tuple[str, str] | None:
    if head is None:
        return "REFERENCED_BEAM_MISSING", f"referenced beam not in plan: beam {number}"
    if meterset is not None and not 0 <= meterset <= MAX_METERSET:
        return "BAD_VALUE", f"BeamMeterset of beam {number}: wanted above 0, got {meterset:g}"
    if head.delivery == "SETUP":
        return ("SETUP_BEAM_METERSET", f"set-up beam {number} has BeamMeterset {meterset:g}") if meterset else None
    if not meterset:
        got = "none" if meterset is None else "0"
        return "METERSET_MISSING", f"BeamMeterset of beam {number}: wanted above 0, got {got}"
    return None


def choose_group(top: Node, groups: dict[int, FractionGroup], wanted: int | None) -> FractionGroup:
    """Return the group of that number; the lowest for None."""
    number = min(groups) if wanted is None else wanted
    if number not in groups:
        raise top.fail("FRACTION_GROUP_UNKNOWN", f"fraction group {number} wanted, the plan has {sorted(groups)}")
    group = groups[number]
    if group.has_brachytherapy:
        message = "the group has brachytherapy application set-ups"
        raise UnsupportedPlan(top.file, finding("DELIVERY_TYPE_NOT_SUPPORTED", group.where, message))
    return group
