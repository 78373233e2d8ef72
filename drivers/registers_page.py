"""Writes docs/registers.md from the shipped maps: `python -m drivers.registers_page > docs/registers.md`."""

from __future__ import annotations

import sys
from typing import Any

from drivers.registers import describe, load_map, shipped_maps

INTRODUCTION = """\
# Registers

Made from the maps in `drivers/maps` by `python -m drivers.registers_page`; a test holds the two together.
To connect another device, copy its map, change it, and name the file in the site's device table.

Addresses count from 0 and are holding registers: FC03 reads, FC16 writes, FC23 does both in one transaction.
Bytes in a register are big-endian, and so are the words of longer values unless the type says little.
Value = raw x scale + offset. A value outside its hard limits is never written, and is an error when read.

**Request block**: registers that take effect together, written in one transaction with a counter at
their end. The device acts when the counter differs from the one it accepted last, so that a repeated frame does
nothing; it then sets `error` (0: done) and shows the counter in `accepted`. The two lie directly behind the block,
and one FC23 writes the block and reads all of it back.

**Table**: many rows behind a window. The select register (u32) is the first row shown; it lies directly before the
window, so that one FC16 writes select and rows, and one FC23 writes select and reads rows. Addresses given are those
of the window's first row.

Every Modbus device begins with the same identity block. The hash is over all that matters on the wire, not over
wording: a device built with another map is a stranger.
"""


def page() -> str:
    """The whole document."""
    return "\n".join([INTRODUCTION, *(_device(name) for name in shipped_maps())])


def _device(name: str) -> str:
    register_map = load_map(name)
    head = f"class `{register_map.device}`, version {register_map.version}, hash `{register_map.map_sha256}`"
    parts = [f"## {register_map.title}\n", f"{head}\n", f"{register_map.notes}\n"]
    if register_map.requests:
        parts.append(
            "| request block | registers | counter | accepted | error | |\n| --- | --- | --- | --- | --- | --- |"
        )
        parts += [
            f"| {q.name} | {', '.join(q.fields)} | {q.counter} | {q.accepted} | {q.error} | {q.description} |"
            for q in register_map.requests
        ]
        parts.append("")
    if register_map.tables:
        parts.append("| table | select | window | rows a window | registers a row | capacity | |")
        parts.append("| --- | --- | --- | --- | --- | --- | --- |")
        parts += [
            f"| {t.name} | {t.select} | {t.address} | {t.rows_per_window} | {t.row_size} | "
            f"{t.capacity}{' (ring)' if t.ring else ''} | {t.description} |"
            for t in register_map.tables
        ]
        parts.append("")
    first = "address" if register_map.wire == "modbus" else "line"
    parts.append(f"| {first} | name | type | access | scale | unit | limits | alarm | |")
    parts.append("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    parts += [_row(row) for row in describe(register_map)]
    return "\n".join(parts) + "\n"


def _row(row: dict[str, Any]) -> str:
    where = row["access"] if row["address"] is None else row["address"]
    access = row["kind"] if row["address"] is None else row["access"]
    scale = "" if row["scale"] == 1.0 and row["offset"] == 0.0 else f"{row['scale']:g}"
    if row["offset"]:
        scale += f" + {row['offset']:g}"
    low, high = row["alarm_minimum"], row["alarm_maximum"]
    alarm = "" if low is None and high is None else f"{low} to {high}"
    meaning = ", ".join(f"{code} {label}" for code, label in row["values"].items())
    text = f"{row['description']}{': ' if meaning and row['description'] else ''}{meaning}"
    return (
        f"| {where} | {row['name']} | {row['type']} | {access} | {scale} | {row['unit']} | {row['limits']} | "
        f"{alarm} | {text} |"
    )


if __name__ == "__main__":
    sys.stdout.write(page())
