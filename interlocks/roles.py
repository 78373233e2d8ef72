"""Who may reset what: a pure function of the site's lists of names and the interlock matrix.

A physicist may do what an operator may. Where every device is simulated, the name `simulated` has every role; where
one is real, that name has none, whatever a site file says.
"""

from __future__ import annotations

from collections.abc import Iterable

from interlocks.conditions import matrix
from sites.schema import Site

SIMULATED = "simulated"
"""Who arms and resets where every device is simulated; the record says so."""


def is_operator(site: Site, name: str) -> bool:
    """May this person arm, and reset what an operator may reset."""
    if name == SIMULATED:
        return site.all_simulated
    return name in site.operators.names


def is_physicist(site: Site, name: str) -> bool:
    """May this person reset what the matrix reserves to a physicist."""
    if name == SIMULATED:
        return site.all_simulated
    return name in site.operators.physicists


def not_theirs_to_reset(site: Site, name: str, latched: Iterable[str]) -> tuple[str, ...]:
    """Of the latched conditions, those that this person may not reset; empty: all may be."""
    if is_physicist(site, name):
        return ()
    operator = is_operator(site, name)
    return tuple(dict.fromkeys(i for i in latched if not operator or matrix()[i].reset != "operator"))
