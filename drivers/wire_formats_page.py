"""Writes docs/wire-formats.md: `python -m drivers.wire_formats_page > docs/wire-formats.md`."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType

from drivers import flags
from drivers.wires import frames, guard_link, permits

INTRODUCTION = """\
# Wire formats

Made from `drivers/wires/frames.py`, `permits.py` and `guard_link.py` by `python -m drivers.wire_formats_page`; a test
holds them together. Registers are in [registers.md](registers.md), rules of the wires in [wires.md](wires.md).
"""


def page() -> str:
    """The whole document."""
    parts = [INTRODUCTION]
    for title, module in (("Frames", frames), ("Permits", permits), ("Controller and guard", guard_link)):
        parts.append(f"## {title}\n\n{_text(module)}\n")
        if module is frames:
            parts += [_payload(), _flags()]
    parts.append(_guard_payloads())
    return "\n".join(parts)


def _guard_payloads() -> str:
    tables = []
    for number, kind, rows in guard_link.payloads():
        name = kind.__name__.removesuffix("Limits").lower()
        tables.append(f"Kind {number}, {name}: {inspect.getdoc(kind)}\n")
        if rows:
            tables += ["| offset | type | field |", "| --- | --- | --- |"]
            tables += [f"| {offset} | {code} | {name} |" for offset, code, name in rows] + [""]
    return "\n".join(tables)


def _text(module: ModuleType) -> str:
    """A module's docstring; what is indented there is a table of bytes."""
    lines: list[str] = []
    inside = False
    for line in (inspect.getdoc(module) or "").splitlines():
        table = line.startswith("    ") or (inside and not line)
        if table and not inside:
            lines.append("```text")
        if inside and not table:
            lines.insert(_last_filled(lines) + 1, "```")
        inside = table
        lines.append(line[4:] if line.startswith("    ") else line)
    if inside:
        lines.append("```")
    return "\n".join(lines)


def _last_filled(lines: list[str]) -> int:
    return max(k for k, line in enumerate(lines) if line)


def _payload() -> str:
    names = {value: name for name, value in vars(frames).items() if name.startswith("SCAN_") and isinstance(value, int)}
    wanted = [names[word] for word in range(frames.SCAN_RESULTS + 1)]
    rows = [
        f"| {frames.HEADER_BYTES + 4 * k} | {name.removeprefix('SCAN_').lower()} |" for k, name in enumerate(wanted)
    ]
    head = "Payload of stream 3, i32 each; the unit ends the name (`utm`: 1e-6 T m); what follows is 0:\n"
    return "\n".join([head, "| offset | word |", "| --- | --- |", *rows]) + "\n"


def _flags() -> str:
    found = {name: value for name, value in vars(flags).items() if name.startswith("FLAG_")}
    rows = [
        f"| {value} | {name.removeprefix('FLAG_').lower().replace('_', ' ')} |"
        for name, value in sorted(found.items(), key=lambda item: item[1])
    ]
    return "\n".join(["Flags:\n", "| value | flag |", "| --- | --- |", *rows]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
