"""The parts of a treatment as the report shows them: what each gave, what was found before it, and what was forgone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from controller.record.journal_reader import Journal

Row = Sequence[str]
Table = Callable[[Row, Sequence[Row], Sequence[int]], str]
"""Head, rows, columns of numbers."""
COUNTED = ("then", "now", "journal", "tail", "between_visits", "pedestal", "unexplained", "limit")


def parts_section(journal: Journal, summary: dict[str, Any], table: Table) -> str:
    """Return the section, '' for a treatment in one part that forwent nothing. Cells are HTML."""
    parts = summary.get("parts", [])
    found = [part for part in parts if part["reconciliation"] is not None]
    sections = [_parts(parts, table), *(_found(part, table) for part in found), _forgone(journal, table)]
    text = "".join(sections)
    return f"<h2>Parts</h2>{text}" if text else ""


def _parts(parts: list[dict[str, Any]], table: Table) -> str:
    if not parts:
        return ""
    rows = [
        (
            str(part["part"]),
            escape(part["begun"]),
            escape(part["outcome"]),
            str(part["visits"]),
            str(part["counts_1"]),
            str(part["counts_2"]),
            str(part["forgone"]),
            escape(", ".join(part["trips"])),
            escape("" if part["reconciliation"] is None else part["reconciliation"]["verdict"]),
        )
        for part in parts
    ]
    head = (
        "part", "begun", "ended", "visits", "counts 1", "counts 2", "forgone", "trips", "journal and hardware before",
    )  # fmt: skip
    return table(head, rows, (3, 4, 5, 6))


def _found(part: dict[str, Any], table: Table) -> str:
    """Journal against counters and rings, as it was before a part."""
    found = part["reconciliation"]
    text = f"<h3>Before part {part['part']}: {escape(found['verdict'])}</h3>"
    said = [escape(reason) for reason in found["reasons"]]
    if found["verdict"] == "accepted":
        by = f"{found['operator']} let the {found['trust']} count: {found['reason']}"
        said.append(f"<b>decided</b> by {escape(by)}")
    if found.get("torn"):
        said.append(escape(str(found["torn"])))
    if said:
        text += "<ul>" + "".join(f"<li>{line}</li>" for line in said) + "</ul>"
    rows = [
        (str(number), *(str(found[f"electrometer_{number}"][name]) for name in COUNTED))
        for number in (1, 2)
        if f"electrometer_{number}" in found
    ]
    if not rows:
        return text if said else ""
    head = (
        "electrometer", "counter then", "now", "journal", "rings alone", "between visits", "of it pedestal",
        "unexplained", "limit",
    )  # fmt: skip
    return text + table(head, rows, range(1, 9))


def _forgone(journal: Journal, table: Table) -> str:
    rows: list[Row] = [
        (
            f"{int(event['field']) + 1}.{int(event['layer']) + 1}",
            str(int(event["spot"]) + 1),
            str(event["visit"]),
            f"{float(event['meterset']):.6g}",
            f"{float(event['particles']):.4g}",
            escape(str(event["reason"])),
            str(part.number),
        )
        for part in journal.parts
        for event in part.events
        if event["event"] == "forgone"
    ]
    if not rows:
        return ""
    head = ("field.layer", "spot", "visit", "meterset", "particles", "why", "part")
    return "<h3>Forgone: what no part gives</h3>" + table(head, rows, (1, 2, 3, 4))
