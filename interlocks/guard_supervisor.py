"""The guard's mind: what it was told, what it has seen, whether it permits. No I/O; the time is an argument.

`interlocks.guard` feeds it frames, messages and sensors and sends what it decides. Refused: the plan as the controller
means it is not the plan that the guard read (`guard_agreement`); another session may do better. Latched: something went
wrong with a field armed (`guard_armed`); only an operator's reset ends that, and another guard with the same memory is
latched as well. What a field has got is `guard_account`'s.

One turn from top to bottom: `hear` each message, then `turn`, then `status`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from drivers.wires.guard_link import (
    AGREED,
    LATCHED,
    PERMITTING,
    WAITING,
    Ask,
    Envelope,
    LayerLimits,
    Reset,
    Session,
    Status,
    Wish,
)
from interlocks import guard_digest as d
from interlocks.guard_account import Account
from interlocks.guard_agreement import Agreement, Air
from interlocks.guard_armed import Armed, Heard, ages_of, allow, is_fresh, judge_armed
from interlocks.guard_judge import Finding, Sensors, judge_age
from interlocks.guard_plan import PlannedDelivery
from interlocks.guard_state import Latched, StateFile
from interlocks.guard_stream import Stream, follow, look
from interlocks.roles import not_theirs_to_reset
from sites.schema import GuardRules, Site


class Supervisor:
    """See the module's text."""

    def __init__(
        self,
        site: Site,
        rules: GuardRules,
        read: Callable[[], PlannedDelivery],
        state: StateFile,
        event: Callable[..., None],
        wall_ns: Callable[[], int],
        pid: int,
        turn_s: float,
        digest: Any,
    ) -> None:
        """`read` reads the plan file anew; `event(name, **values)` writes down what happens; `turn_s`: between turns.

        `digest`: `guard_digest.WORDS` whole numbers, filled by whoever takes the frames.
        """
        self.site = site
        self.digest = digest
        d.new_digest(self.digest)
        self.account = Account(site, state, event, wall_ns, digest)
        self.agreement = Agreement(site, rules, read)
        self.armed: Armed | None = None
        self.latched: Finding | None = _restored(self.account.memory.latched)
        self.session = 0
        self.air: Air | None = None
        self.sensors: Sensors | None = None
        self._event = event
        if self.latched is not None:
            event("still_latched", **_numbers(self.latched))
        self._wall_ns = wall_ns
        self._pid = pid
        self._sequence = 0
        self._wish_ns: int | None = None
        self._stream: Stream | None = None
        self._frames = 0
        self._ages = ages_of(site, rules, turn_s)
        self._drift_ns = round(site.permits.clock_drift_max_ms * 1e6)

    def first_look(self, counts: int) -> None:
        """At the guard's start: the retained counter against what was remembered."""
        self.account.first_look(counts, self.agreement.expected)

    # ---- what the controller says

    def hear(self, envelope: Envelope, now_ns: int) -> None:
        """Take one authentic message; what is out of sequence is passed over."""
        message = envelope.message
        if isinstance(message, Ask | Status):
            return
        if isinstance(message, Session):
            if envelope.session != self.session:
                self._begin(envelope, message, now_ns)
            return
        if envelope.session != self.session or envelope.sequence <= self._sequence:
            return
        self._sequence = envelope.sequence
        if isinstance(message, LayerLimits):
            if self.agreement.take(message):
                self._tell_agreement()
        elif isinstance(message, Wish):
            self._take_wish(message, now_ns)
        elif isinstance(message, Reset):
            self._reset(message)

    def _begin(self, envelope: Envelope, said: Session, now_ns: int) -> None:
        if self.armed is not None:
            self._latch(Finding("GUARD_CONTROLLER", math.nan, math.nan, "another session while a field is armed"))
            return
        self.session, self._sequence, self._wish_ns = envelope.session, envelope.sequence, None
        self._event("session", part=said.part, ktp=said.ktp)
        self._settle(now_ns, at_once=True)
        self.agreement.begin(said, self.air, self.account, now_ns)
        self._tell_agreement()

    def _take_wish(self, wish: Wish, now_ns: int) -> None:
        self._wish_ns = now_ns
        if wish.permit == 0:
            self._disarm(now_ns)
            return
        if self.latched is not None or not self.agreement.agreed:
            return
        if self.armed is None:
            self._arm(wish, now_ns)
        elif (wish.field, wish.arm_token) != (self.armed.field, self.armed.token):
            self._latch(Finding("GUARD_CONTROLLER", float(wish.field), float(self.armed.field), "another field armed"))
        if self.armed is not None and self.latched is None:
            allowed = allow(self.armed, wish, self.agreement, now_ns)
            if isinstance(allowed, Finding):
                self._latch(allowed)
            else:
                self.armed = allowed

    def _arm(self, wish: Wish, now_ns: int) -> None:
        last = len(self.agreement.expected) - 1
        if not 0 <= wish.field <= last:
            self._latch(Finding("GUARD_CONTROLLER", float(wish.field), float(last), "no such field"))
            return
        stream = self._stream
        came_ns = None if stream is None else stream.came_ns
        found = judge_age("GUARD_FRAMES", now_ns, came_ns, self._ages.frame_ns, "at arming")
        if found is None:
            self._settle(now_ns, at_once=True)
            found = self.account.moved_while_idle()
        if found is not None:
            self._latch(found)
            return
        assert stream is not None  # its age was found good
        opened = self.account.open(wish.field)
        self.armed = Armed(wish.field, wish.arm_token, stream.offset_ns + self._drift_ns)
        if self._remember():
            before = opened.before.counts
            self._event("armed", field=wish.field, counter=opened.base_counts, delivered_before=before)

    def _reset(self, message: Reset) -> None:
        if self.latched is None or self.armed is not None or not message.operator or not message.reason:
            return
        if not_theirs_to_reset(self.site, message.operator, (self.latched.id,)):
            return
        self._event("reset", operator=message.operator, reason=message.reason, id=self.latched.id)
        self.latched = None
        found = self.account.remember_latch(None)
        if found is not None:
            self._latch(found)

    # ---- the turn

    def turn(self, now_ns: int) -> bool:
        """Judge what has come; True where a permit may leave now."""
        if self.digest[d.FRAMES] != self._frames:
            self._frames = int(self.digest[d.FRAMES])
            most_ns = None if self.armed is None else self.armed.offset_most_ns
            nonce, t_ns = int(self.digest[d.NONCE]), int(self.digest[d.T_NS])
            self._stream = follow(self._stream, nonce, t_ns, now_ns, most_ns)
            if self.account.idle is None:
                self.account.note_idle()
        if self._stream is not None:
            self._stream = look(self._stream, self._ages.frame_permits_ns, now_ns)
        heard = Heard(self._wish_ns, self._stream, self.sensors)
        found = self.account.judge_disk()
        if found is None and self.armed is not None:
            digest = [int(word) for word in self.digest]
            found = judge_armed(self.site, self._ages, self.armed, heard, digest, self.account.dose(), now_ns)
        if found is not None:
            self._latch(found)
        if self.armed is None:
            self._settle(now_ns)
        permits = (
            self.armed is not None
            and self.latched is None
            and self.account.remembered  # this arming is on the disk
            and is_fresh(heard, self._ages, now_ns)
        )
        self.account.begin_turn()
        return permits

    def frame_age_ns(self, now_ns: int) -> int:
        """Since the newest frame was measured; for ever where none came."""
        return now_ns - self._stream.made_ns if self._stream is not None else 1 << 62

    # ---- ends

    def _disarm(self, now_ns: int) -> None:
        self.armed = None
        self.account.end(now_ns)

    def _settle(self, now_ns: int, *, at_once: bool = False) -> None:
        """What a field got is closed, and written down, once no charge can come any more."""
        field = self.account.settle(now_ns, at_once=at_once)
        if field is not None:
            self._remember()
            got = self.account.memory.fields[str(field)]
            self._event("closed", field=field, counts=got.counts, beam_s=got.beam_ns * 1e-9)

    @property
    def settled(self) -> bool:
        """No field is armed, and what the last one got is written down."""
        return self.account.opened is None

    def finish(self, now_ns: int) -> None:
        """The guard is to end: nothing is permitted any more; `settled` says when what was delivered is known."""
        self.agreement.withdraw()
        self._disarm(now_ns)

    def close(self, now_ns: int) -> None:
        """The guard ends: what was delivered is written down.

        With a field still armed, the controller has died: beam goes on until the chain has noticed. The memory is left
        as it was written at the arming, field open; the next guard finds in the retained counter what came meanwhile.
        """
        if self.armed is not None:
            self._event("left_open", field=self.armed.field)
            return
        self._settle(now_ns, at_once=True)

    # ---- what is kept, and told

    def _remember(self) -> bool:
        """Without that nothing is permitted."""
        found = self.account.remember()
        if found is not None:
            self._latch(found)
        return found is None

    def _latch(self, finding: Finding) -> None:
        """First-out stays."""
        if self.latched is None:
            self.latched = finding
            numbers = _numbers(finding)
            self._event("latched", **numbers)
            self.account.remember_latch(Latched(wall_ns=self._wall_ns(), **numbers))  # a disk that fails, latches

    def _tell_agreement(self) -> None:
        agreement = self.agreement
        if agreement.refused is not None:
            self._event("refused", **_numbers(agreement.refused))
        elif agreement.agreed:
            layers = sum(len(field.layers) for field in agreement.expected)
            self._event("agreed", plan_sha256=agreement.plan.sha256, layers=layers)

    def status(self) -> Status:
        """What the controller is told."""
        plan = self.agreement.plan
        state = AGREED if self.agreement.agreed else WAITING
        state = PERMITTING if self.armed is not None else state
        state = LATCHED if self.latched is not None else state
        found = self.latched or self.agreement.refused or Finding("", math.nan, math.nan)
        counts = self.account.dose().counts if self.armed is not None else 0.0
        sha256 = bytes.fromhex(plan.sha256)
        return Status(
            state, self._pid, sha256, plan.fraction_group, counts, found.value, found.limit, found.id, found.detail
        )


def _restored(latched: Latched | None) -> Finding | None:
    """What was latched when a guard before this one ended; told with its time."""
    if latched is None:
        return None
    value, limit = (math.nan if number is None else number for number in (latched.value, latched.limit))
    when = datetime.fromtimestamp(latched.wall_ns * 1e-9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return Finding(latched.id, value, limit, f"{latched.detail} (latched {when})".lstrip())


def _numbers(finding: Finding) -> dict[str, Any]:
    """For a line of JSON, which knows no NaN."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(finding).items()}
