"""What became of a fault scenario: faults.json of a treatment directory, as the simulated room left it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drivers.errors import BadInput

FAULTS = "faults.json"


def write_played(path: Path, played: Sequence[Mapping[str, Any]]) -> None:
    """Write the scenario's faults, each with the times at which it began and ended. Raises OSError."""
    path.write_text(json.dumps({"faults": list(played)}, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_played(directory: Path) -> list[dict[str, Any]] | None:
    """Read it; None where there is none. Raises `BadInput`."""
    path = directory / FAULTS
    if not path.exists():
        return None
    try:
        played: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["faults"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: cannot be read: {error}") from error
    return played


def sentences(played: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each fault that never happened."""
    return [
        f"fault {number} ({fault['name']} at {fault['at']}) never fired"
        for number, fault in enumerate(played, 1)
        if fault["fired_s"] is None
    ]
