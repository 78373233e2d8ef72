"""Journal against counters against rings, when a treatment shall go on: agreement, an explained difference, or dispute.

Pure judgement, no device is asked here. The table of cases is docs/resume.md; what cannot be explained to the count is
never guessed: it is a dispute, which a physicist decides by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from controller.record.carried import Carried
from controller.record.schema import QUALITY_FROM_FRAMES
from sites.schema import Tolerances

RING_ROWS = 32768
"""Two layers of 16,384 visits: the rings hold no more."""
COUNTING = ("scan_controller", "electrometer_1", "electrometer_2")
"""Devices whose power-up matters here."""

Verdict = Literal["agreement", "explained", "dispute", "accepted"]


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What the devices say, with the engine at rest and no beam."""

    rows: tuple[int, int, int]
    """Rows ever written to the rings of engine, electrometer 1 and electrometer 2."""
    acknowledged: tuple[int, int, int]
    counts: tuple[int, int]
    pedestal_per_s: tuple[float, float]
    """Of both counters, measured just now."""
    nonces: Mapping[str, str]
    elapsed_s: float
    """Since the baseline."""
    powered_s: float
    """Since the baseline, as far as it is known that the devices had power."""


@dataclass(frozen=True, slots=True, eq=False)
class Tail:
    """Ring rows that the journal does not have; three arrays of equal length."""

    engine: NDArray[np.void]
    latches_1: NDArray[np.void]
    latches_2: NDArray[np.void]

    @property
    def visits(self) -> list[int]:
        """Visit ids as the engine wrote them."""
        return [int(v) for v in self.engine["visit"]]

    def end(self, number: int, row: int) -> int:
        """Cumulative counts of an electrometer at the end of a row."""
        return int((self.latches_1 if number == 1 else self.latches_2)["counts"][row])


@dataclass(slots=True)
class Comparison:
    """The verdict with all its numbers."""

    verdict: Verdict
    reasons: list[str] = field(default_factory=list)
    """Why it is a dispute."""
    tail_usable: bool = False
    """The rows after the journal's are this treatment's, in order and whole."""
    tail_rows: int = 0
    unexplained: tuple[int, int] = (0, 0)
    """Counts of both monitors that neither journal, rings nor pedestal explain."""
    numbers: dict[str, Any] = field(default_factory=dict)
    """For the journal and for the operator."""

    def sentence(self) -> str:
        """For the operator."""
        return "; ".join(self.reasons) or self.verdict


def wanted_rows(carried: Carried, reading: Reading) -> tuple[int, int] | None:
    """First row and number of rows to read from the rings, or None where there is nothing (sensible) to read."""
    if carried.baseline is None or carried.baseline.settled:
        return None
    first, count = carried.rows, min(reading.rows) - carried.rows
    return (first, count) if 0 < count <= RING_ROWS else None


def compare(
    carried: Carried, reading: Reading, tail: Tail | None, sequence: list[int], tolerances: Tolerances
) -> Comparison:
    """Judge. `sequence`: ids of the visits that the last field's part was to deliver, in order."""
    base = carried.baseline
    if base is None:
        return Comparison("agreement", numbers={"field": None})
    found = Comparison("agreement")
    changed = [n for n in COUNTING if n in base.nonces and base.nonces[n] != reading.nonces.get(n)]
    back = [
        f"electrometer {n}'s retained counter went back from {then} to {now}"
        for n, then, now in zip((1, 2), base.counts, reading.counts, strict=True)
        if now < then
    ]
    if min(reading.rows) < carried.rows:
        back.append(f"the rings went back: {carried.rows} rows are in the journal, the devices have {reading.rows}")
    found.reasons += back
    found.numbers = {
        "field": base.field,
        "rows_journal": carried.rows,
        "rows_devices": list(reading.rows),
        "power_lost": changed,
        "elapsed_s": round(reading.elapsed_s, 3),
    }
    if not base.settled:
        _compare_open(carried, reading, tail, sequence, tolerances, found, changed)
    elif not back and (reading.rows[0] != base.rows or reading.counts != base.counts):
        # others may have used the machine since: nothing of this treatment was open
        found.numbers["counts_moved"] = [now - then for then, now in zip(base.counts, reading.counts, strict=True)]
    if found.reasons:
        found.verdict = "dispute"
    return found


