"""Publishes what happens to an MQTT broker, and keeps every trouble with that broker away from delivery.

`publish` appends to a bounded queue and returns; a task of its own checks, sends and reconnects. When the queue
is full the oldest message goes and is counted. Each message is acknowledged by the broker (QoS 1) before the
next is sent: that is the only honest back-pressure a client without it would hide in an unbounded buffer.
Nothing is ever subscribed.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import aiomqtt

from controller.telemetry_schema import RETAINED, encode, full_topic
from drivers.errors import BadInput
from sites.schema import Telemetry as Settings

log = logging.getLogger(__name__)

CONNECT_S = 5.0
"""Time for TCP, TLS and CONNACK, each."""
ACKNOWLEDGE_S = 5.0
"""A broker that does not acknowledge a message within this is reconnected."""
BACK_OFF_S = (0.25, 8.0)
"""First and longest wait before a new connection; doubled each time, and jittered down to half."""
FLUSH_S = 1.0
"""On closing: time for what is still queued, and again for the farewell."""
LEAVE_S = 3.0
"""On closing: `run` returns within this, whatever the broker does."""
KEEPALIVE_S = 10

_LINK_TROUBLE = (aiomqtt.MqttError, OSError, TimeoutError, ValueError)
"""What a broken link raises; ValueError: paho's word for a socket that closed under it."""


@dataclass(slots=True)
class Counts:
    """What became of the messages since start."""

    sent: int = 0
    dropped: int = 0
    """Given up because the queue was full."""
    rejected: int = 0
    """Not what their model says: a defect of the publisher, logged."""
    connections: int = 0


