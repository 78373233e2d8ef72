"""Where telemetry goes: the interface that publishers see, a sink in memory, and the batching of spots.

The sink in memory is what virtual time uses: same interface, no broker, messages checked and kept in order.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from controller.telemetry_schema import encode

log = logging.getLogger(__name__)


class TelemetrySink(Protocol):
    """What publishes."""

    def publish(self, topic_name: str, payload: Mapping[str, Any]) -> None:
        """Hand over a message; never blocks, never raises. `payload` is copied at the top level."""
        ...


class Contained:
    """A sink whose failures go no further: whoever publishes is about to look after beam."""

    def __init__(self, sink: TelemetrySink) -> None:
        self.sink = sink
        self.failed = 0
        """Messages that the sink failed at."""

    def publish(self, topic_name: str, payload: Mapping[str, Any]) -> None:
        try:
            self.sink.publish(topic_name, payload)
        except Exception as error:  # boundary: no defect of telemetry may reach the delivery
            self.failed += 1
            if self.failed == 1:
                log.warning("telemetry fails, delivery goes on: %s", error)


class MemorySink:
    """Keeps every message, as a reader of the broker would see it."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, dict[str, Any]]] = []
        self.rejected: list[tuple[str, str]] = []
        """Topic and reason of messages that do not fit their model."""

    def publish(self, topic_name: str, payload: Mapping[str, Any]) -> None:
        try:
            text = encode(topic_name, payload)
        except ValueError as reason:
            self.rejected.append((topic_name, str(reason)))
        else:
            self.messages.append((topic_name, json.loads(text)))

    def latest(self, topic_name: str) -> dict[str, Any] | None:
        """The last message of a topic, as a retained one would be."""
        return next((body for topic, body in reversed(self.messages) if topic == topic_name), None)


class LatestSink:
    """Keeps the last message of each topic unread, and counts: for runs that nobody watches."""

    def __init__(self) -> None:
        self.latest: dict[str, Mapping[str, Any]] = {}
        self.count = 0

    def publish(self, topic_name: str, payload: Mapping[str, Any]) -> None:
        self.latest[topic_name] = payload
        self.count += 1


@dataclass(frozen=True, slots=True)
class SpotPoint:
    """One delivered visit, for watchers; NaN positions mean that none was measured."""

    visit: int
    spot: int
    x_mm: float
    y_mm: float
    planned_x_mm: float
    planned_y_mm: float
    meterset_primary: float
    meterset_secondary: float
    meterset_planned: float


class SpotBatcher:
    """Gathers visits into one message per `period_ns`, layer, or `limit` visits."""

    def __init__(self, sink: TelemetrySink, *, period_ns: int = 100_000_000, limit: int = 1000) -> None:
        self._sink = sink
        self._period_ns = period_ns
        self._limit = limit
        self._points: list[SpotPoint] = []
        self._head: tuple[int, int, Literal["MU", "NP"]] = (0, 0, "MU")
        self._first_ns = 0
        self._last_ns = 0

    def add(self, t_ns: int, field: int, layer: int, unit: Literal["MU", "NP"], point: SpotPoint) -> None:
        """Add a visit that ended at `t_ns`."""
        if self._points and self._head != (field, layer, unit):
            self.flush()
        if not self._points:
            self._head, self._first_ns = (field, layer, unit), t_ns
        self._points.append(point)
        self._last_ns = t_ns
        if t_ns - self._first_ns >= self._period_ns or len(self._points) >= self._limit:
            self.flush()

    def flush(self) -> None:
        """Send what is gathered; call it at a layer's end and when delivery stops."""
        if not self._points:
            return
        points, self._points = self._points, []
        field, layer, unit = self._head
        self._sink.publish(
            "spots",
            {
                "t_ns": self._last_ns,
                "field": field,
                "layer": layer,
                "unit": unit,
                "visit": [p.visit for p in points],
                "spot": [p.spot for p in points],
                "x_mm": [_or_none(p.x_mm) for p in points],
                "y_mm": [_or_none(p.y_mm) for p in points],
                "planned_x_mm": [p.planned_x_mm for p in points],
                "planned_y_mm": [p.planned_y_mm for p in points],
                "meterset_primary": [p.meterset_primary for p in points],
                "meterset_secondary": [p.meterset_secondary for p in points],
                "meterset_planned": [p.meterset_planned for p in points],
            },
        )


def _or_none(value_mm: float) -> float | None:
    return None if math.isnan(value_mm) else value_mm