def _compare_open(
    carried: Carried,
    reading: Reading,
    tail: Tail | None,
    sequence: list[int],
    tolerances: Tolerances,
    found: Comparison,
    changed: list[str],
) -> None:
    """The last part ended without agreeing with the hardware: it was killed, or could not reach a device."""
    base = carried.baseline
    assert base is not None
    if changed:
        found.reasons.append(f"{', '.join(changed)} lost power in mid-treatment: what ran then is in no ring")
    found.reasons += _ring_problems(carried, reading, tail, sequence)
    found.tail_usable = tail is not None and not _ring_problems(carried, reading, tail, sequence)
    found.tail_rows = len(tail.engine) if tail is not None and found.tail_usable else 0
    unexplained = []
    for number in (1, 2):
        now = reading.counts[number - 1]
        since = now - base.counts[number - 1]
        # what was booked from frames alone is in the rings, too, and counts there
        journal = carried.from_rings if found.tail_usable else carried.since
        booked = int(journal[f"counts_{number}"].sum())
        in_tail = _tail_counts(carried, tail, number) if found.tail_usable and tail is not None else 0
        between = since - booked - in_tail
        per_s = reading.pedestal_per_s[number - 1]
        if not abs(per_s) <= tolerances.pedestal_counts_per_s:
            # a leak that began only now, taken for the whole time, would explain counts that were dose
            found.reasons.append(
                f"electrometer {number} counts {per_s:.0f}/s without beam, limit {tolerances.pedestal_counts_per_s:.0f}"
            )
        usable = tail if found.tail_usable else None
        outside_s = max(0.0, reading.powered_s - _inside_visits_s(journal, usable))
        before_beam_s = _first_visits_s(journal, usable) if number == 1 else 0.0
        least, most = sorted((per_s * outside_s, per_s * (outside_s + before_beam_s)))
        pedestal = min(max(float(between), least), most)
        left = round(between - pedestal)
        limit = tolerances.field_dose * (booked + in_tail) + tolerances.field_dose_counts
        if between < 0 and since >= 0:
            found.reasons.append(
                f"electrometer {number}: {booked + in_tail} counts are booked or latched, its retained counter has "
                f"only {since}"
            )
        elif left > limit:
            found.reasons.append(
                f"electrometer {number}: {left} counts are in its retained counter and in no ring, limit {limit:.0f}"
            )
        elif left < -limit:
            found.reasons.append(
                f"electrometer {number}: its pedestal of now ({per_s:.0f}/s) explains {-left} counts more than there "
                f"are, limit {limit:.0f}: it was another one before, and may hide dose"
            )
        unexplained.append(left)
        found.numbers[f"electrometer_{number}"] = {
            "then": base.counts[number - 1],
            "now": now,
            "journal": booked,
            "tail": in_tail,
            "between_visits": between,
            "pedestal": round(pedestal, 1),
            "unexplained": left,
            "limit": round(limit, 1),
        }
    found.unexplained = (unexplained[0], unexplained[1])
    frames_only = bool((carried.since["quality"] & QUALITY_FROM_FRAMES).any())
    if found.tail_rows or frames_only:
        found.verdict = "explained"


def _inside_visits_s(journal: NDArray[np.void], tail: Tail | None) -> float:
    """For how long visits ran: their pedestal is in their own counts, also of one that stayed open for long."""
    rows = [journal] if tail is None else [journal, tail.engine]
    return sum(float((r["t_end_ns"].astype(np.int64) - r["t_start_ns"].astype(np.int64)).sum()) for r in rows) * 1e-9


