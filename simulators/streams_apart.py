"""Has a room's frames leave through a process of their own, and starts that anew when it was killed.

The room sends each frame once, to that process; where it goes from there, the registers of its device say. Between its
end and the next start the room's frames go nowhere, as from a monitor whose data line has gone and comes back.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from drivers.errors import Refused
from simulators.devices.plant_electrometer import Destination
from simulators.realtime import RoomThread

log = logging.getLogger("spotwise.simulators.streams_apart")

MODULE = "simulators.stream_process"
ROOT = str(Path(__file__).resolve().parent.parent)
AGAIN_S = 3.0
"""Longer than any silence that a site calls a fault."""
READY_S = 60.0
STOP_S = 5.0
INTO = 0
"""The slot of the room's own senders that leads to the process."""


class StreamsApart:
    """Where the frames go, and the process that sends them there."""

    def __init__(self, thread: RoomThread) -> None:
        """`thread` makes the frames."""
        self._thread = thread
        self._wanted: dict[tuple[int, int], Destination] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._port = 0

    def streams_changed(self, number: int, slot: int, destination: Destination) -> None:
        """As `RoomThread.streams_changed`, one process further."""
        if self._wanted.get((number, slot)) == destination:
            return
        self._wanted[number, slot] = destination
        self._tell(number, slot)
        self._lead(number)

    def _lead(self, number: int) -> None:
        """The room sends a stream while somebody wants it and the process is there."""
        wanted = any(enabled for (n, _), (_, _, enabled) in self._wanted.items() if n == number)
        loopback = int(ipaddress.IPv4Address("127.0.0.1"))
        self._thread.streams_changed(number, INTO, (loopback, self._port, wanted and self._port > 0))

    def _tell(self, number: int, slot: int) -> None:
        address, port, enabled = self._wanted[number, slot]
        if self._process is not None and self._process.stdin is not None and self._port > 0:
            line = json.dumps([number, slot, str(ipaddress.IPv4Address(address)), port, enabled])
            self._process.stdin.write(line.encode() + b"\n")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep the process running while the block does. Raises `Refused` where it does not come up at first."""
        await self._start()
        keeping = asyncio.create_task(self._keep(), name="streams apart")
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.wait((keeping,))
            await self._end()

    async def _keep(self) -> None:
        while True:
            assert self._process is not None
            status = await self._process.wait()
            self._gone()
            log.warning("the streams' process ended with status %d; a new one in %g s", status, AGAIN_S)
            await asyncio.sleep(AGAIN_S)
            try:
                await self._start()
            except Refused as error:
                log.error("%s; tried again in %g s", error, AGAIN_S)

    async def _start(self) -> None:
        paths = [ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", MODULE),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # a signal from the keyboard is the room's business
        )
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(READY_S):
                line = await self._process.stdout.readline()
        except TimeoutError:
            line = b""
        if not line:
            raise Refused(f"the streams' own process did not come up within {READY_S:g} s")
        self._port = int(json.loads(line)["port"])
        for number, slot in self._wanted:
            self._tell(number, slot)
        for number in {number for number, _ in self._wanted}:
            self._lead(number)
        log.info("streams leave through process %d", self._process.pid)

    def _gone(self) -> None:
        self._port = 0
        for number in {number for number, _ in self._wanted}:
            self._lead(number)

    async def _end(self) -> None:
        process = self._process
        self._gone()
        if process is None or process.returncode is not None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
