"""The guard's datagrams: what one end says the other reads, and nothing that is torn, foreign or forged."""

from __future__ import annotations

import hmac
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.wires import permits
from drivers.wires.guard_link import (
    MAX_BYTES,
    Ask,
    Envelope,
    LayerLimits,
    Message,
    Reset,
    Session,
    Status,
    Wish,
    decode,
    encode,
)

KEY = bytes(range(16))
U32 = st.integers(0, 2**32 - 1)
I32 = st.integers(-(2**31), 2**31 - 1)
U64 = st.integers(0, 2**64 - 1)
NUMBER = st.floats(allow_nan=False)
TEXT = st.text("abcdefghij XYZ_09", max_size=30).map(str.rstrip)
SHA = st.binary(min_size=32, max_size=32)
MESSAGES = st.one_of(
    st.builds(Session, SHA, I32, U32, U32, U64, U32, U32, NUMBER),
    st.builds(LayerLimits, I32, I32, U32, U32, NUMBER, NUMBER, NUMBER, NUMBER),
    st.builds(Wish, st.integers(0, 1), I32, I32, U32, U32, U64),
    st.builds(Reset, TEXT, TEXT),
    st.just(Ask()),
    st.builds(Status, st.integers(0, 3), U32, SHA, I32, NUMBER, NUMBER, NUMBER, TEXT, TEXT),
)


@given(MESSAGES, U64, U64)
def test_what_is_said_is_what_is_heard(message: Message, session: int, sequence: int) -> None:
    data = encode(Envelope(session, sequence, message), KEY)
    assert len(data) <= MAX_BYTES
    assert decode(data, KEY) == Envelope(session, sequence, message)


@given(MESSAGES, st.data())
def test_no_changed_byte_passes(message: Message, data: st.DataObject) -> None:
    whole = encode(Envelope(1, 2, message), KEY)
    at = data.draw(st.integers(0, len(whole) - 1))
    bit = data.draw(st.integers(0, 7))
    changed = bytearray(whole)
    changed[at] ^= 1 << bit
    assert decode(bytes(changed), KEY) is None
    assert decode(whole[:at], KEY) is None
    assert decode(whole + b"\0", KEY) is None


def test_the_bytes_are_as_the_table_says() -> None:
    data = encode(Envelope(0x1122, 0x33, Ask()), KEY)
    assert data[:24] == b"SPWG" + bytes([2, 5, 40, 0, 0x22, 0x11, 0, 0, 0, 0, 0, 0, 0x33, 0, 0, 0, 0, 0, 0, 0])
    assert len(data) == 40  # with half of an HMAC-SHA-256
    assert MAX_BYTES == 512


@pytest.mark.parametrize(("at", "value"), [(0, 0x52), (4, 1), (5, 7), (6, 41)])
def test_another_magic_version_kind_or_length_is_nothing_even_with_the_right_mac(at: int, value: int) -> None:
    body = bytearray(encode(Envelope(1, 2, Ask()), KEY)[:-16])
    body[at] = value
    assert decode(bytes(body) + hmac.digest(KEY, bytes(body), "sha256")[:16], KEY) is None


@given(st.binary(max_size=MAX_BYTES))
def test_noise_is_nothing(data: bytes) -> None:
    assert decode(data, KEY) is None


def test_another_key_is_nobody() -> None:
    assert decode(encode(Envelope(1, 1, Ask()), KEY), bytes(16)) is None


def test_a_status_without_a_condition_has_no_number() -> None:
    status = Status(0, 1, bytes(32), 1, 0.0, math.nan, math.nan, "", "")
    got = decode(encode(Envelope(0, 1, status), KEY), KEY)
    assert got is not None
    assert isinstance(got.message, Status)
    assert math.isnan(got.message.value)
    assert got.message.condition == ""


def test_long_text_is_cut_and_stays_readable() -> None:
    got = decode(encode(Envelope(0, 1, Reset("x" * 500, "y" * 500)), KEY), KEY)
    assert got is not None
    assert got.message == Reset("x" * 64, "y" * 160)


def test_a_name_whose_bytes_are_no_text_is_said_as_far_as_it_can_be() -> None:
    name = b"plan\xff.dcm".decode(errors="surrogateescape")  # as a path or an argument comes
    got = decode(encode(Envelope(0, 1, Reset("anna", name)), KEY), KEY)
    assert got is not None
    assert got.message == Reset("anna", "plan?.dcm")


@settings(deadline=None)  # the first call compiles
@given(st.binary(min_size=16, max_size=16), st.binary(min_size=56, max_size=56))
def test_plain_and_compiled_permits_have_the_same_mac(key: bytes, data: bytes) -> None:
    words = np.frombuffer(data, "<u8").copy()
    assert permits.plain_siphash24(data, key) == int(permits.siphash24(words, 7, permits.key_words(key)))


def test_siphash_gives_the_published_value() -> None:
    # the authors' reference code (vectors.h, entry 8): for the eight bytes 00 to 07, as a little endian number
    assert permits.plain_siphash24(bytes(range(8)), KEY) == 0x93F5F5799A932462


@pytest.mark.parametrize("kind", [permits.KIND_PERMIT, permits.KIND_DROP])
def test_a_plain_permit_is_authentic_to_the_compiled_chain(kind: int) -> None:
    from drivers.wires.frames import new_buffer  # noqa: PLC0415

    permit = permits.Permit(kind, permits.SOURCE_GUARD, 2**63 + 1, 77, 3, 10**18, 12, 0)
    data = permits.encode(permit, KEY)
    assert permits.decode(data) == permit
    buffer = new_buffer()
    buffer.u8[: len(data)] = np.frombuffer(data, np.uint8)
    assert permits.permit_is_authentic(buffer, len(data), permits.key_words(KEY))
    buffer.u8[20] ^= 1
    assert not permits.permit_is_authentic(buffer, len(data), permits.key_words(KEY))
