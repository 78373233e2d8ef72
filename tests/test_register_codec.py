"""The register codec gives back what was put in, to the register's resolution, and never writes what may not be."""

from __future__ import annotations

import math
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from drivers.register_codec import FieldCodec, LimitError, TableCodec, registers_crc32
from drivers.register_map import Field, Table
from drivers.registers import load_map

INTEGERS = {f"{sign}{bits}": (0 if sign == "u" else -(2 ** (bits - 1)), 2 ** (bits - (sign == "i")) - 1)
            for sign in "ui" for bits in (16, 32, 64)}  # fmt: skip
ORDERS = st.sampled_from(["big", "little"])
SCALES = st.sampled_from([0.001, 0.01, 0.1, 0.25, 2.0, 10.0])


@given(st.sampled_from(sorted(INTEGERS)), ORDERS, st.data())
def test_integers_come_back(kind: str, order: str, data: st.DataObject) -> None:
    low, high = INTEGERS[kind]
    value = data.draw(st.integers(low, high))
    codec = FieldCodec(Field("a", kind, order))  # type: ignore[arg-type]
    words = codec.encode(value)
    assert len(words) == codec.size
    assert all(0 <= word <= 0xFFFF for word in words)
    assert codec.read(words) == value
    big = words if order == "big" else words[::-1]
    assert int.from_bytes(struct.pack(f">{len(big)}H", *big), "big", signed=kind[0] == "i") == value
    for outside in (low - 1, high + 1):
        with pytest.raises(LimitError, match="does not fit"):
            codec.encode(outside)
        assert codec.decode(codec.show(outside)) == (low if outside < low else high)


@given(ORDERS, st.floats(allow_nan=False, allow_infinity=False))
def test_doubles_come_back(order: str, value: float) -> None:
    codec = FieldCodec(Field("a", "f64", order))  # type: ignore[arg-type]
    assert codec.read(codec.encode(value)) == value


@given(st.sampled_from(["u16", "i16", "u32", "i32"]), SCALES, st.sampled_from([0.0, -40.0, 0.5]), st.data())
def test_scaled_values_come_back_within_half_a_step(
    kind: str, scale: float, offset: float, data: st.DataObject
) -> None:
    low, high = INTEGERS[kind]
    raw = data.draw(st.integers(low, high))
    codec = FieldCodec(Field("a", kind, scale=scale, offset=offset))
    value = codec.decode(codec.show(raw * scale + offset))
    assert isinstance(value, float)
    assert abs(value - (raw * scale + offset)) <= scale / 2
    assert codec.decode(codec.encode(value)) == value


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=16), ORDERS)
def test_text_comes_back(text: str, order: str) -> None:
    codec = FieldCodec(Field("a", "ascii[16]", order))  # type: ignore[arg-type]
    assert codec.read(codec.encode(text)) == text


def test_a_decimal_reads_as_it_was_set() -> None:
    codec = FieldCodec(load_map("accelerator").register("energy_mev_u").field)
    assert codec.read(codec.encode(100.01)) == 100.01


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["u16", "i32", "f32", "f64"])
def test_what_is_no_number_is_never_written(kind: str, value: float) -> None:
    with pytest.raises(LimitError, match="not a finite number"):
        FieldCodec(Field("a", kind)).encode(value)


def test_hard_limits_hold_both_ways_but_a_device_may_show_anything() -> None:
    codec = FieldCodec(Field("angle", "i32", scale=0.01, unit="deg", minimum=0.0, maximum=360.0))
    with pytest.raises(LimitError, match=r"angle: 361 is outside its hard limits 0 to 360 deg"):
        codec.encode(361.0)
    shown = codec.show(400.0)
    assert codec.decode(shown) == 400.0
    with pytest.raises(LimitError):
        codec.read(shown)
    with pytest.raises(LimitError):
        codec.read(codec.show(math.nan))


