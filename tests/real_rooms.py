"""Rooms on the real clock for tests of stopping: own addresses, a plan with a layer of seconds, real processes.

A room's plant is looked at from outside only: by the registers of its devices, and by a witness that has the
devices stream their frames to it as well, stamped with the plant's own clock.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import struct
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drivers.contracts import SELF_TEST_VISIT
from drivers.flags import FLAG_BEAM, FLAG_CHAIN
from sites.loader import load_site
from sites.schema import Site
from tests.make_plan import BeamSpec, LayerSpec, grid, make_plan, write_plan
from tests.realtime_parts import driver
from tests.wire_parts import within

ROOT = Path(__file__).parents[1]
START_S = 200.0
"""The first start on a PC compiles."""
END_S = 90.0
MID_LAYER = 60
"""Visits after which a fault strikes: a fifth of the first layer."""
HEAD = struct.Struct("<IBBHQQqIIQ")
POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class RealRoom:
    """Where a room of a test is, and what is delivered there."""

    folder: Path
    site_file: Path
    site: Site
    plan: Path

    @property
    def environment(self) -> dict[str, str]:
        """Of the processes: their lock files are the test's own."""
        return {**os.environ, "TMPDIR": str(self.folder), "PYTHONPATH": str(ROOT)}


def make_room(
    folder: Path, free_port: Callable[[], int], *edits: tuple[str, str], snout_mm: float = 515.0, guard: bool = False
) -> RealRoom:
    """carbon-fixed on addresses of its own, with short gaps between spills, and without telemetry unless edited in.

    `guard`: the guard's permits are required too; then its stream is not the witness's.

    `edits`: pairs of a pattern and its replacement in the site file. `snout_mm`: the snout starts at 520 mm and moves
    at 50 mm/s, which is what a set-up takes.
    """
    text = (ROOT / "sites" / "carbon-fixed.toml").read_text(encoding="utf-8")
    ports = sorted(set(re.findall(r"\b150\d\d\b|\b18830\b", text)))
    own: set[int] = set()
    while len(own) < len(ports):  # the system may give the same one twice
        own.add(free_port())
    changes = [(rf"\b{port}\b", str(mine)) for port, mine in zip(ports, own, strict=True)]
    changes += [
        (r"/tmp/spotwise-carbon-fixed", str(folder / "lines")),
        (r"(?m)^gap_s = 2.0", "gap_s = 0.3"),
        (r"(?m)^enabled = true", "enabled = false"),
    ]
    changes.append((r"(?m)^required = .*$", f"required = {json.dumps(['controller', 'guard'][: 1 + guard])}"))
    for pattern, new in (*changes, *edits):
        text, found = re.subn(pattern, new, text)
        assert found, pattern
    site_file = folder / "site.toml"
    site_file.write_text(text, encoding="utf-8")
    layers = [LayerSpec(250.0, grid(300)), LayerSpec(240.0, grid(9))]
    plan = write_plan(folder / "plan.dcm", make_plan([BeamSpec(layers=layers, snout_mm=snout_mm)]))
    return RealRoom(folder, site_file, load_site(str(site_file)), plan)


def scenario(room: RealRoom, *faults: str) -> Path:
    """A fault scenario of one or more tables."""
    path = room.folder / "faults.toml"
    path.write_text("".join(f"[[fault]]\n{fault}\n" for fault in faults), encoding="utf-8")
    return path


def striking(target: str, what: str, after_visits: int = MID_LAYER) -> str:
    """A fault in mid-layer."""
    return f'target = "{target}"\n{what}\nafter_visits = {after_visits}'


class Ended:
    """A process that has ended, and what it said."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err

    def __repr__(self) -> str:
        return f"exit {self.status}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


class Process:
    """A process of a test; its words are kept, it never outlives the test."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.out = ""
        self.err = ""
        self._readers = [
            asyncio.create_task(self._read("out", process.stdout), name="stdout"),
            asyncio.create_task(self._read("err", process.stderr), name="stderr"),
        ]

    async def _read(self, name: str, stream: asyncio.StreamReader | None) -> None:
        assert stream is not None
        while chunk := await stream.read(65536):
            setattr(self, name, getattr(self, name) + chunk.decode(errors="replace"))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def said(self, words: str, limit_s: float = START_S) -> None:
        """Wait until the process has said something; fail with all it said if it ends or stays silent."""
        try:
            async with asyncio.timeout(limit_s):
                while words not in self.out + self.err:
                    assert self.running, f"ended before it said {words!r}: {await self.ended()!r}"
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise AssertionError(f"never said {words!r}:\n{self.out}\n{self.err}") from None

    async def ended(self, limit_s: float = END_S) -> Ended:
        """Wait for its end."""
        try:
            status = await asyncio.wait_for(self._process.wait(), limit_s)
        except TimeoutError:
            raise AssertionError(f"still runs after {limit_s:g} s:\n{self.out}\n{self.err}") from None
        await asyncio.wait(self._readers, timeout=2)
        return Ended(status, self.out, self.err)

    async def end(self) -> None:
        if self.running:
            self._process.kill()
        await self._process.wait()
        for task in self._readers:
            task.cancel()
        await asyncio.wait(self._readers)
        self._process._transport.close()  # type: ignore[attr-defined]  # pipes that a grandchild holds open


@asynccontextmanager
async def run(room: RealRoom, *command: str, **options: Any) -> AsyncIterator[Process]:
    """`python COMMAND` in the room's environment; killed at the end if it still runs."""
    started = Process(
        await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env=room.environment,
            **options,
        )
    )
    try:
        yield started
    finally:
        await started.end()


