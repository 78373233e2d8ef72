"""Read a plan file's bytes, once, within a limit, without ever waiting for a pipe."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from controller.plan.rules import MalformedPlan, finding


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises:
        MalformedPlan: it cannot be read, is none, is empty, or is larger.

    """
    try:
        # O_NONBLOCK: opening a named pipe must not wait for its writer.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise MalformedPlan(path.name, finding("FILE_UNREADABLE", "", "wanted a regular file"))
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise MalformedPlan(path.name, finding("FILE_UNREADABLE", "", f"cannot be read: {reason}")) from error
    if not data:
        raise MalformedPlan(path.name, finding("FILE_UNREADABLE", "", "the file is empty"))
    if len(data) > limit:
        raise MalformedPlan(path.name, finding("LIMIT_EXCEEDED", "", f"the file has more than {limit} bytes"))
    return data
