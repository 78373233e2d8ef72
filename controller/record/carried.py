"""What a journal says of a treatment that shall go on: what was given, and where counters and rings stood last.

Everything that a resumed part needs from the parts before it is here, as plain values: the visits, the last counters
that were written down with certainty, the identities of the devices that said so, the corrections of the last part.
Nothing in here asks a device; `controller.delivery.comparison` compares it with what the devices say now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.machine.dosimetry import Corrections
from controller.record.account import account, utc
from controller.record.journal_format import RecordType
from controller.record.journal_reader import Journal, Part, read_journal
from controller.record.schema import QUALITY_FORGONE, QUALITY_FROM_FRAMES, VISIT_DTYPE
from drivers.errors import BadInput


@dataclass(frozen=True, slots=True)
class Baseline:
    """The last "counters" event of phase "field" or "end": what the hardware said before, or after, beam."""

    part: int
    field: int
    settled: bool
    """Phase "end": everything up to here is booked and agreed."""
    rows: int
    counts: tuple[int, int]
    moment: datetime
    last_moment: datetime
    """Of the last record of that part."""
    nonces: dict[str, str]
    """Boot nonces of scan controller and electrometers in that part."""
    corrections: Corrections


@dataclass(frozen=True, slots=True, eq=False)
class Carried:
    """A treatment as its journal leaves it."""

    header: dict[str, Any]
    """Of the first part."""
    parts: int
    complete: bool
    """Every spot of the plan is complete by the journal alone."""
    visits: NDArray[np.void]
    """Booked visits of all parts; not those that only frames showed."""
    seen: NDArray[np.void]
    """Visits that only the frames showed, of parts that nobody settled yet."""
    baseline: Baseline | None
    """None: no field was ever begun, so nothing can have been delivered."""
    since: NDArray[np.void]
    """Visits booked after an unsettled baseline, in order of booking; empty where it is settled."""
    latched: tuple[int, int] | None
    """Cumulative counts of both electrometers at the end of the last visit in `since`, where they were written down."""
    programs: frozenset[tuple[int, int]]
    """Field and layer of the PROGRAM records of the baseline's part."""
    trips: tuple[str, ...]
    """Conditions that are latched: a later part is their reset, and one that died before it said so was none."""
    ended: datetime
    """Time of the last record."""
    last_ns: int
    """The same on the last part's own clock."""
    torn: str | None
    early_moved: Mapping[int, int] = field(default_factory=dict)
    """By field: counts by which its presets as a whole were moved so far, each layer's taken positive (S6)."""

    @property
    def from_rings(self) -> NDArray[np.void]:
        """Visits of `since` that were booked from the rings; the others are still in there."""
        found: NDArray[np.void] = self.since[(self.since["quality"] & QUALITY_FROM_FRAMES) == 0]
        return found

    @property
    def rows(self) -> int:
        """Ring rows that the journal accounts for."""
        if self.baseline is None:
            return 0
        return self.baseline.rows + len(self.from_rings)


def read_carried(path: Path) -> Carried:
    """Read what a journal leaves. Raises `BadInput`: no journal, a damaged one, or one without a header."""
    with read_journal(path) as journal:
        header = journal.header  # raises where there is none
        baseline, part, at = _baseline(journal)
        last = journal.parts[-1]
        last_ns = max(record.t_ns for record in last.records)
        seen = [np.zeros(0, VISIT_DTYPE), *(p.seen_only for p in journal.parts)]
        since = np.zeros(0, VISIT_DTYPE)
        programs: frozenset[tuple[int, int]] = frozenset()
        latched = None
        if baseline is not None and part is not None:
            programs = frozenset((p.head["field_index"], p.head["layer_index"]) for p in part.programs)
            if not baseline.settled:
                since = _booked_after(journal, part, at)
                latched = _latched_after(journal, part, at)
        return Carried(
            header=header,
            parts=journal.parts[-1].number,
            complete=all(one.complete for one in account(journal.parts)),
            visits=journal.booked.copy(),
            seen=np.concatenate(seen),
            baseline=baseline,
            since=since,
            latched=latched,
            programs=programs,
            trips=latched_at_the_end(event for one in journal.parts for event in one.events),
            ended=utc(last.header, last_ns),
            last_ns=last_ns,
            torn=journal.torn,
            early_moved=_early_moved(journal),
        )


def latched_at_the_end(events: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Of these events, the conditions that latched after the last reset, in order."""
    latched: list[str] = []
    for event in events:
        if event["event"] == "reset":
            latched.clear()
        elif event["event"] == "trip":
            latched.append(str(event["id"]))
    return tuple(dict.fromkeys(latched))


def _early_moved(journal: Journal) -> dict[int, int]:
    moved: dict[int, int] = {}
    for part in journal.parts:
        for event in part.events:
            if event["event"] == "early":
                index = int(event["field"])
                moved[index] = moved.get(index, 0) + abs(int(event["moved_counts"]))
    return moved


def _baseline(journal: Journal) -> tuple[Baseline | None, Part | None, int]:
    """The last counters with the part that holds them and the index of their record in it."""
    for part in reversed(journal.parts):
        for at in range(len(part.records) - 1, -1, -1):
            if part.records[at].kind is not RecordType.EVENT:
                continue
            event = journal.json(part.records[at])
            if event["event"] != "counters" or event["phase"] not in ("field", "end"):
                continue
            return _read_baseline(part, event), part, at
    return None, None, 0


def _read_baseline(part: Part, event: dict[str, Any]) -> Baseline:
    # a part that only settled an earlier one may have ended before it froze corrections of its own
    corrections = [e for e in part.events if e["event"] == "corrections"]
    if not corrections:
        raise BadInput(f"journal: part {part.number} has counters, but no corrections")
    last = corrections[-1]
    return Baseline(
        part=part.number,
        field=int(event["field"]),
        settled=event["phase"] == "end",
        rows=int(event["rows"]),
        counts=(int(event["counts_1"]), int(event["counts_2"])),
        moment=utc(part.header, int(event["t_ns"])),
        last_moment=utc(part.header, max(record.t_ns for record in part.records)),
        nonces={e["device"]: str(e["boot_nonce"]) for e in part.events if e["event"] == "device"},
        corrections=Corrections(last["ktp"], last["temperature_c"], last["pressure_hpa"]),
    )


def _booked_after(journal: Journal, part: Part, at: int) -> NDArray[np.void]:
    """Visits with or without beam that were booked after a record, each once, as booked last."""
    chunks = [
        journal.table(journal.payload(r), VISIT_DTYPE, r) for r in part.records[at + 1 :] if r.kind is RecordType.VISITS
    ]
    rows: NDArray[np.void] = np.concatenate([np.zeros(0, VISIT_DTYPE), *chunks])
    rows = rows[(rows["quality"] & QUALITY_FORGONE) == 0]
    last = {int(visit): i for i, visit in enumerate(rows["visit"])}
    found: NDArray[np.void] = rows[np.array(sorted(last.values()), np.int64)]
    return found


def _latched_after(journal: Journal, part: Part, at: int) -> tuple[int, int] | None:
    """What the last VISITS record's "counters" event says; None where that event was lost or there is none."""
    kinds = (RecordType.VISITS, RecordType.EVENT)
    for record in reversed([r for r in part.records[at + 1 :] if r.kind in kinds]):
        if record.kind is RecordType.VISITS:
            return None
        event = journal.json(record)
        if event["event"] == "counters" and event["phase"] == "layer":
            return int(event["counts_1"]), int(event["counts_2"])
    return None
