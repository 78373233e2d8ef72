"""A process beside the controller, in a session of its own: started, waited for until it is ready, ended in order.

It is ready once it has printed a JSON line with `"ready": true`; it is ended by SIGTERM, upon which it writes down what
it must, and killed where that takes too long. What it says on stderr goes to a log file in the treatment directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drivers.errors import Refused

ROOT = str(Path(__file__).resolve().parent.parent)
"""Modules are looked for where this package was found, never in a folder of that name where the user is."""
LAST_LINE_BYTES = 8192


@dataclass(frozen=True, slots=True)
class Helper:
    """What is started, and how long it may take."""

    name: str
    """In messages."""
    module: str
    ready_s: float
    stop_s: float
    bound: bool = False
    """Its standard input ends with this process, however that ends; else it outlives a killed controller."""


@asynccontextmanager
async def running(helper: Helper, arguments: Sequence[str], log_path: Path) -> AsyncIterator[dict[str, Any]]:
    """Run it while the block lasts; yields its ready line. Raises `Refused` where it does not come up."""
    paths = [ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
    with log_path.open("ab") as log_file:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", helper.module, *arguments),
            stdin=asyncio.subprocess.PIPE if helper.bound else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=log_file,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,
        )
    try:
        yield await _ready(helper, process, log_path)
    finally:
        await _stop(helper, process)


async def _ready(helper: Helper, process: asyncio.subprocess.Process, log_path: Path) -> dict[str, Any]:
    assert process.stdout is not None
    try:
        async with asyncio.timeout(helper.ready_s):
            line = await process.stdout.readline()
    except TimeoutError:
        raise Refused(f"{helper.name}: not ready within {helper.ready_s:g} s; see {log_path}") from None
    if not line:
        status = await process.wait()
        raise Refused(f"{helper.name}: ended with status {status}: {_last_line(log_path)} (all of it: {log_path})")
    said: dict[str, Any] = json.loads(line)
    if not said.get("ready"):
        raise Refused(f"{helper.name}: said {line!r} instead of being ready; see {log_path}")
    return said


def _last_line(path: Path) -> str:
    lines = path.read_bytes()[-LAST_LINE_BYTES:].decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "without a word"


async def _stop(helper: Helper, process: asyncio.subprocess.Process) -> None:
    """SIGTERM, then wait: it writes down what it must. Killed if that takes too long, or if we are told to hurry."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(helper.stop_s):
            await process.wait()
    except TimeoutError:
        pass
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
