"""The guard as a process: `python -m interlocks.guard_process --site NAME PLAN`, on sockets of its own.

It says what happens as JSON lines on stderr and in its event file, prints one line `{"ready": true, ...}` on stdout
once it supervises, and ends on SIGTERM or SIGINT. Ending sends nothing: its permits cease, and a closed chain opens.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import gc
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from drivers.errors import BadInput, Refused, SpotwiseError
from drivers.wires.addresses import same_host
from drivers.wires.frames import STREAM_ELECTROMETER_2, decode
from drivers.wires.guard_link import MAX_BYTES
from drivers.wires.realtime import RealtimeWishes, ask_realtime
from interlocks.guard import Guard
from interlocks.guard_digest import WORDS, take_frame
from interlocks.guard_state import StateThread
from sites.loader import load_site, site_from_config
from sites.schema import Site, UdpEndpoint

LONGEST_TURN_S = 0.01
"""The kernel's buffer holds some 25 ms of frames."""
RECEIVE_BUFFER_BYTES = 4 << 20
BIND_S = 3.0
BIND_AGAIN_S = 0.1
STDIN = 0
STRICT_TIME_OUT_MS = 50.0
"""Chains this quick need real-time priority."""
AT_ONCE = 2000
"""Datagrams of a turn; a flood must not keep the guard from judging."""


def permit_key(site: Site) -> bytes:
    """The key of the site's permits. Raises `BadInput`."""
    if site.permits.key_hex is not None:
        return bytes.fromhex(site.permits.key_hex)
    try:
        key = Path(str(site.permits.key_file)).read_bytes()[:16]
    except OSError as error:
        raise BadInput(f"permits.key_file: {error}") from error
    if len(key) != 16:
        raise BadInput(f"permits.key_file {site.permits.key_file}: {len(key)} bytes, want 16")
    return key


def wishes(site: Site) -> RealtimeWishes:
    """What the guard asks of Linux: priority where the chain is quick, next below the controller's real-time path."""
    if site.all_simulated and site.permits.time_out_ms > STRICT_TIME_OUT_MS:
        return RealtimeWishes()
    return RealtimeWishes(fifo_priority=max(1, site.qualification.realtime_priority - 1))


def default_state(site: Site) -> Path:
    """Where a guard that was told nothing keeps its memory."""
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return base / "spotwise" / f"guard-{site.name}.json"


class UdpWires:
    """Sockets of the guard; see `interlocks.guard.Wires`."""

    def __init__(self, site: Site) -> None:
        assert site.guard is not None
        self.digest: list[int] = [0] * WORDS
        self._frames = self._bound(site.guard.frames, "frames of electrometer 2")
        self._link = self._bound(site.guard.link, "the controller's messages")
        self._permits = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._permits.setblocking(False)
        self._chain = (same_host(site.streams.permits.host), site.streams.permits.port)
        self._controller: tuple[str, int] | None = None

    def _bound(self, where: UdpEndpoint, what: str) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        give_up_s = time.monotonic() + BIND_S
        while True:
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
                sock.bind((same_host(where.host), where.port))
                sock.setblocking(False)
                return sock
            except OSError as error:
                why = error
            if why.errno != errno.EADDRINUSE or time.monotonic() >= give_up_s:
                break
            time.sleep(BIND_AGAIN_S)  # one that ends counts its last charge
        sock.close()
        raise Refused(
            f"guard: udp://{where.host}:{where.port}: cannot take {what} there: {why.strerror}; does another guard run?"
        ) from why

    def take_frames(self) -> None:
        for _ in range(AT_ONCE):
            try:
                data = self._frames.recv(MAX_BYTES)
            except (BlockingIOError, ConnectionError):
                return
            frame = decode(data)
            if frame is not None and frame.stream == STREAM_ELECTROMETER_2:
                take_frame(self.digest, frame.boot_nonce, frame.t_ns, frame.visit, frame.flags, frame.counts)

    def send_permit(self, data: bytes) -> None:
        # a full buffer is a permit that is missing, and the chain judges that
        with contextlib.suppress(OSError):
            self._permits.sendto(data, self._chain)

    def heard(self) -> list[bytes]:
        came: list[bytes] = []
        for _ in range(AT_ONCE):
            try:
                data, self._controller = self._link.recvfrom(MAX_BYTES)
            except (BlockingIOError, ConnectionError):
                break
            came.append(data)
        return came

    def answer(self, data: bytes) -> None:
        if self._controller is not None:
            with contextlib.suppress(OSError):  # the controller has gone: its silence is judged
                self._link.sendto(data, self._controller)

    def close(self) -> None:
        """Close all sockets."""
        for sock in (self._frames, self._link, self._permits):
            sock.close()


