"""Gathers what beam rests on (S1) from a run, and trips on what stands against it."""

from __future__ import annotations

from collections.abc import Iterable

from controller.clock import now_ns
from controller.delivery.identities import oldest_identity_ns
from controller.delivery.run import Run
from drivers.errors import SpotwiseError
from drivers.flags import FLAG_CHAIN
from interlocks.invariant import Standing, before_arming, before_beam
from interlocks.slow import Violation, judge, judge_identities


class AlreadyTripped(SpotwiseError):
    """An interlock latched in the middle of a step; its name is in the latch."""

    exit_status = 4


def judge_room(run: Run, t_ns: int, *, hold_s: float = 0.0, holds: int = 0) -> list[Violation]:
    """What is wrong with the room: by the last statuses, and by the age of what each device said of itself."""
    names = [name for name, _ in run.site.devices.items()]
    found = judge(run.seen, run.expected, t_ns, hold_s=hold_s, holds=holds)
    return found + judge_identities(run.identified_ns, names, t_ns, oldest_identity_ns(run.site))


def standing(run: Run, room: Iterable[Violation] | None = None) -> Standing:
    """Everything that S1 names, as known now; `room` where the room was judged just before."""
    t_ns = now_ns()
    oldest_ns = t_ns - oldest_identity_ns(run.site)
    return Standing(
        approved=run.approved,
        changed=run.changed,
        field=run.tally.field_index if run.tally.field_index >= 0 else None,
        field_set_up=run.field_set_up,
        confirmed=run.field_confirmed == run.tally.field_index,
        room=tuple(judge_room(run, t_ns) if room is None else room),
        self_tests=run.self_tests,
        boot_nonces={
            name: identity.boot_nonce
            for name, identity in run.identities.items()
            if oldest_ns <= run.identified_ns.get(name, oldest_ns - 1)  # who was not asked lately is unknown
        },
        silent_streams=run.path.silent_since(t_ns - round(run.site.permits.stale_ms * 1e6)),
        tripped=run.latch.tripped,
        permits_fresh=bool(run.path.flags & FLAG_CHAIN),
        spill_verified=run.spill_verified.is_set() and run.expected.energy_mev_u is not None,
    )


def require_arming(run: Run) -> None:
    """Trip, and raise `AlreadyTripped`, unless this field may be armed."""
    _require(run, before_arming(standing(run)))


def require_beam(run: Run) -> None:
    """Trip, and raise `AlreadyTripped`, unless there may be beam now."""
    _require(run, before_beam(standing(run)))


def trip_on(run: Run, found: Iterable[Violation]) -> None:
    """Latch each of them."""
    for violation in found:
        run.trip(violation.id, value=violation.value, limit=violation.limit, detail=violation.detail)


def _require(run: Run, found: list[Violation]) -> None:
    trip_on(run, found)
    if found:
        raise AlreadyTripped(found[0].id)