def test_an_unknown_code_a_bool_of_two_and_foreign_bytes_are_errors() -> None:
    with pytest.raises(LimitError, match=r"3 is no known code \(0 off, 1 on\)"):
        FieldCodec(Field("a", "u16", values=((0, "off"), (1, "on")))).read([3])
    with pytest.raises(LimitError, match="neither 0 nor 1"):
        FieldCodec(Field("a", "bool")).read([2])
    with pytest.raises(LimitError, match="is not ASCII"):
        FieldCodec(Field("a", "ascii[2]")).read([0xFFFF])
    with pytest.raises(LimitError, match="no text of at most 2"):
        FieldCodec(Field("a", "ascii[2]")).encode("abc")


def table_of(*columns: Field) -> Table:
    return Table("t", "s", 2, columns, 1, 1, False, "rw")


@given(ORDERS, ORDERS, st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=40), st.integers(0, 2**32 - 1))
def test_a_table_agrees_with_the_scalar_codec_register_by_register(
    order_a: str, order_b: str, values: list[int], seed: int
) -> None:
    columns = (
        Field("a", "u64", order_a),  # type: ignore[arg-type]
        Field("b", "i32", order_b, scale=0.001),  # type: ignore[arg-type]
        Field("c", "bool"),
        Field("d", "f32", order_b),  # type: ignore[arg-type]
        Field("e", "i16"),
        Field("f", "ascii[4]", order_a),  # type: ignore[arg-type]
    )
    codec = TableCodec(table_of(*columns))
    random = np.random.default_rng(seed)
    rows = np.zeros(len(values), codec.dtype)
    rows["a"] = values
    rows["b"] = random.integers(-(2**31), 2**31, len(values)) / 1000
    rows["c"] = random.integers(0, 2, len(values))
    rows["d"] = random.normal(size=len(values)).astype(np.float32)
    rows["e"] = random.integers(-(2**15), 2**15, len(values))
    rows["f"] = b"ab"
    words = codec.encode(rows)
    assert words.dtype == np.uint16
    assert_array_equal(codec.decode(words), rows)
    assert_array_equal(codec.show(rows), words)
    codecs = [FieldCodec(c) for c in columns]
    for row, got in zip(rows, words, strict=True):
        one = [w for c, v in zip(codecs, row.tolist(), strict=True)
               for w in c.encode(v.decode() if isinstance(v, bytes) else v)]  # fmt: skip
        assert got.tolist() == one


def test_a_whole_bank_of_visits_comes_back_to_the_milliampere() -> None:
    codec = TableCodec(load_map("scan_controller").table("visits"))
    rows = np.zeros(16384, codec.dtype)
    rows["x_current_a"] = np.random.default_rng(1).uniform(-600, 600, 16384)
    rows["preset_counts"] = np.arange(16384)
    back = codec.decode(codec.encode(rows))
    assert_array_equal(back["x_current_a"], np.round(rows["x_current_a"], 3))
    assert_array_equal(back["preset_counts"], rows["preset_counts"])


def test_a_table_names_row_and_column_of_what_may_not_be() -> None:
    codec = TableCodec(load_map("scan_controller").table("visits"))
    rows = np.zeros(4, codec.dtype)
    rows["y_current_a"][2] = 2001.0
    with pytest.raises(LimitError, match=r"visits.y_current_a, row 2: 2001.0 is outside its hard limits"):
        codec.encode(rows)
    with pytest.raises(LimitError, match=r"visits.y_current_a, row 2"):
        codec.check(codec.show(rows))
    rows["y_current_a"][2] = math.nan
    with pytest.raises(LimitError, match=r"row 2: nan is not a finite number"):
        codec.encode(rows)
    wider = np.zeros(
        1,
        [
            ("x_current_a", "f8"),
            ("y_current_a", "f8"),
            ("preset_counts", "i8"),
            ("time_limit_ms", "u2"),
            ("flags", "u2"),
        ],
    )
    wider["preset_counts"] = -1
    with pytest.raises(LimitError, match=r"preset_counts, row 0: -1 does not fit u32"):
        codec.encode(wider)


def test_the_crc_is_that_of_the_bytes_on_the_wire() -> None:
    # "123456789" is the check input of CRC-32/ISO-HDLC, whose check value is 0xCBF43926.
    text = np.frombuffer(b"12345678", ">u2").astype(np.uint16)
    assert registers_crc32(text[:2], text[2:]) == zlib.crc32(b"12345678")
    assert zlib.crc32(b"123456789") == 0xCBF43926
