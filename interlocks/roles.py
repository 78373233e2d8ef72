"""Who may reset what: a pure function of the site's lists of names and the interlock matrix.

A physicist may do what an operator may. Where every device is simulated, the name `simulated` has every role, and any
other name has, too, in a room that lists nobody else. Where one device is real, `simulated` has none, whatever a site
file says.
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
    return name in site.operators.names or _anybody(site, name)


def is_physicist(site: Site, name: str) -> bool:
    """May this person reset what the matrix reserves to a physicist."""
    if name == SIMULATED:
        return site.all_simulated
    return name in site.operators.physicists or _anybody(site, name)


def stranger(site: Site, name: str) -> str:
    """What to tell somebody who has no role in this room."""
    known = f"operator {name!r} is not one of this room's: {', '.join(site.operators.names)}"
    if site.all_simulated:
        return f"{known}; all devices are simulated: with no --operator it is done, and recorded, as {SIMULATED!r}"
    return known


def _anybody(site: Site, name: str) -> bool:
    """A simulated room in which nobody has a role gives every name all of them."""
    return name.strip() != "" and site.all_simulated and set(site.operators.names) <= {SIMULATED}


def not_theirs_to_reset(site: Site, name: str, latched: Iterable[str]) -> tuple[str, ...]:
    """Of the latched conditions, those that this person may not reset; empty: all may be."""
    if is_physicist(site, name):
        return ()
    operator = is_operator(site, name)
    return tuple(dict.fromkeys(i for i in latched if not operator or matrix()[i].reset != "operator"))
