"""The file operations that the journal stands on, in one place: a disk that fails or loses power can be put here."""

from __future__ import annotations

import os
from pathlib import Path


class Disk:
    """The operating system's. Every method raises OSError as it does."""

    sync_in_virtual_time = False
    """A virtual run can be repeated to the byte, so it need not wait for the disk before its end."""

    def open(self, path: Path, keep: int) -> int:
        """Open for writing, made if missing, cut to `keep` bytes and standing at its end. Returns the descriptor."""
        new = not path.exists()
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.ftruncate(file, keep)
            os.lseek(file, keep, os.SEEK_SET)
            if new:
                self._sync_folder(path.parent)
        except BaseException:
            os.close(file)
            raise
        return file

    def _sync_folder(self, folder: Path) -> None:
        """A file whose name is not on the disk is lost with the power, whatever was synced into it."""
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)

    def write(self, file: int, data: memoryview) -> int:
        """Append; returns how many bytes were taken."""
        return os.write(file, data)

    def sync(self, file: int) -> None:
        """Return when everything written is on the disk."""
        os.fdatasync(file)

    def close(self, file: int) -> None:
        """Close the descriptor."""
        os.close(file)


THE_DISK = Disk()
