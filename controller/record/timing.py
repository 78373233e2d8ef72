"""Where the time of a treatment went, from the journal's layer events and visits.

A field lasts from the request of its first layer to the end of its last one, parts and pauses apart: time in the
states INTERRUPTED and TRIPPED, and between the parts of a resumed treatment, is the operator's and is not
counted. Set-up of gantry and couch comes before the first request and is not counted either. In it

* the machine works from a layer's "request" (accepted) to the beginning of its spill (energy, filling) and from "start"
  to "end" (beam, moves, spill gaps, gating holds);
* all other time the machine waited for the controller: download, arm, verification, start (accepted), and what lies
  between an "end" and the next "request".

total = beam_on + machine + controller; ideal = beam_on + machine: what the same machine needs with an
instantaneous controller.
"""

from __future__ import annotations

from dataclasses import dataclass

from controller.record.journal_reader import Part

NOT_COUNTED_STATES = {"INTERRUPTED", "TRIPPED", "TERMINATED"}

Interval = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one field or a whole treatment."""

    beam_on_s: float = 0.0
    machine_s: float = 0.0
    controller_s: float = 0.0

    def __add__(self, other: Timing) -> Timing:
        return Timing(
            self.beam_on_s + other.beam_on_s,
            self.machine_s + other.machine_s,
            self.controller_s + other.controller_s,
        )

    def as_dict(self) -> dict[str, float]:
        """The keys of summary.json's `time_s`, rounded to the microsecond."""
        ideal = self.beam_on_s + self.machine_s
        values = {
            "beam_on": self.beam_on_s,
            "machine": self.machine_s,
            "controller": self.controller_s,
            "total": ideal + self.controller_s,
            "ideal": ideal,
        }
        return {name: round(value, 6) for name, value in values.items()}

    @property
    def controller_share(self) -> float | None:
        """(total - ideal) / ideal; None where nothing was delivered."""
        ideal = self.beam_on_s + self.machine_s
        return round(self.controller_s / ideal, 9) if ideal > 0 else None


def timing(parts: list[Part], field: int) -> Timing:
    """Timing of one field over all parts."""
    total = Timing()
    for part in parts:
        total += _of_part(part, field)
    return total


def _of_part(part: Part, field: int) -> Timing:
    visits = part.visits[part.visits["field"] == field]
    last_visit = int(visits["t_end_ns"].max()) if len(visits) else 0
    events = [e for e in part.events if e["event"] == "layer" and e["field"] == field]
    if not events:
        beam = int(visits["beam_on_ns"].sum())
        return Timing(beam_on_s=beam / 1e9)
    begin = int(events[0]["t_ns"])
    # A layer that a trip or a crash cut off has no "end": it ended with its last visit.
    finish = max(int(events[-1]["t_ns"]), last_visit)
    opened: dict[tuple[int, str], int] = {}
    working: list[Interval] = []
    for event in events:
        layer, phase, t_ns = int(event["layer"]), str(event["phase"]), int(event["t_ns"])
        if phase in {"request", "start"}:
            opened[layer, phase] = t_ns
        elif phase in {"ready", "end"}:
            since = opened.pop((layer, "request" if phase == "ready" else "start"), None)
            if since is not None:
                # the machine was ready when its spill began; what came after was verification
                beam_ns = int(event.get("beam_since_ns", t_ns)) if phase == "ready" else t_ns
                working.append((since, min(max(since, beam_ns), t_ns)))
    working += [(since, finish) for since in opened.values()]
    away = _away(part, begin, finish)
    total_ns = (finish - begin) - _length(_union(away))
    away_and_working = _length(_union(working + away)) - _length(_union(away))
    beam_ns = min(int(visits["beam_on_ns"].sum()), away_and_working)
    return Timing(beam_ns / 1e9, (away_and_working - beam_ns) / 1e9, (total_ns - away_and_working) / 1e9)


def _away(part: Part, begin: int, finish: int) -> list[Interval]:
    """Stretches between `begin` and `finish` that nobody waited in for the machine or the controller."""
    found: list[Interval] = []
    since: int | None = None
    for event in part.events:
        if event["event"] != "state":
            continue
        t_ns = int(event["t_ns"])
        if event["state"] in NOT_COUNTED_STATES:
            since = t_ns if since is None else since
        elif since is not None:
            found.append((since, t_ns))
            since = None
    if since is not None:
        found.append((since, finish))
    return [(max(a, begin), min(b, finish)) for a, b in found if min(b, finish) > max(a, begin)]


def _union(intervals: list[Interval]) -> list[Interval]:
    merged: list[Interval] = []
    for a, b in sorted(intervals):
        if merged and a <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(b, merged[-1][1]))
        else:
            merged.append((a, b))
    return merged


def _length(intervals: list[Interval]) -> int:
    return sum(b - a for a, b in intervals)
