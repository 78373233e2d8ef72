"""Writes a recording of frames: takes the real-time path's tape to `frames/part-N.frames` in a treatment directory.

With a real clock a thread of its own empties the tape 20 times a second, compresses and writes; in virtual time the
room does it in place. The recording is no part of the treatment: when the disk, the bound on its size or the tape
cannot take more, it stops for good with an END block that says why, the journal gets a warning, and the beam goes on.
"""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from collections import deque
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from controller.dose.memory import LIMIT_FIELDS, PLAN_FIELDS, STATE_FIELDS, Monitor
from controller.dose.narrow import warm_up
from controller.dose.path import MonitorPath
from controller.dose.tape import ACTED, RING_WORDS, Tape, survey
from controller.record.frames_format import (
    FILE_HEADER,
    FOLDER,
    BlockType,
    entries_payload,
    json_payload,
    make_block,
    recording_path,
)
from drivers.compiled import source_hash
from drivers.errors import BadInput

DEFAULT_BYTES = 8 << 30
"""Bound on a part's recording: three quarters of an hour of frames."""
EMPTY_S = 0.05
BLOCK_WORDS = 1 << 16
"""Words that make a block in virtual time (512 KiB before compression, 40 ms of frames)."""
END_RESERVE = 1024


def layout() -> str:
    """Hash of the names and types of all words in a recording but the frames."""
    tables = (ACTED, *([f[:2] for f in fields] for fields in (LIMIT_FIELDS, STATE_FIELDS, PLAN_FIELDS)))
    return hashlib.sha256(repr(tables).encode()).hexdigest()


class FrameRecorder:
    """One part's recording. Give `tape` to whoever runs the path, `attach` it, and leave the context after the path.

    Raises `BadInput` where the file cannot be made or is there already.
    """

    def __init__(
        self, directory: Path, monitor: Monitor, *, part: int = 1, limit_bytes: int = DEFAULT_BYTES, threaded: bool
    ) -> None:
        self.path = recording_path(directory, part)
        self.tape = Tape(RING_WORDS if threaded else RING_WORDS // 4)
        self.stopped: str | None = None
        """Why recording stopped before its time."""
        self._monitor = monitor
        self._limit_bytes = limit_bytes
        self._fields: deque[bytes] = deque()
        self._warnings: deque[str] = deque()
        self._entries = 0
        self._t_ns = (0, 0)
        self._size = 0
        self._threaded = threaded
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()
        self._begun = False
        self._part = part
        warm_up()
        survey(np.zeros(2, np.int64), 0)
        try:
            (directory / FOLDER).mkdir(exist_ok=True)
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise BadInput(f"{self.path}: cannot be made: {error.strerror}") from error

    def __enter__(self) -> Self:
        if self._threaded:
            self._thread = threading.Thread(target=self._keep_emptying, name="frame recorder", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """The path has ended: write the rest, and the END block."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        try:
            if self.stopped is None:
                self._empty(settled=True)
            if self.stopped is None:
                self._end("the path ended")
        finally:
            self.tape.stop()
            os.close(self._file)

    def attach(self, path: MonitorPath) -> None:
        """Begin, before the path's first frame: the file says what the path knew then."""
        begin = {"version": version("spotwise"), "compiled": source_hash(), "layout": layout(), "part": self._part}
        memory = self._monitor.memory
        payload = json_payload(begin, memory["limits"].tobytes() + memory["state"].tobytes())
        self._begun = self._write(FILE_HEADER + make_block(BlockType.BEGIN, payload, t_ns=(0, 0)))
        path.recorder = self

    def field_loaded(self, field: int, visits: int) -> None:
        """The path's memory holds a field's plan and limits, and its next `clear` makes them count."""
        memory = self._monitor.memory
        head = {"field": field, "clear": int(self._monitor.control["clear"]) + 1, "visits": visits}
        rest = memory["limits"].tobytes() + zlib.compress(memory["plan"][0][: visits + 1].tobytes(), 1)
        self._fields.append(json_payload(head, rest))

    def warnings(self) -> list[str]:
        """What happened to the recording since the last call, for the journal."""
        return [self._warnings.popleft() for _ in range(len(self._warnings))]

    def advance(self) -> None:
        """In virtual time: write once a block is full."""
        if self.stopped is None and (self.tape.waiting() >= BLOCK_WORDS or not self.tape.on):
            self._empty(settled=True)

    def _keep_emptying(self) -> None:
        while not self._ending.wait(EMPTY_S) and self.stopped is None:
            self._empty(settled=False)

    def _empty(self, *, settled: bool) -> None:
        if not self._begun:
            return
        overrun = self.tape.overrun
        words = self.tape.take(settled=settled or overrun)
        # a field is announced before the word that makes it count: what it belongs to is in `words` or comes later
        while self._fields:
            self._write(make_block(BlockType.FIELD, self._fields.popleft(), t_ns=self._t_ns))
        if len(words):
            self._write_entries(words)
        if overrun:
            self._stop("the tape overran: compression or disk could not keep up")

    def _write_entries(self, words: NDArray[np.int64]) -> None:
        entries, first_ns, last_ns = survey(words, len(words))
        block = make_block(
            BlockType.ENTRIES,
            entries_payload(words),
            words=len(words),
            entries=int(entries),
            first_entry=self._entries,
            t_ns=(int(first_ns), int(last_ns)),
        )
        if self._write(block):
            self._entries += int(entries)
            self._t_ns = (int(last_ns), int(last_ns))

    def _write(self, data: bytes) -> bool:
        if self.stopped is not None:
            return False
        if self._size + len(data) + END_RESERVE > self._limit_bytes:
            self._stop(f"its bound of {self._limit_bytes} bytes is reached")
            return False
        return self._put(data)

    def _put(self, data: bytes) -> bool:
        written = 0
        try:
            while written < len(data):
                written += os.write(self._file, memoryview(data)[written:])
        except OSError as error:
            os.ftruncate(self._file, self._size)  # whole blocks only
            os.lseek(self._file, self._size, os.SEEK_SET)
            self._stop(f"the disk did not take it: {error.strerror}", marked=False)
            return False
        self._size += len(data)
        return True

    def _stop(self, why: str, *, marked: bool = True) -> None:
        """For good; the path and the treatment go on."""
        self.tape.stop()
        self.stopped = why
        self._warnings.append(
            f"{self.path}: recording of frames stopped after {self._entries} entries: {why}; the treatment goes on"
        )
        if marked:
            self._end(why, complete=False)

    def _end(self, why: str, *, complete: bool = True) -> None:
        end = {"complete": complete, "why": why, "entries": self._entries}
        self._put(make_block(BlockType.END, json_payload(end), t_ns=self._t_ns, first_entry=self._entries))
