"""What reading a plan gives: the plan, the patient's identity apart from it, and remarks on the reading."""

from __future__ import annotations

from dataclasses import dataclass

from controller.plan.findings import Finding
from controller.plan.model import PatientIdentity, Plan


@dataclass(frozen=True, slots=True)
class LoadedPlan:
    """A plan that was read whole and found sound; nothing in it was guessed without a finding that says so."""

    plan: Plan
    patient: PatientIdentity
    findings: tuple[Finding, ...]
