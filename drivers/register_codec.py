"""Values into 16-bit registers and back: one compiled codec a field for scalars, numpy for whole tables.

Two directions are strict (`encode`, `read`: hard limits hold, an unknown code or a NaN is an error) and two are
not (`show`, `decode`), because a simulated device with a broken sensor must be able to show nonsense, saturated to
what its registers can hold; it is the reader who has to notice.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivers.register_map import Field, LineField, Table, Value, ascii_length

_FORMAT = {"u16": "H", "i16": "h", "u32": "I", "i32": "i", "u64": "Q", "i64": "q", "f32": "f", "f64": "d"}
_RANGE = {f"{'u' if low == 0 else 'i'}{bits}": (low, high) for bits in (16, 32, 64)
          for low, high in ((0, 2**bits - 1), (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1))}  # fmt: skip
_DTYPE = {"bool": "u2", **{f"{c}{b}": f"{c}{b // 8}" for c in "ui" for b in (16, 32, 64)}, "f32": "f4", "f64": "f8"}

Words = Sequence[int]


class LimitError(ValueError):
    """A value outside its hard limits or its type, or a code without a meaning."""


def limit_text(field: Field | LineField) -> str:
    """The field's hard limits, for messages; empty if it has none."""
    unit = f" {field.unit}" if field.unit else ""
    if field.minimum is None:
        return "" if field.maximum is None else f"at most {field.maximum:g}{unit}"
    if field.maximum is None:
        return f"at least {field.minimum:g}{unit}"
    return f"{field.minimum:g} to {field.maximum:g}{unit}"


class FieldCodec:
    """Encodes and decodes one field."""

    __slots__ = ("_codes", "_exact", "_judged", "_pack", "_steps", "_unpack", "_whole", "field", "size")

    def __init__(self, field: Field) -> None:
        self.field = field
        self.size = field.size
        self._codes = frozenset(code for code, _ in field.values)
        self._pack, self._unpack = _packers(field)
        # Settled once, because a treatment reads and shows half a million values.
        limited = field.minimum is not None or field.maximum is not None or bool(field.values)
        self._judged = limited or field.type in ("f32", "f64")
        self._steps = _RANGE.get(field.type) if field.scaled else None
        self._whole = None if field.scaled else _RANGE.get(field.type)
        inverse = round(1.0 / field.scale)
        # Dividing by a power of ten rounds once, so that 100010 x 0.001 reads 100.01.
        self._exact = inverse if inverse > 1 and field.scale == 1.0 / inverse else 0

    def encode(self, value: Value) -> tuple[int, ...]:
        """Registers for a value to be written. Raises `LimitError`; nothing is ever clipped."""
        self.check(value)
        return self._pack(self._raw(value, saturate=False))

    def show(self, value: Value) -> tuple[int, ...]:
        """Registers in which a device shows a value, saturated to the type; NaN in an integer: all ones."""
        if self._whole is not None and type(value) is int:
            low, high = self._whole
            return self._pack(value if low <= value <= high else min(max(value, low), high))
        if self._steps is not None and type(value) is float and math.isfinite(value):
            low, high = self._steps
            field = self.field
            return self._pack(min(max(round((value - field.offset) / field.scale), low), high))
        return self._pack(self._raw(value, saturate=True))

    def decode(self, words: Words) -> Value:
        """The value in `size` registers, limits not judged."""
        raw: Value = self._unpack(words)
        field = self.field
        if field.scale == 1.0 and field.offset == 0.0:
            return raw
        steps = float(raw)
        return (steps / self._exact if self._exact else steps * field.scale) + field.offset

    def read(self, words: Words) -> Value:
        """The value in `size` registers. Raises `LimitError` where a hard limit or a code says it cannot be."""
        value = self.decode(words)
        if self._judged:
            self.check(value)
        return value

    def check(self, value: Value) -> None:
        """Raise `LimitError` if the value may not be."""
        field = self.field
        if isinstance(value, str):
            return
        if not math.isfinite(value):
            raise LimitError(f"{field.name}: {value} is not a finite number")
        low, high = field.minimum, field.maximum
        if (low is not None and value < low) or (high is not None and value > high):
            raise LimitError(f"{field.name}: {value:g} is outside its hard limits {limit_text(field)}")
        if self._codes and value not in self._codes:
            known = ", ".join(f"{code} {label}" for code, label in field.values)
            raise LimitError(f"{field.name}: {value} is no known code ({known})")

    def _raw(self, value: Value, *, saturate: bool) -> Any:
        field = self.field
        kind = field.type
        length = ascii_length(kind)
        if length is not None:
            if not isinstance(value, str) or not value.isascii() or "\0" in value or len(value) > length:
                raise LimitError(f"{field.name}: {value!r} is no text of at most {length} ASCII characters")
            return value
        if isinstance(value, str):
            raise LimitError(f"{field.name}: {value!r} is text, wanted {kind}")
        if kind == "bool":
            if value not in (0, 1):
                raise LimitError(f"{field.name}: {value!r} is neither true nor false")
            return bool(value)
        if kind in ("f32", "f64"):
            number = float(value)
            if kind == "f32" and math.isfinite(number) and abs(number) > 3.4028235e38:
                raise LimitError(f"{field.name}: {number:g} does not fit f32")
            return number
        low, high = _RANGE[kind]
        if not field.scaled and isinstance(value, int):
            raw = int(value)
        else:
            if not math.isfinite(value):
                if not saturate:
                    raise LimitError(f"{field.name}: {value} is not a finite number")
                return (-1 if low else high) if math.isnan(value) else (high if value > 0 else low)
            steps = (value - field.offset) / field.scale if field.scaled else value
            if not field.scaled and steps != round(steps) and not saturate:
                raise LimitError(f"{field.name}: {value} is not a whole number")
            raw = round(steps)
        if saturate:
            return min(max(raw, low), high)
        if not low <= raw <= high:
            raise LimitError(f"{field.name}: {value:g}{field.unit and ' ' + field.unit} does not fit {kind}")
        return raw


