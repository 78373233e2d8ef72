"""Pages that are made from the sources say what the sources say."""

from __future__ import annotations

import json
import re
from pathlib import Path

from drivers.wire_formats_page import page as wire_formats
from drivers.wires.frames import FRAME_BYTES
from interlocks.conditions import matrix
from interlocks.hazards import analysis
from interlocks.hazards_page import page as hazards
from interlocks.matrix_page import page as interlocks
from simulators.faults_page import page as faults
from tests.kills.page import page as kills

DOCS = Path(__file__).parents[1] / "docs"
KILLS = Path(__file__).with_name("kills") / "results.json"


def test_the_page_on_interlocks_is_current() -> None:
    assert (DOCS / "interlocks.md").read_text(encoding="utf-8") == interlocks()


def test_the_page_on_faults_is_current() -> None:
    assert (DOCS / "faults.md").read_text(encoding="utf-8") == faults()


def test_the_page_on_hazards_is_current() -> None:
    figures = json.loads((DOCS / "safety" / "campaign.json").read_text(encoding="utf-8"))
    assert (DOCS / "safety" / "hazards.md").read_text(encoding="utf-8") == hazards(analysis(), figures)


def test_the_page_on_kills_is_current() -> None:
    assert (DOCS / "safety" / "kills.md").read_text(encoding="utf-8") == kills(
        json.loads(KILLS.read_text(encoding="utf-8"))
    )


def test_every_condition_has_exactly_one_row() -> None:
    named = re.findall(r"^\|.*?`([A-Z_0-9]+)`", interlocks(), re.MULTILINE)
    assert sorted(named) == sorted(matrix())


def test_the_page_on_wire_formats_is_current() -> None:
    assert (DOCS / "wire-formats.md").read_text(encoding="utf-8") == wire_formats()


def test_the_byte_tables_stand_in_blocks_of_their_own() -> None:
    blocks = re.findall(r"^```text\n(.*?)^```$", wire_formats(), re.MULTILINE | re.DOTALL)
    assert [block.splitlines()[0].split()[:2] for block in blocks] == [["offset", "type"]] * 3
    offsets = [int(number) for number in re.findall(r"^ *(\d+)  [ui]\d+", blocks[1], re.MULTILINE)]
    assert offsets == sorted(offsets)
    assert offsets[-1] == 56
    assert "| 68 | u64 | treatment |" in wire_formats()
    assert f"| {FRAME_BYTES[3] - 4 - 12} | results |" in wire_formats()
