"""Compares what came out of a rerun of the integrator with what the journal says of one part, to the bit.

Rows of the log are compared as they come; visits and trips at the end. The first difference is the one with the
earliest frame, not the one found first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.machine.recombination import ks_at
from controller.record.journal_reader import Part
from controller.record.schema import (
    QUALITY_FRAMES_LOST,
    QUALITY_FROM_FRAMES,
    QUALITY_NO_POSITION,
    QUALITY_SATURATED,
    ROW_DTYPE,
)
from drivers.contracts import SELF_TEST_VISIT
from interlocks.conditions import by_number, matrix

MEASURED_QUALITY = QUALITY_NO_POSITION | QUALITY_SATURATED | QUALITY_FRAMES_LOST
UNSEEN_NS = 10_000_000
"""What happens so shortly before the end of a part or of a recording may be in one of both and not in the other."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Where rerun and journal part."""

    what: str
    """Such as "visit 12 of field 1"."""
    name: str
    """Name of the value that differs."""
    journal: Any
    replayed: Any
    entry: int
    stream: int
    sequence: int
    t_ns: int

    def message(self) -> str:
        """One sentence."""
        where = f"stream {self.stream}, sequence {self.sequence}, device time {self.t_ns} ns"
        return (
            f"{self.what}: {self.name}: the journal has {self.journal}, the replay {self.replayed}; they differ from "
            f"this frame on: {where} (entry {self.entry})"
        )


def differs(what: str, name: str, journal: Any, replayed: Any, mark: Any) -> Difference:
    """A difference at a mark."""
    return Difference(
        what,
        name,
        _plain(journal),
        _plain(replayed),
        *(int(mark[key]) for key in ("entry", "stream", "sequence", "t_ns")),
    )


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _same(one: Any, two: Any) -> bool:
    return bool(one == two) or (one != one and two != two)


@dataclass
class Comparison:
    """One part's comparison; feed it as the rerun goes, then `finish`."""

    part: Part
    rows: int = 0
    visits: int = 0
    visits_without_frames: int = 0
    """Booked without a measured visit, or from the visit that was still running: nothing of the frames in them."""
    trips: int = 0
    differences: list[Difference] = field(default_factory=list)
    _measured: dict[tuple[int, int], list[tuple[Any, Any]]] = field(default_factory=dict)
    _latched: list[Any] = field(default_factory=list)
    _extra: Any = None

    def __post_init__(self) -> None:
        self._journal_rows = self.part.rows()
        self._waiting: NDArray[Any] = np.zeros(0, ROW_DTYPE)
        self._over = False

    def take_rows(self, rows: NDArray[Any], marks: NDArray[Any]) -> None:
        """Rows of the log that the rerun wrote."""
        if self._over or len(rows) == 0:
            return
        expected = self._next_rows(len(rows))
        got = rows[: len(expected)]
        if got.tobytes() != expected.tobytes():
            size = ROW_DTYPE.itemsize
            unequal = (got.view("V").view(np.uint8).reshape(-1, size) != _bytes(expected)).any(axis=1)
            at = int(np.argmax(unequal))
            for name in ROW_DTYPE.names or ():
                if expected[at][name] != got[at][name]:
                    what = f"row {self.rows + at} of the log"
                    self.differences.append(differs(what, name, expected[at][name], got[at][name], marks[at]))
                    break
            self._over = True
            return
        self.rows += len(expected)
        if len(expected) < len(rows):
            self._extra = marks[len(expected)]
            self._over = True

    def take_visits(self, field_index: int, rows: NDArray[Any], marks: NDArray[Any]) -> None:
        """Measured visits that the rerun handed over while this field was loaded."""
        for row, mark in zip(rows, marks, strict=True):
            self._measured.setdefault((field_index, int(row["visit"])), []).append((row, mark))

    def take_trips(self, trips: NDArray[Any]) -> None:
        """Conditions that the rerun latched."""
        self._latched.extend(trips)

    def finish(self, end: Any, *, whole: bool) -> None:
        """The rerun has ended at the mark `end`; `whole`: the recording lasts as long as the path did."""
        closed = self.part.end is not None
        if whole and not self._over and len(rest := self._next_rows(1)):
            what = f"row {self.rows} of the log"
            self.differences.append(differs(what, "t_ns", rest[0]["t_ns"], None, end))
        if self._extra is not None and closed:
            self.differences.append(
                differs(f"row {self.rows} of the log", "t_ns", None, self._extra["t_ns"], self._extra)
            )
        self._compare_visits(end, whole=whole)
        self._compare_trips(end, whole=whole)

    def first(self) -> Difference | None:
        """The difference with the earliest frame."""
        return min(self.differences, key=lambda d: d.entry, default=None)

    def _next_rows(self, count: int) -> NDArray[Any]:
        while len(self._waiting) < count:
            block = next(self._journal_rows, None)
            if block is None:
                break
            self._waiting = np.concatenate((self._waiting, block))
        rows, self._waiting = self._waiting[:count], self._waiting[count:]
        return rows

    def _compare_visits(self, end: Any, *, whole: bool) -> None:
        chambers = self.part.header["site"]["dosimetry"]
        a_s = [float(chambers[name]["ks_per_particle_s"]) for name in ("primary", "secondary")]
        per_particle = {
            (p.head["field_index"], p.head["layer_index"]): (
                (p.head["counts_per_particle"], p.head["counts_per_particle_2"]),
                (ks_at(a_s[0], p.head["rate_per_s"]), ks_at(a_s[1], p.head["rate_per_s"])),
            )
            for p in self.part.programs
        }
        for visit in self.part.visits:
            key = (int(visit["field"]), int(visit["visit"]))
            what = f"visit {key[1]} of field {key[0] + 1}"
            found = self._measured.pop(key, [])
            if visit["frame_counts_1"] != visit["frame_counts_1"] or (
                not found and int(visit["quality"]) & QUALITY_FROM_FRAMES
            ):
                self.visits_without_frames += 1
                continue
            if not found:
                if whole or int(visit["t_end_ns"]) < int(end["t_ns"]) - UNSEEN_NS:
                    self.differences.append(differs(what, "visit", key[1], None, end))
                continue
            per, level = per_particle[(key[0], int(visit["layer"]))]
            wrong = [_visit_difference(what, visit, row, mark, per, level) for row, mark in found]
            # what the delivery booked is the latest that was there when it asked
            if all(wrong):
                self.differences.append(next(w for w in reversed(wrong) if w is not None))
            else:
                self.visits += 1
        if self.part.end is not None and self.part.end.get("outcome") == "completed":
            for (index, number), left in self._measured.items():
                if number > 0 and (index, number) != (-1, SELF_TEST_VISIT):
                    what = f"visit {number} of field {index + 1}"
                    self.differences.append(differs(what, "visit", None, number, left[0][1]))

    def _compare_trips(self, end: Any, *, whole: bool) -> None:
        known = by_number()
        latched = [t for t in self._latched if int(t["number"]) in known]
        for event in self.part.events:
            if event["event"] != "trip" or matrix()[event["id"]].number is None:
                continue
            same = bool(latched) and known[int(latched[0]["number"])].id == event["id"]
            if not same and event["t_cause_ns"] == event["t_ns"]:
                continue  # found by a task beside the path, which knows no time but its own
            if not latched:
                if whole or event["t_ns"] < int(end["t_local_ns"]) - UNSEEN_NS:
                    self.differences.append(differs("trip", "id", event["id"], None, end))
                break
            trip = latched.pop(0)
            for name, journal, replayed in _trip_values(event, trip):
                if not _same(journal, replayed):
                    self.differences.append(differs(f"trip {event['id']}", name, journal, replayed, trip["mark"]))
                    break
            else:
                self.trips += 1
        closed_ns = self.part.records[-1].t_ns if self.part.end is not None else 0
        for trip in latched:
            if int(trip["mark"]["t_local_ns"]) < closed_ns - UNSEEN_NS:
                name = known[int(trip["number"])].id
                self.differences.append(differs("trip", "id", None, name, trip["mark"]))