_PACK_UNSIGNED: dict[int, Callable[[int], tuple[int, ...]]] = {
    2: lambda v: (v >> 16, v & 0xFFFF),
    4: lambda v: (v >> 48, v >> 32 & 0xFFFF, v >> 16 & 0xFFFF, v & 0xFFFF),
}
_UNPACK_UNSIGNED: dict[int, Callable[[Words], int]] = {
    2: lambda w: w[0] << 16 | w[1],
    4: lambda w: w[0] << 48 | w[1] << 32 | w[2] << 16 | w[3],
}
"""Big-endian words of unsigned integers that were checked to fit."""


def _packers(field: Field) -> tuple[Callable[[Any], tuple[int, ...]], Callable[[Words], Any]]:
    """Functions between a raw value and its registers."""
    length = ascii_length(field.type)
    size = field.size
    little = field.word_order == "little"
    words_format = struct.Struct(f">{size}H")
    if length is not None:

        def pack_text(value: str) -> tuple[int, ...]:
            words = words_format.unpack(value.encode("ascii").ljust(length, b"\0"))
            return words[::-1] if little else words

        def unpack_text(words: Words) -> str:
            raw = words_format.pack(*(words[::-1] if little else words)).rstrip(b"\0")
            try:
                return raw.decode("ascii")
            except UnicodeDecodeError as error:
                raise LimitError(f"{field.name}: {raw!r} is not ASCII") from error

        return pack_text, unpack_text
    if field.type == "bool":

        def unpack_bool(words: Words) -> bool:
            if words[0] > 1:
                raise LimitError(f"{field.name}: register value {words[0]} is neither 0 nor 1")
            return bool(words[0])

        return (lambda value: (1,) if value else (0,)), unpack_bool
    if field.type == "u16":
        return (lambda value: (value,)), (lambda words: words[0])
    if field.type in ("u32", "u64") and not little:
        return _PACK_UNSIGNED[size], _UNPACK_UNSIGNED[size]
    value_format = struct.Struct(f">{_FORMAT[field.type]}")

    def pack(value: Any) -> tuple[int, ...]:
        words = words_format.unpack(value_format.pack(value))
        return words[::-1] if little else words

    def unpack(words: Words) -> Any:
        return value_format.unpack(words_format.pack(*(words[::-1] if little else words)))[0]

    return pack, unpack


