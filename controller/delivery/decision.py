"""A physicist's decision of a dispute between journal and hardware."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Decision:
    """Who decides, why, and what counts."""

    operator: str
    reason: str
    trust: Literal["hardware", "journal"] = "hardware"
    """The retained counters (what they have and nobody explains was given), or the journal."""
