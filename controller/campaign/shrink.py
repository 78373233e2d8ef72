"""An unsafe case made as small as it can be while it still fails, as a scenario file that becomes a test.

Tried in turn, and kept where the case still fails: leave out faults, put the fault at the first visit, let it stay,
leave out keys that have a default, and weaken its numbers towards the least of their range by halving. Each try is a
treatment.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from controller.campaign.case import Case, play
from controller.campaign.definition import Definition, shipped
from controller.campaign.strengths import fault_text
from controller.campaign.verdict import UNSAFE, Verdict
from controller.compose import fault_catalogue
from drivers.errors import BadInput

HALVINGS = 5
HEADER = re.compile(r"^# room = (\S+), seed = (\d+)$", re.MULTILINE)
EXPECTED = re.compile(r"^# expected = (.+)$", re.MULTILINE)
FOLDER = "unsafe"
Entry = dict[str, Any]


def shrink(case: Case, fails: Callable[[Case], bool] | None = None) -> Case:
    """The smallest case found that still fails; `case` itself must."""
    failing = fails if fails is not None else _is_unsafe
    entries: list[Entry] = tomllib.loads(case.scenario)["fault"]

    def still(tried: list[Entry]) -> bool:
        return failing(replace(case, scenario=_text(tried)))

    while len(entries) > 1:
        fewer = next((e for e in _each_left_out(entries) if still(e)), None)
        if fewer is None:
            break
        entries = fewer
    for at in range(len(entries)):
        for simpler in _simpler(entries[at]):
            # a later idea starts from what the earlier ones left
            tried = [*entries[:at], {**simpler(entries[at])}, *entries[at + 1 :]]
            if tried != entries and still(tried):
                entries = tried
        entries = _weakened(entries, at, still)
    return replace(case, scenario=_text(entries))


def _is_unsafe(case: Case) -> bool:
    return play(case).verdict == UNSAFE


def _text(entries: list[Entry]) -> str:
    return "\n".join(fault_text(entry) for entry in entries)


def _each_left_out(entries: list[Entry]) -> Iterator[list[Entry]]:
    for at in range(len(entries)):
        yield entries[:at] + entries[at + 1 :]


def _simpler(entry: Entry) -> list[Callable[[Entry], Entry]]:
    ideas: list[Callable[[Entry], Entry]] = [
        lambda e: {**e, "at": {"field": 1, "visit": 1}} if "at" in e else e,
        lambda e: {**e, "at": {k: v for k, v in e["at"].items() if k != "s"} or e["at"]} if "at" in e else e,
        lambda e: {k: v for k, v in e.items() if k != "for_s"},
    ]
    kind = fault_catalogue().get(entry.get("name", ""))
    for name, parameter in (kind.parameters if kind is not None else {}).items():

        def without(e: Entry, name: str = name, default: float | str = parameter.default) -> Entry:
            return {k: v for k, v in e.items() if k != name or v != default}

        ideas.append(without)
    return ideas


def _weakened(entries: list[Entry], at: int, still: Callable[[list[Entry]], bool]) -> list[Entry]:
    kind = fault_catalogue().get(entries[at].get("name", ""))
    for name, parameter in (kind.parameters if kind is not None else {}).items():
        strong = entries[at].get(name)
        if parameter.choices or not isinstance(strong, int | float):
            continue
        weak = parameter.least if parameter.least <= strong else float(parameter.default)
        for _ in range(HALVINGS):
            middle = float(f"{(weak + strong) / 2.0:.4g}")
            if middle in (weak, strong):
                break
            tried = [*entries[:at], {**entries[at], name: middle}, *entries[at + 1 :]]
            if still(tried):
                entries, strong = tried, middle
            else:
                weak = middle
    return entries


def case_of(record: Mapping[str, Any], definition: Definition | None = None) -> Case:
    """The case of a verdict's JSON."""
    rooms = (definition or shipped()).rooms
    expected, harmless = tuple(record["expected"]), bool(record["harmless"])
    return Case(rooms[record["room"]], int(record["seed"]), record["scenario"], expected, harmless)


def file_text(case: Case, verdict: Verdict) -> str:
    """A scenario file that says where it is played, and why it was written."""
    lines = ["# " + line for why in verdict.why for line in why.splitlines()]
    head = [f"# room = {case.room.name}, seed = {case.seed}", f"# expected = {', '.join(case.expected)}"]
    return "\n".join([*head, *lines, case.scenario.rstrip(), ""])


def read_case(path: Path) -> Case:
    """A case as `file_text` wrote it. Raises `BadInput`."""
    text = path.read_text(encoding="utf-8")
    head, expected = HEADER.search(text), EXPECTED.search(text)
    if head is None or expected is None or head[1] not in shipped().rooms:
        raise BadInput(f"{path}: want lines `# room = NAME, seed = N` and `# expected = CONDITION, ...`")
    return Case(shipped().rooms[head[1]], int(head[2]), text, tuple(e.strip() for e in expected[1].split(",")))


def write_shrunk(out: Path, summary: Mapping[str, Any]) -> list[Path]:
    """One file for every fault with an unsafe case, in DIR/unsafe: the worst of its cases, made small."""
    worst: dict[tuple[str, str], Mapping[str, Any]] = {}
    for record in summary["bad"]:
        key = (record["fault"], record["room"])
        if record["verdict"] != UNSAFE or not record["scenario"]:
            continue
        if key not in worst or record["harm_gy"] > worst[key]["harm_gy"]:
            worst[key] = record
    paths = []
    for (fault, room), record in worst.items():
        path = out / FOLDER / f"{re.sub(r'[^a-z0-9_]+', '-', fault)}-{room}.toml"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            small = shrink(case_of(record))
            path.write_text(file_text(small, play(small)), encoding="utf-8")
        paths.append(path)
    return paths
