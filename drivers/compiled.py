"""How functions are compiled, and where the machine code is kept: in a folder named after the sources.

numba keeps compiled code beside each file and looks only at that file's date. A function that calls one of another file
would go on running the old one after a change there: in protection code that must not be. Here the folder's name
is a hash of all sources that compiled code may come from, so changed sources never meet old machine code.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.numpy_support import carray
from numpy.typing import NDArray

from drivers.interpreted import Memory, array_at_address, new_memory

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (
    "drivers",
    "interlocks",
    "controller/bench/feed_loop.py",
    "controller/bench/reaction_loop.py",
    "controller/dose",
    "controller/compose.py",
    "controller/record/schema.py",
    "simulators",
)
KEPT = 8
INTERPRETED = bool(getattr(numba.config, "DISABLE_JIT"))  # noqa: B009 - not in the stubs


def source_hash() -> str:
    """Hash of the names and contents of all sources that are compiled, and of numba's version."""
    digest = hashlib.sha256(numba.__version__.encode())
    for entry in SOURCES:
        path = ROOT / entry
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:20]


def _cache_folder() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spotwise" / "compiled"
    folder = base / source_hash()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="spotwise-compiled-"))
    _prune(base)
    return folder


def _prune(base: Path) -> None:
    """Keep the folders used last; another process may prune at the same time."""
    with contextlib.suppress(OSError):
        folders = sorted(base.iterdir(), key=lambda f: f.stat().st_mtime, reverse=True)
        for old in folders[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)


setattr(numba.config, "CACHE_DIR", str(_cache_folder()))  # noqa: B010 - not in the stubs


def compiled(function: Callable[..., Any]) -> Any:
    """Compile without the interpreter lock; the machine code is kept. Typed by numba, so untyped for mypy."""
    return njit(cache=True, nogil=True)(function)


def compiled_inline(function: Callable[..., Any]) -> Any:
    """The same, written into its callers: for functions so small that a call would cost more than the work."""
    return njit(cache=True, nogil=True, inline="always")(function)


def _as_pointer(_typing_context: Any, address: Any) -> Any:
    """An integer as a pointer, for `carray`."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


_pointer: Any = intrinsic(_as_pointer)


def records(count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Zeroed records for Python and compiled code."""
    return new_memory(count, dtype) if INTERPRETED else np.zeros(count, dtype)


def records_in(buffer: Any, dtype: np.dtype[Any], offset: int) -> NDArray[Any]:
    """One record over memory that somebody else keeps, a mapped file for instance, for Python and compiled code."""
    found: NDArray[Any] = np.frombuffer(buffer, dtype, 1, offset)
    return found.view(Memory) if INTERPRETED else found


@compiled_inline
def array_at(address: int, length: int, dtype: Any) -> Any:
    """An array over memory that somebody else keeps: passing it on counts no references.

    Counting takes two locked instructions for each array of each call: the six views of a datagram took longer to hand
    over than the datagram to judge.
    """
    return carray(_pointer(address), (length,), dtype)


if INTERPRETED:
    array_at = array_at_address
