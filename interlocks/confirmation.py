"""The first of two steps to beam: somebody has looked at patient and position. Pure; unknown is not confirmed.

A confirmation is for one field and one set-up of it, and for a limited time. Whoever sets up again confirms again.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Confirmation:
    """Who confirmed what, and when."""

    operator: str
    field: int
    set_up: int
    """Number of the set-up that was looked at; each gets another."""
    t_ns: int


def why_not_confirmed(confirmation: Confirmation | None, *, field: int, set_up: int, now_ns: int, valid_ns: int) -> str:
    """What is wrong with it for arming this field now; '' where nothing is."""
    if confirmation is None:
        return "patient and position were not confirmed for this set-up"
    if confirmation.field != field:
        return f"patient and position were confirmed for field {confirmation.field + 1}, not for field {field + 1}"
    if confirmation.set_up != set_up:
        return "the room was set up anew since patient and position were confirmed"
    if not 0 <= now_ns - confirmation.t_ns <= valid_ns:
        return f"patient and position were confirmed more than {valid_ns * 1e-9:g} s ago"
    return ""
