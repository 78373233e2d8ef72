"""The local link between controller and guard: what the controller means to do, and what the guard thinks of it.

Little endian, one datagram a message, on loopback:

    offset  type  meaning
         0  u32   magic 'SPWG'
         4  u8    version (2)
         5  u8    kind: 1 session, 2 layer, 3 wish, 4 reset, 5 ask (all by the controller), 6 status (by the guard)
         6  u16   length of the whole datagram
         8  u64   session nonce, the same as of the controller's permits (ask: 0)
        16  u64   sequence number, rising in a session
        24        payload by kind, see the tables; text is UTF-8, filled up with zeros
      last  16 B  first half of HMAC-SHA-256 (RFC 2104) of all bytes before, under the permits' key

Session and layers say what the controller intends; a wish says, repeated as a sign of life, what may run now. Nothing
here can make the guard permit what its own reading of the plan forbids. The MAC keeps out what does not know the
key; it is no defence against a compromised controller, the guard's own numbers are.
"""

from __future__ import annotations

import hmac
import re
import struct
from typing import NamedTuple

GUARD_MAGIC = 0x47575053
GUARD_VERSION = 2
MAC_BYTES = 16
MAX_BYTES = 512
_HEADER = struct.Struct("<IBBHQQ")

WAITING, AGREED, PERMITTING, LATCHED = range(4)
"""States of the guard: no plan agreed on, agreed, a field armed and permits leaving, latched."""


class Session(NamedTuple):
    """The controller opened a session with the chain and will deliver this."""

    plan_sha256: bytes
    fraction_group: int
    part: int
    fraction: int
    """Of the plan's course."""
    treatment: int
    """A hash of what the treatment began with: the same for all its parts, another for any other treatment."""
    fields: int
    layers: int
    """Of all fields: so many layer messages follow."""
    ktp: float


class LayerLimits(NamedTuple):
    """What the controller intends for one layer of the plan, all its visits, whatever is delivered already."""

    field: int
    layer: int
    first_visit: int
    visits: int
    energy_mev_u: float
    particles: float
    rate_per_s: float
    counts_2: float
    """Expected on electrometer 2."""


class Wish(NamedTuple):
    """What may run now; no field is armed where `permit` is 0."""

    permit: int
    field: int
    layer: int
    """The layer whose visits may run; -1: none yet."""
    first_visit: int
    last_visit: int
    arm_token: int


class Reset(NamedTuple):
    """An operator resets the guard's latch."""

    operator: str
    reason: str


class Ask(NamedTuple):
    """Whether there is a guard."""


class Status(NamedTuple):
    """What the guard thinks."""

    state: int
    pid: int
    plan_sha256: bytes
    fraction_group: int
    delivered_counts_2: float
    """Of the field that is armed, all parts."""
    value: float
    """Of the first condition that latched, NaN for none; so the limit."""
    limit: float
    condition: str
    """Its id; '' where nothing is latched."""
    detail: str


Message = Session | LayerLimits | Wish | Reset | Ask | Status
_KINDS: dict[int, tuple[type[Message], struct.Struct]] = {
    1: (Session, struct.Struct("<32siIIQIId")),
    2: (LayerLimits, struct.Struct("<iiIIdddd")),
    3: (Wish, struct.Struct("<BiiIIQ")),
    4: (Reset, struct.Struct("<64s160s")),
    5: (Ask, struct.Struct("<")),
    6: (Status, struct.Struct("<BI32siddd32s160s")),
}
_TYPES = {"B": "u8", "i": "i32", "I": "u32", "Q": "u64", "d": "f64"}
_TEXTS = {"operator", "reason", "condition", "detail"}
_NUMBERS = {kind: number for number, (kind, _) in _KINDS.items()}


def payloads() -> list[tuple[int, type[Message], list[tuple[int, str, str]]]]:
    """Number, message and (offset in the datagram, type, name) of its fields, for the document."""
    found = []
    for number, (kind, layout) in _KINDS.items():
        codes = re.findall(r"\d*[a-zA-Z]", layout.format.removeprefix("<"))
        rows, offset = [], _HEADER.size
        for name, code in zip(kind._fields, codes, strict=True):
            text = f"{code[:-1]} B" if code.endswith("s") else _TYPES[code]
            rows.append((offset, text, name))
            offset += struct.calcsize("<" + code)
        found.append((number, kind, rows))
    return found


class Envelope(NamedTuple):
    """A message with its session and number."""

    session: int
    sequence: int
    message: Message


def encode(envelope: Envelope, key: bytes) -> bytes:
    """One datagram. Raises `struct.error` for numbers that do not fit.

    Text that is too long is cut, and what of it is none (bytes of a file's name that are no UTF-8) becomes "?".
    """
    number = _NUMBERS[type(envelope.message)]
    layout = _KINDS[number][1]
    values = [v.encode(errors="replace") if isinstance(v, str) else v for v in envelope.message]
    length = _HEADER.size + layout.size + MAC_BYTES
    head = _HEADER.pack(GUARD_MAGIC, GUARD_VERSION, number, length, envelope.session, envelope.sequence)
    body = head + layout.pack(*values)
    return body + hmac.digest(key, body, "sha256")[:MAC_BYTES]


def decode(data: bytes, key: bytes) -> Envelope | None:
    """The message of a datagram; None for anything that is not whole, ours and authentic."""
    if len(data) < _HEADER.size + MAC_BYTES:
        return None
    magic, version, number, length, session, sequence = _HEADER.unpack_from(data)
    if magic != GUARD_MAGIC or version != GUARD_VERSION or number not in _KINDS or length != len(data):
        return None
    kind, layout = _KINDS[number]
    if len(data) != _HEADER.size + layout.size + MAC_BYTES:
        return None
    body, mac = data[:-MAC_BYTES], data[-MAC_BYTES:]
    if not hmac.compare_digest(hmac.digest(key, body, "sha256")[:MAC_BYTES], mac):
        return None
    values = dict(zip(kind._fields, layout.unpack_from(body, _HEADER.size), strict=True))
    for name in _TEXTS & values.keys():
        values[name] = values[name].rstrip(b"\0").decode(errors="replace")
    return Envelope(session, sequence, kind(**values))
