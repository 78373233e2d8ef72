"""Journal against counters against rings: each row of the table in docs/resume.md, in numbers."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from controller.delivery.comparison import RING_ROWS, Comparison, Reading, Tail, compare, wanted_rows
from controller.machine.dosimetry import Corrections
from controller.record.carried import Baseline, Carried
from controller.record.schema import QUALITY_FROM_FRAMES, VISIT_DTYPE
from drivers.contracts import ENGINE_RESULT_DTYPE, LATCH_DTYPE
from sites.loader import load_site

TOLERANCES = load_site("carbon-fixed").tolerances
NONCES = {"scan_controller": "1", "electrometer_1": "2", "electrometer_2": "3"}
THEN = datetime(2030, 1, 1, tzinfo=UTC)
SEQUENCE = list(range(1, 11))
START = (50_000, 70_000)
EACH = 4_000
"""Counts of every visit, in both electrometers."""


def carried(booked: int, *, settled: bool = False, quality: int = 0) -> Carried:
    """A field of ten visits that began at row 100; so many of them are in the journal."""
    visits = np.zeros(booked, VISIT_DTYPE)
    visits["visit"] = SEQUENCE[:booked]
    visits["counts_1"] = visits["counts_2"] = EACH
    visits["quality"] = quality
    base = Baseline(1, 0, settled, 100, START, THEN, THEN, NONCES, Corrections(1.0, 22.0, 1013.0))
    nothing = np.zeros(0, VISIT_DTYPE)
    since = nothing if settled else visits
    return Carried({}, 1, False, visits, nothing, base, since, None, frozenset(), (), THEN, 0, None)


def reading(visits: int, **changes: object) -> Reading:
    """The devices after so many visits of that field, ten seconds later, with a pedestal of ten a second."""
    rows = 100 + visits
    counts = (START[0] + visits * EACH + 100, START[1] + visits * EACH + 100)
    whole = Reading((rows,) * 3, (100,) * 3, counts, (10.0, 10.0), NONCES, 10.0, 10.0)
    return replace(whole, **changes)  # type: ignore[arg-type]


def tail(first: int, count: int) -> Tail:
    """Rows of the rings of visits `first` on."""
    engine = np.zeros(count, ENGINE_RESULT_DTYPE)
    engine["visit"] = np.arange(first, first + count)
    engine["counts"] = EACH
    engine["t_start_ns"] = np.arange(count) * 1_000_000
    engine["t_end_ns"] = engine["t_start_ns"] + 1_000_000
    latches = []
    for start in START:
        latch = np.zeros(count, LATCH_DTYPE)
        latch["visit"] = engine["visit"]
        latch["counts"] = start + EACH * np.arange(first, first + count)
        latches.append(latch)
    return Tail(engine, *latches)


def judged(kept: Carried, now: Reading, rows: Tail | None = None) -> Comparison:
    return compare(kept, now, rows, SEQUENCE, TOLERANCES)


def test_where_no_field_was_begun_there_is_nothing_to_dispute() -> None:
    nobody = replace(carried(0), baseline=None)
    assert judged(nobody, reading(7)).verdict == "agreement"
    assert wanted_rows(nobody, reading(7)) is None


def test_a_settled_field_does_not_mind_what_others_did_since_but_counters_that_went_back() -> None:
    settled = carried(5, settled=True)
    used = reading(9)
    found = judged(settled, used)
    assert found.verdict == "agreement"
    assert found.numbers["counts_moved"] == [used.counts[n] - START[n] for n in (0, 1)]
    back = judged(settled, replace(used, counts=(START[0] - 1, used.counts[1])))
    assert back.verdict == "dispute"
    assert "electrometer 1's retained counter went back from 50000 to 49999" in back.sentence()
    assert "the rings went back" in judged(settled, replace(used, rows=(99, 99, 99))).sentence()


def test_an_open_field_whose_visits_and_pedestal_explain_the_counters_agrees() -> None:
    found = judged(carried(5), reading(5))
    assert (found.verdict, found.unexplained) == ("agreement", (0, 0))


def test_rows_that_the_journal_lacks_are_explained_by_the_rings() -> None:
    kept, now = carried(5), reading(8)
    assert wanted_rows(kept, now) == (105, 3)
    found = judged(kept, now, tail(6, 3))
    assert (found.verdict, found.tail_rows, found.unexplained) == ("explained", 3, (0, 0))


def test_visits_booked_from_frames_are_replaced_by_their_rows() -> None:
    found = judged(carried(5, quality=QUALITY_FROM_FRAMES), reading(5), tail(1, 5))
    assert (found.verdict, found.tail_rows) == ("explained", 5)


@pytest.mark.parametrize(("counts", "verdict"), [(0, "explained"), (360, "explained"), (-250, "dispute")])
def test_a_visit_that_waited_for_its_gate_may_or_may_not_have_counted_its_pedestal(counts: int, verdict: str) -> None:
    waited = tail(1, 1)
    waited.engine["t_end_ns"] = 8_000_000_000
    waited.engine["counts"] = max(0, counts)
    for start, latch in zip(START, (waited.latches_1, waited.latches_2), strict=True):
        latch["counts"] = start + 360  # 45 a second
    more = 450 - min(0, counts)
    now = reading(1, counts=(START[0] + more, START[1] + 450), pedestal_per_s=(45.0, 45.0))
    assert judged(carried(0), now, waited).verdict == verdict


@pytest.mark.parametrize(
    ("rows", "now", "said"),
    [
        (tail(7, 3), reading(8), "the rings hold visits 7 to 9 after the journal's last, this field was at 6"),
        (
            tail(6, 3),
            reading(8, rows=(108, 108, 107)),
            r"the three rings have \(108, 108, 107\) rows: they were not latched by one trigger",
        ),
        (None, reading(5 + RING_ROWS + 1), f"the rings overran: {RING_ROWS + 1} rows since the journal's last"),
        (tail(6, 3), reading(8, acknowledged=(107,) * 3), "rows up to 107 were acknowledged by somebody"),
        (tail(6, 3), reading(8, nonces={**NONCES, "electrometer_1": "9"}), "electrometer_1 lost power"),
        (None, reading(5, counts=(START[0] + 5 * EACH + 2_000, START[1] + 5 * EACH)), "in no ring, limit"),
        (None, reading(5, counts=(START[0] + 5 * EACH - 3, START[1] + 5 * EACH)), "counter has only 19997"),
        (None, reading(5, pedestal_per_s=(2_000.0, 10.0)), "electrometer 1 counts 2000/s without beam, limit 1000"),
        (None, reading(5, pedestal_per_s=(500.0, 10.0)), "may hide dose"),
    ],
    ids=[
        "foreign rows",
        "rings of different length",
        "overrun",
        "acknowledged rows",
        "power lost",
        "counts in no ring",
        "more booked than counted",
        "a leak",
        "another pedestal",
    ],
)
def test_what_cannot_be_explained_to_the_count_is_a_dispute(rows: Tail | None, now: Reading, said: str) -> None:
    found = judged(carried(5), now, rows)
    assert found.verdict == "dispute"
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(found.sentence())


def test_latches_that_fall_or_name_other_visits_are_no_tail_of_ours() -> None:
    for change, said in (("visit", "latched other visits"), ("counts", "do not rise")):
        rows = tail(6, 3)
        rows.latches_2[change][1] = 1
        found = judged(carried(5), reading(8), rows)
        assert (found.verdict, found.tail_usable, found.tail_rows) == ("dispute", False, 0)
        assert said in found.sentence()
