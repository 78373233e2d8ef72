"""`spotwise resume DIR`: what must be true before an interrupted treatment may go on, read from its directory.

The plan is the journal's own copy, the site must be the very one, the version the same, the identity file the same
patient's.
What was delivered, and whether hardware and journal agree on it, is asked of the devices later, when the part prepares
(`controller.delivery.reconcile`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

from controller.plan.check import CheckReport, check_loaded
from controller.plan.loaded import LoadedPlan
from controller.plan.stored import plan_from_header
from controller.record.carried import Carried, read_carried
from controller.record.identity import read_identity
from controller.record.pseudonym import pseudonym_key
from drivers.errors import BadInput, Refused
from sites.loader import load_site, site_sha256
from sites.schema import Site

VIRTUAL_PAUSE = timedelta(minutes=1)
"""Virtual time has no date of its own: unless said, a later part begins so long after the one before ended."""


@dataclass(frozen=True, slots=True, eq=False)
class Interrupted:
    """A treatment that may go on."""

    directory: Path
    carried: Carried
    loaded: LoadedPlan
    site: Site
    plan_path: Path
    """Where the plan was read from."""
    site_source: str | None
    """Name or path of the site's file; None: the site was given as it is."""

    @property
    def seed(self) -> int:
        """Of everything random in a simulated room."""
        return int(self.carried.header["seed"])

    @property
    def clock(self) -> str:
        """Real or virtual, as the first part ran."""
        return str(self.carried.header["clock"])

    @property
    def fraction(self) -> int:
        """Of its course; journals of before there were ledgers do not say."""
        return int(self.carried.header.get("fraction", 1))

    @property
    def finished(self) -> bool:
        """Nothing is left to do: every spot is complete, and the hardware agreed."""
        return self.carried.complete and (self.carried.baseline is None or self.carried.baseline.settled)

    def check(self) -> CheckReport:
        """The plan against the room, as before the first part; an unapproved plan was allowed then."""
        return check_loaded(self.loaded, self.plan_path.name, self.site, allow_unapproved=True)


def open_interrupted(directory: Path, site: Site | str | None = None, *, accept_version: bool = False) -> Interrupted:
    """Read a treatment directory. `site`: a site, its name or file; None: what the directory says.

    Raises `BadInput`: no treatment directory, a damaged journal, a site that cannot be read. Raises `Refused`: site,
    plan, version or patient are not those of the first part.
    """
    journal = directory / "journal.bin"
    if not journal.is_file():
        raise BadInput(f"{directory}: no treatment directory: it has no journal.bin")
    carried = read_carried(journal)
    header = carried.header
    run = _run_json(directory)
    source = None if isinstance(site, Site) else site or run.get("site") or str(header["site"]["name"])
    room = site if isinstance(site, Site) else load_site(str(source))
    if site_sha256(room) != header["site_sha256"]:
        raise Refused(
            f"site {room.name}: it is not the one that this treatment began with (hash {site_sha256(room)[:16]}..., "
            f"the journal says {str(header['site_sha256'])[:16]}...): its file was changed, or it is another; give the "
            "right one with --site"
        )
    if header["version"] != version("spotwise") and not accept_version:
        raise Refused(
            f"begun by Spotwise {header['version']}, this is {version('spotwise')}: presets may be computed otherwise; "
            "resume with that version, or say --accept-version once a physicist has compared them"
        )
    plan = plan_from_header(header["plan"], str(header["plan_sha256"]))
    path = Path(run.get("plan") or "plan")
    _unchanged(path, plan.file_sha256)
    if "guard" in room.permits.required and not path.exists():
        raise Refused(f"{path}: missing: the guard reads the plan file itself; put it back where it was")
    patient = read_identity(directory / "identity.dcm")
    who = patient.pseudonym(pseudonym_key(room))
    if who != header["patient"]:
        raise Refused(
            f"{directory / 'identity.dcm'}: is {who}, the treatment is of {header['patient']}: the "
            "file is missing or another patient's"
        )
    return Interrupted(directory, carried, LoadedPlan(plan, patient, ()), room, path, source)


def _run_json(directory: Path) -> dict[str, Any]:
    """run.json of the first part; it proves nothing, and may be missing."""
    try:
        found = json.loads((directory / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _unchanged(path: Path, sha256: str) -> None:
    """A plan file that is still there must still be the same; one that has gone is in the journal."""
    try:
        content = path.read_bytes()
    except OSError:
        return
    if hashlib.sha256(content).hexdigest() != sha256:
        raise Refused(
            f"{path}: the plan was changed since this treatment began; a changed plan is another treatment (the "
            "journal has the plan as it was: move the file away to go on with that)"
        )
