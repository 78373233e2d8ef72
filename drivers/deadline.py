"""One deadline an operation, handed down; it reads the running loop's clock and no other."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the running loop's clock, and what it is for."""

    at_s: float
    purpose: str

    @classmethod
    def after(cls, seconds: float, purpose: str) -> Deadline:
        """A deadline `seconds` from now."""
        return cls(asyncio.get_running_loop().time() + seconds, purpose)

    def remaining_s(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.at_s - asyncio.get_running_loop().time())

    def sooner(self, seconds: float) -> Deadline:
        """The same purpose, but at most `seconds` from now."""
        return Deadline(min(self.at_s, asyncio.get_running_loop().time() + seconds), self.purpose)

    def timeout(self) -> asyncio.Timeout:
        """`async with deadline.timeout():` raises TimeoutError at the deadline."""
        return asyncio.timeout_at(self.at_s)