class Telemetry:
    """A publisher for one site. Use from the loop's own thread."""

    def __init__(self, settings: Settings, site: str, *, software: str, now_ns: Callable[[], int]) -> None:
        """`now_ns` is the run's clock. Raises BadInput where URL, password or CA file cannot be used."""
        self.counts = Counts()
        self._broker = _Broker.of(settings)
        self._site = site
        self._software = software
        self._now_ns = now_ns
        self._limit = settings.queue_limit
        self._queue: deque[tuple[str, dict[str, Any]]] = deque()
        self._retained: dict[str, dict[str, Any]] = {}
        self._wake = asyncio.Event()
        self._closing = asyncio.Event()
        self._dropped_told = 0
        self._jitter = random.Random()
        self._leave: asyncio.Timeout | None = None
        self._leave_at_s: float | None = None

    def publish(self, topic_name: str, payload: Mapping[str, Any]) -> None:
        """Queue a message; never blocks, never raises. The dictionary is copied at the top level."""
        message = dict(payload)
        if topic_name in RETAINED:
            self._retained[topic_name] = message
        self._queue.append((topic_name, message))
        self._trim()
        self._wake.set()

    async def run(self) -> None:
        """Connect, send, reconnect, until `close`; to be run as a task."""
        try:
            async with asyncio.timeout_at(self._leave_at_s) as self._leave:
                await self._run()
        except TimeoutError:
            log.warning("telemetry: %s did not answer while closing; left", self._broker)

    async def _run(self) -> None:
        wait_s = BACK_OFF_S[0]
        while not self._closing.is_set():
            before = self.counts.connections
            try:
                await self._session()
            except* _LINK_TROUBLE as trouble:
                log.warning("telemetry: no link to %s: %s", self._broker, _first(trouble))
            if self.counts.connections > before:
                wait_s = BACK_OFF_S[0]
            await self._pause(wait_s * self._jitter.uniform(0.5, 1.0))
            wait_s = min(2 * wait_s, BACK_OFF_S[1])

    def close(self) -> None:
        """Ask `run` to send what is queued (at most `FLUSH_S`), say offline and return, all within `LEAVE_S`."""
        self._closing.set()
        self._wake.set()
        self._leave_at_s = asyncio.get_running_loop().time() + LEAVE_S
        if self._leave is not None and not self._leave.expired():
            self._leave.reschedule(self._leave_at_s)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Telemetry]:
        """Run while the block runs; leaving it closes in an orderly way."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.run(), name="telemetry")
            try:
                yield self
            finally:
                self.close()

    async def _session(self) -> None:
        will = encode("availability", self._status("offline", "lost"))
        client = await self._broker.connect(full_topic(self._site, "availability"), will)
        try:
            await client.__aenter__()
        except BaseException:
            # aiomqtt leaves the socket and its housekeeping task behind when a connection is refused half-way.
            client._client.disconnect()
            raise
        try:
            self.counts.connections += 1
            log.info("telemetry: connected to %s", self._broker)
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(_watch(client), name="telemetry.watch")
                await self._say(client, "availability", self._status("online", "connected"))
                await self._refresh(client)
                try:
                    await self._pump(client)
                finally:
                    # Also when cancelled: an orderly disconnect silences the last will, so say it ourselves.
                    await self._farewell(client)
                    watch.cancel()
        finally:
            await client.__aexit__(None, None, None)

    async def _pump(self, client: aiomqtt.Client) -> None:
        while not self._closing.is_set():
            await self._drain(client)
            self._wake.clear()
            if not self._queue and not self._closing.is_set():
                await self._wake.wait()
        try:
            async with asyncio.timeout(FLUSH_S):
                await self._drain(client)
        except TimeoutError:
            self.counts.dropped += len(self._queue)
            self._queue.clear()

    async def _drain(self, client: aiomqtt.Client) -> None:
        while self._queue:
            if self.counts.dropped != self._dropped_told:
                await self._say(client, "availability", self._status("online", "overflow"))
            topic_name, message = self._queue.popleft()
            try:
                await self._say(client, topic_name, message)
            except BaseException:
                self._queue.appendleft((topic_name, message))
                self._trim()
                raise

    async def _refresh(self, client: aiomqtt.Client) -> None:
        """A broker may have forgotten what it retained: repeat what is not in the queue anyway."""
        queued = {topic_name for topic_name, _ in self._queue}
        for topic_name in sorted(self._retained.keys() - queued):
            await self._say(client, topic_name, self._retained[topic_name])

    async def _farewell(self, client: aiomqtt.Client) -> None:
        try:
            async with asyncio.timeout(FLUSH_S):
                await self._say(client, "availability", self._status("offline", "closed"))
        except _LINK_TROUBLE:
            log.info("telemetry: link to %s was gone at the farewell; its last will speaks", self._broker)

    async def _say(self, client: aiomqtt.Client, topic_name: str, message: Mapping[str, Any]) -> None:
        try:
            text = encode(topic_name, message)
        except ValueError as reason:
            self.counts.rejected += 1
            self._retained.pop(topic_name, None)
            log.error("telemetry: message for %r not sent: %s", topic_name, reason)
            return
        await client.publish(
            full_topic(self._site, topic_name), text, qos=1, retain=topic_name in RETAINED, timeout=ACKNOWLEDGE_S
        )
        self.counts.sent += 1

    def _status(self, status: Literal["online", "offline"], reason: str) -> dict[str, Any]:
        self._dropped_told = self.counts.dropped
        return {
            "t_ns": self._now_ns(),
            "status": status,
            "reason": reason,
            "dropped": self.counts.dropped,
            "software": self._software,
        }

    def _trim(self) -> None:
        while len(self._queue) > self._limit:
            self._queue.popleft()
            self.counts.dropped += 1

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            return


@dataclass(frozen=True, slots=True)
class _Broker:
    """Address and credentials of a broker."""

    host: str
    port: int
    username: str | None
    password: str | None
    tls: ssl.SSLContext | None

    def __str__(self) -> str:
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}"

    @classmethod
    def of(cls, settings: Settings) -> _Broker:
        where = f"telemetry.url {settings.url!r}"
        try:
            url = urlsplit(settings.url)
            host, port = url.hostname, url.port
        except ValueError as reason:
            raise BadInput(f"{where}: {reason}; wanted mqtt://host:port or mqtts://host:port") from reason
        if url.scheme not in ("mqtt", "mqtts") or not host or url.username or url.path not in ("", "/"):
            raise BadInput(f"{where}: wanted mqtt://host:port or mqtts://host:port, credentials in their own keys")
        if settings.ca_file and url.scheme != "mqtts":
            raise BadInput(f"{where}: telemetry.ca_file is given, but only mqtts:// uses it; change the URL")
        password = None
        try:
            if settings.password_file:
                password = Path(settings.password_file).read_text(encoding="utf-8").rstrip("\r\n")
            tls = ssl.create_default_context(cafile=settings.ca_file) if url.scheme == "mqtts" else None
        except (OSError, UnicodeDecodeError) as reason:  # ssl.SSLError is an OSError
            raise BadInput(
                f"telemetry.password_file {settings.password_file!r} or telemetry.ca_file {settings.ca_file!r} "
                f"cannot be used: {reason}"
            ) from reason
        return cls(host, port or (8883 if tls else 1883), settings.username, password, tls)

    async def connect(self, will_topic: str, will: bytes) -> aiomqtt.Client:
        """A client ready to be entered, once the broker's port answers.

        aiomqtt connects in a thread that cannot be cancelled, and leaks the socket of a failed TLS handshake; a
        port that has just answered keeps the one short and the other out.
        """
        async with asyncio.timeout(CONNECT_S):
            _, writer = await asyncio.open_connection(self.host, self.port, ssl=self.tls)
            writer.close()
            await writer.wait_closed()
        return aiomqtt.Client(
            self.host,
            self.port,
            username=self.username,
            password=self.password,
            will=aiomqtt.Will(will_topic, will, qos=1, retain=True),
            tls_context=self.tls,
            timeout=CONNECT_S,
            keepalive=KEEPALIVE_S,
            logger=log.getChild("mqtt"),
        )


async def _watch(client: aiomqtt.Client) -> None:
    """Ends with an error when the link is lost while nothing is sent; no message comes, nothing is subscribed."""
    async for _ in client.messages:
        log.warning("telemetry: the broker sent a message that nobody asked for; ignored")


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