class TableCodec:
    """Encodes and decodes rows of a table, all at once."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.row_size = table.row_size
        names = [c.name for c in table.columns]
        self.wire = np.dtype([(c.name, _wire_type(c)) for c in table.columns])
        self.dtype = np.dtype(list(zip(names, (_value_type(c) for c in table.columns), strict=True)))
        """Rows as values: scaled columns are f8, others keep their type, native byte order."""
        self._limited = tuple(
            c
            for c in table.columns
            if c.type in ("bool", "f32", "f64") or c.minimum is not None or c.maximum is not None or c.values
        )
        order = _word_permutation(table.columns)
        self._shown: dict[np.dtype[np.void], tuple[tuple[Field, bool], ...]] = {}
        self._order = None if order == list(range(self.row_size)) else np.array(order)

    def encode(self, rows: NDArray[np.void]) -> NDArray[np.uint16]:
        """Rows to be written to registers, shape (rows, row_size). Raises `LimitError` naming column and row."""
        wire = np.zeros(len(rows), self.wire)
        for column in self.table.columns:
            wire[column.name] = _column_raw(self.table.name, column, rows[column.name])
        return self._words(wire)

    def show(self, rows: NDArray[np.void]) -> NDArray[np.uint16]:
        """Registers in which a device shows rows, integers saturated to their type; NaN in them: the lowest."""
        judged = self._shown.get(rows.dtype)
        if judged is None:
            # Columns that come in their own type fit as they are: the quick case, found out once.
            judged = tuple((c, not c.scaled and _value_type(c) == rows.dtype[c.name].str) for c in self.table.columns)
            self._shown[rows.dtype] = judged
        wire = np.zeros(len(rows), self.wire)
        for column, fits in judged:
            values = rows[column.name]
            wire[column.name] = values if fits else _column_shown(column, values)
        return self._words(wire)

    def _words(self, wire: NDArray[np.void]) -> NDArray[np.uint16]:
        words = wire.view(">u2").reshape(len(wire), self.row_size).astype(np.uint16)
        return words if self._order is None else np.ascontiguousarray(words[:, self._order])

    def decode(self, words: NDArray[np.uint16], *, check: bool = True) -> NDArray[np.void]:
        """Registers, shape (rows, row_size), to rows. With `check`: raises `LimitError` naming column and row."""
        ordered = words if self._order is None else words[:, np.argsort(self._order)]
        wire = np.ascontiguousarray(ordered, dtype=">u2").view(self.wire).reshape(len(words))
        rows = np.empty(len(words), self.dtype)
        for column in self.table.columns:
            rows[column.name] = self._values(column, wire[column.name], check)
        return rows

    def check(self, words: NDArray[np.uint16]) -> None:
        """Judge rows in registers without decoding what has no limits. Raises `LimitError`."""
        ordered = words if self._order is None else words[:, np.argsort(self._order)]
        wire = np.ascontiguousarray(ordered, dtype=">u2").view(self.wire).reshape(len(words))
        for column in self._limited:
            self._values(column, wire[column.name], True)

    def _values(self, column: Field, raw: NDArray[Any], check: bool) -> NDArray[Any]:
        values = raw
        if column.type == "bool" and check and (values > 1).any():
            raise _row_error(self.table.name, column, values, values > 1, "is neither 0 nor 1")
        if column.scaled:
            inverse = round(1.0 / column.scale)
            exact = inverse > 1 and column.scale == 1.0 / inverse
            values = values / inverse if exact else values * column.scale
            if column.offset:
                values = values + column.offset
        if check:
            _check_column(self.table.name, column, values)
        return values


def _wire_type(column: Field) -> str:
    length = ascii_length(column.type)
    return f">{_DTYPE[column.type]}" if length is None else f"S{length}"


def _value_type(column: Field) -> str:
    length = ascii_length(column.type)
    if length is not None:
        return f"S{length}"
    if column.type == "bool":
        return "?"
    return "<f8" if column.scaled else f"<{_DTYPE[column.type]}"


def _word_permutation(columns: Sequence[Field]) -> list[int]:
    order: list[int] = []
    for column in columns:
        words = list(range(len(order), len(order) + column.size))
        order += words[::-1] if column.word_order == "little" else words
    return order


def _row_error(table: str, column: Field, values: NDArray[Any], bad: NDArray[np.bool_], why: str) -> LimitError:
    row = int(np.argmax(bad))
    return LimitError(f"{table}.{column.name}, row {row}: {values[row]} {why}")


def _check_column(table: str, column: Field, values: NDArray[Any]) -> None:
    if ascii_length(column.type) is not None or column.type == "bool":
        return
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise _row_error(table, column, values, ~np.isfinite(values), "is not a finite number")
    if not len(values):
        return
    low, high = column.minimum, column.maximum
    if (low is not None and values.min() < low) or (high is not None and values.max() > high):
        outside = (values < (-np.inf if low is None else low)) | (values > (np.inf if high is None else high))
        raise _row_error(table, column, values, outside, f"is outside its hard limits {limit_text(column)}")
    if column.values:
        unknown = ~np.isin(values, [code for code, _ in column.values])
        if unknown.any():
            raise _row_error(table, column, values, unknown, "is no known code")


def _column_raw(table: str, column: Field, values: NDArray[Any]) -> NDArray[Any]:
    _check_column(table, column, values)
    length = ascii_length(column.type)
    if length is not None:
        if values.dtype.kind != "S" or values.dtype.itemsize > length:
            raise LimitError(f"{table}.{column.name}: wanted bytes of at most {length}, got {values.dtype}")
        return values
    if column.type in ("f32", "f64"):
        return values
    if column.scaled:
        values = np.rint((values - column.offset) / column.scale)
    elif values.dtype.kind == "f":
        fraction = values != np.rint(values)
        if fraction.any():
            raise _row_error(table, column, values, fraction, "is not a whole number")
    low, high = (0, 1) if column.type == "bool" else _RANGE[column.type]
    if values.dtype.kind == "f":
        # 2^64 - 1 is no float; comparing with the next power of two is exact.
        outside = (values < float(low)) | (values >= float(high + 1))
    elif values.dtype.kind in "iu":
        info = np.iinfo(values.dtype)
        outside = np.zeros(len(values), bool)
        if info.min < low:
            outside |= values < low
        if info.max > high:
            outside |= values > high
    else:
        outside = np.zeros(len(values), bool)
    if outside.any():
        raise _row_error(table, column, values, outside, f"does not fit {column.type}")
    return values


def _column_shown(column: Field, values: NDArray[Any]) -> NDArray[Any]:
    if column.type in ("f32", "f64") or ascii_length(column.type) is not None:
        return values
    low, high = (0, 1) if column.type == "bool" else _RANGE[column.type]
    if column.scaled:
        # Only 16- and 32-bit columns are scaled, so these bounds are exact in f8.
        steps = np.rint((values - column.offset) / column.scale)
        steps = np.minimum(np.maximum(steps, low), high)
        return steps if np.isfinite(steps).all() else np.where(np.isnan(steps), low, steps)
    if values.dtype.kind not in "iu":
        return values
    info = np.iinfo(values.dtype)
    saturated: NDArray[Any] = np.clip(values, max(low, info.min), min(high, info.max))
    return saturated


def registers_crc32(*blocks: NDArray[np.uint16]) -> int:
    """CRC-32 (zlib: polynomial 0xEDB88320, reflected) over the big-endian bytes of registers, block after block."""
    crc = 0
    for block in blocks:
        crc = zlib.crc32(np.ascontiguousarray(block, dtype=">u2").tobytes(), crc)
    return crc
