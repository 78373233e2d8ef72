"""What telemetry says: one closed, versioned model per MQTT topic, and the document that lists them.

Messages are JSON objects with a version `v` and a time `t_ns` (integer ns on the run's clock). The models know
no names, labels or identifiers of a person, and accept no keys beyond their own, so none can slip in. Units are
in the key names. `python -m controller.telemetry_schema` prints `docs/telemetry.md`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

VERSION: Literal[1] = 1

Count = Annotated[int, Field(ge=0)]
Word = Annotated[str, Field(max_length=80)]
"""A name or a state."""
Text = Annotated[str, Field(max_length=400)]
"""A sentence made by Spotwise; never text from a plan."""


class Message(BaseModel):
    """What all messages share: immutable, closed, finite numbers only."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

    v: Literal[1] = VERSION
    """Version of the schema."""
    t_ns: int
    """When it happened, ns on the run's clock."""


class State(Message):
    """Delivery state; sent at each change."""

    state: Word
    previous: Word = ""
    cause: Text = ""
    field: Count | None = None
    """Index of the field, from 0; null: none."""
    fields: Count | None = None
    layer: Count | None = None
    """Index of the layer, from 0."""
    layers: Count | None = None
    spots_done: Count | None = None
    spots_total: Count | None = None
    beam: Literal["on", "off", "hold"] | None = None
    plan_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    simulated: bool | None = None
    """True where every device is simulated."""


class LatchedTrip(BaseModel):
    """One latched interlock condition."""

    model_config = Message.model_config

    id: Word
    value: float | str | None
    limit: float | str | None
    unit: Word = ""
    at_ns: int
    first_out: bool
    hint: Text = ""


class Interlocks(Message):
    """All latched conditions; sent at each change."""

    clear: bool
    """No condition is latched."""
    latched: list[LatchedTrip]

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.clear == bool(self.latched):
            raise ValueError("clear must be true exactly when nothing is latched")
        return self


class Availability(Message):
    """Whether the controller's telemetry is there; the broker itself says `offline` when the link is lost."""

    status: Literal["online", "offline"]
    reason: Literal["connected", "closed", "lost", "overflow"]
    """`lost` is the last will (its t_ns is the time of connection); `overflow`: messages were dropped."""
    dropped: Count
    """Messages dropped since start because the queue was full."""
    software: Word
    """Version of Spotwise."""


class Spots(Message):
    """Delivered visits, in columns of equal length; one message per 100 ms or layer."""

    field: Count
    layer: Count
    unit: Literal["MU", "NP"]
    """Unit of the metersets."""
    visit: list[Count]
    spot: list[Count]
    """Index in the plan's layer, from 0."""
    x_mm: list[float | None]
    """Measured, plane of the isocentre; null: no position."""
    y_mm: list[float | None]
    planned_x_mm: list[float]
    planned_y_mm: list[float]
    meterset_primary: list[float]
    meterset_secondary: list[float]
    meterset_planned: list[float]

    @model_validator(mode="after")
    def _equal_lengths(self) -> Self:
        lengths = {name: len(getattr(self, name)) for name in SPOT_COLUMNS}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"columns differ in length: {lengths}")
        return self


SPOT_COLUMNS = (
    "visit",
    "spot",
    "x_mm",
    "y_mm",
    "planned_x_mm",
    "planned_y_mm",
    "meterset_primary",
    "meterset_secondary",
    "meterset_planned",
)


class Layer(Message):
    """A layer begins or ends."""

    field: Count
    layer: Count
    phase: Literal["request", "ready", "armed", "start", "end"]
    energy_set_mev_u: float | None = None
    energy_readback_mev_u: float | None = None
    energy_sensor_mev_u: float | None = None
    intensity_level: Count | None = None
    x_offset_a: float | None = None
    """Armed: by how much position feedback shifts the layer's set-points, read back from the engine."""
    y_offset_a: float | None = None
    rate_per_s: float | None = None
    visits: Count | None = None
    visits_done: Count | None = None
    unit: Literal["MU", "NP"] | None = None
    meterset_primary: float | None = None
    meterset_secondary: float | None = None
    meterset_planned: float | None = None


class Device(Message):
    """One device: its link and its last read-back."""

    device: Word
    link: Literal["up", "suspect", "down"]
    simulated: bool
    age_ms: float | None = None
    """Age of the read-back."""
    values: dict[Word, float | int | bool | Word | None]
    """Read-backs by name, units in the names."""


DEVICE_TOPIC = re.compile(r"devices/([a-z][a-z0-9_]{0,40})\Z")
TOPICS: Mapping[str, type[Message]] = {
    "state": State,
    "interlocks": Interlocks,
    "availability": Availability,
    "spots": Spots,
    "layer": Layer,
    "devices/<name>": Device,
}
RETAINED = frozenset({"state", "interlocks", "availability"})
"""Topics whose last message the broker keeps for late listeners."""


def model_of(topic_name: str) -> type[Message]:
    """The model of a topic below `spotwise/<site>/v1/`; raises ValueError for a topic that does not exist."""
    if DEVICE_TOPIC.fullmatch(topic_name):
        return Device
    if topic_name in TOPICS and topic_name != "devices/<name>":
        return TOPICS[topic_name]
    raise ValueError(f"telemetry: no topic {topic_name!r}; topics are {', '.join(TOPICS)}")


def encode(topic_name: str, payload: Mapping[str, Any]) -> bytes:
    """Check a message against its model and make it JSON.

    Raises ValueError (pydantic's ValidationError is one) where topic or payload does not fit.
    """
    return model_of(topic_name).model_validate(dict(payload)).model_dump_json().encode()


def full_topic(site: str, topic_name: str) -> str:
    """`spotwise/<site>/v1/<topic>`."""
    return f"spotwise/{site}/v{VERSION}/{topic_name}"


def document() -> str:
    """The text of `docs/telemetry.md`."""
    parts = [_HEAD]
    for name, model in TOPICS.items():
        retained = "retained" if name in RETAINED else "not retained"
        schema = json.dumps(model.model_json_schema(), indent=2, sort_keys=True)
        parts.append(f"## `{name}`\n\n{(model.__doc__ or '').strip()} QoS 1, {retained}.\n\n```json\n{schema}\n```\n")
    return "\n".join(parts)


_HEAD = """# Telemetry

<!-- Generated: python -m controller.telemetry_schema > docs/telemetry.md -->

Spotwise publishes to MQTT 3.1.1 and subscribes to nothing: no message can start, stop or change a treatment.
Topics are `spotwise/<site>/v1/<topic>`; payloads are the JSON objects below, validated before they are sent.
`t_ns` is an integer in ns on the run's clock; positions are mm in the plane of the isocentre (IEC 61217);
metersets are in the field's unit. Messages hold no patient data and nothing from the plan's free text.

Telemetry may be late or missing: a full queue drops its oldest messages and counts them in `availability`.
It is for watching, never for deciding whether beam is on. After a broker comes back, the latest retained
messages are sent again. `availability` says `offline` by itself when the controller's link is lost.
"""

if __name__ == "__main__":
    print(document(), end="")
