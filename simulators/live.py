"""The plant's memory as a mapped file: what a simulated device retains is in it the moment that it is counted.

The system keeps a shared mapping when the process that wrote it is killed, so killed simulators lose no count; only a
PC that fails as a whole may. The file exists while its room runs, and is left by a room that was killed. Another
process may map it to look at the plant, times and all, without anybody noticing.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivers.compiled import records_in
from drivers.errors import BadInput
from simulators.plant.state import MEMORY, Plant

MAGIC = b"SPWPLANT"
_HEAD = struct.Struct("<8s32s64s")
"""Magic, hash of the memory's layout, name of the site in UTF-8."""
_OFFSET = mmap.ALLOCATIONGRANULARITY
_LAYOUT = hashlib.sha256(repr(MEMORY.descr).encode()).digest()


def live_path(state: Path) -> Path:
    """Where the room runs whose retained state is written to `state` at its end."""
    return state.with_suffix(".live")


def new_live(path: Path, site_name: str) -> Plant:
    """A plant in a new file. Raises OSError."""
    size = _OFFSET + MEMORY.itemsize
    with path.open("w+b") as file:
        os.posix_fallocate(file.fileno(), 0, size)  # a full disk is told now, not by a signal in mid-frame
        mapped = mmap.mmap(file.fileno(), size)
    mapped[:size] = bytes(size)  # every page is there before time counts
    mapped[: _HEAD.size] = _HEAD.pack(MAGIC, _LAYOUT, site_name.encode()[:64])
    return Plant(records_in(mapped, MEMORY, _OFFSET))


def read_live(path: Path, site_name: str) -> Plant | None:
    """What a killed room has left, as a copy; None where there is no file. Raises `BadInput`."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadInput(f"{path}: what killed simulators left cannot be read: {error.strerror}") from error
    _check(path, content, site_name)
    return Plant(records_in(bytearray(content), MEMORY, _OFFSET))


def look_at_live(path: Path) -> NDArray[Any]:
    """The memory of a room that runs, for reading only: one record of `simulators.plant.state.MEMORY`.

    Raises `BadInput` for another file, OSError where there is none.
    """
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    _check(path, mapped, None)
    return np.frombuffer(mapped, MEMORY, 1, _OFFSET)


def _check(path: Path, content: bytes | mmap.mmap, site_name: str | None) -> None:
    told = f"{path}: no memory of simulators"
    if len(content) != _OFFSET + MEMORY.itemsize:
        raise BadInput(f"{told}: {len(content)} bytes, want {_OFFSET + MEMORY.itemsize}; remove the file")
    magic, layout, name = _HEAD.unpack_from(content)
    if (magic, layout) != (MAGIC, _LAYOUT):
        raise BadInput(f"{told} of this version; remove the file to start with the counters of the last orderly end")
    if site_name is not None and name.rstrip(b"\0") != site_name.encode()[:64]:
        whose = name.rstrip(b"\0").decode(errors="replace")
        raise BadInput(f"{path}: memory of the simulators of {whose}, not of {site_name}")
