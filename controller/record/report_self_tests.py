"""The self-tests of every part, as the report shows them: what was tested, measured, and what failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from controller.record.journal_reader import Journal

Row = Sequence[str]


def self_tests_table(
    journal: Journal, table: Callable[[Row, list[Row]], str], number: Callable[[float | None, int], str]
) -> str:
    """Return the section, '' where nothing was tested; `table` (head, rows) and `number` write one each."""
    rows: list[Row] = [
        (
            escape(str(e["device"])),
            escape(str(e["what"])),
            number(e["measured_ms"], 1),
            number(e["limit_ms"], 1),
            "passed" if e["passed"] else f"<b>failed</b>: {escape(str(e['detail']))}",
            str(part.number),
        )
        for part in journal.parts
        for e in part.events
        if e["event"] == "self_test"
    ]
    if not rows:
        return ""
    return "<h3>Self-tests, without beam</h3>" + table(("device", "", "ms", "limit ms", "", "part"), rows)
