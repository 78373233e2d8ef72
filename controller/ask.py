"""Asks the operator at the terminal for patient and position: what the first of two steps to beam looks like there.

An answer is what was typed after its question was shown. What was typed before, while the couch still moved or with the
line before, is thrown away: it says nothing of what there is to see now.
"""

from __future__ import annotations

import asyncio
import os
import termios
from collections.abc import Awaitable, Callable
from typing import TextIO

from drivers.errors import Refused

TRIES = 3
LINE_BYTES = 4096


async def read_line(fd: int) -> str:
    """One line of a terminal, without holding up the loop. Raises `Refused` at its end."""
    loop = asyncio.get_running_loop()
    came: asyncio.Future[bytes] = loop.create_future()

    def readable() -> None:
        if not came.done():
            came.set_result(os.read(fd, LINE_BYTES))

    loop.add_reader(fd, readable)
    try:
        data = await came
    finally:
        loop.remove_reader(fd)
    if not data:
        raise Refused("the terminal was closed: patient and position are not confirmed")
    return data.decode("utf-8", "replace").strip()


def forget_typed(fd: int) -> None:
    """Throw away what a terminal holds that nobody has read yet."""
    if os.isatty(fd):
        termios.tcflush(fd, termios.TCIFLUSH)


async def ask_for_patient(
    field: str,
    confirm: Callable[[str, bool], None],
    fd: int,
    out: TextIO,
    read: Callable[[int], Awaitable[str]] = read_line,
) -> None:
    """Ask until `confirm(patient id as typed, position is right)` takes it. Raises `Refused` after three times."""
    for left in reversed(range(TRIES)):
        forget_typed(fd)
        print(f"field {field}: patient id, as on the patient: ", end="", file=out, flush=True)
        patient = await read(fd)
        forget_typed(fd)  # a line of several lines is one answer
        print("position as planned and imaged (yes/no): ", end="", file=out, flush=True)
        position = (await read(fd)).lower() == "yes"
        try:
            confirm(patient, position)
        except Refused as error:
            print(f"spotwise: {error}", file=out, flush=True)
            if left == 0:
                raise
        else:
            return