class EventFile:
    """What happened, one JSON object a line, appended; the same lines go to stderr."""

    def __init__(self, path: Path | None) -> None:
        try:
            self._file = None if path is None else path.open("a", encoding="utf-8")
        except OSError as error:
            raise BadInput(f"{path}: the guard's event file: {error}") from error

    def __call__(self, name: str, **values: Any) -> None:
        line = json.dumps({"utc": datetime.now(UTC).isoformat(), "guard": name, **values})
        for out in (sys.stderr, self._file):
            # a reader that has gone, or a full disk, is no reason to stop supervising
            with contextlib.suppress(OSError, ValueError):
                if out is not None:
                    print(line, file=out, flush=True)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


async def serve_guard(
    site: Site,
    plan: Path,
    *,
    fraction_group: int | None = None,
    gantry_deg: float | None = None,
    state: Path | None = None,
    events: Path | None = None,
    while_stdin: bool = False,
) -> None:
    """Guard a room until SIGTERM or SIGINT; `while_stdin`: or until standard input ends, with whoever holds it.

    Raises `BadInput` or `Refused`.
    """
    if site.guard is None:
        raise Refused(f"site {site.name}: no [guard] table; the guard has no addresses there")
    key = permit_key(site)
    granted = ask_realtime(wishes(site))
    wires = UdpWires(site)
    event = EventFile(events)
    try:
        guard = Guard(
            site,
            key,
            plan,
            wires,
            event,
            fraction_group=fraction_group,
            gantry_deg=gantry_deg,
            state=state,
            wall_ns=time.time_ns,
            pid=os.getpid(),
            longest_turn_s=LONGEST_TURN_S,
            keep=StateThread,
        )

        def ready() -> None:
            # nothing that start-up made is looked at again: a collection in mid-field is short
            gc.collect()
            gc.freeze()
            event("ready", plan=str(plan), turn_ms=guard.turn_s * 1e3, state=str(state), granted=granted)
            print(json.dumps({"ready": True, "site": site.name, "pid": os.getpid()}), flush=True)

        with _ending(guard.finish, while_stdin):
            await guard.run(ready)
        event("end", turns=guard.turns, longest_turn_ms=guard.longest_ns * 1e-6)
    finally:
        wires.close()
        event.close()


@contextmanager
def _ending(finish: Callable[[], None], while_stdin: bool) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)

    def stdin_has_something() -> None:
        if not os.read(STDIN, 4096):
            loop.remove_reader(STDIN)
            finish()

    for number in numbers:
        loop.add_signal_handler(number, finish)
    if while_stdin:
        loop.add_reader(STDIN, stdin_has_something)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
        if while_stdin:
            loop.remove_reader(STDIN)


def options(parser: argparse.ArgumentParser) -> None:
    """What the guard is told on the command line."""
    path: Callable[[str], Path] = Path
    parser.add_argument("plan", type=path, metavar="PLAN", help="the plan that the controller will deliver")
    parser.add_argument("--fraction-group", type=int, metavar="N", help="default: the lowest")
    parser.add_argument("--gantry-deg", type=float, metavar="DEG", help="beam port of a TRiP98 file")
    parser.add_argument("--state", type=path, metavar="FILE", help="its memory (default: under $XDG_STATE_HOME)")
    parser.add_argument("--events", type=path, metavar="FILE", help="append what happens, a JSON object a line")
    parser.add_argument("--while-stdin", action="store_true", help="end when standard input does")


def run(site: Site, given: argparse.Namespace) -> int:
    """Guard until told to end; 0. Raises `SpotwiseError`."""
    asyncio.run(
        serve_guard(
            site,
            given.plan,
            fraction_group=given.fraction_group,
            gantry_deg=given.gantry_deg,
            state=given.state or default_state(site),
            events=given.events,
            while_stdin=given.while_stdin,
        )
    )
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run a guard that a controller starts; its site comes as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m interlocks.guard_process", description="the independent supervisor"
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--site", help="name of a shipped site, or path of a site file")
    which.add_argument("--site-config", type=Path, help="effective site as JSON, as a controller writes it")
    options(parser)
    given = parser.parse_args(arguments)
    try:
        if given.site_config is None:
            return run(load_site(given.site), given)
        return run(site_from_config(given.site_config.read_text(encoding="utf-8")), given)
    except OSError as error:
        print(f"guard: {given.site_config}: {error}", file=sys.stderr)
        return BadInput.exit_status
    except SpotwiseError as error:
        print(error, file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