def delivery(room: RealRoom, out: Path, *more: str) -> tuple[str, ...]:
    """Command line of a delivery of the room's plan."""
    where = ("--site", str(room.site_file), "--out", str(out))
    return ("-m", "controller.cli", "deliver", str(room.plan), *where, *more)


@asynccontextmanager
async def simulators(room: RealRoom, faults: Path | None = None) -> AsyncIterator[Process]:
    """The room's simulators, started by themselves."""
    more = () if faults is None else ("--fault", str(faults))
    async with run(room, "-m", "controller.cli", "simulate", "--site", str(room.site_file), *more) as process:
        await process.said('"ready": true')
        yield process
        if process.running:
            process.send(signal.SIGTERM)
            await process.ended()


async def spotwise(room: RealRoom, *arguments: str) -> Ended:
    """Run another command to its end."""
    async with run(room, "-m", "controller.cli", *arguments) as process:
        return await process.ended()


async def status(room: RealRoom, name: str) -> Any:
    """A device's status by its registers."""
    device = driver(room.site, name)
    deadline = within(20)
    await device.connect(deadline)
    try:
        return await device.status(deadline)
    finally:
        await device.close()


async def beam_is_off(room: RealRoom, *unreachable: str) -> None:
    """Chain open, stopper closed, engine at rest, no beam at the detector, counts only of the pedestal."""
    if "safety_chain" not in unreachable:
        chain = await status(room, "safety_chain")
        assert not chain.closed
        assert not chain.beam_present
        assert chain.open_cause != 0
    if "accelerator" not in unreachable:
        assert not (await status(room, "accelerator")).stopper_open
    if "scan_controller" not in unreachable:
        assert (await status(room, "scan_controller")).state not in (1, 2, 3)
    name = "electrometer_2" if "electrometer_1" in unreachable else "electrometer_1"
    device = driver(room.site, name)
    deadline = within(20)
    await device.connect(deadline)
    first = await device.status(deadline)
    await asyncio.sleep(0.1)
    second = await device.status(deadline)
    await device.close()
    # beam would give two million counts a second, the pedestal some forty
    assert second.counts - first.counts < 1000 * (second.t_ns - first.t_ns) * 1e-9 + 100


class Witness:
    """Frames of electrometer 2 and the scan controller, as the guard would get them, with the plant's times."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._heads: list[tuple[Any, ...]] = []
        self._stop = False
        self._thread = threading.Thread(target=self._listen, name="witness", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        buffer = bytearray(2048)
        while not self._stop:
            try:
                self._listener.recv_into(buffer)
            except TimeoutError:
                continue
            self._heads.append(HEAD.unpack_from(buffer))

    def close(self) -> None:
        self._stop = True
        self._thread.join()

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    def frames(self, stream: int) -> Any:
        """t_ns, visit, flags, counts of one stream's frames so far, in order of time."""
        rows = [h[6:10] for h in list(self._heads) if h[2] == stream]
        table = np.array(rows, np.int64).reshape(len(rows), 4)
        return table[np.argsort(table[:, 0], kind="stable")]

    def chain_opened_ns(self) -> int | None:
        """Plant's time of the first frame after the chain's last opening; None: never closed, or still closed."""
        frames = self.frames(3)
        closed = np.flatnonzero(frames[:, 2] & FLAG_CHAIN)
        if len(closed) == 0 or closed[-1] == len(frames) - 1:
            return None
        return int(frames[closed[-1] + 1, 0])

    def last_beam_ns(self) -> int | None:
        """Plant's time of the last frame in which electrometer 2 saw beam."""
        frames = self.frames(2)
        beam = np.flatnonzero(frames[:, 2] & FLAG_BEAM)
        return int(frames[beam[-1], 0]) if len(beam) else None

    @property
    def visit(self) -> int:
        """Visit of the newest frame; that of the engine's self-test is none."""
        visit = int(self._heads[-1][7]) if self._heads else 0
        return 0 if visit == SELF_TEST_VISIT else visit


@contextmanager
def _listener() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(0.1)
        yield listener


@asynccontextmanager
async def witness(
    room: RealRoom, names: tuple[str, ...] = ("electrometer_2", "scan_controller")
) -> AsyncIterator[Witness]:
    """Have devices stream to a witness as well (slot 1; electrometer 2's is the guard's, where there is one)."""
    with _listener() as listener:
        looking = Witness(listener)
        try:
            for name in names:
                device = driver(room.site, name)
                deadline = within(20)
                await device.connect(deadline)
                await device.stream_to("127.0.0.1", looking.port, 1, deadline)
                await device.close()
            yield looking
        finally:
            looking.close()


async def until(what: str, condition: Callable[[], Any], limit_s: float = START_S) -> None:
    """Wait for a condition; fail, naming it, when it never comes."""
    try:
        async with asyncio.timeout(limit_s):
            while not condition():
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise AssertionError(f"waited {limit_s:g} s in vain: {what}") from None


def written(out: Path, words: str) -> bool:
    """The journal on the disk says so, or has said so."""
    journal = out / "journal.bin"
    return journal.exists() and words.encode() in journal.read_bytes()


def summary(out: Path) -> dict[str, Any]:
    """summary.json of a treatment directory."""
    loaded: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return loaded


def stands_still(pid: int) -> bool:
    """All threads of a process are stopped by a signal."""
    stats = [path.read_text(encoding="ascii") for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


def processes_of(room: RealRoom) -> list[str]:
    """Command lines of processes that still know the room's folder or ports; the test's own apart."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if line and f"TMPDIR={room.folder}\0".encode() in environment:
            found.append(f"{entry.name}: {line}")
    return found
