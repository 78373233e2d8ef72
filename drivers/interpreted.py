"""Records and memory as compiled code sees them, for runs in which nothing is compiled (NUMBA_DISABLE_JIT=1).

Compiled functions read `m.state.trip`, which numpy's own records do not understand. Interpreted runs are hundreds of
times slower; they serve the debugger, and the mutation tests, which would else compile every mutant.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np


class Record:
    """One record whose fields are attributes; made by `record_class`."""

    __slots__ = ("_parts", "array")

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        """`array`: one element, without dimensions."""
        self.array = array
        self._parts: dict[str, Any] = {}


class RecordArray:
    """A row of records inside another record."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self._array = array
        self._class = record_class(array.dtype)
        self.shape = array.shape

    def __getitem__(self, index: int) -> Record:
        return self._class(self._array[index, ...])

    def __setitem__(self, index: int, value: Any) -> None:
        self._array[index] = value.array if isinstance(value, Record) else value


class Memory(np.ndarray[Any, Any]):
    """An array of records; `memory[0]` is the record as compiled code has it, `memory["name"]` is numpy's."""

    def __getitem__(self, key: Any) -> Any:
        plain = self.view(np.ndarray)
        if isinstance(key, int):
            return record_class(self.dtype)(plain[key, ...])
        return plain[key]


@cache
def record_class(dtype: np.dtype[Any]) -> type[Record]:
    """The class whose properties are the fields of `dtype`."""
    assert dtype.fields is not None
    properties: dict[str, Any] = {"__slots__": ()}
    for name, entry in dtype.fields.items():
        properties[name] = _property(name, entry[0])
    return type("Record", (Record,), properties)


def _property(name: str, dtype: np.dtype[Any]) -> property:
    if dtype.names is None and dtype.subdtype is None:
        if dtype == np.uint64:  # Python's integers do not wrap
            return property(lambda self: self.array[name][()], lambda self, value: _set(self, name, value))
        return property(lambda self: self.array[name].item(), lambda self, value: _set(self, name, value))

    def part(self: Record) -> Any:
        found = self._parts.get(name)
        if found is None:
            array = self.array[name]
            if dtype.names is not None:
                found = record_class(dtype)(array)
            else:
                found = array if array.dtype.names is None else RecordArray(array)
            self._parts[name] = found
        return found

    return property(part)


def _set(record: Record, name: str, value: Any) -> None:
    if isinstance(value, int) and record.array.dtype[name] == np.int32:
        value = (value + (1 << 31)) % (1 << 32) - (1 << 31)  # as the processor stores it
    record.array[name] = value.array if isinstance(value, Record) else value


def new_memory(count: int, dtype: np.dtype[Any]) -> Memory:
    """Zeroed records."""
    return np.zeros(count, dtype).view(Memory)


def array_at_address(address: int, length: int, dtype: Any) -> np.ndarray[Any, Any]:
    """An array over memory that somebody else keeps."""
    dtype = np.dtype(dtype)
    raw = (ctypes.c_uint8 * (length * dtype.itemsize)).from_address(int(address))
    array = np.frombuffer(raw, dtype)
    return array if dtype.names is None else array.view(Memory)