def _bytes(rows: NDArray[Any]) -> NDArray[np.uint8]:
    return np.frombuffer(rows.tobytes(), np.uint8).reshape(len(rows), -1)


def _visit_difference(
    what: str, visit: Any, row: Any, mark: Any, per_particle: tuple[float, float], levels: tuple[float, float]
) -> Difference | None:
    for name, replayed in _booked(visit, row, per_particle, levels):
        if not _same(visit[name], replayed):
            return differs(what, name, visit[name], replayed, mark)
    measured = int(visit["quality"]) & MEASURED_QUALITY
    if measured != int(row["quality"]):
        return differs(what, "quality", measured, row["quality"], mark)
    return None


def _booked(
    visit: Any, row: Any, per_particle: tuple[float, float], levels: tuple[float, float]
) -> Iterator[tuple[str, Any]]:
    """What the journal must say of a visit that was measured so (as `controller.delivery.account` books it)."""
    for name in ("x_mm", "y_mm", "sigma_x_mm", "sigma_y_mm"):
        yield name, row[name]
    for number in (1, 2):
        late = float(row[f"late_{number}"])
        yield f"late_counts_{number}", late
        yield f"frame_counts_{number}", float(row[f"delta_{number}"]) - late
        if not int(row["quality"]) & QUALITY_FRAMES_LOST:
            # else the rings know more than the frames
            yield f"counts_{number}", int(row[f"counts_{number}"]) - int(row[f"start_{number}"])
        counts = int(visit[f"counts_{number}"])
        pedestal = float(row[f"pedestal_{number}"])
        ks, level = float(visit[f"ks_{number}"]), levels[number - 1]
        refined = ks / level if ks > 0.0 else 1.0  # booked from frames, or by an older Spotwise: at the level's rate
        yield f"particles_{number}", (counts - pedestal + late) / per_particle[number - 1] * refined


def _trip_values(event: dict[str, Any], trip: Any) -> Iterator[tuple[str, Any, Any]]:
    yield "id", event["id"], by_number()[int(trip["number"])].id
    for name in ("value", "limit"):
        value = float(trip[name])
        yield name, event[name], value if math.isfinite(value) else None
    yield "t_cause_ns", event["t_cause_ns"], int(trip["t_ns"])
    said = event["detail"].partition(";")[0]  # what follows is of the other streams, as asyncio saw them later
    yield "visit", said if said.startswith("visit ") else "", f"visit {int(trip['visit'])}" if trip["visit"] else ""
