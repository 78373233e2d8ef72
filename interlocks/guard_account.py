"""What each field of a plan has got, over all its parts, by electrometer 2's retained counter.

A field's account is opened at its arming and closed once no charge can come any more; between two fields the counter
must stand still but for a pedestal. What is known is kept in the guard's memory, so that a guard that was killed in
mid-field finds in the counter what came meanwhile. No clock: the time is an argument, or the device's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from drivers.wires.guard_link import Session
from interlocks import guard_digest as d
from interlocks.guard_judge import Dose, Finding, judge_idle, judge_left_open
from interlocks.guard_numbers import ExpectedField
from interlocks.guard_plan import PlannedDelivery
from interlocks.guard_state import Delivered, Latched, Memory, StateFile
from sites.schema import Site

SETTLE_NS = 500_000_000
"""After a field: until then charge may still come, and belongs to it."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The field whose account is open: the counter and the device's time at its arming and at the last turn's end."""

    field: int
    before: Delivered
    """In former parts."""
    base_counts: int
    base_t_ns: int
    turn_counts: int
    turn_t_ns: int
    ends_ns: int | None = None
    """When it may be closed; None while it is armed."""


@dataclass(frozen=True, slots=True)
class Idle:
    """The counter and the device's time since when nothing has been armed."""

    counts: int
    t_ns: int


