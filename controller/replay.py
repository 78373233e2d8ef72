"""`spotwise replay DIR`: the integrator once more, on recorded frames; its results must be the journal's, to the bit.

The limits that the path judged by are in the recording, and are compared with those that the journal's site and
programs give; so are its rows, its measured visits as they were booked, and its trips.
"""

from __future__ import annotations

import dataclasses
import json
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.dose.memory import LIMITS, PLAN, STATE, Monitor
from controller.dose.path import MonitorPath
from controller.dose.rerun import DONE, FIELD_DUE, UNKNOWN_ENTRY, VERDICT_DIFFERS, Rerun
from controller.machine.program import LayerProgram
from controller.record.frame_recorder import layout
from controller.record.frames_format import (
    Block,
    BlockType,
    TornRecording,
    entries_of,
    parse_payload,
    read_blocks,
    recording_path,
)
from controller.record.journal_reader import Part, read_journal
from controller.record.rebuild import JOURNAL
from controller.replay_compare import Comparison, Difference
from drivers.compiled import source_hash
from drivers.errors import BadInput
from sites.loader import site_from_config
from sites.schema import Site

NO_KEY = "00" * 16


def format_replay(result: dict[str, Any]) -> str:
    """The verdict for people."""
    lines = [
        f"{'agrees to the bit' if result['agrees'] else 'DOES NOT AGREE'}: {result['frames']} frames of "
        f"{result['seconds']:.1f} s, {result['rows']} rows of the log, {result['visits']} visits, "
        f"{result['trips']} trips",
        f"replayed at {result['real_time_factor']:.1f} x real time",
    ]
    if result["visits_without_frames"]:
        lines.append(f"{result['visits_without_frames']} visits were booked without frames, and could not be compared")
    return "\n".join([*lines, *result["messages"]])


@dataclass(frozen=True, slots=True)
class FieldLimits:
    """What a FIELD block holds."""

    field: int
    clear: int
    visits: int
    limits: bytes
    plan: bytes


@dataclass
class PartReplay:
    """What the replay of one part came to."""

    part: int
    entries: int = 0
    frames: int = 0
    fields: int = 0
    rows: int = 0
    visits: int = 0
    visits_without_frames: int = 0
    trips: int = 0
    seconds: float = 0.0
    """Recorded time."""
    complete: bool = False
    """The recording lasts to the end of the path."""
    notes: list[str] = field(default_factory=list)
    """Worth knowing, and no disagreement."""
    problems: list[str] = field(default_factory=list)
    """Damage, torn files, limits that the journal does not give."""
    difference: Difference | None = None

    @property
    def agrees(self) -> bool:
        """Nothing differs, nothing is damaged."""
        return self.difference is None and not self.problems

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {**dataclasses.asdict(self), "agrees": self.agrees}


def replay(directory: Path) -> dict[str, Any]:
    """Replay all parts of a treatment; returns the verdict as `--json` gives it.

    Raises `BadInput`: no such directory, no journal, no recording, or one of another version.
    """
    if not directory.is_dir():
        raise BadInput(f"{directory}: no such directory")
    Rerun(bytes(LIMITS.itemsize), bytes(STATE.itemsize)).step(np.zeros(0, np.int64), 0)  # compile, or load
    began = time.perf_counter()
    parts = []
    with read_journal(directory / JOURNAL) as journal:
        if not journal.parts:
            raise BadInput(f"{directory / JOURNAL}: holds no HEADER: nothing was recorded")
        missing = []
        for part in journal.parts:
            path = recording_path(directory, part.number)
            if path.is_file():
                parts.append(_Replay(path, part).run())
            else:
                missing.append(f"{path}: is missing; that part's frames were not recorded, or are gone")
        if not parts:
            raise BadInput(f"{'; '.join(missing)} (deliver with --record-frames records them)")
    elapsed = time.perf_counter() - began
    seconds = sum(p.seconds for p in parts)
    return {
        "agrees": all(p.agrees for p in parts),
        "complete": all(p.complete for p in parts) and not missing,
        **{
            name: sum(getattr(p, name) for p in parts)
            for name in ("frames", "entries", "fields", "rows", "visits", "visits_without_frames", "trips")
        },
        "seconds": round(seconds, 6),
        "real_time_factor": round(seconds / elapsed, 1) if elapsed > 0 else None,
        "parts": [p.to_json() for p in parts],
        "messages": [
            *(m for p in parts for m in p.problems),
            *(p.difference.message() for p in parts if p.difference is not None),
            *(m for p in parts for m in p.notes),
            *missing,
        ],
    }


