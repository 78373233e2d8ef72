"""What a check finds: a rule, how bad, where, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["refuse", "warn", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding of one rule."""

    rule: str
    """Name of the rule, such as SPOT_TOO_SHORT; documented in docs/rules.md."""
    severity: Severity
    where: str
    """Such as 'beam 2, layer 3, spot 20'; '' for the whole plan."""
    message: str
