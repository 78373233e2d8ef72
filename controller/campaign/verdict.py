"""What a played treatment is called: safe and named, safe but unnamed, or unsafe. Facts in, verdict out, nothing else.

Unsafe is: an excess at the worst point of 0.25 Gy or more, beam at the plant after the end, a treatment called
completed with spots outside tolerance in truth, counts that do not add up, or a treatment that hangs or dies.
Named is: the first-out is one that the fault may have. A treatment that completed has no first-out; it was within
tolerance in truth, or it were unsafe, and it is named only where one of these holds, which is kept and counted:

    allowed     the catalogue says that the fault may pass
    not begun   its place was never reached
    weak        weaker than the example that the catalogue promises to be found
    late        there were less than 2 s of beam left, brief: it passed, and visits had it for less than a millisecond
    no effect   in truth nobody got 0.02 Gy too much anywhere
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from controller.campaign.truth_dose import LIMIT_GY, TruthDose

SAFE_NAMED = "safe_named"
SAFE_UNNAMED = "safe_unnamed"
UNSAFE = "unsafe"
VERDICTS = (SAFE_NAMED, SAFE_UNNAMED, UNSAFE)
NO_TRIP = "none"
REFUSED = "refused"
TOO_LATE_S = 2.0
"""A fault with less beam left than this may go unfound: the slowest condition has 1.6 s."""
NO_EFFECT_GY = 0.02
"""Less than this at the worst point is what gains known to 0.3 % and noise give without any fault."""
TOO_SHORT_S = 1e-3
"""A fault that has passed and had visits for no longer than this: what goes off takes a quarter of it."""
NOTHING = TruthDose(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0)


@dataclass(frozen=True, slots=True)
class Reaction:
    """Times of a stop, ms."""

    fault_to_trip_ms: float | None
    """From the fault's beginning at the plant to the judgement; None where there was no fault."""
    trip_to_open_ms: float
    """From the judgement to the chain's opening; 0 where the chain opened first."""
    trip_to_beam_off_ms: float
    """From the judgement to the last beam at the plant; 0 where there was none."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a played treatment."""

    room: str
    seed: int
    scenario: str
    fault: str
    place: str
    expected: tuple[str, ...]
    harmless: bool
    """The fault is weaker than what must be found."""
    fired: bool
    """All faults of the scenario began."""
    status: str
    """completed, interrupted or refused"""
    message: str
    defect: str
    """Traceback, or why it hung; empty: none."""
    beam_at_end: bool
    """Beam, or a closed chain, when the treatment was over."""
    particles_after: int
    """That came after the end."""
    first_out: str = ""
    detail: str = ""
    trips: tuple[str, ...] = ()
    """All conditions that latched, in order."""
    dose: TruthDose = NOTHING
    misplaced_gy: float = 0.0
    """At the worst point, from ions further than the position limit from their planned place."""
    harm_gy: float = 0.0
    """At the worst point, from these and from ions too many: what a treatment is judged by."""
    outside: tuple[str, ...] = ()
    """Completed spots outside tolerance in truth, in words."""
    unaccounted_gy: float = 0.0
    """At the worst point, from beam in no visit of the journal."""
    miscounted: tuple[str, ...] = ()
    """Counts that do not add up although the journal says so, in words."""
    settled: bool = False
    """The journal says that its counts are all there are."""
    reaction: Reaction | None = None
    beam_s_left: float = 0.0
    """From the fault to the last beam."""
    exposed_s: float = math.inf
    """Of a fault that passed: how long visits ran while it was there; infinite where it stayed."""
    limit_gy: float = LIMIT_GY


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict and what it rests on; `as_json` has no wall-clock time, so the same case gives the same bytes."""

    verdict: str
    why: tuple[str, ...]
    ended: str
    """First-out condition, none (completed) or refused."""
    facts: Facts
    passed: str = ""
    """Of a treatment with a fault that completed: why that is all right."""

    @property
    def unsafe(self) -> bool:
        return self.verdict == UNSAFE

    @property
    def false_trip(self) -> bool:
        """Stopped although nothing was wrong."""
        return self.facts.fault == "none" and self.ended != NO_TRIP

    def as_json(self) -> dict[str, Any]:
        """For files; doses rounded to 1e-9 Gy."""
        facts = self.facts
        return {
            "room": facts.room,
            "seed": facts.seed,
            "fault": facts.fault,
            "place": facts.place,
            "scenario": facts.scenario,
            "expected": list(facts.expected),
            "harmless": facts.harmless,
            "fired": facts.fired,
            "verdict": self.verdict,
            "why": list(self.why),
            "passed": self.passed,
            "message": facts.message[:400],
            "ended": self.ended,
            "detail": facts.detail,
            "trips": list(facts.trips),
            "false_trip": self.false_trip,
            "harm_gy": round(facts.harm_gy, 9),
            "excess_gy": round(facts.dose.excess_gy, 9),
            "misplaced_gy": round(facts.misplaced_gy, 9),
            "average_gy": round(facts.dose.average_gy, 9),
            "unaccounted_gy": round(facts.unaccounted_gy, 9),
            "settled": facts.settled,
            "reaction": None if facts.reaction is None else asdict(facts.reaction),
            "defect": facts.defect,
        }


def judge(facts: Facts) -> Verdict:
    """Call it by its name."""
    ended = _ended(facts)
    why = _unsafe(facts)
    if why:
        return Verdict(UNSAFE, tuple(why), ended, facts)
    passed = _passed(facts) if ended == NO_TRIP else ""
    unnamed = "" if passed else _unnamed(facts, ended)
    return Verdict(SAFE_UNNAMED if unnamed else SAFE_NAMED, (unnamed,) if unnamed else (), ended, facts, passed)


def _passed(facts: Facts) -> str:
    """Why a fault may pass unnamed; empty: it may not."""
    reasons = (
        ("allowed", NO_TRIP in facts.expected),
        ("not begun", not facts.fired),
        ("weak", facts.harmless),
        ("late", facts.beam_s_left < TOO_LATE_S),
        ("brief", facts.exposed_s < TOO_SHORT_S),
        ("no effect", facts.harm_gy < NO_EFFECT_GY),
    )
    return next((reason for reason, holds in reasons if holds), "")


def _ended(facts: Facts) -> str:
    if facts.defect:
        return "defect"
    if facts.status == "completed":
        return NO_TRIP
    if facts.first_out:
        return facts.first_out
    return REFUSED if facts.status == "refused" else "unknown"


def _unsafe(facts: Facts) -> list[str]:
    why = []
    if facts.defect:
        why.append(f"a defect or a hang: {facts.defect}")
    if not facts.harm_gy < facts.limit_gy:
        why.append(f"{facts.harm_gy:.3g} Gy too much at the worst point; the limit is {facts.limit_gy:g} Gy")
    if facts.beam_at_end:
        why.append("beam at the plant, or a closed chain, at the end of the treatment")
    if facts.particles_after:
        why.append(f"{facts.particles_after} particles after the end of the treatment")
    if facts.status == "completed" and facts.outside:
        why.append(f"called completed, but outside tolerance: {'; '.join(facts.outside)}")
    why += facts.miscounted
    if facts.status == "completed" and not facts.settled:
        why.append("called completed, but its counts are not settled")
    return why


def _unnamed(facts: Facts, ended: str) -> str:
    if ended in facts.expected:
        return ""
    if ended == NO_TRIP:
        return f"completed within tolerance, and nobody noticed; want one of {', '.join(facts.expected)}"
    if ended == REFUSED:
        return "" if facts.message and facts.fired else "refused without a reason"
    if not facts.fired and facts.fault != "none":
        return f"stopped by {ended} before the fault began"
    return f"stopped by {ended}; want one of {', '.join(facts.expected)}"
