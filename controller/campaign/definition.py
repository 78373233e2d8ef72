"""What a campaign consists of, read from `definition.toml`: rooms, numbers of cases, what cannot be raised."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from controller.compose import fault_catalogue
from drivers.errors import BadInput
from interlocks.conditions import matrix
from sites.loader import effective_config, load_site, site_from_config
from sites.plans import example_plan
from sites.schema import Site

DEFINITION = Path(__file__).with_name("definition.toml")
"""The shipped campaign."""


@dataclass(frozen=True, slots=True)
class Room:
    """One plan on one site."""

    name: str
    plan: str
    """A shipped example plan."""
    site: str
    faults: tuple[str, ...] = ()
    """Only these faults of the catalogue; empty: all."""
    scanning: tuple[tuple[str, Any], ...] = ()
    """Keys of the site's table `scanning` that are other here than in its file."""

    def load(self) -> Site:
        """Its site. Raises `BadInput` where `scanning` is not what a site may have."""
        site = load_site(self.site)
        if not self.scanning:
            return site
        config = json.loads(effective_config(site))
        config["scanning"] |= dict(self.scanning)
        return site_from_config(json.dumps(config))

    @property
    def plan_path(self) -> Path:
        """The plan's file."""
        return example_plan(self.plan)


@dataclass(frozen=True, slots=True)
class Extra:
    """A scenario that the catalogue has no fault for: what it may end with is written beside it."""

    name: str
    room: str
    scenario: str
    expected: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Size:
    """How many treatments."""

    fault_free: int
    """In each room without a restriction to some faults, together."""
    coarse: int
    """Places of each fault in each room; 0: all."""
    refine: int
    """Steps around the worst of them, at most."""


@dataclass(frozen=True, slots=True)
class Definition:
    """All of it."""

    rooms: Mapping[str, Room]
    sizes: Mapping[str, Size]
    """By name: full, slice."""
    extras: tuple[Extra, ...]
    unreachable: Mapping[str, str]
    """Interlock condition: why no fault in virtual time can raise it."""
    sha256: str
    """Of all that decides what is played."""

    def faults_of(self, room: Room) -> tuple[str, ...]:
        """Faults of the catalogue that are played in a room, in the catalogue's order."""
        known = [name for name, kind in fault_catalogue().items() if "virtual" in kind.clocks]
        return tuple(name for name in known if not room.faults or name in room.faults)


@cache
def shipped() -> Definition:
    """The definition that ships."""
    return read_definition(DEFINITION)


def read_definition(path: Path) -> Definition:
    """Read a definition. Raises `BadInput` that names the file and what is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadInput(f"{path}: no definition of a campaign: {error}") from error
    try:
        rooms = {name: Room(name, **_tuples(entry)) for name, entry in data["rooms"].items()}
        definition = Definition(
            rooms=rooms,
            sizes={name: Size(**entry) for name, entry in data["sizes"].items()},
            extras=tuple(Extra(**_tuples(entry)) for entry in data.get("extra", [])),
            unreachable=data.get("unreachable", {}),
            sha256=_sha256({key: value for key, value in data.items() if key != "unreachable"}),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}: no definition of a campaign: {error!r}") from error
    _check(path, definition)
    return definition


def _sha256(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _tuples(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _hashable(value) for key, value in entry.items()}


def _hashable(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple(sorted(value.items()))
    return tuple(value) if isinstance(value, list) else value


def _check(path: Path, definition: Definition) -> None:
    known = fault_catalogue()
    for room in definition.rooms.values():
        unknown = set(room.faults) - set(known)
        if unknown:
            raise BadInput(f"{path}: room {room.name}: no faults are called {', '.join(sorted(unknown))}")
    for extra in definition.extras:
        if extra.room not in definition.rooms:
            raise BadInput(f"{path}: {extra.name}: there is no room {extra.room!r}")
    unknown = set(definition.unreachable) - set(matrix())
    if unknown:
        raise BadInput(f"{path}: unreachable: no conditions are called {', '.join(sorted(unknown))}")
