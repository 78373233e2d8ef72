"""Modbus TCP: one connection a port, answers matched to questions by transaction id, a bounded number under way.

What makes it safe:

* every answer is checked: protocol id, length, unit, function, number of registers, and that its transaction id is one
  that this connection waits for. Ids go on counting over connections, and an answer nobody waits for is thrown away;
* bytes that cannot be an answer end the connection: Modbus TCP has no way to find the next frame;
* a question that was sent and then given up (deadline, cancellation) makes the connection *suspect*: nothing new is
  asked on it, what others still wait for may come, and then it is cut, with whatever had not left yet. The next
  question opens a new one. Nothing that comes late can be taken for something fresh, nor reach the device late;
* nothing is asked twice. A question that was not sent yet goes to the new connection, within its own deadline.

`in_flight` questions are under way at most (site value of the device; the standard leaves it to the device, 1 to 16).
Callers take turns question by question, so that a poll does not wait for a whole download.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import cast

from drivers.deadline import Deadline
from drivers.wires.addresses import tcp_address
from drivers.wires.modbus_pdu import EXCEPTION, FC_READ, FC_WRITE, FC_WRITE_READ, TCP_HEAD, answer_fault, tcp_frame
from drivers.wires.modbus_port import CANNOT_OPEN, Exchange, LinkError, RegisterPort

MOST_IN_FLIGHT = 16
HEADER_BYTES = 6
"""Transaction, protocol and length; the length counts what follows them."""

FUNCTIONS = frozenset({FC_READ, FC_WRITE, FC_WRITE_READ})


class ModbusTcpPort(RegisterPort):
    """Modbus TCP; see the module's text for what happens after a timeout."""

    def __init__(self, device: str, host: str, port: int, *, unit: int = 1, in_flight: int = 1) -> None:
        super().__init__(device, tcp_address(host, port), unit)
        if not 1 <= in_flight <= MOST_IN_FLIGHT:
            raise ValueError(f"{device}: {in_flight} requests in flight, wanted 1 to {MOST_IN_FLIGHT}")
        self.unit = unit
        self.in_flight = in_flight
        self._host = host
        self._port = port
        self._transaction = 0
        self._opening = asyncio.Lock()
        self._connection: _Connection | None = None

    async def close(self) -> None:
        self._wanted = False
        connection = self._connection
        if connection is not None:
            connection.end("the port was closed")
        await asyncio.sleep(0)  # one turn, in which the transport lets go of its descriptor

    def next_transaction(self) -> int:
        """An id that no question under way has."""
        self._transaction = self._transaction % 0xFFFF + 1
        return self._transaction

    async def _carry_out(self, exchange: Exchange, deadline: Deadline) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection = self._connection
            if connection is None or connection.ended:
                async with deadline.timeout():
                    connection = await self._open()
            if not exchange.messages:
                return
            timer = loop.call_at(deadline.at_s, _expire, exchange)
            connection.take(exchange)
            try:
                if await exchange.done:
                    return
            finally:
                timer.cancel()
                if exchange.left:
                    connection.give_up(exchange)
            exchange.done = loop.create_future()

    async def _open(self) -> _Connection:
        async with self._opening:
            if self._connection is not None and not self._connection.ended:
                return self._connection
            if not self._wanted:
                raise LinkError("the port was closed")
            loop = asyncio.get_running_loop()
            try:
                _, connection = await loop.create_connection(lambda: _Connection(self), self._host, self._port)
            except OSError as exc:
                raise LinkError(CANNOT_OPEN) from exc
            if not self._wanted:
                connection.end("the port was closed")
                raise LinkError("the port was closed")
            self._connection = connection
            return connection


def _expire(exchange: Exchange) -> None:
    if not exchange.done.done():
        exchange.done.set_exception(TimeoutError())


