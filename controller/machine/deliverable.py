"""Whether this room can deliver this plan, and how long it would take.

Corrections are not known before the room's sensors are read, so the check assumes reference air (kTP = 1); the air
of a real day changes counts by a few per cent, which no rule here is near to.
"""

from __future__ import annotations

from collections.abc import Sequence

from controller.machine.dosimetry import nominal_corrections
from controller.machine.field_program import treatment_machine
from controller.machine.program import LayerProgram
from controller.machine.setup_checks import setup_problems
from controller.machine.site_rules import SITE_RULES, site_finding
from controller.machine.spot_checks import check_spots
from controller.machine.step_feasibility import StepProblem, step_problems
from controller.machine.timing import FieldTime, estimate_field
from controller.plan.findings import Finding
from controller.plan.model import Plan, PlanField
from controller.plan.rules import finding
from drivers.errors import Refused
from sites.schema import Site, TreatmentMachine

__all__ = ["SITE_RULES", "FieldTime", "find_problems"]


def find_problems(site: Site, plan: Plan, *, allow_unapproved: bool) -> tuple[list[Finding], list[FieldTime]]:
    """Compare a plan with a site, rule by rule.

    Returns the findings (one a rule and field), and the estimated time of each field in the plan's order; no times
    where a field cannot be built, as half a sum would mislead. The plan may be delivered if no finding refuses.
    """
    findings = [*_approval(site, plan, allow_unapproved), *_gating(site, plan)]
    times: list[FieldTime] = []
    complete = True
    corrections = nominal_corrections(site.dosimetry)
    for index, field in enumerate(plan.fields):
        machine, problem = _machine(site, field)
        if machine is None or problem is not None:
            complete = False
            findings += [problem] if problem else []
            continue
        findings += setup_problems(site, machine, field)
        found, programs = check_spots(site, machine, field, index, corrections)
        findings += found
        if programs is None:
            complete = False
        else:
            findings += _steps(site, field, programs)
            times.append(estimate_field(site, field, programs, plan.fields[index - 1] if index else None))
    return findings, times if complete else []


def _steps(site: Site, field: PlanField, programs: Sequence[LayerProgram]) -> list[Finding]:
    """Step mode by data sheet: one finding a rule, at its first spot."""
    if site.scanning.engine != "step":
        return []
    found: dict[str, list[StepProblem]] = {}
    for program in programs:
        for problem in step_problems(site, program):
            found.setdefault(problem.rule, []).append(problem)
    findings = []
    for rule, problems in found.items():
        first, worst = problems[0], max(problems, key=lambda p: p.value / p.limit)
        more = f"; {len(problems)} in this beam, the worst in layer {worst.layer}, spot {worst.spot}"
        where = f"beam {field.number}, layer {first.layer}, spot {first.spot}"
        findings.append(site_finding(rule, where, f"{first.reason}{more if len(problems) > 1 else ''}"))
    return findings


def _approval(site: Site, plan: Plan, allow_unapproved: bool) -> list[Finding]:
    if plan.format == "trip98":
        if site.research:
            return [finding("NO_APPROVAL", "", "raster files carry no approval; this research site delivers them")]
        return [finding("NO_APPROVAL", "", f"raster files carry no approval; site {site.name} needs it", "refuse")]
    if plan.approval == "APPROVED":
        return []
    state = "has no approval status" if plan.approval == "NONE" else f"is {plan.approval}"
    if plan.approval == "REJECTED":
        return [finding("PLAN_NOT_APPROVED", "", "plan not approved: it is REJECTED, which no option overrides")]
    if not site.research:
        message = f"plan not approved: it {state}, and site {site.name} is no research site"
        return [finding("PLAN_NOT_APPROVED", "", message)]
    if not allow_unapproved:
        message = f"plan not approved: it {state}; on this research site --allow-unapproved would deliver it"
        return [finding("PLAN_NOT_APPROVED", "", message)]
    return [finding("PLAN_NOT_APPROVED", "", f"plan not approved: it {state}; allowed by --allow-unapproved", "warn")]


def _gating(site: Site, plan: Plan) -> list[Finding]:
    if plan.gating is None or plan.gating[0] == "NONE" or plan.gating[1] in site.gating.sources:
        return []
    have = ", ".join(site.gating.sources) or "none"
    technique, source = plan.gating
    return [site_finding("GATING_SOURCE", "", f"{technique} by {source!r}; the room has {have}")]


def _machine(site: Site, field: PlanField) -> tuple[TreatmentMachine | None, Finding | None]:
    where = f"beam {field.number}"
    try:
        machine = treatment_machine(site, field)
    except Refused:
        if field.machine_name:
            have = ", ".join(site.treatment_machines)
            message = f"treatment machine {field.machine_name!r} is not in site {site.name}, which has {have}"
            return None, site_finding("MACHINE_UNKNOWN", where, message)
        message = f"particle {field.ion} is not available: site {site.name} has no machine for raster files of it"
        return None, site_finding("ION_UNAVAILABLE", where, message)
    if machine.ion != field.ion:
        message = f"particle {field.ion} is not available on machine {field.machine_name}, which has {machine.ion}"
        return machine, site_finding("ION_UNAVAILABLE", where, message)
    return machine, None
