"""Permits: the datagrams that keep the safety chain closed, declared once for both ends.

Little endian, 64 bytes:

    offset  type  meaning
         0  u32   magic 'SPWP'
         4  u8    version (1)
         5  u8    kind: 1 permit, 2 drop
         6  u8    source: 1 controller, 2 guard
         7  u8    0
         8  u64   session nonce (the chain was told it when the session opened)
        16  u64   arm token
        24  u64   sequence number, rising
        32  i64   time of sending, ns on the sender's clock
        40  u32   age of the newest frame, us
        44  u32   reason (drop: number of the condition)
        48  u64   0
        56  u64   SipHash-2-4 of bytes 0 to 55 under the 16-byte key (Aumasson and Bernstein, 2012)

A permit cannot close an open chain; it only keeps a chain closed that was armed with the same token. The MAC
keeps out what does not know the key; it is no defence against a compromised controller.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

from drivers.compiled import compiled, compiled_inline

PERMIT_MAGIC = 0x50575053
PERMIT_VERSION = 1
PERMIT_BYTES = 64
KIND_PERMIT = 1
KIND_DROP = 2
SOURCE_CONTROLLER = 1
SOURCE_GUARD = 2

_LAYOUT = struct.Struct("<IBBBBQQQqIIQ")


@compiled_inline
def _rotl(x, b):
    return (x << np.uint64(b)) | (x >> np.uint64(64 - b))


@compiled
def siphash24(words, count, key):
    """SipHash-2-4 of `count` 64-bit words under key (two u64)."""
    v0 = key[0] ^ np.uint64(0x736F6D6570736575)
    v1 = key[1] ^ np.uint64(0x646F72616E646F6D)
    v2 = key[0] ^ np.uint64(0x6C7967656E657261)
    v3 = key[1] ^ np.uint64(0x7465646279746573)
    for i in range(count + 2):
        rounds = 2
        if i < count:
            m = words[i]
        elif i == count:
            m = np.uint64((8 * count) & 0xFF) << np.uint64(56)
        else:
            m = np.uint64(0)
            v2 ^= np.uint64(0xFF)
            rounds = 4
        v3 ^= m
        for _ in range(rounds):
            v0 = v0 + v1
            v1 = _rotl(v1, 13)
            v1 ^= v0
            v0 = _rotl(v0, 32)
            v2 = v2 + v3
            v3 = _rotl(v3, 16)
            v3 ^= v2
            v0 = v0 + v3
            v3 = _rotl(v3, 21)
            v3 ^= v0
            v2 = v2 + v1
            v1 = _rotl(v1, 17)
            v1 ^= v2
            v2 = _rotl(v2, 32)
        v0 ^= m
    return v0 ^ v1 ^ v2 ^ v3


@compiled
def write_permit(buffer, kind, source, nonce, token, sequence, t_ns, age_us, reason, key):
    """Fill the first 64 bytes of a buffer (see `drivers.wires.frames.FrameBuffer`)."""
    buffer.u32[0] = PERMIT_MAGIC
    buffer.u8[4] = PERMIT_VERSION
    buffer.u8[5] = kind
    buffer.u8[6] = source
    buffer.u8[7] = 0
    buffer.u64[1] = nonce
    buffer.u64[2] = token
    buffer.u64[3] = sequence
    buffer.i64[4] = t_ns
    buffer.u32[10] = age_us
    buffer.u32[11] = reason
    buffer.u64[6] = 0
    buffer.u64[7] = siphash24(buffer.u64, 7, key)


@compiled
def permit_is_authentic(buffer, length, key):
    """True for a whole permit or drop with the right MAC; nonce, token and sequence are the chain's to judge."""
    if length != PERMIT_BYTES or buffer.u32[0] != np.uint32(PERMIT_MAGIC) or buffer.u8[4] != PERMIT_VERSION:
        return False
    return siphash24(buffer.u64, 7, key) == buffer.u64[7]


def plain_siphash24(data: bytes, key: bytes) -> int:
    """The same in plain Python, for a process that compiles nothing; `data` is a whole number of 64-bit words."""
    mask = (1 << 64) - 1
    k0, k1 = struct.unpack("<QQ", key)
    v0: int
    v1: int
    v2: int
    v3: int
    v0, v1, v2, v3 = (
        k0 ^ 0x736F6D6570736575,
        k1 ^ 0x646F72616E646F6D,
        k0 ^ 0x6C7967656E657261,
        k1 ^ 0x7465646279746573,
    )

    def rounds(count: int) -> None:
        nonlocal v0, v1, v2, v3
        for _ in range(count):
            v0 = (v0 + v1) & mask
            v1 = ((v1 << 13 | v1 >> 51) & mask) ^ v0
            v0 = (v0 << 32 | v0 >> 32) & mask
            v2 = (v2 + v3) & mask
            v3 = ((v3 << 16 | v3 >> 48) & mask) ^ v2
            v0 = (v0 + v3) & mask
            v3 = ((v3 << 21 | v3 >> 43) & mask) ^ v0
            v2 = (v2 + v1) & mask
            v1 = ((v1 << 17 | v1 >> 47) & mask) ^ v2
            v2 = (v2 << 32 | v2 >> 32) & mask

    for (word,) in (*struct.iter_unpack("<Q", data), (len(data) % 256 << 56,)):
        v3 ^= word
        rounds(2)
        v0 ^= word
    v2 ^= 0xFF
    rounds(4)
    return v0 ^ v1 ^ v2 ^ v3


def encode(permit: Permit, key: bytes) -> bytes:
    """Plain Python encoder, independent of the compiled one."""
    head = (PERMIT_MAGIC, PERMIT_VERSION, permit.kind, permit.source, 0)
    body = _LAYOUT.pack(*head, *permit[2:], 0)
    return body + struct.pack("<Q", plain_siphash24(body, key))


def key_words(key: bytes) -> np.ndarray:
    """The 16-byte key as the two u64 that the compiled code takes."""
    if len(key) != 16:
        raise ValueError(f"permit key: {len(key)} bytes, want 16")
    return np.frombuffer(key, "<u8").copy()


class Permit(NamedTuple):
    """A decoded permit, for tools and tests."""

    kind: int
    source: int
    session_nonce: int
    arm_token: int
    sequence: int
    t_ns: int
    age_us: int
    reason: int


def decode(data: bytes) -> Permit | None:
    """Plain Python decoder (MAC not checked); None if the datagram is no permit."""
    if len(data) != PERMIT_BYTES:
        return None
    magic, version, kind, source, _, nonce, token, sequence, t_ns, age_us, reason, _ = _LAYOUT.unpack(data[:56])
    if magic != PERMIT_MAGIC or version != PERMIT_VERSION:
        return None
    return Permit(kind, source, nonce, token, sequence, t_ns, age_us, reason)
