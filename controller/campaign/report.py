"""A campaign as one HTML page: the matrix of faults and rooms, the worst of each, reaction times, bad cases."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from controller.campaign.truth_dose import LIMIT_GY
from drivers.errors import BadInput
from interlocks.conditions import matrix

REPORT = "campaign.html"


def write_report(out: Path, summary: Mapping[str, Any]) -> Path:
    """Write the page into a campaign's folder. Raises `BadInput` where the disk refuses."""
    path = out / REPORT
    try:
        path.write_text(page(summary), encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror}") from error
    return path


def page(summary: Mapping[str, Any]) -> str:
    """The page."""
    style = (files("controller.record") / "report.css").read_text(encoding="utf-8")
    body = [
        "<h1>Campaign of simulated treatments</h1>",
        f'<p class="muted">{_e(summary["size"])}, seed {summary["seed"]}, Spotwise {_e(summary["version"])}, '
        f"definition {_e(summary['definition'][:12])}; {summary['jobs_done']} of {summary['jobs']} jobs done</p>",
        _facts(summary),
        "<h2>Faults and rooms</h2>",
        "<p>Cases, and the most that one of them gave too much at the worst point (mGy). A red cell has unsafe cases, "
        "&ldquo;?&rdquo; counts cases that ended safe under another name than the fault's.</p>",
        _matrix(summary),
        "<h2>Reaction</h2>",
        _reactions(summary["by_condition"]),
        "<h2>Cases to look at</h2>",
        _bad(summary["bad"]),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Campaign</title>'
        f"<style>{style}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _e(text: Any) -> str:
    return html.escape(str(text))


def _facts(summary: Mapping[str, Any]) -> str:
    pairs = [
        ("treatments", summary["cases"], ""),
        ("safe, cause named", summary["safe_named"], ""),
        ("safe, not named", summary["safe_unnamed"], "bad" if summary["safe_unnamed"] else "good"),
        ("unsafe", summary["unsafe"], "bad" if summary["unsafe"] else "good"),
        (
            f"false trips of {summary['fault_free']} without fault",
            summary["false_trips"],
            "bad" if summary["false_trips"] else "good",
        ),
        (f"Gy too much at worst, limit {LIMIT_GY:g}", f"{summary['worst_overdose_gy']:.3g}", ""),
    ]
    cells = "".join(f'<div><dt>{_e(name)}</dt><dd class="{kind}">{_e(value)}</dd></div>' for name, value, kind in pairs)
    return f'<dl class="facts">{cells}</dl>'


def _matrix(summary: Mapping[str, Any]) -> str:
    rooms = list(summary["by_room"])
    head = _row("th", ["fault", *rooms, "ended with"])
    rows = []
    for fault, found in summary["by_fault"].items():
        cells = [f"<td>{_e(fault)}</td>", *(_cell(found["by_room"].get(room)) for room in rooms)]
        ended = ", ".join(f"{name} {count}" for name, count in found["ended"].items())
        rows.append(f"<tr>{''.join(cells)}<td>{_e(ended)}</td></tr>")
    return f"<table>{head}{''.join(rows)}</table>"


def _cell(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "<td></td>"
    text = f"{found['cases']}, {found['worst_gy'] * 1e3:.3g}"
    if found["safe_unnamed"]:
        text += f", {found['safe_unnamed']}?"
    kind = ' class="bad"' if found["unsafe"] else ""
    return f"<td{kind}>{text}</td>"


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{_e(cell)}</{tag}>" for cell in cells) + "</tr>"


def _reactions(conditions: Mapping[str, Any]) -> str:
    names = [
        "condition",
        "cases",
        "fault to trip, ms: p50",
        "max",
        "trip to chain open: max",
        "to beam off: p50",
        "max",
    ]
    rows = [_row("th", [*names, "budget, ms"])]
    for name, found in conditions.items():
        values = [
            found["fault_to_trip_ms"]["p50"],
            found["fault_to_trip_ms"]["max"],
            found["trip_to_open_ms"]["max"],
            found["trip_to_beam_off_ms"]["p50"],
            found["trip_to_beam_off_ms"]["max"],
            matrix()[name].budget_ms,
        ]
        shown = ["" if value is None else f"{value:.4g}" for value in values]
        rows.append(_row("td", [name, str(found["cases"]), *shown]))
    return f"<table>{''.join(rows)}</table>"


def _bad(cases: Sequence[Mapping[str, Any]]) -> str:
    if not cases:
        return "<p>None.</p>"
    rows = [_row("th", ["verdict", "room", "seed", "why", "scenario"])]
    for case in cases:
        why = "; ".join(case["why"])
        rows.append(
            f"<tr><td>{_e(case['verdict'])}</td><td>{_e(case['room'])}</td><td>{case['seed']}</td><td>{_e(why)}</td>"
            f'<td class="mono">{_e(case["scenario"]).replace(chr(10), "<br>")}</td></tr>'
        )
    return f"<table>{''.join(rows)}</table>"
