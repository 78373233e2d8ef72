"""Patient set-ups: gating and patient position, as the fields to be delivered reference them."""

from __future__ import annotations

from dataclasses import dataclass

from controller.plan.dicom_beam import BeamHead
from controller.plan.dicom_values import Node
from controller.plan.findings import Finding
from controller.plan.rules import UnsupportedPlan, finding


@dataclass(frozen=True, slots=True)
class _Setup:
    """A patient set-up: position and motion synchronisation."""

    position: str | None
    motion: tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class PatientSetup:
    """What holds for all fields of a fraction group."""

    motion: tuple[str, str] | None
    """(technique, signal source), None without gating."""
    position: str | None
    findings: tuple[Finding, ...]


def read_patient_setup(top: Node, heads: list[BeamHead]) -> PatientSetup:
    """Return gating and patient position of the set-ups that the beams reference.

    Raises:
        MalformedPlan: a reference that leads nowhere, or none where several set-ups differ.
        UnsupportedPlan: tracking and the like, or beams that differ in gating.

    """
    setups: dict[int, _Setup] = {}
    for item in top.items("PatientSetupSequence", "patient set-up item", most=1000):
        number = item.integer("PatientSetupNumber", -(2**31), 2**31 - 1)
        if number in setups:
            raise item.fail("DUPLICATE_NUMBER", f"PatientSetupNumber {number} occurs twice")
        setups[number] = _Setup(item.code("PatientPosition") or None, _motion(item.at(f"patient set-up {number}")))
    used: list[_Setup] = []
    for head in heads:
        if head.patient_setup is not None:
            if head.patient_setup not in setups:
                message = f"patient set-up {head.patient_setup} is referenced, the plan has {sorted(setups)}"
                raise head.node.fail("PATIENT_SETUP_UNCLEAR", message)
            used.append(setups[head.patient_setup])
        elif len(set(setups.values())) > 1:
            raise head.node.fail("PATIENT_SETUP_UNCLEAR", "the plan has several set-ups, the beam references none")
        else:
            used.extend(setups.values())
    motions = {setup.motion for setup in used}
    if len(motions) > 1:
        message = "the fields reference set-ups that differ in motion synchronisation"
        raise UnsupportedPlan(top.file, finding("MOTION_NOT_SUPPORTED", "", message))
    positions = sorted({setup.position for setup in used if setup.position is not None})
    findings = []
    if len(positions) > 1:
        findings.append(finding("PATIENT_POSITION_VARIES", "", f"patient positions {', '.join(positions)}"))
    position = positions[0] if len(positions) == 1 else None
    return PatientSetup(next(iter(motions), None), position, tuple(findings))


def _motion(setup: Node) -> tuple[str, str] | None:
    found: set[tuple[str, str]] = set()
    for item in setup.items("MotionSynchronizationSequence", "motion synchronisation", most=100):
        technique = item.code("RespiratoryMotionCompensationTechnique")
        source = item.code("RespiratorySignalSource")
        if not technique or not source:
            raise item.missing("RespiratoryMotionCompensationTechnique or RespiratorySignalSource")
        if technique not in ("NONE", "GATING", "BREATH_HOLD"):
            message = f"RespiratoryMotionCompensationTechnique is {technique}"
            raise UnsupportedPlan(setup.file, finding("MOTION_NOT_SUPPORTED", item.where, message))
        if technique != "NONE":
            found.add((technique, source))
    if len(found) > 1:
        message = "several motion synchronisations in one set-up"
        raise UnsupportedPlan(setup.file, finding("MOTION_NOT_SUPPORTED", setup.where, message))
    return next(iter(found), None)