def _site(config: dict[str, Any]) -> Site:
    """The journal's site; any key will do, limits do not depend on it. Raises `BadInput`."""
    config = {**config, "permits": {**config["permits"], "key_hex": NO_KEY, "key_file": None}}
    return site_from_config(json.dumps(config))


class _Damaged(Exception):
    """The rest of the recording cannot be used; the problem is written down."""


class _Replay:
    """One part."""

    def __init__(self, path: Path, part: Part) -> None:
        self.path = path
        self.part = part
        self.result = PartReplay(part.number)
        self._compare = Comparison(part)
        self._fields: dict[int, FieldLimits] = {}
        self._field = -1
        self._rerun: Rerun | None = None
        self._times: list[int] = []
        try:
            self._site: Site | None = _site(part.header["site"])
        except BadInput as error:
            self._site = None
            self.result.notes.append(f"limits not compared with the journal's site: {error}")

    def run(self) -> PartReplay:
        """Rerun and compare."""
        result = self.result
        whole = False
        try:
            for block in read_blocks(self.path):
                try:
                    if block.kind is BlockType.END and block.damage is None:
                        whole = self._end(block)
                    else:
                        self._block(block)
                except (KeyError, IndexError, TypeError, ValueError, zlib.error) as error:
                    if block.kind is BlockType.ENTRIES:
                        raise
                    # its CRC is right, its content is not: nobody has written such a block
                    raise _Damaged(
                        f"{self.path}: {block.kind.name} block at byte {block.offset}: not to be understood: {error!r}"
                    ) from error
        except (TornRecording, _Damaged) as error:
            if str(error):
                result.problems.append(str(error))
        if self._rerun is None:
            if not result.problems:
                result.problems.append(f"{self.path}: no BEGIN block")
            return result
        end = self._rerun.frame[0]
        self._compare.finish(end, whole=whole)
        result.complete = whole
        result.entries, result.frames = int(end["entry"]), int(end["frames"])
        result.rows, result.visits, result.trips = self._compare.rows, self._compare.visits, self._compare.trips
        result.visits_without_frames = self._compare.visits_without_frames
        result.difference = self._compare.first()
        result.seconds = (self._times[-1] - self._times[0]) * 1e-9 if self._times else 0.0
        return result

    def _block(self, block: Block) -> None:
        if block.kind is BlockType.ENTRIES:
            self._entries(block)
            return
        if block.damage is not None:
            raise _Damaged(f"{block.damage} ({block.kind.name}); what follows cannot be replayed")
        if block.kind is BlockType.BEGIN:
            self._begin(block)
        else:
            self._load(block)

    def _begin(self, block: Block) -> None:
        head, rest = parse_payload(self.path, block)
        if head.get("layout") != layout():
            raise BadInput(
                f"{self.path}: recorded by Spotwise {head.get('version')}, whose real-time path had other limits or "
                "words than this one; replay with that version"
            )
        if head.get("compiled") != source_hash():
            self.result.notes.append(
                f"recorded by Spotwise {head.get('version')} from other sources than these: a difference may be theirs"
            )
        limits, state = rest[: LIMITS.itemsize], rest[LIMITS.itemsize :]
        self._rerun = Rerun(limits, state)
        if self._site is not None:
            self._same_limits(MonitorPath(self._site, Monitor()), limits, "before the first field")

    def _load(self, block: Block) -> None:
        head, rest = parse_payload(self.path, block)
        plan = zlib.decompress(rest[LIMITS.itemsize :])
        found = FieldLimits(head["field"], head["clear"], head["visits"], rest[: LIMITS.itemsize], plan)
        self._fields[found.clear] = found
        self.result.fields += found.field >= 0  # the engine's self-test is none
        if self._site is not None:
            self._same_plan(self._site, found)

    def _same_plan(self, site: Site, found: FieldLimits) -> None:
        """The recorded limits of a field against those that the journal's programs give, to the bit."""
        layers = {
            (p.head["layer_index"], int(p.visits["visit"][0])): p
            for p in self.part.programs
            if p.head["field_index"] == found.field and len(p.visits)
        }
        programs = [LayerProgram(**p.head, visits=p.visits) for _, p in sorted(layers.items())]
        name = self.part.header["plan"]["fields"][found.field]["machine_name"]
        machine = site.treatment_machines.get(name or next(iter(site.trip98_machine.values()), ""))
        if machine is None or not programs:
            return
        path = MonitorPath(site, Monitor())
        path.load_field(machine, programs, _field_limits(self.part, found.field))
        recorded = np.frombuffer(found.plan, PLAN)
        for program in programs:
            for visit in program.visits["visit"]:
                row, wanted = recorded[int(visit)], path.monitor.plan[int(visit)]
                if row.tobytes() != wanted.tobytes():
                    name = next(n for n in PLAN.names or () if row[n] != wanted[n])
                    self.result.problems.append(
                        f"{self.path}: field {found.field + 1}, visit {int(visit)}: {name}: recorded {row[name]}, the "
                        f"journal's program gives {wanted[name]}"
                    )
                    return
        # programs that were never downloaded are not in the journal: without them there is no field total
        if sum(len(p.visits) for p in programs) == found.visits:
            self._same_limits(path, found.limits, f"field {found.field + 1}")

    def _same_limits(self, path: MonitorPath, limits: bytes, where: str) -> None:
        recorded, wanted = np.frombuffer(limits, LIMITS)[0], path.monitor.limits
        for name in LIMITS.names or ():
            if recorded[name] != wanted[name]:
                self.result.problems.append(
                    f"{self.path}: {where}: limit {name}: recorded {recorded[name]}, the journal gives {wanted[name]}"
                )
                return

    def _entries(self, block: Block) -> None:
        rerun = self._rerun
        if rerun is None:
            raise _Damaged(f"{self.path}: entries before a BEGIN block at byte {block.offset}")
        if block.first_entry != int(rerun.frame["entry"][0]):
            raise _Damaged(
                f"{self.path}: block at byte {block.offset} begins with entry {block.first_entry}, wanted "
                f"{int(rerun.frame['entry'][0])}: blocks are missing or exchanged"
            )
        if block.entries:
            self._times += [block.t_first_ns, block.t_last_ns] if not self._times else []
            self._times[1:] = [block.t_last_ns]
        words = entries_of(block)
        damage = block.damage
        if damage is None and len(words) != block.words:
            damage = f"{self.path}: block at byte {block.offset}: {len(words)} words, wanted {block.words}"
        why = self._go(rerun, words)
        if why == VERDICT_DIFFERS:
            damage = f"{damage or f'{self.path}: block at byte {block.offset}'}: {self._bad_frame(rerun)}"
        elif why == UNKNOWN_ENTRY and damage is None:
            damage = f"{self.path}: block at byte {block.offset}: an entry of no known kind"
        if damage is not None:
            if why != VERDICT_DIFFERS:
                damage += f": damaged after {self._place(rerun)}"
            raise _Damaged(f"{damage}; block of entries {block.first_entry} to {block.first_entry + block.entries - 1}")

    def _go(self, rerun: Rerun, words: NDArray[np.int64]) -> int:
        at = 0
        while at < len(words):
            why, at = rerun.step(words, at)
            self._collect(rerun)
            if why == FIELD_DUE:
                clear = int(words[at + 2 + 8])
                due = self._fields.get(clear)
                if due is None:
                    raise _Damaged(f"{self.path}: no FIELD block for the field that begins after {self._place(rerun)}")
                rerun.load_field(clear, due.limits, due.plan)
                self._field = due.field
            elif why != DONE:
                return why
        return DONE

    def _collect(self, rerun: Rerun) -> None:
        self._compare.take_rows(*rerun.new_rows())
        self._compare.take_visits(self._field, *rerun.new_visits())
        self._compare.take_trips(rerun.new_trips())

    def _place(self, rerun: Rerun) -> str:
        f = rerun.frame[0]
        return (
            f"stream {f['stream']}, sequence {f['sequence']}, device time {f['t_ns']} ns (entry {int(f['entry']) - 1})"
        )

    def _bad_frame(self, rerun: Rerun) -> str:
        b = rerun.monitor.buffer
        return (
            f"frame of entry {int(rerun.frame['entry'][0]) - 1} fails its CRC and was whole when it was received; it "
            f"says of itself stream {int(b.u8[5])}, sequence {int(b.u64[2])}, device time {int(b.i64[3])} ns; the "
            f"last whole frame before: stream {int(rerun.frame['stream'][0])}, sequence "
            f"{int(rerun.frame['sequence'][0])}"
        )

    def _end(self, block: Block) -> bool:
        head, _ = parse_payload(self.path, block)
        if not head["complete"]:
            self.result.notes.append(f"{self.path}: recording stopped early, compared up to there: {head['why']}")
        return bool(head["complete"])


def _field_limits(part: Part, field: int) -> tuple[float, float] | None:
    """What was left of the field's limits when a resumed part loaded it; None: an earlier part gave nothing."""
    for event in reversed(part.events):
        if event["event"] == "counters" and event["phase"] == "field" and event["field"] == field:
            left = event.get("limits")
            return None if left is None else (float(left[0]), float(left[1]))
    return None
