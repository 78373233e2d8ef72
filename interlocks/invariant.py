"""S1, the one invariant of delivery: what must be true whenever there may be beam. Pure, and unknown is not true.

Asked before arming, before every layer and spill, and at every turn of the interlock task while a field is delivered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from interlocks.slow import Violation

SELF_TESTED = ("electrometer_1", "electrometer_2", "scan_controller", "accelerator", "safety_chain")
"""Both monitors, and every way to stop the beam: each is proved to work since its last power-up, with no beam."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What beam rests on, as last known."""

    approved: bool
    """Approved by a physician, or explicitly let pass on a research site."""
    changed: tuple[str, ...] | None
    """Of plan, site and register maps, what is no longer what was checked; None: nobody has looked."""
    field: int | None
    """The field to be delivered."""
    field_set_up: int | None
    """The field whose set-up was read back last."""
    confirmed: bool
    """Patient and position of this field were confirmed by a local operator before it was armed."""
    room: tuple[Violation, ...] | None
    """What is wrong with the room now, by the slow judgements; None: not judged."""
    self_tests: Mapping[str, int]
    """Device: boot nonce in which its self-test passed."""
    boot_nonces: Mapping[str, int]
    """Device: boot nonce as last read, where that is recent."""
    silent_streams: tuple[int, ...] | None
    """Streams without fresh frames: 1 and 2 the electrometers, 3 the scan controller; None: nobody has looked."""
    tripped: bool
    permits_fresh: bool
    """The chain is closed: it gets valid, fresh permits of everybody whom it needs one of."""
    spill_verified: bool
    """Energy, ion and port of this spill, by read-back and by sensors of their own."""


def before_arming(s: Standing) -> list[Violation]:
    """What stands against arming a field."""
    found = []
    if s.tripped:
        found.append(Violation("NOT_READY", None, None, "an interlock is latched"))
    if not s.approved:
        found.append(Violation("NOT_READY", None, None, "the plan is not approved"))
    if s.changed is None:
        found.append(Violation("PLAN_CHANGED", None, None, "not compared with what was checked"))
    elif s.changed:
        found.append(Violation("PLAN_CHANGED", None, None, ", ".join(s.changed)))
    if s.field is None or s.field_set_up != s.field:
        found.append(Violation("NOT_READY", None, None, "the set-up of this field was not read back"))
    if not s.confirmed:
        found.append(Violation("NOT_READY", None, None, "patient and position of this field were not confirmed"))
    if s.room is None:
        found.append(Violation("NOT_READY", None, None, "the room was not judged"))
    else:
        found += s.room
    for name in SELF_TESTED:
        nonce = s.boot_nonces.get(name)
        if nonce is None or s.self_tests.get(name) != nonce:
            found.append(Violation("SELF_TEST_MISSING", None, None, f"{name}: none passed since it was powered up"))
    if s.silent_streams is None:
        found.append(Violation("NOT_READY", None, None, "nobody has looked whether frames are fresh"))
    else:
        found += [Violation(f"STREAM_SILENT_{n}", None, None, "no fresh frame of it") for n in s.silent_streams]
    return found


def before_beam(s: Standing) -> list[Violation]:
    """What stands against beam now: S1 holds where nothing does."""
    found = before_arming(s)
    if not s.permits_fresh:
        found.append(Violation("NOT_READY", None, None, "the safety chain is not closed by fresh permits"))
    if not s.spill_verified:
        found.append(Violation("NOT_READY", None, None, "energy, ion and port of this spill were not verified"))
    return found
