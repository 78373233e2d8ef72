"""What `spotwise deliver` will ask for in a room with a real device, beside a deliverable plan: all of it at once.

Each point is asked for by its own owner when it counts, and refused there; here they are only gathered, for `check`.
Nothing is made or changed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from controller.doctor.output_qa import demand_output_qa
from controller.doctor.qualification import demand_qualification
from controller.ledger.use import ledger_path
from controller.plan.findings import Finding
from controller.plan.loaded import LoadedPlan
from controller.plan.rules import finding
from controller.record.pseudonym import pseudonym_key
from drivers.errors import SpotwiseError
from interlocks.guard_process import permit_key
from sites.schema import Site

RULE = "ROOM_WANTS"


def room_wants(site: Site, loaded: LoadedPlan | None) -> list[Finding]:
    """Findings for what is missing as of now (`warn`), and for what the operator must bring (`note`)."""
    found: list[Finding] = []
    demands: tuple[Callable[[], object], ...] = (
        lambda: demand_qualification(site),
        lambda: demand_output_qa(site),
        lambda: permit_key(site),
        lambda: pseudonym_key(site, make=False) if _key_file_exists(site) else None,
        lambda: ledger_path(site, Path(), None),
    )
    for demand in demands:
        try:
            demand()
        except SpotwiseError as error:
            found.append(finding(RULE, "", f"deliver will refuse: {error}"))
    if site.all_simulated:
        return found
    names = ", ".join(site.operators.names)
    found.append(
        finding(
            RULE,
            "",
            f"deliver needs a terminal, --operator NAME (one of {names}) and --reason TEXT, on the real clock",
            "note",
        )
    )
    if loaded is not None and not loaded.patient.id.strip():
        text = "deliver will refuse: the plan has no patient id that could be confirmed before arming"
        found.append(finding(RULE, "", text))
    return found


def _key_file_exists(site: Site) -> bool:
    """A file that is named and not there yet is made by the first delivery."""
    named = site.record.pseudonym_key_file
    return named is None or Path(named).exists()
