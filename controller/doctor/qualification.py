"""Today's qualification: what the doctor found, kept in a file, and what READY demands of it.

A room with a real device is made ready only on a PC that was found fit on the same day, for the same site, by the same
version. The rule is one pure function; reading clock, host and file is apart from it.
"""

from __future__ import annotations

import json
import os
import platform
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from drivers.errors import BadInput, Refused
from sites.loader import site_sha256
from sites.schema import Site

FORMAT = 1
SIZE_LIMIT_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Here:
    """What a qualification is for."""

    site: str
    site_sha256: str
    host: str
    version: str
    date: str
    """Calendar day of the PC's local time, YYYY-MM-DD."""
    seconds: float
    """The least that timers and streams must have been watched."""


def here_and_now(site: Site) -> Here:
    """Name this site, this PC, this version, today."""
    return Here(
        site.name,
        site_sha256(site),
        platform.node(),
        version("spotwise"),
        datetime.now().astimezone().date().isoformat(),
        site.qualification.seconds,
    )


def qualification_path(site: Site) -> Path:
    """Where the site's qualification of this PC is kept."""
    if site.qualification.file is not None:
        return Path(site.qualification.file)
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    host = re.sub(r"[^A-Za-z0-9.-]", "-", platform.node()) or "unnamed"
    return Path(state) / "spotwise" / f"qualification-{site.name}-{host}.json"


def why_unfit(stored: Mapping[str, Any] | None, here: Here) -> str | None:
    """Why READY must be refused; None where the qualification holds."""
    if stored is None:
        return "there is none"
    if stored.get("format") != FORMAT:
        return f"it has format {stored.get('format')!r}, wanted {FORMAT}"
    for name, what in (
        ("date", "day"),
        ("host", "host"),
        ("site", "site"),
        ("site_sha256", "content of the site file"),
        ("version", "version of Spotwise"),
    ):
        wanted, got = getattr(here, name), stored.get(name)
        if got != wanted:
            return f"it is of another {what}: wanted {wanted}, got {got}"
    seconds, items = stored.get("seconds"), stored.get("items")
    if not isinstance(seconds, int | float) or not seconds >= here.seconds:
        return f"streams and timers were watched for {seconds} s; wanted {here.seconds:g} s"
    if not isinstance(items, list) or not items:
        return "it holds no measurement"
    failed = [item for item in items if not isinstance(item, dict) or item.get("verdict") not in ("ok", "warn")]
    if failed or stored.get("verdict") not in ("ok", "warn"):
        return "worse than the limits: " + ("; ".join(map(_words, failed)) or f"verdict {stored.get('verdict')!r}")
    return None


def _words(item: object) -> str:
    if not isinstance(item, dict):
        return f"no item: {item!r}"
    limit = "" if item.get("limit") is None else f" {item.get('measured')} {item.get('unit')}, limit {item['limit']}"
    return f"{item.get('name')}{limit} {item.get('detail', '')}".rstrip()


def demand_qualification(site: Site) -> None:
    """Refuse READY where the site has a real device and this PC is not qualified today. Raises `Refused`."""
    if site.all_simulated:
        return
    path = qualification_path(site)
    why = why_unfit(read_qualification(path), here_and_now(site))
    if why is not None:
        raise Refused(f"no qualification of this PC for today ({path}): {why}; run spotwise doctor for this site")


def read_qualification(path: Path) -> dict[str, Any] | None:
    """What the file holds; None where there is no such file, or nothing that can be read as one."""
    try:
        with path.open("rb") as file:
            stored = json.loads(file.read(SIZE_LIMIT_BYTES))
    except (OSError, ValueError):
        return None
    return stored if isinstance(stored, dict) else None


def write_qualification(path: Path, qualification: Mapping[str, Any]) -> None:
    """Write it whole or not at all. Raises `BadInput` where the place cannot be written."""
    text = json.dumps(qualification, indent=1, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise BadInput(f"{path}: qualification cannot be written: {error.strerror}; give another --out") from error
