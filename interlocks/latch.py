"""The latch: the first condition stays first, later ones are kept in order, and only a named operator clears it."""

from __future__ import annotations

from dataclasses import dataclass

from interlocks.conditions import matrix


@dataclass(frozen=True, slots=True)
class Trip:
    """A condition that latched."""

    id: str
    t_ns: int
    value: float | None
    limit: float | None
    detail: str
    """Such as the device or quantity; '' where the condition says it all."""
    first_out: bool

    def message(self) -> str:
        """One line for the operator: what, value, limit, and what to do."""
        condition = matrix()[self.id]
        text = f"{self.id}: {condition.cause}"
        if self.detail:
            text += f" ({self.detail})"
        if self.value is not None:
            text += f"; value {self.value:.6g}"
            if self.limit is not None:
                text += f", limit {self.limit:.6g}"
            text += f" {condition.unit}".rstrip()
        return f"{text}. {condition.hint}"


class Latch:
    """Latched trips of a run, in order."""

    def __init__(self) -> None:
        self._trips: list[Trip] = []
        self._cleared = 0

    @property
    def tripped(self) -> bool:
        """True from the first trip to the next reset."""
        return len(self._trips) > self._cleared

    @property
    def first_out(self) -> Trip | None:
        """The first trip since the last reset."""
        return self._trips[self._cleared] if self.tripped else None

    @property
    def latched(self) -> tuple[Trip, ...]:
        """All trips since the last reset."""
        return tuple(self._trips[self._cleared :])

    @property
    def history(self) -> tuple[Trip, ...]:
        """All trips of the run, cleared ones included."""
        return tuple(self._trips)

    def trip(
        self, condition_id: str, t_ns: int, *, value: float | None = None, limit: float | None = None, detail: str = ""
    ) -> Trip | None:
        """Latch a condition; None if the same one is latched already."""
        if condition_id not in matrix():
            raise KeyError(condition_id)
        if any(t.id == condition_id and t.detail == detail for t in self._trips[self._cleared :]):
            return None
        trip = Trip(condition_id, t_ns, value, limit, detail, first_out=not self.tripped)
        self._trips.append(trip)
        return trip

    def reset(self, operator: str, reason: str) -> tuple[Trip, ...]:
        """Clear all trips; the caller has made sure that their causes are gone. Raises ValueError without a name."""
        if not operator.strip() or not reason.strip():
            raise ValueError("a reset needs a named operator and a reason")
        cleared = self.latched
        self._cleared = len(self._trips)
        return cleared
