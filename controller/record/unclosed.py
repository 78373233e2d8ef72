"""What is not in the record of a run that ended without closing its journal: said in numbers and in a sentence.

A killed controller sends no more permits, so the chain opens by itself; what was delivered between the journal's last
bytes and that moment only the devices know: their retained counters and rings.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from controller.record.journal_reader import Journal, Part
from controller.record.schema import ROW_DTYPE

FLUSH_S = 0.1
"""Real clock: what a run has seen is with the operating system within this time, as a rule twice as fast."""


def unclosed(journal: Journal) -> list[dict[str, Any]]:
    """One entry for each part without an END record that no later part reconciled.

    `part`; `written_until_s`, from the part's beginning; `visits_from_frames`, in the record by the frames alone;
    `counts_1`, `counts_2`: in the log after the last visit of the record, in no visit; `not_written_s`: the longest
    time of beam after the journal's end, by the journal's own delay and the chain's time-out.
    """
    return [_part(part) for part in journal.parts if not part.settled]


def _part(part: Part) -> dict[str, Any]:
    begun_ns = part.records[0].t_ns
    blocks = list(part.rows())
    rows = np.concatenate(blocks) if blocks else np.zeros(0, ROW_DTYPE)
    last_ns = max(record.t_ns for record in part.records)
    counts = [0, 0]
    visits = part.visits
    if len(visits) and len(rows):
        at = min(int(np.searchsorted(rows["t_ns"], visits["t_end_ns"].max())), len(rows) - 1)
        counts = [int(rows[f"counts_{n}"][-1]) - int(rows[f"counts_{n}"][at]) for n in (1, 2)]
    return {
        "part": part.number,
        "written_until_s": round((last_ns - begun_ns) / 1e9, 6),
        "visits_from_frames": len(part.seen_only),
        "counts_1": counts[0],
        "counts_2": counts[1],
        "not_written_s": round(FLUSH_S + float(part.header["site"]["permits"]["time_out_ms"]) / 1e3, 6),
    }


def sentence(part: dict[str, Any]) -> str:
    """The same in words."""
    return (
        f"Part {part['part']} was never closed (the controller was killed, or still runs): it is written up to "
        f"{part['written_until_s']:.3f} s; {part['visits_from_frames']} visits are booked from frames; "
        f"{part['counts_1']} counts of electrometer 1 and {part['counts_2']} of electrometer 2 in the log belong to no "
        f"visit of the record; at most {part['not_written_s']:g} s of beam after that are not in it. The devices' "
        "retained counters and result rings hold all of it: resume before they are switched off."
    )
