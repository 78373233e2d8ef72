"""What the parts of a delivery share: the room, the plan, the journal, the latch, and who is told what happens."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from datetime import UTC, datetime
from typing import Any

from controller.clock import now_ns
from controller.delivery.decision import Decision
from controller.delivery.devices import RoomDevices
from controller.delivery.guard import GuardLink
from controller.delivery.integrity import Sources
from controller.delivery.states import TABLE, Event, State, follow
from controller.dose.path import MonitorPath
from controller.machine.dosimetry import Corrections
from controller.machine.program import LayerProgram
from controller.plan.model import Plan
from controller.record.carried import Carried
from controller.record.journal import JournalWriter
from controller.telemetry_sinks import Contained, TelemetrySink
from drivers.contracts import Identity
from drivers.flags import FLAG_BEAM, FLAG_HOLD
from interlocks.conditions import matrix
from interlocks.confirmation import Confirmation
from interlocks.latch import Latch, Trip
from interlocks.slow import Expected, Seen
from sites.schema import Site


@dataclass
class Tally:
    """What has been delivered so far, for displays; the journal is the record."""

    field_index: int = -1
    layer_index: int = -1
    visits_done: int = 0
    spots_total: int = 0
    meterset_1: float = 0.0
    meterset_2: float = 0.0
    meterset_planned: float = 0.0
    energy_mev_u: float = float("nan")


def _set_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass
class Run:
    """One treatment under way."""

    site: Site
    plan: Plan
    devices: RoomDevices
    path: MonitorPath
    journal: JournalWriter
    published_to: InitVar[TelemetrySink]
    epoch: datetime = datetime(2000, 1, 1, tzinfo=UTC)
    """UTC of 0 ns."""
    part: int = 1
    fraction: int = 1
    treatment: int = 0
    """What all its parts have in common: a hash of the first one's header."""
    sources: Sources | None = None
    """What plan, site and register maps were checked; None: nobody said, and nothing is armed."""
    carried: Carried | None = None
    """What the parts before left; None: this is the first."""
    begun_by: tuple[str, str] | None = None
    """Operator and reason of who began this part, and resets by it what the guard has kept; None: nobody does."""
    decision: Decision | None = None
    """A physicist's decision of a dispute between journal and hardware."""
    state: State = State.CHECKED
    latch: Latch = field(default_factory=Latch)
    expected: Expected = field(default_factory=Expected)
    seen: dict[str, Seen] = field(default_factory=dict)
    identities: dict[str, Identity] = field(default_factory=dict)
    """As read last: who restarts has another boot nonce."""
    identified_ns: dict[str, int] = field(default_factory=dict)
    """When each device was asked for the identity that it gave last."""
    approved: bool = False
    """The check let the plan pass: approved, or explicitly allowed on a research site."""
    changed: tuple[str, ...] | None = None
    """What the last comparison with the checked sources found; None: none since the field was taken up."""
    field_set_up: int | None = None
    """The field whose set-up was read back last."""
    set_ups: int = 0
    """Set-ups begun: a confirmation is for one."""
    confirmation: Confirmation | None = None
    """Of patient and position, as given last; void with the next set-up."""
    confirmation_refused: bool = False
    """The last one given was: wrong patient, field or position. It stands until a right one is given."""
    look: Callable[[int, str], tuple[int, str, bool]] | None = None
    """A scenario's operator looks at the patient: field and patient's id as planned in; as found, and position, out."""
    field_confirmed: int | None = None
    """The field that was armed with a valid confirmation."""
    self_tests: dict[str, int] = field(default_factory=dict)
    """Device: boot nonce in which its self-test passed."""
    corrections: Corrections | None = None
    planned: list[tuple[LayerProgram, ...]] = field(default_factory=list)
    """Per field, all layers, in this part's counts."""
    programs: list[tuple[LayerProgram, ...]] = field(default_factory=list)
    """Per field, what this part is to deliver of them."""
    field_limits: list[tuple[float, float] | None] = field(default_factory=list)
    """Per field, counts that both monitors may still count; None: nothing was given before, so the field's whole."""
    arm_token: int = 0
    rings_read: int = 0
    """Rows of the three result rings that are in the journal."""
    tally: Tally = field(default_factory=Tally)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by a trip or an abort: the field ends here."""
    resumed: asyncio.Event = field(default_factory=_set_event)
    """Not set while the operator pauses: nothing starts then."""
    spill_verified: asyncio.Event = field(default_factory=_set_event)
    """Not set between the end of a spill in mid-layer and the verification of the next one: the engine is held then."""
    spill_since_ns: int = 0
    """When the last spill began, as the frames showed it."""
    backup_pedestal_per_s: float | None = None
    """What electrometer 2's backup takes for pedestal; measured before this part's first beam."""
    spill_number: int = 0
    """The accelerator's number of the spill that was verified last."""
    engine: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Start and hold of the spot engine, one after the other: a pause never slips in between."""
    on_change: Callable[[], None] = lambda: None
    layer_runs: Callable[[bool], None] = lambda _runs: None
    """Told when a layer begins, and when it is over: for what must not fall into a layer."""
    nonce: Callable[[], int] = lambda: secrets.randbits(63) | 1
    """Fresh numbers for sessions and arm tokens; seeded in virtual time."""
    guard: GuardLink = field(init=False)
    telemetry: Contained = field(init=False)

    def __post_init__(self, published_to: TelemetrySink) -> None:
        self.telemetry = Contained(published_to)
        self.guard = GuardLink(self.site)  # until one is attached

    def event(self, name: str, /, **values: Any) -> None:
        """Write an event with the time of now."""
        self.journal.event(now_ns(), name, **values)

    def note(self, name: str, status: Any, max_age_ns: int | None = None) -> None:
        """A device's status as last read; an answer that was asked for earlier never replaces a later one."""
        before = self.seen.get(name)
        if before is not None and before.t_ns > status.t_ns:
            return
        if max_age_ns is None:
            max_age_ns = round(getattr(self.site.devices, name).max_age_ms * 1e6)
        stands = before is not None and before.status.heartbeat == status.heartbeat
        self.seen[name] = Seen(status, status.t_ns, max_age_ns, before.beat_ns if stands and before else status.t_ns)

    def go(self, event: Event, cause: str = "") -> None:
        """Follow the state table, and say so. Raises `UndefinedTransition`."""
        before = self.state
        self.state = follow(before, event)
        self.event("state", state=self.state.value, previous=before.value, cause=cause)
        self.publish_state(before.value, cause)
        self.on_change()

    def publish_state(self, previous: str = "", cause: str = "") -> None:
        """Telemetry of the state."""
        t = self.tally
        self.telemetry.publish(
            "state",
            {
                "t_ns": now_ns(),
                "state": self.state.value,
                "previous": previous,
                "cause": cause[:400],
                "field": t.field_index if t.field_index >= 0 else None,
                "fields": len(self.plan.fields),
                "layer": t.layer_index if t.layer_index >= 0 else None,
                "spots_done": t.visits_done,
                "spots_total": t.spots_total,
                "beam": self.beam,
                "plan_sha256": self.plan.content_sha256(),
                "simulated": self.site.all_simulated,
            },
        )

    @property
    def beam(self) -> str:
        """on, off or hold, from the newest frames."""
        if int(self.path.monitor.state["flags_1"]) & FLAG_BEAM:
            return "on"
        return "hold" if self.path.flags & FLAG_HOLD else "off"

    def trip(
        self,
        condition_id: str,
        *,
        value: float | None = None,
        limit: float | None = None,
        detail: str = "",
        t_cause_ns: int | None = None,
        leads: Event = Event.TRIP,
    ) -> None:
        """Latch a condition, drop the permit, tell everybody, end the field; `leads` says to which state."""
        t_ns = now_ns()
        trip = self.latch.trip(condition_id, t_ns, value=value, limit=limit, detail=detail)
        if trip is None:
            return
        condition = matrix()[condition_id]
        if self.path.trip() is None:  # the real-time path has not dropped by itself
            self.path.drop()
        self.journal.event(
            t_ns,
            "trip",
            id=trip.id,
            value=_finite(value),
            limit=_finite(limit),
            unit=condition.unit,
            detail=detail,
            t_cause_ns=t_ns if t_cause_ns is None else t_cause_ns,
            first_out=trip.first_out,
            hint=condition.hint,
        )
        if trip.first_out and leads in TABLE[self.state]:
            self.go(leads, trip.id)
        self.publish_interlocks()
        self.stop.set()

    def publish_interlocks(self) -> None:
        """Telemetry of the latch."""
        latched = self.latch.history if self.latch.tripped else ()
        self.telemetry.publish(
            "interlocks",
            {"t_ns": now_ns(), "clear": not latched, "latched": [_telemetry_trip(t) for t in latched]},
        )


def _finite(value: float | None) -> float | None:
    return value if value is not None and abs(value) < float("inf") else None


def _telemetry_trip(trip: Trip) -> dict[str, Any]:
    condition = matrix()[trip.id]
    return {
        "id": trip.id,
        "value": _finite(trip.value),
        "limit": _finite(trip.limit),
        "unit": condition.unit,
        "at_ns": trip.t_ns,
        "first_out": trip.first_out,
        "hint": condition.hint,
    }
