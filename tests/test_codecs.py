"""Frames and permits: compiled and plain codecs agree, and no damage passes."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.wires.frames import (
    BUFFER_BYTES,
    FRAME_BYTES,
    FRAME_CORRUPT,
    FRAME_FOREIGN,
    FRAME_OK,
    FRAME_SHORT,
    Frame,
    decode,
    encode,
    inspect,
    new_buffer,
    seal,
    write_header,
)
from drivers.wires.permits import (
    KIND_DROP,
    KIND_PERMIT,
    SOURCE_CONTROLLER,
    SOURCE_GUARD,
    Permit,
    key_words,
    permit_is_authentic,
    siphash24,
    write_permit,
)
from drivers.wires.permits import decode as decode_permit
from drivers.wires.permits import encode as encode_permit
from tests.datagrams import KEY, fill, permit

U64 = st.integers(0, 2**64 - 1)
I64 = st.integers(-(2**63), 2**63 - 1)
U32 = st.integers(0, 2**32 - 1)
I32 = st.integers(-(2**31), 2**31 - 1)


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    stream = draw(st.sampled_from(sorted(FRAME_BYTES)))
    size = (FRAME_BYTES[stream] - 68) // 4
    edge = draw(st.lists(I32, max_size=min(size, 20)))
    seed = draw(st.integers(0, 2**32))
    rest = np.random.Generator(np.random.PCG64(seed)).integers(-(2**31), 2**31, size - len(edge))
    words = (*edge, *(int(word) for word in rest))
    return Frame(stream, draw(U64), draw(U64), draw(I64), draw(U32), draw(U32), draw(U64), draw(U64), draw(I64), words)


def verdict(data: bytes) -> int:
    buffer = new_buffer()
    return int(inspect(buffer, fill(buffer, data)))


def compiled_bytes(frame: Frame) -> bytes:
    buffer = new_buffer()
    buffer.u8[:] = 0xAA
    buffer.i32[16 : 16 + len(frame.words)] = frame.words
    wide = [np.uint64(value).astype(np.int64) for value in (frame.sequence, frame.counts, frame.counts_at_change)]
    write_header(
        buffer,
        frame.stream,
        np.uint64(frame.boot_nonce),
        wide[0],
        frame.t_ns,
        frame.visit,
        frame.flags,
        wide[1],
        wide[2],
        frame.t_change_ns,
    )
    return bytes(buffer.u8[: seal(buffer, frame.stream)])


@settings(deadline=None)
@given(frames())
def test_the_compiled_frame_is_the_plain_one_byte_for_byte_and_reads_back(frame: Frame) -> None:
    data = encode(frame)
    assert compiled_bytes(frame) == data
    assert len(data) == FRAME_BYTES[frame.stream] < 1400
    assert verdict(data) == FRAME_OK
    assert decode(data) == frame


@settings(max_examples=300, deadline=None)
@given(frames(), st.data())
def test_any_flipped_bit_is_found(frame: Frame, data: st.DataObject) -> None:
    raw = bytearray(encode(frame))
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << bit % 8
    assert verdict(bytes(raw)) != FRAME_OK
    assert decode(bytes(raw)) is None


def test_every_single_bit_of_the_shortest_frame_is_guarded() -> None:
    raw = encode(Frame(2, 1, 2, 3, 4, 5, 6, 7, 8, ()))
    for bit in range(8 * len(raw)):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        assert verdict(bytes(damaged)) != FRAME_OK


@settings(deadline=None)
@given(frames(), st.integers(0, BUFFER_BYTES + 100))
def test_a_frame_of_another_length_is_torn(frame: Frame, length: int) -> None:
    data = encode(frame)
    torn = (data + b"\0" * 2000)[:length]
    if length != len(data):
        assert verdict(torn) == FRAME_SHORT
        assert decode(torn) is None


@settings(deadline=None)
@given(st.binary(max_size=1500))
def test_compiled_and_plain_decoder_reject_the_same_datagrams(data: bytes) -> None:
    assert (verdict(data) == FRAME_OK) == (decode(data) is not None)


@pytest.mark.parametrize(
    ("offset", "value", "expected"),
    [
        (0, 0x42, FRAME_FOREIGN),
        (4, 2, FRAME_FOREIGN),
        (5, 0, FRAME_FOREIGN),
        (5, 9, FRAME_FOREIGN),
        (30, 1, FRAME_CORRUPT),
    ],
)
def test_the_verdict_says_what_is_wrong(offset: int, value: int, expected: int) -> None:
    data = bytearray(encode(Frame(2, 1, 2, 3, 4, 5, 6, 7, 8, ())))
    data[offset] = value
    assert verdict(bytes(data)) == expected


def test_a_frame_with_too_few_words_is_not_encoded() -> None:
    with pytest.raises(ValueError, match="stream 3: frame of 72 bytes, want 132"):
        encode(Frame(3, 1, 2, 3, 4, 5, 6, 7, 8, (1,)))


VECTORS = {0: "310e0edd47db6f72", 8: "62 24 93 9a 79 f5 f5 93".replace(" ", "")}
"""SipHash-2-4 of 00 01 02 ... under the key 00 ... 0f by length, as its authors publish them (vectors_sip64)."""


def sip_plain(key: bytes, message: bytes) -> int:
    """SipHash-2-4 by the paper's text, in plain Python."""
    mask = 2**64 - 1

    def turn(x: int, b: int) -> int:
        return (x << b | x >> (64 - b)) & mask

    k0, k1 = struct.unpack("<QQ", key)
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def rounds(count: int) -> None:
        for _ in range(count):
            v[0] = (v[0] + v[1]) & mask
            v[1] = turn(v[1], 13) ^ v[0]
            v[0] = turn(v[0], 32)
            v[2] = (v[2] + v[3]) & mask
            v[3] = turn(v[3], 16) ^ v[2]
            v[0] = (v[0] + v[3]) & mask
            v[3] = turn(v[3], 21) ^ v[0]
            v[2] = (v[2] + v[1]) & mask
            v[1] = turn(v[1], 17) ^ v[2]
            v[2] = turn(v[2], 32)

    padded = message + b"\0" * (7 - len(message) % 8) + bytes([len(message) & 0xFF])
    for (word,) in struct.iter_unpack("<Q", padded):
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def sip_compiled(key: bytes, message: bytes) -> int:
    words = np.frombuffer(message + b"\0" * 8, "<u8").copy()
    return int(siphash24(words, len(message) // 8, key_words(key)))


def test_siphash_of_the_papers_example() -> None:
    """Appendix A of Aumasson and Bernstein (2012): 15 bytes 00 to 0e under the key 00 to 0f."""
    assert sip_plain(bytes(range(16)), bytes(range(15))) == 0xA129CA6149BE45E5


@pytest.mark.parametrize("length", VECTORS)
def test_siphash_gives_the_authors_vectors(length: int) -> None:
    wanted = int.from_bytes(bytes.fromhex(VECTORS[length]), "little")
    assert sip_compiled(bytes(range(16)), bytes(range(length))) == wanted
    assert sip_plain(bytes(range(16)), bytes(range(length))) == wanted


@settings(deadline=None)
@given(st.binary(min_size=16, max_size=16), st.binary(max_size=160))
def test_the_compiled_siphash_is_the_papers(key: bytes, message: bytes) -> None:
    whole = message[: len(message) // 8 * 8]
    assert sip_compiled(key, whole) == sip_plain(key, whole)


PERMITS = st.builds(
    Permit,
    kind=st.sampled_from([KIND_PERMIT, KIND_DROP]),
    source=st.integers(0, 255),
    session_nonce=U64,
    arm_token=U64,
    sequence=U64,
    t_ns=I64,
    age_us=U32,
    reason=U32,
)


@settings(deadline=None)
@given(PERMITS, st.binary(min_size=16, max_size=16))
def test_a_permit_reads_back_and_is_authentic_under_its_key_only(wanted: Permit, key: bytes) -> None:
    values = wanted._asdict()
    data = permit(session=values.pop("session_nonce"), token=values.pop("arm_token"), key=key, **values)
    assert decode_permit(data) == wanted
    assert authentic(data, key)
    assert not authentic(data, bytes([key[0] ^ 1, *key[1:]]))
    assert struct.unpack("<Q", data[56:])[0] == sip_plain(key, data[:56])


@pytest.mark.parametrize(("kind", "source"), [(1, 1), (2, 2)], ids=["the controller's permit", "the guard's drop"])
def test_the_bytes_of_a_permit_are_as_the_table_says(kind: int, source: int) -> None:
    names = {"permit": KIND_PERMIT, "drop": KIND_DROP, "controller": SOURCE_CONTROLLER, "guard": SOURCE_GUARD}
    assert names == {"permit": 1, "drop": 2, "controller": 1, "guard": 2}
    wanted = b"SPWP" + bytes([1, kind, source, 0])
    wanted += bytes([8, 0, 0, 0, 0, 0, 0, 1]) + bytes([16, 0, 0, 0, 0, 0, 0, 2]) + bytes([24, 0, 0, 0, 0, 0, 0, 3])
    wanted += bytes([254, *[255] * 7]) + bytes([40, 0, 0, 4]) + bytes([44, 0, 0, 5]) + bytes(8)
    numbers = (kind, source, 8 + (1 << 56), 16 + (2 << 56), 24 + (3 << 56), -2, 40 + (4 << 24), 44 + (5 << 24))
    said = Permit(*numbers)
    values = said._asdict()
    written = permit(session=values.pop("session_nonce"), token=values.pop("arm_token"), **values)
    mac = sip_plain(KEY, wanted).to_bytes(8, "little")
    assert written == encode_permit(said, KEY) == wanted + mac
    assert decode_permit(written) == said


def test_a_permit_leaves_nothing_of_what_its_buffer_held_before() -> None:
    buffer = new_buffer()
    buffer.u8[:] = 0xFF
    write_permit(buffer, 1, 1, np.uint64(2), np.uint64(3), np.uint64(4), 5, 6, 7, key_words(KEY))
    assert bytes(buffer.u8[:64]) == permit(session=2, token=3, sequence=4, t_ns=5, age_us=6, reason=7)


@pytest.mark.parametrize(("at", "value"), [(0, 0x52), (4, 0), (4, 2)])
def test_another_magic_or_version_is_no_permit_even_with_the_right_mac(at: int, value: int) -> None:
    body = bytearray(permit()[:56])
    body[at] = value
    data = bytes(body) + sip_plain(KEY, bytes(body)).to_bytes(8, "little")
    assert not authentic(data)
    assert decode_permit(data) is None


def authentic(data: bytes, key: bytes = KEY) -> bool:
    buffer = new_buffer()
    return bool(permit_is_authentic(buffer, fill(buffer, data), key_words(key)))


def test_every_single_bit_of_a_permit_is_guarded() -> None:
    raw = permit()
    for bit in range(8 * len(raw)):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        assert not authentic(bytes(damaged))


@pytest.mark.parametrize("length", [0, 8, 63, 65, 128])
def test_a_permit_of_another_length_is_none(length: int) -> None:
    data = (permit() + bytes(100))[:length]
    assert not authentic(data)
    assert decode_permit(data) is None


def test_a_key_has_sixteen_bytes() -> None:
    with pytest.raises(ValueError, match="15 bytes, want 16"):
        key_words(bytes(15))