def _first_visits_s(journal: NDArray[np.void], tail: Tail | None) -> float:
    """How long the first visits of layers were open.

    The engine counts from a visit's beam on, and with a closed gate that comes late: how much of electrometer 1's
    pedestal is in such a visit's own counts is not known.
    """
    total_ns = 0
    for rows in [journal] if tail is None else [journal, tail.engine]:
        start_ns, end_ns = rows["t_start_ns"].astype(np.int64), rows["t_end_ns"].astype(np.int64)
        first = np.ones(len(rows), bool)
        first[1:] = start_ns[1:] != end_ns[:-1]
        total_ns += int((end_ns - start_ns)[first].sum())
    return total_ns * 1e-9


def _tail_counts(carried: Carried, tail: Tail, number: int) -> int:
    """Counts between the visits' own starts and ends are not known to the count here: from the first start on."""
    ends = (tail.latches_1 if number == 1 else tail.latches_2)["counts"].astype(np.int64)
    return int(sum(end - start for start, end in zip(starts(carried, tail, number), ends.tolist(), strict=True)))


def starts(carried: Carried, tail: Tail, number: int) -> list[int]:
    """Cumulative counts at the start of each row of the tail.

    A visit begins where the one before it ended. The first of a layer began later: electrometer 1's start follows from
    the engine's own count of the visit; electrometer 2's is taken as the end of the row before, or as the field's
    beginning, so that the pedestal between layers (tens of counts a second) is booked to that visit.
    """
    rows = tail.latches_1 if number == 1 else tail.latches_2
    found: list[int] = []
    for i, end in enumerate(rows["counts"].tolist()):
        before = int(rows["counts"][i - 1]) if i else _before_tail(carried, number)
        begins_layer = i == 0 or int(tail.engine["t_start_ns"][i]) != int(tail.engine["t_end_ns"][i - 1])
        found.append(int(end) - int(tail.engine["counts"][i]) if begins_layer and number == 1 else before)
    return found


def _before_tail(carried: Carried, number: int) -> int:
    """Cumulative counts at the end of the last visit that is booked, or when the field began."""
    if carried.latched is not None:
        return carried.latched[number - 1]
    assert carried.baseline is not None
    return carried.baseline.counts[number - 1] + int(carried.from_rings[f"counts_{number}"].sum())


def _ring_problems(carried: Carried, reading: Reading, tail: Tail | None, sequence: list[int]) -> list[str]:
    problems = []
    rows = carried.rows
    if len(set(reading.rows)) > 1:
        problems.append(f"the three rings have {reading.rows} rows: they were not latched by one trigger")
    if max(reading.rows) - rows > RING_ROWS:
        problems.append(
            f"the rings overran: {max(reading.rows) - rows} rows since the journal's last, they hold {RING_ROWS}"
        )
    if max(reading.acknowledged) > rows:
        problems.append(
            f"rows up to {max(reading.acknowledged)} were acknowledged by somebody, this journal has {rows}"
        )
    if tail is None:
        return problems
    ids = tail.visits
    for name, other in (("1", tail.latches_1), ("2", tail.latches_2)):
        if other["visit"].tolist() != ids:
            problems.append(
                f"electrometer {name} latched other visits than the engine: its ring is not this treatment's"
            )
        counts = other["counts"].astype(np.int64)
        if (np.diff(counts) < 0).any() or (len(counts) and counts[-1] > reading.counts[int(name) - 1]):
            problems.append(f"electrometer {name}'s latched counts do not rise to its retained counter")
    done = [int(v) for v in carried.since["visit"] if int(v) in set(sequence)]
    frames = {int(r["visit"]) for r in carried.since if int(r["quality"]) & QUALITY_FROM_FRAMES}
    # rows that were booked from frames alone are in the rings all the same
    expected = [v for v in sequence if v not in done or v in frames]
    if ids != expected[: len(ids)]:
        problems.append(
            f"the rings hold visits {_span(ids)} after the journal's last, this field was at {_span(expected[:1])}"
        )
    return problems


def _span(ids: list[int]) -> str:
    if not ids:
        return "none"
    return str(ids[0]) if len(ids) == 1 else f"{ids[0]} to {ids[-1]}"
