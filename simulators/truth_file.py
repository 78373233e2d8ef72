"""What a room really delivered, as a file: one structured array (units, x, y, rr) a field, by visit id.

`units` is charge in 2^-20 ion; `x` and `y` are sums of units x position in mm at isocentre. The controller never
sees any of it during a treatment; figures against the truth are made from it afterwards.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivers.errors import BadInput
from simulators.plant.state import TRUTH


def write_truths(path: Path, truths: Sequence[NDArray[Any]]) -> None:
    """Write `Room.truths()`: each field up to its last visit with beam, fields without beam not. Raises OSError."""
    fields = []
    for truth in truths:
        used = np.flatnonzero(truth["units"])
        if len(used):
            fields.append(truth[: used[-1] + 1])
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with new.open("wb") as file:
            np.savez(file, allow_pickle=False, **{f"field_{n}": field for n, field in enumerate(fields, 1)})
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def read_truths(path: Path) -> list[NDArray[Any]]:
    """Read what `write_truths` wrote, in order of the fields. Raises `BadInput`."""
    try:
        with path.open("rb") as stored, np.load(stored, allow_pickle=False) as file:
            fields = [file[f"field_{n}"] for n in range(1, len(file.files) + 1)]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise BadInput(f"{path}: no truths of a simulated room: {error}") from error
    if any(field.dtype != TRUTH for field in fields):
        raise BadInput(f"{path}: truths of another layout")
    return fields
