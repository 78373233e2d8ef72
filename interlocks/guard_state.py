"""What the guard remembers over its own end: the counter it saw last, what each field got, yesterday's kTP and gain.

One small JSON file, replaced as a whole (written beside, synced, renamed), so that it is the old one or the new one.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from drivers.errors import BadInput

FORMAT = 1


@dataclass
class Delivered:
    """What electrometer 2 showed of a field, all parts that are closed."""

    counts: float = 0.0
    beam_ns: int = 0
    flanks: int = 0


@dataclass
class Memory:
    """See the module's text. `counter` is None before there was any treatment."""

    counter: int | None = None
    counter_wall_ns: int = 0
    boot_nonce: int = 0
    ktp: float | None = None
    counts_per_particle: float | None = None
    account: str = ""
    """The plan that `fields` is about: hash of the file and fraction group."""
    part: int = 0
    fields: dict[str, Delivered] = field(default_factory=dict)
    open_field: int | None = None
    """Armed when this was written; `counter` is the counter at its arming."""
    pedestal_per_s: float = 0.0
    """Counts a second that electrometer 2 showed without beam when this was written."""


class StateFile:
    """Where the memory is kept; None keeps it in this process only."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def load(self) -> Memory:
        """The memory, or a new one where there is no file. Raises `BadInput` for a file that cannot be used."""
        if self.path is None or not self.path.exists():
            return Memory()
        try:
            stored: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
            if stored.pop("format") != FORMAT:
                raise ValueError("written by another version")
            stored["fields"] = {name: Delivered(**values) for name, values in stored["fields"].items()}
            return Memory(**stored)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadInput(
                f"{self.path}: the guard's memory cannot be used ({error}); a physicist looks at what was delivered, "
                "then moves the file away"
            ) from error

    def save(self, memory: Memory) -> None:
        """Replace the file; returns when it is on the disk. Raises `OSError`."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(self.path.name + ".new")
        with beside.open("w", encoding="utf-8") as file:
            json.dump({"format": FORMAT, **asdict(memory)}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)
        with contextlib.suppress(OSError):  # not every file system can sync a directory
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
