"""One simulated drive: a position that runs to its target at constant speed, as a pure function of time."""

from __future__ import annotations

from collections.abc import Callable


class Axis:
    """Position over time between two commands; asking more or less often changes nothing.

    Faults: `stuck` (the drive pushes, nothing moves), `creep_per_s` (the position drifts by itself). Setting
    one takes effect at the present time. Units are those of the position.
    """

    def __init__(self, now_ns: Callable[[], int], position: float, speed_per_s: float) -> None:
        if not speed_per_s > 0:
            raise ValueError(f"speed must be above 0, not {speed_per_s}")
        self._now_ns = now_ns
        self._speed_per_s = speed_per_s
        self._from = position
        self._since_ns = now_ns()
        self._target = position
        self._stuck = False
        self._creep_per_s = 0.0

    def _state(self) -> tuple[float, bool]:
        """Position now, and whether the drive is on."""
        seconds = (self._now_ns() - self._since_ns) * 1e-9
        drift = self._creep_per_s * seconds
        way = self._target - self._from
        if self._stuck:
            return self._from + drift, way != 0
        reach = self._speed_per_s * seconds
        if reach >= abs(way):
            return self._target + drift, False
        return self._from + (reach if way > 0 else -reach) + drift, True

    @property
    def position(self) -> float:
        """Where it is now."""
        return self._state()[0]

    @property
    def moving(self) -> bool:
        """Whether the drive is on."""
        return self._state()[1]

    def move(self, target: float) -> None:
        """Run to a target from now on."""
        self._from = self.position
        self._since_ns = self._now_ns()
        self._target = target

    def stop(self) -> None:
        """Stay where it is."""
        self.move(self.position)

    def _rebase(self) -> None:
        position, moving = self._state()
        self._since_ns = self._now_ns()
        self._from = position
        if not moving:
            self._target = position

    @property
    def stuck(self) -> bool:
        """Fault: the drive pushes, nothing moves."""
        return self._stuck

    @stuck.setter
    def stuck(self, on: bool) -> None:
        self._rebase()
        self._stuck = on

    @property
    def creep_per_s(self) -> float:
        """Fault: drift of the position."""
        return self._creep_per_s

    @creep_per_s.setter
    def creep_per_s(self, value: float) -> None:
        self._rebase()
        self._creep_per_s = value
