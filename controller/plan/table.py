"""A check report as plain text for a terminal of 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from controller.machine.deliverable import SITE_RULES
from controller.plan.check import CheckReport, FieldSummary
from controller.plan.findings import Finding
from controller.plan.model import Layer, PlanField
from controller.plan.rules import MALFORMED_RULES, PLAN_RULES, ROOM_RULES, UNSUPPORTED_RULES

WIDTH = 100
_VERDICTS = {
    "deliverable": "DELIVERABLE",
    "refused": "REFUSED: must not be delivered here",
    "unreadable": "UNREADABLE: nothing of this file is used",
}
_MARKS = {"refuse": "REFUSE", "warn": "WARN", "note": "note"}
MAX_FINDINGS = 40
ALL_RULES = (*MALFORMED_RULES, *UNSUPPORTED_RULES, *PLAN_RULES, *SITE_RULES, *ROOM_RULES)


def format_report(report: CheckReport) -> str:
    """Return findings, fields, layers and time estimate as lines of at most `WIDTH` characters."""
    lines = [*_head(report), *_findings(report.findings)]
    if report.loaded is not None:
        plan = report.loaded.plan
        lines += ["", *_fields(report.fields)]
        for field in plan.fields:
            lines += ["", *_layers(field)]
        if plan.shown:
            lines += ["", "Shown, not obeyed:"]
            lines += [f"  {key}: {value}"[:WIDTH] for key, value in plan.shown]
    lines += ["", _time(report)]
    return "\n".join(lines) + "\n"


def _head(report: CheckReport) -> Iterator[str]:
    yield f"{_VERDICTS[report.outcome]}"
    yield f"plan {report.file}, site {report.site}"[:WIDTH]
    if report.loaded is not None:
        plan = report.loaded.plan
        fractions = f", {plan.fractions_planned} fractions planned" if plan.fractions_planned else ""
        yield f"{plan.format} {plan.label!r}, approval {plan.approval}, fraction group {plan.fraction_group}{fractions}"
        if plan.gating is not None:
            yield f"motion: {plan.gating[0]} by {plan.gating[1]}"


def _findings(findings: Sequence[Finding]) -> Iterator[str]:
    if not findings:
        yield "no findings"
    actions = {rule.name: rule.action for rule in ALL_RULES}
    for f in findings[:MAX_FINDINGS]:
        where = f"{f.where}: " if f.where else ""
        text = f"{_MARKS[f.severity]:<7}{f.rule}: {where}{f.message}"
        yield from textwrap.wrap(text, WIDTH, subsequent_indent=" " * 7, break_on_hyphens=False)
        if f.severity == "refuse" and f.rule in actions:
            advice = f"What to do: {actions.pop(f.rule)}"
            yield from textwrap.wrap(advice, WIDTH, initial_indent=" " * 7, subsequent_indent=" " * 7)
    if len(findings) > MAX_FINDINGS:
        yield f"       ... and {len(findings) - MAX_FINDINGS} more; --json lists all"


def _fields(fields: Sequence[FieldSummary]) -> Iterator[str]:
    yield f"{'field':<20}{'ion':>5}{'gantry':>8}{'couch':>7}{'layers':>8}{'spots':>8}{'MU':>12}{'particles':>12}" + (
        f"{'time/s':>9}"
    )
    for f in fields:
        mu = "-" if f.mu is None else f"{f.mu:.2f}"
        particles = "-" if f.particles is None else f"{f.particles:.4g}"
        time = "-" if f.time_s is None else f"{f.time_s:.1f}"
        yield (
            f"{f.name[:19]:<20}{f.ion:>5}{f.gantry_deg:>8g}{f.couch_deg:>7g}{f.layers:>8}{f.spots:>8}"
            f"{mu:>12}{particles:>12}{time:>9}"
        )


def _layers(field: PlanField) -> Iterator[str]:
    yield f"beam {field.number} ({field.name[:40]}), {field.meterset:.6g} {field.unit}:"
    yield (
        f"{'layer':>6}{'MeV/u':>9}{'tune':>7}{'spots':>7}{'paint':>6}{'sum ' + field.unit:>12}{'least':>11}{'most':>11}"
        f"{'x/mm':>15}{'y/mm':>15}"
    )
    for index, layer in enumerate(field.layers):
        yield _layer(index, layer)


def _layer(index: int, layer: Layer) -> str:
    weights = [w for w in layer.meterset if w > 0]
    least, most = (min(weights), max(weights)) if weights else (0.0, 0.0)
    x = f"{round(min(layer.x_mm))}..{round(max(layer.x_mm))}" if layer.x_mm else "-"
    y = f"{round(min(layer.y_mm))}..{round(max(layer.y_mm))}" if layer.y_mm else "-"
    return (
        f"{index:>6}{layer.energy_mev_u:>9.2f}{layer.tune_id[:6]:>7}{len(weights):>7}{layer.paintings:>6}"
        f"{sum(weights):>12.6g}{least:>11.4g}{most:>11.4g}{x:>15}{y:>15}"
    )


def _time(report: CheckReport) -> str:
    if report.time_s is None:
        return "time estimate: none, the plan was refused before one could be made"
    minutes, seconds = divmod(round(report.time_s), 60)
    return f"time estimate: {report.time_s:.1f} s ({minutes} min {seconds} s) for the fraction group"
