"""Refuses a reset that is not this person's: in a run, and of what an interrupted part was left with."""

from __future__ import annotations

from collections.abc import Iterable

from drivers.errors import Refused
from interlocks.roles import SIMULATED, not_theirs_to_reset
from sites.schema import Site


def demand_reset_role(site: Site, operator: str, latched: Iterable[str]) -> None:
    """Raises `Refused` that names the conditions which need a physicist."""
    refused = not_theirs_to_reset(site, operator, latched)
    if refused:
        who = ", ".join(site.operators.physicists) or "none is named in the site file"
        raise Refused(
            f"not reset: {', '.join(refused)} needs a physicist ({who}), and operator {operator!r} is none; a "
            "physicist looks into the cause and gives --operator and --reason"
            + (f" (with no --operator it is {SIMULATED!r}, who has every role here)" if site.all_simulated else "")
        )
