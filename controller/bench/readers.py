"""Telemetry as a delivery has it, for benches: a real broker, a publisher, and readers in processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from controller.clock import now_ns
from controller.compose import broker_process
from controller.telemetry import Telemetry
from drivers.errors import SpotwiseError
from sites.schema import Telemetry as Settings

HOST = "127.0.0.1"
START_S = 60.0
END_S = 20.0
LOOK_S = 0.05
MOSQUITTO = "listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nlog_dest none\n"


@dataclass
class Readership:
    """A publisher, and what became of its messages; complete when the block has ended."""

    telemetry: Telemetry
    broker: str
    received: list[int] = field(default_factory=list)
    """Messages by reader."""


@asynccontextmanager
async def readership(site: str, folder: Path, readers: int) -> AsyncIterator[Readership]:
    """Have a broker and so many readers while the block runs. Raises `SpotwiseError` where one does not come up."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    async with _broker(folder, port) as broker:
        processes = [await _reader(port) for _ in range(readers)]
        telemetry = Telemetry(
            Settings(url=f"mqtt://{HOST}:{port}", embedded_broker=False),
            site,
            software=version("spotwise"),
            now_ns=now_ns,
        )
        result = Readership(telemetry, broker)
        try:
            for process in processes:
                await _ready(process)
            async with telemetry.running():
                yield result
            result.received = [await _count(process) for process in processes]
        finally:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()


@asynccontextmanager
async def _broker(folder: Path, port: int) -> AsyncIterator[str]:
    """Mosquitto where it is installed, else the bundled broker, as a process."""
    binary = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if binary is None:
        async with broker_process(HOST, port):
            yield "bundled"
        return
    config = folder / "mosquitto.conf"
    config.write_text(MOSQUITTO.format(port=port), encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        binary, "-c", str(config), stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await _listens(port, process)
        yield "mosquitto"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _listens(port: int, process: asyncio.subprocess.Process) -> None:
    try:
        async with asyncio.timeout(START_S):
            while process.returncode is None:
                try:
                    _, writer = await asyncio.open_connection(HOST, port)
                except OSError:
                    await asyncio.sleep(LOOK_S)
                    continue
                writer.close()
                await writer.wait_closed()
                return
    except TimeoutError:
        pass
    raise SpotwiseError(f"bench: mosquitto does not listen on {HOST}:{port} (status {process.returncode})")


async def _reader(port: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "controller.bench.reader", HOST, str(port)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )


async def _ready(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_S):
            line = await process.stdout.readline()
    except TimeoutError:
        line = b""
    if line != b"ready\n":
        raise SpotwiseError(f"bench: a reader of telemetry did not come up (said {line!r})")


async def _count(process: asyncio.subprocess.Process) -> int:
    try:
        async with asyncio.timeout(END_S):
            out, _ = await process.communicate(b"")
    except TimeoutError:
        raise SpotwiseError(f"bench: a reader of telemetry did not end within {END_S:g} s") from None
    return int(out)
