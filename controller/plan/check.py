"""Check a plan file against a site: is it sound, may it be delivered, can this machine do it, and how long it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from controller.machine.deliverable import find_problems
from controller.machine.dosimetry import particles_per_mu
from controller.machine.field_program import treatment_machine
from controller.plan.findings import Finding
from controller.plan.load import load_plan
from controller.plan.loaded import LoadedPlan
from controller.plan.model import PlanField
from controller.plan.rules import MalformedPlan, UnsupportedPlan
from drivers.errors import Refused
from sites.schema import Site

Outcome = Literal["deliverable", "refused", "unreadable"]
EXIT_STATUS: dict[Outcome, int] = {"deliverable": 0, "refused": 3, "unreadable": 2}


@dataclass(frozen=True, slots=True)
class FieldSummary:
    """A field in numbers; None where the site's calibration is needed and there is none."""

    name: str
    ion: str
    gantry_deg: float
    couch_deg: float
    layers: int
    spots: int
    """Spots with weight."""
    mu: float | None
    particles: float | None
    energy_mev_u: tuple[float, float]
    """Least and greatest."""
    time_s: float | None
    """Estimate; None where the field was refused before it could be made."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The verdict on a plan file."""

    file: str
    site: str
    outcome: Outcome
    findings: tuple[Finding, ...]
    """The severest first, else in the order found."""
    loaded: LoadedPlan | None
    fields: tuple[FieldSummary, ...]
    time_s: float | None
    """Estimate for the whole fraction group, from beam-ready to the last spot."""

    @property
    def exit_status(self) -> int:
        """Exit status of `spotwise check`: 0 deliverable, 3 refused, 2 unreadable or malformed."""
        return EXIT_STATUS[self.outcome]

    def to_json(self) -> dict[str, Any]:
        """Return what `check --json` prints."""
        return {
            "outcome": self.outcome,
            "findings": [
                {"rule": f.rule, "severity": f.severity, "where": f.where, "message": f.message} for f in self.findings
            ],
            "fields": [
                {
                    "name": f.name,
                    "ion": f.ion,
                    "gantry_deg": f.gantry_deg,
                    "couch_deg": f.couch_deg,
                    "layers": f.layers,
                    "spots": f.spots,
                    "mu": f.mu,
                    "particles": f.particles,
                    "energy_mev_u": list(f.energy_mev_u),
                }
                for f in self.fields
            ],
            "time_s": self.time_s,
        }


def check_plan(
    path: Path,
    site: Site,
    *,
    fraction_group: int | None = None,
    allow_unapproved: bool = False,
    gantry_deg: float | None = None,
    couch_deg: float | None = None,
) -> CheckReport:
    """Check a plan file; never raises for what a file contains.

    Args:
        path: an RT Ion Plan or a TRiP98 raster file.
        site: the room that would deliver it.
        fraction_group: DICOM fraction group; None takes the lowest.
        allow_unapproved: accept a plan that is not approved, where the site is a research site.
        gantry_deg: port for a raster file; None takes the site's default.
        couch_deg: couch rotation for a raster file; None is 0.

    """
    try:
        loaded = load_plan(
            path,
            fraction_group=fraction_group,
            gantry_deg=gantry_deg,
            couch_deg=couch_deg,
            default_gantry_deg=site.gantry.default_deg,
        )
    except MalformedPlan as error:
        return CheckReport(path.name, site.name, "unreadable", error.findings, None, (), None)
    except UnsupportedPlan as error:
        return CheckReport(path.name, site.name, "refused", error.findings, None, (), None)
    return check_loaded(loaded, path.name, site, allow_unapproved=allow_unapproved)


def check_loaded(loaded: LoadedPlan, name: str, site: Site, *, allow_unapproved: bool) -> CheckReport:
    """Check a plan that was read already; `name`: of its file, for messages."""
    plan = loaded.plan
    problems, times = find_problems(site, plan, allow_unapproved=allow_unapproved)
    findings = _severest_first((*problems, *loaded.findings))
    refused = any(f.severity == "refuse" for f in findings)
    complete = len(times) == len(plan.fields)
    totals: list[float | None] = [time.total_s for time in times] if complete else [None] * len(plan.fields)
    return CheckReport(
        file=name,
        site=site.name,
        outcome="refused" if refused else "deliverable",
        findings=findings,
        loaded=loaded,
        fields=tuple(_summary(site, field, time) for field, time in zip(plan.fields, totals, strict=True)),
        time_s=sum(time.total_s for time in times) if complete else None,
    )


def with_findings(report: CheckReport, more: Sequence[Finding]) -> CheckReport:
    """The same verdict, with findings that are not about the plan."""
    return replace(report, findings=_severest_first((*report.findings, *more)))


def _severest_first(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    order = ("refuse", "warn", "note")
    return tuple(sorted(findings, key=lambda f: order.index(f.severity)))


def _summary(site: Site, field: PlanField, time_s: float | None) -> FieldSummary:
    energies = [layer.energy_mev_u for layer in field.layers]
    mu, particles = _metersets(site, field)
    return FieldSummary(
        name=field.name,
        ion=field.ion,
        gantry_deg=field.gantry_deg,
        couch_deg=field.couch.rotation_deg,
        layers=len(field.layers),
        spots=sum(sum(w > 0 for w in layer.meterset) for layer in field.layers),
        mu=mu,
        particles=particles,
        energy_mev_u=(min(energies), max(energies)),
        time_s=time_s,
    )


def _metersets(site: Site, field: PlanField) -> tuple[float | None, float | None]:
    """Field total in MU and in particles; the one that the plan does not state needs a machine of the site."""
    stated = sum(sum(layer.meterset) for layer in field.layers)
    try:
        machine = treatment_machine(site, field)
    except Refused:
        return (stated, None) if field.unit == "MU" else (None, stated)
    if field.unit == "MU":
        factors = (particles_per_mu(machine, layer.energy_mev_u) for layer in field.layers)
        return stated, sum(sum(layer.meterset) * f for layer, f in zip(field.layers, factors, strict=True))
    factors = (particles_per_mu(machine, layer.energy_mev_u) for layer in field.layers)
    return sum(sum(layer.meterset) / f for layer, f in zip(field.layers, factors, strict=True)), stated
