"""A reader of telemetry as a process of its own: `python -m controller.bench.reader HOST PORT`.

Subscribes to everything, prints `ready`, and prints how many messages came once its input ends.
"""

from __future__ import annotations

import asyncio
import json
import sys

import aiomqtt


async def main(host: str, port: int) -> None:
    """Read until stdin ends."""
    count = 0

    async def read(client: aiomqtt.Client) -> None:
        nonlocal count
        async for message in client.messages:
            assert isinstance(message.payload, bytes)
            json.loads(message.payload)
            count += 1

    async with aiomqtt.Client(host, port) as client:
        await client.subscribe("spotwise/#", qos=1)
        reading = asyncio.create_task(read(client), name="messages")
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        reading.cancel()
        await asyncio.wait((reading,))
    print(count, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