class Account:
    """See the module's text."""

    def __init__(
        self, site: Site, state: StateFile, event: Callable[..., None], wall_ns: Callable[[], int], digest: Any
    ) -> None:
        """`digest`: what is kept of electrometer 2's frames. Raises `BadInput` for a memory that cannot be used."""
        self.site = site
        self.memory: Memory = state.load()
        self._kept = self.memory
        """What the disk was given last."""
        self.opened: Opened | None = None
        self.idle: Idle | None = None
        """None before there was any frame."""
        self.moved: Finding | None = None
        """The counter is not where it was left: refused in every session; somebody looks at the memory."""
        self.simulator_anew = False
        """Electrometer 2 is a simulator with another power-up than the one that is remembered."""
        self._state = state
        self._event = event
        self._wall_ns = wall_ns
        self._digest = digest

    # ---- at the guard's start

    def know_power_up(self, boot_nonce: int, simulated: bool) -> None:
        """Of electrometer 2, before the first look at its counter."""
        if simulated and self.memory.counter is not None and self.memory.boot_nonce != boot_nonce:
            self.simulator_anew = True
        self.memory = replace(self.memory, boot_nonce=boot_nonce)

    def first_look(self, counts: int, expected: tuple[ExpectedField, ...]) -> None:
        """The retained counter against what was remembered, over the time that nobody looked."""
        memory, tolerances = self.memory, self.site.tolerances
        if memory.counter is None:
            return
        counted = float(counts - memory.counter)
        field = memory.open_field
        if field is None:
            idle_ns = self._wall_ns() - memory.counter_wall_ns
            found = judge_idle(counted, idle_ns, tolerances.pedestal_counts_per_s, tolerances.field_dose_counts)
        else:  # a guard ended with that field armed: what came since is the field's, but for the pedestal of that time
            pedestal = max(0.0, memory.pedestal_per_s * 1e-9 * max(0, self._wall_ns() - memory.counter_wall_ns))
            most = _most_counts(self.site, expected[field] if field < len(expected) else None)
            found = judge_left_open(counted, most + pedestal)
            counted = max(0.0, counted - pedestal) if found is None else counted
        if found is not None and self.simulator_anew:
            self._event("counter_forgotten", counted=counted, why="a simulator was started anew, with another counter")
            self.memory = replace(memory, open_field=None)
        elif found is not None:
            self.moved = found
        elif field is not None:
            before = memory.fields.get(str(field), Delivered())
            self._book(field, replace(before, counts=before.counts + counted), open_field=None)
            self._event("recovered", field=field, counts=counted)

    # ---- at a session

    def know_room(self, ktp: float, counts_per_particle: float) -> None:
        """What the next treatment's air and calibration are compared with."""
        self.memory = replace(self.memory, ktp=ktp, counts_per_particle=counts_per_particle)

    def begin_part(self, said: Session, plan: PlannedDelivery) -> Finding | None:
        """What was given counts until its treatment is another, whatever part the controller says that it begins."""
        memory = self.memory
        account = f"{plan.sha256}:{plan.fraction_group}"
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
        self.memory = replace(
            memory,
            account=account,
            treatment=said.treatment,
            fraction=said.fraction,
            part=max(said.part, 1),
            fields=memory.fields if said.part > 1 else {},
        )
        return None

    # ---- from a field's arming to its end

    def note_idle(self) -> None:
        """From now on, nothing is armed."""
        self.idle = Idle(int(self._digest[d.COUNTS]), int(self._digest[d.T_NS]))

    def moved_while_idle(self) -> Finding | None:
        """The counter since the guard first saw it, or since the last field, by the device's own time."""
        if self.idle is None:
            return None
        counted = float(self._digest[d.COUNTS] - self.idle.counts)
        idle_ns = int(self._digest[d.T_NS]) - self.idle.t_ns
        tolerances = self.site.tolerances
        return judge_idle(counted, idle_ns, tolerances.pedestal_counts_per_s, tolerances.field_dose_counts)

    def open(self, field: int) -> Opened:
        """At arming: what comes from now on is this field's."""
        before = self.memory.fields.get(str(field), Delivered())
        d.begin_field(self._digest)
        d.begin_turn(self._digest)
        self._digest[d.RESTARTS] = 0
        counts, t_ns = int(self._digest[d.COUNTS]), int(self._digest[d.T_NS])
        self.opened = Opened(field, before, counts, t_ns, counts, t_ns)
        self._book(field, before, open_field=field)
        return self.opened

    def dose(self) -> Dose:
        """What the open field has got; only while there is one."""
        opened = self.opened
        assert opened is not None
        digest = [int(word) for word in self._digest]
        pedestal = self._pedestal_per_ns() * (digest[d.T_NS] - opened.base_t_ns)
        return Dose(
            counts=opened.before.counts + digest[d.COUNTS] - opened.base_counts - pedestal,
            beam_ns=opened.before.beam_ns + digest[d.BEAM_NS],
            flanks=opened.before.flanks + digest[d.FLANKS],
            turn_counts=digest[d.COUNTS] - opened.turn_counts,
            turn_ns=digest[d.T_NS] - opened.turn_t_ns,
        )

    def begin_turn(self) -> None:
        """After a judgement: what a turn brought is counted anew."""
        d.begin_turn(self._digest)
        if self.opened is not None:
            counts, t_ns = int(self._digest[d.COUNTS]), int(self._digest[d.T_NS])
            self.opened = replace(self.opened, turn_counts=counts, turn_t_ns=t_ns)

    def end(self, now_ns: int) -> None:
        """The field is armed no more; its last charge may still come."""
        if self.opened is not None and self.opened.ends_ns is None:
            self.opened = replace(self.opened, ends_ns=now_ns + SETTLE_NS)

    def settle(self, now_ns: int, *, at_once: bool = False) -> int | None:
        """Close the account of a field that has ended, once no charge can come any more; which field that was."""
        opened = self.opened
        if opened is None or opened.ends_ns is None or (now_ns < opened.ends_ns and not at_once):
            return None
        dose = self.dose()
        self._book(opened.field, Delivered(dose.counts, dose.beam_ns, dose.flanks), open_field=None)
        self.opened = None
        self.note_idle()
        return opened.field

    def _book(self, field: int, got: Delivered, *, open_field: int | None) -> None:
        fields = {**self.memory.fields, str(field): got}
        self.memory = replace(self.memory, fields=fields, open_field=open_field)

    def _pedestal_per_ns(self) -> float:
        """What electrometer 2 counts without beam, within the site's limit of it."""
        counts, span_ns = int(self._digest[d.QUIET_COUNTS]), int(self._digest[d.QUIET_NS])
        bound = self.site.tolerances.pedestal_counts_per_s * 1e-9
        return min(max(counts / span_ns if span_ns > 0 else 0.0, -bound), bound)

    # ---- the disk

    def remember(self) -> Finding | None:
        """Write the memory down; what it returns is why that cannot be."""
        if self._digest[d.FRAMES] > 0:
            self.memory = replace(
                self.memory,
                counter=int(self._digest[d.COUNTS]),
                counter_wall_ns=self._wall_ns(),
                pedestal_per_s=self._pedestal_per_ns() * 1e9,
            )
        return self._keep(self.memory)

    def remember_latch(self, latched: Latched | None) -> Finding | None:
        """Write down what is latched, and nothing else: in mid-field, the counter is that of the arming."""
        self.memory = replace(self.memory, latched=latched)
        return self._keep(replace(self._kept, latched=latched))

    def _keep(self, memory: Memory) -> Finding | None:
        self._kept = memory
        try:
            self._state.save(memory)
        except OSError as error:
            return _disk(error)
        return None

    @property
    def remembered(self) -> bool:
        """What was to be written down last is on the disk."""
        return self._state.saved

    def judge_disk(self) -> Finding | None:
        """Something could not be written after `remember` had returned."""
        return None if self._state.failure is None else _disk(self._state.failure)


def _disk(error: OSError) -> Finding:
    return Finding("GUARD_DISK", math.nan, math.nan, f"its memory: {error}")


def _most_counts(site: Site, field: ExpectedField | None) -> float:
    """More than this no field of the plan can have got, at any kTP that the site allows; None is no field of it."""
    most = sum(layer.counts_2 for layer in field.layers) if field is not None else 0.0
    return 2.0 * most / site.dosimetry.ktp_min + site.tolerances.field_dose_counts
