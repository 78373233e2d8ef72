"""The bundled broker as a process: it comes up, says why where it cannot, and never outlives its parent."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from drivers.errors import BadInput
from simulators.broker import broker_process
from tests.brokers import reader, until

ROOT = Path(__file__).parents[1]


async def start(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "simulators.broker", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_it_says_ready_serves_and_ends_quietly_on_sigterm(free_port: Callable[[], int]) -> None:
    port = free_port()
    process = await start("--port", str(port))
    assert process.stdout is not None
    assert await process.stdout.readline() == f"ready 127.0.0.1 {port}\n".encode()
    async with reader(port):
        pass
    process.send_signal(signal.SIGTERM)
    out, err = await process.communicate()
    assert (process.returncode, out, err) == (0, b"", b"")


async def test_a_taken_port_is_named(free_port: Callable[[], int]) -> None:
    port = free_port()
    holder = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", port)
    try:
        process = await start("--port", str(port))
        _, err = await process.communicate()
    finally:
        holder.close()
        await holder.wait_closed()
    assert process.returncode == 2
    assert err.decode() == f"broker: cannot listen on 127.0.0.1:{port}: Address already in use; choose another port\n"


async def test_it_serves_loopback_only() -> None:
    process = await start("--host", "0.0.0.0")
    _, err = await process.communicate()
    assert process.returncode == 2
    assert b"not loopback" in err
    with pytest.raises(BadInput, match="not loopback"):
        async with broker_process("192.0.2.1", 18830):
            pass


async def test_a_missing_amqtt_is_named_with_what_to_install(free_port: Callable[[], int]) -> None:
    code = (
        "import os, sys; sys.modules['amqtt'] = None\n"
        "from simulators.broker import main\n"
        f"sys.exit(main(['--port', '{free_port()}', '--parent', str(os.getppid())]))"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, cwd=ROOT, stderr=asyncio.subprocess.PIPE)
    _, err = await process.communicate()
    assert process.returncode == 2
    assert b"amqtt is not installed" in err
    assert b"spotwise[broker]" in err


async def test_it_ends_when_its_parent_is_killed(free_port: Callable[[], int]) -> None:
    port = free_port()
    code = (
        "import asyncio\n"
        "from simulators.broker import broker_process\n"
        "async def main():\n"
        f"    async with broker_process('127.0.0.1', {port}) as started:\n"
        "        print(started, flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    assert await parent.stdout.readline() == b"True\n"
    parent.kill()
    await parent.communicate()
    await until("the orphan's end", lambda: not _serving(port))


async def test_nothing_is_started_where_something_answers_and_what_was_started_is_stopped(
    free_port: Callable[[], int],
) -> None:
    port = free_port()
    async with broker_process("127.0.0.1", port) as first:
        async with broker_process("127.0.0.1", port) as second:
            assert (first, second) == (True, False)
        assert _serving(port)
    assert not _serving(port)


def _serving(port: int) -> bool:
    """A broker process with this port on its command line is alive."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"simulators.broker" in words and str(port).encode() in words:
            return True
    return False
