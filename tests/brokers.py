"""Real MQTT brokers for tests: mosquitto as a process, and a reader that collects what is published."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiomqtt

WAIT_S = 20.0


async def until(what: str, condition: Callable[[], Any]) -> None:
    """Wait for a condition; fail, naming it, when it never comes."""
    try:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"waited {WAIT_S} s in vain: {what}") from None


@asynccontextmanager
async def mosquitto(binary: str, folder: Path, port: int, extra: str = "allow_anonymous true\n") -> AsyncIterator[Any]:
    """A mosquitto on loopback; yields its process."""
    config = folder / f"mosquitto-{port}.conf"
    # 2.0.11 gives up root for an account that cannot read a test's folder, unless told otherwise
    config.write_text(
        f"user root\nlistener {port} 127.0.0.1\npersistence false\nlog_dest none\n{extra}", encoding="utf-8"
    )
    process = await asyncio.create_subprocess_exec(binary, "-c", str(config), stdin=asyncio.subprocess.DEVNULL)
    try:
        await until(f"mosquitto on port {port}", lambda: _listens(port))
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _listens(port: int) -> bool:
    listening = f"0100007F:{port:04X} 00000000:0000 0A"
    return listening in Path("/proc/net/tcp").read_text(encoding="ascii")


class Reader:
    """Everything that arrived below `spotwise/`."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, dict[str, Any], bool]] = []

    def of(self, topic_name: str) -> list[dict[str, Any]]:
        """Bodies of one topic, in order of arrival."""
        return [body for topic, body, _ in self.messages if topic.split("/", 3)[3] == topic_name]


@asynccontextmanager
async def reader(port: int, **options: Any) -> AsyncIterator[Reader]:
    """Subscribe to everything while the block runs."""
    collected = Reader()

    async def collect(client: aiomqtt.Client) -> None:
        async for message in client.messages:
            assert isinstance(message.payload, bytes)
            collected.messages.append((str(message.topic), json.loads(message.payload), message.retain))

    async with aiomqtt.Client("127.0.0.1", port, **options) as client:
        task = asyncio.create_task(collect(client), name="reader")
        try:
            await client.subscribe("spotwise/#", qos=1)
            yield collected
        finally:
            task.cancel()
            await asyncio.wait({task})
