"""What latched last in a room, remembered beside its ledger: a latch outlives its treatment (S4).

A part is noted as under way before anything moves, and with what was latched at its end. A part that nobody ended,
since its controller died, is looked up in its journal. Whoever delivers or resumes next in the room resets what is
left, with the role that the matrix asks for. Where every device is simulated nothing is remembered: nobody is treated.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.delivery.roles import demand_reset_role
from controller.record.carried import read_carried
from drivers.errors import BadInput, Refused
from interlocks.conditions import matrix
from interlocks.roles import is_physicist
from sites.schema import Site

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Left:
    """What the last part in a room left latched."""

    directory: str = ""
    """Of its treatment; empty: there was none."""
    ids: tuple[str, ...] = ()
    problem: str = ""
    """Why nobody can say what is latched; empty: it is known."""


def room_latch_path(site: Site) -> Path | None:
    """Where the room's latch is remembered; None where it is not: every device is simulated."""
    if site.all_simulated:
        return None
    if site.record.ledger_file is not None:
        folder = Path(site.record.ledger_file).parent
    else:
        folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "spotwise"
    return folder / f"latch-{site.name}.json"


def read_room_latch(path: Path | None) -> Left:
    """What is left in a room; nothing where nothing was ever delivered. Never raises for what the file holds."""
    if path is None:
        return Left()
    try:
        kept: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Left()
    except (OSError, ValueError) as error:
        return Left(problem=f"{path}: {error}")
    directory = kept.get("directory") if isinstance(kept, dict) and kept.get("format") == FORMAT else None
    if not isinstance(directory, str):
        return Left(problem=f"{path}: not of format {FORMAT}")
    ids = kept.get("latched")
    if ids is None:  # under way: its controller died, or was killed
        try:
            return Left(directory, read_carried(Path(directory) / "journal.bin").trips)
        except BadInput as error:
            return Left(directory, problem=str(error))
    if not isinstance(ids, list) or not all(id_ in matrix() for id_ in ids):
        return Left(directory, problem=f"{path}: conditions that the matrix does not have: {ids!r}")
    return Left(directory, tuple(ids))


def demand_resets(site: Site, operator: str, carried: Iterable[str], left: Left) -> tuple[str, ...]:
    """All that a part resets by its beginning: of the part before, and of the room.

    Raises `Refused` where one of them is not this person's to reset; what nobody can say is a physicist's.
    """
    carried = tuple(carried)
    demand_reset_role(site, operator, carried)
    try:
        demand_reset_role(site, operator, left.ids)
    except Refused as error:
        raise Refused(f"{error}. It latched in {left.directory}, the last part in this room") from error
    if left.problem and not is_physicist(site, operator):
        raise Refused(
            f"not reset: what latched last in this room cannot be read, so it needs a physicist: {left.problem}; a "
            "physicist looks into the cause and gives --operator and --reason"
        )
    return tuple(dict.fromkeys((*carried, *left.ids)))


def remember_room_latch(path: Path | None, directory: Path, latched: Iterable[str] | None) -> None:
    """Write down what is latched after a part; None: it is under way. Whole or not at all. Raises `Refused`."""
    if path is None:
        return
    ids = None if latched is None else list(dict.fromkeys(latched))
    text = json.dumps({"format": FORMAT, "directory": str(directory.absolute()), "latched": ids}) + "\n"
    fresh = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with fresh.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise Refused(f"{path}: the room's latch cannot be written down: {error}; nothing is delivered so") from error
