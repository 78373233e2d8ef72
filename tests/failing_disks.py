"""Disks as they fail: full or broken at the n-th write, and what is left on one when the power goes."""

from __future__ import annotations

import errno
import os
import random
from dataclasses import dataclass, field
from pathlib import Path

from controller.record.disk import Disk


@dataclass
class CountingDisk(Disk):
    """A good disk that counts, and syncs in virtual time as on the real clock."""

    writes: int = 0
    sync_in_virtual_time = True

    def write(self, file: int, data: memoryview) -> int:
        """Append."""
        self.writes += 1
        return super().write(file, data)

    def sync(self, file: int) -> None:
        """Nothing is lost in a test's own disk."""


@dataclass
class BrokenDisk(CountingDisk):
    """From the n-th write or sync on (from 0) every one fails; the failing write may have taken a part."""

    fails_at: int = 0
    error: int = errno.ENOSPC
    operations: int = 0
    taken_of_last: float = 0.0

    def _next(self) -> bool:
        self.operations += 1
        return self.operations > self.fails_at

    def write(self, file: int, data: memoryview) -> int:
        """Append, or fail."""
        if not self._next():
            return super().write(file, data)
        if self.operations == self.fails_at + 1 and int(self.taken_of_last * len(data)) > 0:
            return super().write(file, data[: int(self.taken_of_last * len(data))])
        raise OSError(self.error, os.strerror(self.error))

    def sync(self, file: int) -> None:
        """Sync, or fail."""
        if self._next():
            raise OSError(self.error, os.strerror(self.error))


@dataclass(frozen=True)
class Moment:
    """What a disk was asked for up to a sync: what is safe, and what was written since."""

    safe: bytes
    loose: tuple[bytes, ...]
    """Written since the sync before, in order; power may lose any of it."""


@dataclass
class PowerlessDisk(CountingDisk):
    """Remembers at each sync what a power cut just before it could leave."""

    moments: list[Moment] = field(default_factory=list)
    _safe: bytes = b""
    _loose: list[bytes] = field(default_factory=list)

    def write(self, file: int, data: memoryview) -> int:
        """Append, for now."""
        self._loose.append(bytes(data))
        return super().write(file, data)

    def sync(self, file: int) -> None:
        """From here on it is safe."""
        self.moments.append(Moment(self._safe, tuple(self._loose)))
        self._safe += b"".join(self._loose)
        self._loose = []


PAGE = 4096


def after_power_cut(moment: Moment, draw: random.Random) -> bytes:
    """One file that may be found after a power cut: pages of the loose writes there or not, in any order, or torn.

    The file system may have given the file its new length before its bytes (zeros), or not.
    """
    whole = bytearray(moment.safe + b"".join(moment.loose))
    first = len(moment.safe)
    kind = draw.randrange(4)
    if kind == 0:  # cut anywhere
        return bytes(whole[: draw.randint(first, len(whole))])
    if kind == 1:  # the last writes never came, the length did
        for at in range(draw.randint(first, len(whole)), len(whole)):
            whole[at] = 0
        return bytes(whole)
    # pages were written in any order, and the power went before some of them
    for page in range(first // PAGE, len(whole) // PAGE + 1):
        if draw.random() < 0.5:
            for at in range(max(first, page * PAGE), min(len(whole), (page + 1) * PAGE)):
                whole[at] = 0
    if kind == 3:
        return bytes(whole[: draw.randint(first, len(whole))])
    return bytes(whole)


def write(path: Path, data: bytes) -> Path:
    """A journal with these bytes."""
    path.write_bytes(data)
    return path