class _Connection(asyncio.Protocol):
    """One connection, from opening to its end; a port never uses it again after that."""

    def __init__(self, port: ModbusTcpPort) -> None:
        self._port = port
        self._transport: asyncio.Transport | None = None
        self._waiting: dict[int, tuple[Exchange, int]] = {}
        self._queue: deque[Exchange] = deque()
        self._rest = b""
        self._suspect = False
        self.ended = False

    # ---- asking

    def take(self, exchange: Exchange) -> None:
        """Ask what has not been asked yet."""
        self._queue.append(exchange)
        self._send()

    def _send(self) -> None:
        """Fill the window, one question of each caller in turn, and hand all of it over as one piece."""
        queue = self._queue
        if not queue or self._suspect or self._transport is None:
            return
        port = self._port
        room = port.in_flight - len(self._waiting)
        pieces = []
        while queue and room > 0:
            exchange = queue.popleft()
            index = exchange.sent
            if index >= exchange.wanted:  # another of its questions was refused
                continue
            exchange.sent = index + 1
            if exchange.sent < exchange.wanted:
                queue.append(exchange)
            transaction = port.next_transaction()
            self._waiting[transaction] = (exchange, index)
            pieces.append(tcp_frame(transaction, port.unit, exchange.messages[index]))
            room -= 1
        if pieces:
            self._transport.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def give_up(self, exchange: Exchange) -> None:
        """Nobody waits for this any more: a question that was sent makes the connection suspect."""
        if self.ended:
            return
        if exchange in self._queue:
            self._queue.remove(exchange)
        sent = [transaction for transaction, (whose, _) in self._waiting.items() if whose is exchange]
        for transaction in sent:
            del self._waiting[transaction]
        if sent:
            self._suspect = True
        self._cut_if_idle()

    def _cut_if_idle(self) -> None:
        if self._suspect and not self._waiting:
            self.end("the connection is suspect", cut=True)

    # ---- answers

    def data_received(self, data: bytes) -> None:
        """Cut answers out of the bytes; a piece may hold a part of one, or several."""
        rest = self._rest + data if self._rest else data
        at = 0
        while len(rest) - at > TCP_HEAD.size:
            transaction, protocol, length, unit = TCP_HEAD.unpack_from(rest, at)
            start, end = at + TCP_HEAD.size, at + HEADER_BYTES + length
            wrong = _garbled(protocol, length, rest[start])
            if wrong:
                self.end(f"garbled answer: {wrong} ({rest[at : at + 16].hex(' ')})", cut=True)
                return
            if end > len(rest):
                break
            at = end
            waiting = self._waiting.pop(transaction, None)
            if waiting is None:
                self._port.stale_answers += 1
                continue
            exchange, index = waiting
            message = rest[start:end]
            wrong = answer_fault(exchange.requests[index], exchange.messages[index], message)
            if unit != self._port.unit:
                wrong = f"asked unit {self._port.unit}, answered by unit {unit}"
            if wrong:
                self._waiting[transaction] = waiting
                self.end(wrong, cut=True)
                return
            exchange.answer(index, message)
        self._rest = rest[at:]
        if self._suspect:
            self._cut_if_idle()
        else:
            self._send()

    # ---- beginning and end

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def eof_received(self) -> None:
        """Let the transport close itself."""

    def connection_lost(self, exc: Exception | None) -> None:
        self.end("the connection was closed by the other end")

    def end(self, why: str, *, cut: bool = False) -> None:
        """Use it no more: what was asked fails at once, what was not goes on elsewhere. `cut`: what is unsent stays."""
        if self.ended:
            return
        self.ended = True
        transport, self._transport = self._transport, None
        if transport is not None:
            if cut:
                transport.abort()
            else:
                transport.close()
        for exchange, _ in self._waiting.values():
            if not exchange.done.done():
                exchange.done.set_exception(LinkError(why))
        for exchange in self._queue:
            if not exchange.done.done():
                exchange.done.set_result(False)
        self._waiting.clear()
        self._queue.clear()


def _garbled(protocol: int, length: int, function: int) -> str:
    """Why bytes cannot be the head of an answer; empty: they can."""
    if protocol:
        return "protocol id is not 0"
    if not 3 <= length <= 254:
        return f"length {length}"
    if function & ~EXCEPTION not in FUNCTIONS or (function & EXCEPTION and length != 3):
        return f"function {function}"
    return ""
