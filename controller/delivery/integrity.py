"""Is what will be delivered still what was checked: plan file, site file and register maps, compared at every arm.

A plan lies frozen in memory from its check on, so an edited file cannot change the beam any more. But whoever edited
it believes that something else is being delivered than what is, and that is reason enough to stop.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from controller.plan.dicom_structure import MAX_FILE_BYTES
from controller.plan.files import read_bytes
from drivers.errors import BadInput
from drivers.registers import RegisterMap, load_map
from sites.loader import load_site, site_sha256
from sites.schema import Site


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a delivery came from."""

    plan: Path | None
    """None: a later part, whose plan is the journal's copy, and the file is gone."""
    plan_file_sha256: str
    """Of the file's bytes when it was checked."""
    site: Site
    site_name: str | None
    """Name or path of the site's file; None: the site was made without one."""
    maps: tuple[RegisterMap, ...] = ()


def what_changed(sources: Sources) -> tuple[str, ...]:
    """What is no longer as it was checked, in words; empty where nothing is."""
    return (*_plan(sources), *_site(sources), *_maps(sources.maps))


def _plan(sources: Sources) -> Iterable[str]:
    if sources.plan is None:
        return
    try:
        data = read_bytes(sources.plan, MAX_FILE_BYTES)
    except BadInput as error:
        yield f"plan: {error}"
        return
    if hashlib.sha256(data).hexdigest() != sources.plan_file_sha256:
        yield f"plan file {sources.plan.name}"


def _site(sources: Sources) -> Iterable[str]:
    if sources.site_name is None:
        return
    try:
        same = site_sha256(load_site(sources.site_name)) == site_sha256(sources.site)
    except (BadInput, OSError) as error:  # OSError: the folder of sites cannot be read
        yield f"site: {error}"
        return
    if not same:
        yield f"site file {sources.site_name}"


def _maps(maps: Iterable[RegisterMap]) -> Iterable[str]:
    for register_map in maps:
        try:
            same = load_map(register_map.source).map_sha256 == register_map.map_sha256
        except (BadInput, OSError) as error:
            yield f"register map: {error}"
            continue
        if not same:
            yield f"register map {register_map.source}"
