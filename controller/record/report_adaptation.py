"""What delivery adapted, as the report shows it: presets by measured beam-offs, offsets by position feedback."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from controller.record.journal_reader import Journal

Row = Sequence[str]


def adaptation_tables(
    journal: Journal, table: Callable[[Row, list[Row]], str], number: Callable[[float | None, int], str]
) -> str:
    """Return the section, '' where nothing was adapted; `table` (head, rows) and `number` write one each."""
    early = [e for e in journal.events if e["event"] == "early"]
    steering = [e for e in journal.events if e["event"] == "steering"]
    out = ""
    if early:
        out += "<h3>Presets: charge after beam-off, as measured</h3>" + table(
            (
                "beam.layer",
                "energy MeV/u",
                "intensity",
                "delay us",
                "uncertainty us",
                "spots",
                "tail counts",
                "early before",
                "early after",
                "presets changed",
                "layer moved by counts",
            ),
            [_early(journal, e, number) for e in early],
        )
    if steering:
        out += "<h3>Position feedback, at isocentre</h3>" + table(
            (
                "from beam.layer on",
                "spots",
                "error x mm",
                "y",
                "uncertainty x mm",
                "y",
                "offset x mm",
                "y",
                "x A",
                "y A",
            ),
            [_steering(journal, e, number) for e in steering],
        )
    return f"<h2>Adaptation</h2>{out}" if out else ""


def _layer(journal: Journal, event: dict[str, Any]) -> str:
    return f"{journal.header['plan']['fields'][event['field']]['number']}.{event['layer'] + 1}"


def _early(journal: Journal, e: dict[str, Any], number: Callable[[float | None, int], str]) -> Row:
    return (
        _layer(journal, e),
        number(e["energy_mev_u"], 2),
        str(e["intensity_level"]),
        number(e["delay_us"], 1),
        number(e["uncertainty_us"], 1),
        str(e["spots"]),
        number(e["tail_counts"], 1),
        str(e["early_off_before"]),
        str(e["early_off_after"]),
        str(len(e["visits"])),
        str(e["moved_counts"]),
    )


def _steering(journal: Journal, e: dict[str, Any], number: Callable[[float | None, int], str]) -> Row:
    names = ("x_error_mm", "y_error_mm", "x_uncertainty_mm", "y_uncertainty_mm", "x_after_mm", "y_after_mm")
    return (
        _layer(journal, e) + ("" if e["applied"] else " (not applied: beyond the limit)"),
        str(e["spots"]),
        *(number(e[name], 3) for name in (*names, "x_offset_a", "y_offset_a")),
    )
