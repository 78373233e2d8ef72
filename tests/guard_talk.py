"""The guard's mind by itself: a controller that says what it should, frames by hand, and the time as a number."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from drivers.flags import FLAG_BEAM, FLAG_HV_OK
from drivers.wires.guard_link import Envelope, LayerLimits, Message, Reset, Session, Status, Wish
from interlocks import guard_digest as d
from interlocks.guard_agreement import Air
from interlocks.guard_armed import Armed
from interlocks.guard_judge import Sensors
from interlocks.guard_numbers import expected_fields, recombination
from interlocks.guard_plan import PlannedDelivery, read_plan
from interlocks.guard_state import Memory, StateFile
from interlocks.guard_supervisor import Supervisor
from sites.loader import load_site
from tests.delivery_rig import EXAMPLES

SITE = load_site("carbon-fixed")
assert SITE.guard is not None
RULES = SITE.guard
TURN_S = 0.01
START_NS = 10_000_000_000
COUNTER = 5_000_000
RATE_PER_S = 2e6
TOKEN = 0x70CE
TREATMENT = 0x7EA7
WALL_NS = 1_700_000_000_000_000_000
MS = 1_000_000


@cache
def plan() -> PlannedDelivery:
    """The small plan as the guard reads it: two fields of two layers of twelve visits."""
    return read_plan(EXAMPLES / "small_carbon.dcm", fraction_group=None, gantry_deg=0.0)


ACCOUNT = f"{plan().sha256}:1"


def stored(path: Path) -> dict[str, Any]:
    """The memory as it is in its file."""
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


class Talk:
    """One guard and everything around it."""

    def __init__(self, memory: Path | None = None, site: Any = SITE, air: Air | None = None) -> None:
        self.now_ns = START_NS
        self.wall_ns = WALL_NS
        self.t_ns = 7_000_000_000
        """Of electrometer 2."""
        self.counts = COUNTER
        self.visit = 0
        self.flags = FLAG_HV_OK
        self.digest = [0] * d.WORDS
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.plan = plan()
        self.site = site
        self.session_number, self.sequence = 0, 0
        self.wished = Wish(0, 0, -1, 0, 0, TOKEN)
        """Said last."""
        self.mind = Supervisor(
            site,
            RULES,
            lambda: self.plan,
            StateFile(memory),
            lambda name, **values: self.events.append((name, values)),
            lambda: self.wall_ns,
            77,
            TURN_S,
            self.digest,
        )
        self.mind.air = air or Air(self.now_ns, 20.0, 1013.25, COUNTER)
        self.chain()

    # ---- what the guard remembers

    @property
    def memory(self) -> Memory:
        """As it is now."""
        return self.mind.account.memory

    def remembers(self, **values: Any) -> None:
        """It remembers something else."""
        self.mind.account.memory = replace(self.memory, **values)

    # ---- what the guard reads itself

    def chain(self, **values: Any) -> None:
        """The chain's PLC says something now: by itself, that there is no beam."""
        seen = {"beam_present": False, "energy_mev_u": 0.0, "ion": "", "port_deg": 90.0, **values}
        self.mind.sensors = Sensors(self.now_ns, **seen)

    def pass_ms(self, ms: float, counted: int = 0, *, beam: bool = False, silent: bool = False) -> bool:
        """One frame that covers this time, and a turn; is there a permit."""
        self.now_ns += round(ms * MS)
        self.t_ns += round(ms * MS)
        self.counts += counted
        if not silent:
            d.take_frame(self.digest, 1, self.t_ns, self.visit, self.flags | (FLAG_BEAM if beam else 0), self.counts)
        return self.turn()

    def turn(self) -> bool:
        """Whether a permit may leave now."""
        permitted = self.mind.turn(self.now_ns)
        assert isinstance(permitted, bool)
        return permitted

    # ---- what the controller says

    def say(self, message: Message, **envelope: Any) -> None:
        """Said with the next number of the session."""
        self.sequence += 1
        self.mind.hear(replace_envelope(Envelope(self.session_number, self.sequence, message), envelope), self.now_ns)

    def session(self, **changes: Any) -> None:
        """A new session about the plan."""
        self.session_number += 1
        self.sequence = 0
        said = Session(bytes.fromhex(plan().sha256), plan().fraction_group, 1, 1, TREATMENT, 2, 4, 1.0)
        self.say(said._replace(**changes))

    def limits(self, field: int, layer: int, rate_per_s: float = RATE_PER_S) -> LayerLimits:
        """What an honest controller says of a layer."""
        one = expected_fields(self.site, plan())[field].layers[layer]
        counts = one.counts_2 / recombination(self.site, rate_per_s)
        return LayerLimits(
            field, layer, one.first_visit, one.visits, one.energy_mev_u, one.particles, rate_per_s, counts
        )

    def layers(self) -> None:
        """All layers, as they should be."""
        for field in (0, 1):
            for layer in (0, 1):
                self.say(self.limits(field, layer))

    def wish(self, permit: int = 1, field: int = 0, layer: int = -1, **changes: Any) -> None:
        """What may run now: no layer yet, or all of one."""
        first = 0 if layer < 0 else 12 * layer + 1
        self.wished = Wish(permit, field, layer, first, first + 11 if first else 0, TOKEN)._replace(**changes)
        self.say(self.wished)

    def reset(self, operator: str = "simulated", reason: str = "test") -> None:
        """An operator resets the guard."""
        self.say(Reset(operator, reason))

    # ---- how far it is

    def agreed(self, **session: Any) -> Talk:
        """Session and layers said."""
        self.session(**session)
        self.layers()
        return self

    def armed(self, field: int = 0) -> Talk:
        """Frames come, a field is armed, no layer may run yet."""
        self.agreed()
        self.pass_ms(1)
        self.wish(field=field)
        return self

    def running(self, layer: int = 0) -> Talk:
        """A layer may run."""
        self.armed()
        for number in range(layer + 1):
            self.wish(layer=number)
        self.visit = 12 * layer + 1
        return self

    @property
    def field(self) -> Armed:
        """The field that is armed."""
        assert self.mind.armed is not None
        return self.mind.armed

    @property
    def status(self) -> Status:
        """What the controller is told."""
        return self.mind.status()

    @property
    def latched(self) -> str:
        """The condition that is latched, '' for none."""
        return "" if self.mind.latched is None else self.mind.latched.id

    @property
    def refused(self) -> str:
        """The condition that refuses the session, '' for none."""
        return "" if self.mind.agreement.refused is None else self.mind.agreement.refused.id


def replace_envelope(envelope: Envelope, changes: dict[str, Any]) -> Envelope:
    """With another session or number."""
    return envelope._replace(**changes)


def site_with(**tables: dict[str, Any]) -> Any:
    """The site with values of its tables changed."""
    return SITE.model_copy(
        update={name: getattr(SITE, name).model_copy(update=values) for name, values in tables.items()}
    )
