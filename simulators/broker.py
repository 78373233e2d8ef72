"""The bundled MQTT broker, for demos and tests: a process of its own, on loopback, that ends with its parent.

`python -m simulators.broker --host 127.0.0.1 --port 18830` prints `ready HOST PORT` once it listens, and ends on
SIGTERM, SIGINT, or when the process that started it dies. It keeps nothing on disk and asks for no password: a
real room uses a real broker.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import ipaddress
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from drivers.errors import BadInput

START_S = 30.0
"""Imports alone take seconds on a busy machine."""
STOP_S = 5.0
PROBE_S = 1.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@asynccontextmanager
async def broker_process(host: str, port: int) -> AsyncIterator[bool]:
    """Have a broker at host:port while the block runs.

    Starts nothing where something already answers. Yields True where it started one. Raises BadInput where
    the host is not loopback, amqtt is not installed, or the broker does not come up.
    """
    _demand_loopback(host)
    if await _answers(host, port):
        yield False
        return
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "simulators.broker", "--host", host, "--port", str(port)),
        *("--parent", str(os.getpid())),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C in a terminal is for the parent, which still has a farewell to send
    )
    try:
        await _wait_ready(process, host, port)
        yield True
    finally:
        await _stop(process)


async def _wait_ready(process: asyncio.subprocess.Process, host: str, port: int) -> None:
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(START_S):
            line = await process.stdout.readline()
            if line.startswith(b"ready"):
                return
            said = (await process.stderr.read()).decode(errors="replace").strip().splitlines()
    except TimeoutError:
        raise BadInput(f"broker at {host}:{port}: not ready within {START_S:g} s; use another broker") from None
    raise BadInput(said[-1] if said else f"broker at {host}:{port}: ended without a word")


async def _stop(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_S):
            await process.communicate()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def _answers(host: str, port: int) -> bool:
    try:
        async with asyncio.timeout(PROBE_S):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
            await writer.wait_closed()
    except (OSError, TimeoutError):
        return False
    return True


def _demand_loopback(host: str) -> None:
    if host != "localhost":
        try:
            loopback = ipaddress.ip_address(host).is_loopback
        except ValueError:
            loopback = False
        if not loopback:
            raise BadInput(
                f"broker: host {host!r} is not loopback; the bundled broker serves 127.0.0.1, ::1 or localhost only. "
                "Run a real broker and set telemetry.embedded_broker = false"
            )


def main(arguments: list[str] | None = None) -> int:
    """Serve until told to end; 0, or 2 with one line on stderr where it cannot."""
    parser = argparse.ArgumentParser(prog="python -m simulators.broker", description="bundled MQTT broker, loopback")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=18830)
    parser.add_argument("--parent", type=int, help="process id whose death ends this one (default: whoever started it)")
    given = parser.parse_args(arguments)
    try:
        _die_with(given.parent if given.parent is not None else os.getppid())
        _demand_loopback(given.host)
        asyncio.run(_serve(given.host, given.port))
    except BadInput as reason:
        print(reason, file=sys.stderr)
        return reason.exit_status
    return 0


def _die_with(parent: int) -> None:
    """Have the kernel send SIGTERM when the parent dies, then make sure that it has not died before.

    The kernel means the thread that started us; asyncio starts processes from the loop's thread, which lives
    as long as the loop.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise BadInput(f"broker: prctl(PR_SET_PDEATHSIG) failed: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        raise BadInput(f"broker: the parent process {parent} is gone; nothing to serve")


async def _serve(host: str, port: int) -> None:
    try:  # amqtt is an optional extra
        from amqtt.broker import Broker  # noqa: PLC0415
        from amqtt.contexts import BrokerConfig, ListenerConfig  # noqa: PLC0415
        from amqtt.errors import BrokerError  # noqa: PLC0415
    except ImportError as reason:
        raise BadInput(f"broker: amqtt is not installed ({reason}); install the extra: spotwise[broker]") from reason
    logging.getLogger("amqtt").setLevel(logging.CRITICAL)
    logging.getLogger("transitions").setLevel(logging.CRITICAL)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as reason:
            raise BadInput(
                f"broker: cannot listen on {host}:{port}: {reason.strerror}; choose another port"
            ) from reason
    bind = f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}"
    config = BrokerConfig(
        listeners={"default": ListenerConfig(bind=bind, max_connections=50)},
        plugins={"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    )
    end = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end.set)
    broker = Broker(config)
    try:
        await broker.start()
    except BrokerError as reason:
        raise BadInput(f"broker: cannot listen on {host}:{port}: {reason}; choose another port") from reason
    with contextlib.suppress(BrokenPipeError):
        print(f"ready {host} {port}", flush=True)
    await end.wait()
    with contextlib.suppress(BrokerError, TimeoutError):
        async with asyncio.timeout(STOP_S / 2):
            await broker.shutdown()


if __name__ == "__main__":
    sys.exit(main())
