"""What the guard remembers over its own end: the counter, what each field got, yesterday's kTP and gain, its latch.

One small JSON file, replaced as a whole (written beside, synced, renamed), so that it is the old one or the new one. A
disk may take its time: on the real clock a thread waits for it, and the guard goes on looking, without permits.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from drivers.errors import BadInput
from interlocks.conditions import matrix

FORMAT = 2
"""Memories of format 1 are read as well: those guards forgot their latch when they ended."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """What electrometer 2 showed of a field, all parts that are closed."""

    counts: float = 0.0
    beam_ns: int = 0
    flanks: int = 0


@dataclass(frozen=True, slots=True)
class Latched:
    """What latched first, and when. A value or limit that is no number is None: JSON knows none."""

    id: str
    wall_ns: int
    value: float | None
    limit: float | None
    detail: str


@dataclass(frozen=True, slots=True)
class Memory:
    """See the module's text. `counter` is None before there was any treatment."""

    counter: int | None = None
    counter_wall_ns: int = 0
    boot_nonce: int = 0
    ktp: float | None = None
    counts_per_particle: float | None = None
    account: str = ""
    """The plan that `fields` is about: hash of the file and fraction group. So are the three after it."""
    treatment: int = 0
    fraction: int = 0
    part: int = 0
    fields: Mapping[str, Delivered] = field(default_factory=dict)
    open_field: int | None = None
    """Armed when this was written; `counter` is the counter at its arming."""
    pedestal_per_s: float = 0.0
    """Counts a second that electrometer 2 showed without beam when this was written."""
    latched: Latched | None = None
    """Until somebody resets it who may."""


class StateFile:
    """Where the memory is kept; None keeps it in this process only."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    @property
    def saved(self) -> bool:
        """What was given to `save` last is on the disk."""
        return True

    @property
    def failure(self) -> OSError | None:
        """Why something could not be written after `save` had returned."""
        return None

    def close(self) -> None:
        """Nothing more is saved; returns when all is on the disk."""

    def load(self) -> Memory:
        """The memory, or a new one where there is no file. Raises `BadInput` for a file that cannot be used."""
        if self.path is None or not self.path.exists():
            return Memory()
        try:
            stored: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
            made = stored.pop("format")
            if made not in (1, FORMAT):
                raise ValueError("written by another version")
            stored["latched"] = None if made == 1 else _latched(stored["latched"])
            stored["fields"] = {name: Delivered(**values) for name, values in stored["fields"].items()}
            return Memory(**stored)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadInput(
                f"{self.path}: the guard's memory cannot be used ({error}); a physicist looks at what was delivered, "
                "then moves the file away"
            ) from error

    def save(self, memory: Memory) -> None:
        """Replace the file; returns when it is on the disk. Raises `OSError`."""
        if self.path is not None:
            _replace(self.path, _text(memory))


class StateThread(StateFile):
    """The same, but `save` returns at once: `saved` says when the disk has it, `failure` why it has not.

    Only the newest memory counts; one that waits for the disk is replaced by the next.
    """

    def __init__(self, path: Path | None) -> None:
        super().__init__(path)
        self._failure: OSError | None = None
        self._asked = 0
        """How many were given to `save`; of a path, and by the one who calls it."""
        self._written = 0
        """Which of them the disk has."""
        self._waiting: str | None = None
        self._ends = False
        self._turn = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def saved(self) -> bool:
        """What was given to `save` last is on the disk. What failed never is."""
        return self._written == self._asked

    @property
    def failure(self) -> OSError | None:
        """Why something could not be written."""
        return self._failure

    def save(self, memory: Memory) -> None:
        """Have the file replaced."""
        if self.path is None:
            return
        with self._turn:
            self._waiting = _text(memory)
            self._asked += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="guard's memory", daemon=True)
                self._thread.start()
            self._turn.notify()

    def close(self) -> None:
        """Returns when all is on the disk, or has failed."""
        with self._turn:
            self._ends = True
            self._turn.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._turn:
                while self._waiting is None and not self._ends:
                    self._turn.wait()
                if self._waiting is None:
                    return
                text, number, self._waiting = self._waiting, self._asked, None
            try:
                assert self.path is not None
                _replace(self.path, text)
            except OSError as error:
                self._failure = error
            else:
                self._written = number


def _latched(values: dict[str, Any] | None) -> Latched | None:
    if values is None:
        return None
    latched = Latched(**values)
    if latched.id not in matrix():
        raise ValueError(f"latched {latched.id!r}, which is no condition of the matrix")
    return latched


def _text(memory: Memory) -> str:
    return json.dumps({"format": FORMAT, **asdict(memory)}, indent=1)


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".new")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    with contextlib.suppress(OSError):  # not every file system can sync a directory
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
