"""The guard's mind: what it was told, what it has seen, whether it permits. No I/O; the time is an argument.

`interlocks.guard` feeds it frames, messages and sensors and sends what it decides. Refused: the plan as the controller
means it is not the plan that the guard read; another session may do better. Latched: something went wrong with a
field armed; only an operator's reset, or a new guard, ends that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from drivers.errors import BadInput, Refused
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
from interlocks.guard_judge import (
    Dose,
    Finding,
    Limits,
    Sensors,
    judge_age,
    judge_air,
    judge_dose,
    judge_idle,
    judge_jump,
    judge_left_open,
    judge_monitor,
    judge_sensors,
    judge_unallowed,
    judge_visits,
    ktp_of,
    limits_of,
)
from interlocks.guard_numbers import ExpectedField, counts_per_particle, differs, expected_fields
from interlocks.guard_plan import PlannedDelivery
from interlocks.guard_state import Delivered, Memory, StateFile
from interlocks.roles import not_theirs_to_reset
from sites.schema import GuardRules, Site

REFERENCE_MEV_U = 150.0
SETTLE_NS = 500_000_000
"""After a field: until then charge may still come, and belongs to it."""
KTP_AGREEMENT = 0.003
"""Between two sensors of one room, as the controller allows its two."""


@dataclass(frozen=True, slots=True)
class Air:
    """What electrometer 2 said of itself last."""

    asked_ns: int
    temperature_c: float
    pressure_hpa: float
    counts: int
    """The retained counter."""


@dataclass(slots=True)
class Armed:
    """The field that may have beam."""

    field: int
    token: int
    before: Delivered
    """In former parts."""
    base_counts: int
    base_t_ns: int
    turn_counts: int
    turn_t_ns: int
    layer: int = -1
    allowed_ns: int = 0
    limits: Limits | None = None


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
        self.rules = rules
        self.digest = digest
        d.new_digest(self.digest)
        self.memory: Memory = state.load()
        self.armed: Armed | None = None
        self.latched: Finding | None = None
        self.refused: Finding | None = None
        self.session = 0
        self.air: Air | None = None
        self.sensors: Sensors | None = None
        self.simulator_anew = False
        """Electrometer 2 is a simulator with another power-up than the one that is remembered."""
        self._read = read
        self._state = state
        self._event = event
        self._wall_ns = wall_ns
        self._pid = pid
        self._plan = read()
        self._expected: tuple[ExpectedField, ...] = expected_fields(site, self._plan)
        self._said: Session | None = None
        self._layers: dict[tuple[int, int], LayerLimits] = {}
        self._sequence = 0
        self._wish: Wish | None = None
        self._wish_ns: int | None = None
        self._frame_ns: int | None = None
        self._frames = 0
        self._settle_ns: int | None = None
        self._last_field: Armed | None = None
        self._agreed = False
        self._moved: Finding | None = None
        self._idle_counts = 0
        self._idle_t_ns: int | None = None
        permits = site.permits
        self._lease_ns = round(permits.lease_ms * 1e6)
        self._fresh_ns = round(max(permits.frame_age_max_ms, 2e3 * turn_s) * 1e6)
        self._silent_ns = round((permits.lease_ms + permits.time_out_ms) * 1e6)
        self._stale_ns = round(permits.stale_ms * 1e6)
        self._sensors_ns = round(rules.max_age_ms * 1e6)

    # ---- what the controller says

    def hear(self, envelope: Envelope, now_ns: int) -> None:
        """Take one authentic message; what is out of sequence is passed over."""
        message = envelope.message
        if isinstance(message, Ask | Status):
            return
        if isinstance(message, Session):
            if envelope.session != self.session:
                self._open(envelope, now_ns)
            return
        if envelope.session != self.session or envelope.sequence <= self._sequence:
            return
        self._sequence = envelope.sequence
        if isinstance(message, LayerLimits):
            if not self._agreed:  # what was compared is what limits are made of: nobody changes it afterwards
                self._layers[message.field, message.layer] = message
                self._compare()
        elif isinstance(message, Wish):
            self._take_wish(message, now_ns)
        elif isinstance(message, Reset):
            self._reset(message)

    def _open(self, envelope: Envelope, now_ns: int) -> None:
        assert isinstance(envelope.message, Session)
        if self.armed is not None:
            self._latch(Finding("GUARD_CONTROLLER", math.nan, math.nan, "another session while a field is armed"))
            return
        self.session, self._sequence = envelope.session, envelope.sequence
        self._said, self._layers, self._agreed = envelope.message, {}, False
        self._wish, self._wish_ns, self.refused = None, None, None
        self._event("session", part=envelope.message.part, ktp=envelope.message.ktp)
        self._settle(now_ns, at_once=True)
        self.refused = self._refuse_session(envelope.message, now_ns)
        self._tell_refused()

    def _refuse_session(self, said: Session, now_ns: int) -> Finding | None:
        try:
            self._plan = self._read()
            self._expected = expected_fields(self.site, self._plan)
        except (BadInput, Refused) as error:
            return Finding("GUARD_PLAN", math.nan, math.nan, str(error))
        sha256 = said.plan_sha256.hex()
        if sha256 != self._plan.sha256:
            detail = f"the controller read {sha256[:16]}, the guard {self._plan.sha256[:16]}"
            return Finding("GUARD_PLAN", math.nan, math.nan, detail)
        layers = sum(len(field.layers) for field in self._expected)
        for what, got, wanted in (
            ("fraction group", said.fraction_group, self._plan.fraction_group),
            ("fields", said.fields, len(self._expected)),
            ("layers", said.layers, layers),
        ):
            if got != wanted:
                return Finding("GUARD_LIMITS", float(got), float(wanted), what)
        return self._moved or self._refuse_room(said.ktp, now_ns) or self._refuse_account(said)

    def _refuse_room(self, ktp: float, now_ns: int) -> Finding | None:
        air = self.air
        stale = judge_age(
            "GUARD_CORRECTIONS",
            now_ns,
            None if air is None else air.asked_ns,
            8 * self._sensors_ns,
            "no reading of the air",
        )
        if stale is not None or air is None:
            return stale
        found = judge_air(self.site, self.rules, air.temperature_c, air.pressure_hpa)
        if found is not None:
            return found
        own = ktp_of(self.site, air.temperature_c, air.pressure_hpa)
        found = judge_jump("GUARD_CORRECTIONS", ktp, own, KTP_AGREEMENT, "the controller's against the guard's")
        found = found or judge_jump(
            "GUARD_CORRECTIONS", own, self.memory.ktp, self.rules.ktp_jump, "since the last treatment"
        )
        if found is not None:
            return found
        low, high = self.rules.gain
        gain = self.site.dosimetry.secondary.gain
        if not low <= gain <= high:
            return Finding("GUARD_CORRECTIONS", gain, low if gain < low else high, "gain of electrometer 2")
        per_particle = self.reference_counts()
        found = judge_jump(
            "GUARD_CORRECTIONS",
            per_particle,
            self.memory.counts_per_particle,
            self.rules.calibration_jump,
            "counts per particle since the last treatment",
        )
        if found is None:
            self.memory.ktp, self.memory.counts_per_particle = own, per_particle
        return found

    def reference_counts(self) -> float:
        """Counts per particle by which two days' calibrations are compared."""
        return counts_per_particle(self.site, self.site.accelerator.ions[0], REFERENCE_MEV_U)

    def _refuse_account(self, said: Session) -> Finding | None:
        """What was given counts until its treatment is another, whatever part the controller says that it begins."""
        memory = self.memory
        account = f"{self._plan.sha256}:{self._plan.fraction_group}"
        known = memory.account == account
        given = sum(field.counts for field in memory.fields.values()) if known else 0.0
        same = known and memory.treatment in (said.treatment, 0)
        # in a simulated room somebody may give the same fraction again, into another directory
        repeated = known and said.fraction == memory.fraction and not self.site.all_simulated
        detail = ""
        if said.part > 1 and not same:
            detail = f"part {said.part}, but the guard knows nothing of the parts before"
        elif said.part <= 1 and (same or repeated) and given > self.site.tolerances.field_dose_counts:
            detail = f"part 1 of fraction {said.fraction}, of which part {memory.part} gave {given:.0f} counts"
        if detail:
            return Finding("GUARD_RETAINED", float(said.part), float(memory.part), detail)
        if said.part <= 1:
            memory.fields = {}
        memory.account, memory.part = account, max(said.part, 1)
        memory.treatment, memory.fraction = said.treatment, said.fraction
        return None

    def _compare(self) -> None:
        """Once all layers are there, see whether what the controller means is what the plan says."""
        said = self._said
        if said is None or self.refused is not None or len(self._layers) < said.layers:
            return
        for index, field in enumerate(self._expected):
            for number, layer in enumerate(field.layers):
                one = self._layers.get((index, number))
                if one is None:
                    detail = f"field {index + 1}, layer {number + 1}: nothing said"
                    self.refused = Finding("GUARD_LIMITS", math.nan, math.nan, detail)
                    break
                difference = differs(self.site, self.rules, field, layer, one, said.ktp)
                if difference is not None:
                    self.refused = Finding("GUARD_LIMITS", difference.value, difference.limit, difference.detail)
                    break
            if self.refused is not None:
                self._tell_refused()
                return
        self._agreed = True
        self._event("agreed", plan_sha256=self._plan.sha256, layers=said.layers)

    def _take_wish(self, wish: Wish, now_ns: int) -> None:
        self._wish, self._wish_ns = wish, now_ns
        if wish.permit == 0:
            self._disarm(now_ns)
            return
        if self.latched is not None or not self._agreed:
            return
        if self.armed is None:
            self._arm(wish, now_ns)
        elif (wish.field, wish.arm_token) != (self.armed.field, self.armed.token):
            self._latch(Finding("GUARD_CONTROLLER", float(wish.field), float(self.armed.field), "another field armed"))
        if self.armed is not None and self.latched is None:
            self._allow(self.armed, wish, now_ns)

    def _arm(self, wish: Wish, now_ns: int) -> None:
        found: Finding | None = None
        if not 0 <= wish.field < len(self._expected):
            found = Finding("GUARD_CONTROLLER", float(wish.field), float(len(self._expected) - 1), "no such field")
        else:
            found = judge_age("GUARD_FRAMES", now_ns, self._frame_ns, self._stale_ns, "at arming")
        if found is None:
            self._settle(now_ns, at_once=True)
            found = self._idle()
        if found is not None:
            self._latch(found)
            return
        before = self.memory.fields.setdefault(str(wish.field), Delivered())
        d.begin_field(self.digest)
        d.begin_turn(self.digest)
        self.digest[d.RESTARTS] = 0
        counts, t_ns = int(self.digest[d.COUNTS]), int(self.digest[d.T_NS])
        self.armed = Armed(wish.field, wish.arm_token, before, counts, t_ns, counts, t_ns)
        self.memory.open_field = wish.field
        if self._remember():
            self._event("armed", field=wish.field, counter=counts, delivered_before=before.counts)

    def first_look(self, counts: int) -> None:
        """At the guard's start: the retained counter against what was remembered, over the time that nobody looked.

        What is wrong then is refused, in every session: only somebody who looks at the memory can settle it.
        """
        memory, tolerances = self.memory, self.site.tolerances
        if memory.counter is None:
            return
        counted = float(counts - memory.counter)
        opened = memory.open_field
        if opened is None:
            idle_ns = self._wall_ns() - memory.counter_wall_ns
            found = judge_idle(counted, idle_ns, tolerances.pedestal_counts_per_s, tolerances.field_dose_counts)
        else:  # a guard ended with that field armed: what came since is the field's, but for the pedestal of that time
            pedestal = max(0.0, memory.pedestal_per_s * 1e-9 * max(0, self._wall_ns() - memory.counter_wall_ns))
            found = judge_left_open(counted, self._most_counts(opened) + pedestal)
            counted = max(0.0, counted - pedestal) if found is None else counted
        if found is not None and self.simulator_anew:
            self._event("counter_forgotten", counted=counted, why="a simulator was started anew, with another counter")
            memory.open_field = None
        elif found is not None:
            self._moved = found
        elif opened is not None:
            memory.fields.setdefault(str(opened), Delivered()).counts += counted
            memory.open_field = None
            self._event("recovered", field=opened, counts=counted)

    def _idle(self) -> Finding | None:
        """The retained counter since the guard first saw it, or since the last field, by the device's own time."""
        if self._idle_t_ns is None:
            return None
        counted = float(self.digest[d.COUNTS] - self._idle_counts)
        idle_ns = int(self.digest[d.T_NS]) - self._idle_t_ns
        tolerances = self.site.tolerances
        return judge_idle(counted, idle_ns, tolerances.pedestal_counts_per_s, tolerances.field_dose_counts)

    def _most_counts(self, field: int) -> float:
        """More than this no field of the plan can have got, at any kTP that the site allows."""
        most = sum(layer.counts_2 for layer in self._expected[field].layers) if field < len(self._expected) else 0.0
        return 2.0 * most / self.site.dosimetry.ktp_min + self.site.tolerances.field_dose_counts

    def _allow(self, armed: Armed, wish: Wish, now_ns: int) -> None:
        field = self._expected[armed.field]
        # a resumed layer may come in two: the rest of a visit by itself, then those after it
        again = wish.layer == armed.layer
        if again and (armed.limits is None or wish.first_visit <= armed.limits.last_visit):
            return  # said once more
        if not (again or armed.layer < wish.layer < len(field.layers)):
            detail = f"layer {wish.layer + 1} after layer {armed.layer + 1} of {len(field.layers)}"
            self._latch(Finding("GUARD_CONTROLLER", float(wish.layer), float(armed.layer), detail))
            return
        rates = tuple(self._layers[armed.field, k].rate_per_s for k in range(len(field.layers)))
        assert self._said is not None
        limits = limits_of(self.site, self.rules, field, wish.layer, rates, self._said.ktp)
        if not (limits.first_visit <= wish.first_visit and wish.last_visit <= limits.last_visit):
            detail = f"visits {wish.first_visit} to {wish.last_visit} allowed for layer {wish.layer + 1}"
            self._latch(Finding("GUARD_CONTROLLER", float(wish.last_visit), float(limits.last_visit), detail))
            return
        armed.layer, armed.allowed_ns = wish.layer, now_ns
        armed.limits = replace(limits, last_visit=wish.last_visit)

    def _reset(self, message: Reset) -> None:
        if self.latched is None or self.armed is not None or not message.operator or not message.reason:
            return
        if not_theirs_to_reset(self.site, message.operator, (self.latched.id,)):
            return
        self._event("reset", operator=message.operator, reason=message.reason, id=self.latched.id)
        self.latched = None

    # ---- the turn

    def turn(self, now_ns: int) -> bool:
        """Judge what has come; True where a permit may leave now."""
        if self.digest[d.FRAMES] != self._frames:
            self._frames, self._frame_ns = int(self.digest[d.FRAMES]), now_ns
            if self._idle_t_ns is None:
                self._note_idle()
        if self._state.failure is not None:
            self._latch(Finding("GUARD_DISK", math.nan, math.nan, f"its memory: {self._state.failure}"))
        armed = self.armed
        if armed is None:
            self._settle(now_ns)
        elif self.latched is None:
            found = self._judge(armed, now_ns)
            if found is not None:
                self._latch(found)
        armed_now = self.armed is not None and self.latched is None
        # and what it must remember of this arming is on the disk
        permits = (
            armed_now and self._state.saved and self._heard(now_ns) and self.frame_age_ns(now_ns) <= self._fresh_ns
        )
        if self.armed is not None:
            self.armed.turn_counts = int(self.digest[d.COUNTS])
            self.armed.turn_t_ns = int(self.digest[d.T_NS])
        d.begin_turn(self.digest)
        return permits

    def _heard(self, now_ns: int) -> bool:
        """The controller was heard within its lease; older, nothing is wrong yet, and nothing is permitted."""
        return self._wish_ns is not None and 0 <= now_ns - self._wish_ns <= self._lease_ns

    def frame_age_ns(self, now_ns: int) -> int:
        """Since the newest frame came; for ever where none did."""
        return now_ns - self._frame_ns if self._frame_ns is not None else 1 << 62

    def _judge(self, armed: Armed, now_ns: int) -> Finding | None:
        digest = [int(word) for word in self.digest]
        found = (
            judge_age("GUARD_CONTROLLER", now_ns, self._wish_ns, self._silent_ns, "nothing heard of the controller")
            or judge_age("GUARD_FRAMES", now_ns, self._frame_ns, self._stale_ns, "no frames of electrometer 2")
            or judge_monitor(digest[d.FLAGS_ALL], digest[d.FLAGS_ANY], digest[d.RESTARTS], digest[d.FELL])
        )
        if found is not None:
            return found
        sensors = self.sensors
        asked_ns = None if sensors is None else sensors.asked_ns
        found = judge_age("GUARD_CHAIN", now_ns, asked_ns, self._sensors_ns, "no word of the chain's PLC")
        if found is not None or armed.limits is None or sensors is None:
            return found or judge_unallowed(digest[d.BEAM_NS])
        tolerance_mev_u = self.site.accelerator.energy_sensor_tolerance_mev_u
        return (
            judge_visits(digest[d.VISIT], digest[d.BACKWARD], armed.limits.last_visit)
            or judge_dose(self.dose(armed), armed.limits, self.site.tolerances.secondary_spot_counts)
            or judge_sensors(sensors, armed.limits, armed.allowed_ns, tolerance_mev_u)
        )

    def dose(self, armed: Armed) -> Dose:
        """What the field has got, from the retained counter."""
        digest = [int(word) for word in self.digest]
        pedestal = self._pedestal_per_ns() * (digest[d.T_NS] - armed.base_t_ns)
        return Dose(
            counts=armed.before.counts + digest[d.COUNTS] - armed.base_counts - pedestal,
            beam_ns=armed.before.beam_ns + digest[d.BEAM_NS],
            flanks=armed.before.flanks + digest[d.FLANKS],
            turn_counts=digest[d.COUNTS] - armed.turn_counts,
            turn_ns=digest[d.T_NS] - armed.turn_t_ns,
        )

    # ---- ends

    def _disarm(self, now_ns: int) -> None:
        if self.armed is not None:
            self._last_field, self.armed = self.armed, None
            self._settle_ns = now_ns + SETTLE_NS

    def _settle(self, now_ns: int, *, at_once: bool = False) -> None:
        """What a field got is closed once no charge can come any more."""
        last = self._last_field
        if last is None or self._settle_ns is None or (now_ns < self._settle_ns and not at_once):
            return
        dose = self.dose(last)
        self.memory.fields[str(last.field)] = Delivered(dose.counts, dose.beam_ns, dose.flanks)
        self.memory.open_field = None
        self._last_field = self._settle_ns = None
        self._note_idle()
        self._remember()
        self._event("closed", field=last.field, counts=dose.counts, beam_s=dose.beam_ns * 1e-9)

    def _note_idle(self) -> None:
        self._idle_counts, self._idle_t_ns = int(self.digest[d.COUNTS]), int(self.digest[d.T_NS])

    @property
    def settled(self) -> bool:
        """No field is armed, and what the last one got is written down."""
        return self.armed is None and self._last_field is None

    def finish(self, now_ns: int) -> None:
        """The guard is to end: nothing is permitted any more; `settled` says when what was delivered is known."""
        self._agreed = False
        self._disarm(now_ns)

    def _pedestal_per_ns(self) -> float:
        """What electrometer 2 counts without beam, within the site's limit of it."""
        counts, span_ns = int(self.digest[d.QUIET_COUNTS]), int(self.digest[d.QUIET_NS])
        bound = self.site.tolerances.pedestal_counts_per_s * 1e-9
        return min(max(counts / span_ns if span_ns > 0 else 0.0, -bound), bound)

    def close(self, now_ns: int) -> None:
        """The guard ends: what was delivered is written down.

        With a field still armed, the controller has died: beam goes on until the chain has noticed. The memory is left
        as it was written at the arming, field open; the next guard finds in the retained counter what came meanwhile.
        """
        if self.armed is not None:
            self._event("left_open", field=self.armed.field)
            return
        self._disarm(now_ns)
        self._settle(now_ns, at_once=True)

    def _remember(self) -> bool:
        """Write the memory down; without that nothing is permitted."""
        if self.digest[d.FRAMES] > 0:
            self.memory.counter, self.memory.counter_wall_ns = int(self.digest[d.COUNTS]), self._wall_ns()
            self.memory.pedestal_per_s = self._pedestal_per_ns() * 1e9
        try:
            self._state.save(self.memory)
        except OSError as error:
            self._latch(Finding("GUARD_DISK", math.nan, math.nan, f"its memory: {error}"))
            return False
        return True

    def _latch(self, finding: Finding) -> None:
        """First-out stays."""
        if self.latched is None:
            self.latched = finding
            self._event("latched", **_numbers(finding))

    def _tell_refused(self) -> None:
        if self.refused is not None:
            self._event("refused", **_numbers(self.refused))

    def status(self) -> Status:
        """What the controller is told."""
        state = AGREED if self._agreed else WAITING
        state = PERMITTING if self.armed is not None else state
        state = LATCHED if self.latched is not None else state
        found = self.latched or self.refused or Finding("", math.nan, math.nan)
        counts = self.dose(self.armed).counts if self.armed is not None else 0.0
        return Status(
            state,
            self._pid,
            bytes.fromhex(self._plan.sha256),
            self._plan.fraction_group,
            counts,
            found.value,
            found.limit,
            found.id,
            found.detail,
        )


def _numbers(finding: Finding) -> dict[str, Any]:
    """For a line of JSON, which knows no NaN."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(finding).items()}
