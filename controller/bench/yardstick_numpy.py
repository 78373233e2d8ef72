"""The integrator as one would write it in Python with numpy: values in objects, strip sums as matrix products.

It is made from the very functions that are compiled elsewhere, run by the interpreter; only the loops over strips are
replaced by numpy. So it does the same work by construction, and follows every change of the judgements.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from operator import add
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.dose import frame_clock, integrator, log_row, strips, visits
from drivers.wires.frames import STRIPS, FrameBuffer
from interlocks import realtime

_CENTRED = np.arange(STRIPS, dtype=np.int64) - STRIPS // 2
_WEIGHTS = np.stack([np.ones_like(_CENTRED), _CENTRED, _CENTRED * _CENTRED], axis=1)


class _Values(list[Any]):
    """A list that tells its length and adds up as the compiled arrays do: one after the other."""

    @property
    def shape(self) -> tuple[int]:
        return (len(self),)

    def sum(self) -> Any:
        return reduce(add, self, 0.0)


class _Rows:
    """Records as objects; each is made when it is first used."""

    def __init__(self, records: NDArray[Any]) -> None:
        self._records = records
        self._made: dict[int, SimpleNamespace] = {}
        self.shape = records.shape

    def __getitem__(self, index: int) -> SimpleNamespace:
        row = self._made.get(index)
        if row is None:
            row = self._made[index] = _values(self._records[index])
        return row

    def store(self) -> None:
        for index, row in self._made.items():
            self._records[index] = _tuple(row, self._records.dtype)


def _values(record: Any) -> SimpleNamespace:
    return SimpleNamespace(**dict(zip(record.dtype.names, record.item(), strict=True)))


def _tuple(row: SimpleNamespace, layout: np.dtype[Any]) -> tuple[Any, ...]:
    return tuple(getattr(row, name) for name in layout.names or ())


def _plane_sums(m: Any, frame: Any, first: int, expected: float, sigma: float, pitch: float) -> list[int]:
    """As `strips.plane_sums`."""
    centre = expected / pitch + STRIPS // 2
    half = max(4.0, strips.WINDOW_SIGMA * sigma / pitch)
    low = min(max(int(centre - half), 0), STRIPS - 1)
    high = min(max(int(centre + half), 0), STRIPS - 1) + 1
    words = np.frombuffer(frame, np.int32)[strips.PAYLOAD + first + low : strips.PAYLOAD + first + high]
    own = slice(first + low, first + high)
    exact = ((words.astype(np.int64) << strips.FRACTION_BITS) - m.pedestals[own]) & ~m.strip_off[own]
    m.strip_sums[own] += exact
    charge = (exact + strips.HALF) >> strips.FRACTION_BITS
    sums: list[int] = (charge @ _WEIGHTS[low:high]).tolist()
    return sums


def _learn_pedestals(m: Any, words: Any) -> int:
    """As `strips.learn_pedestals`."""
    payload = np.frombuffer(words, np.int32)[strips.PAYLOAD : strips.PAYLOAD + 2 * STRIPS]
    shift = strips.FIRST_SHIFT if m.state.pedestal_frames < strips.FIRST_FRAMES else strips.PEDESTAL_SHIFT
    m.state.pedestal_frames += 1
    m.pedestals += ((payload.astype(np.int64) << strips.FRACTION_BITS) - m.pedestals) >> shift
    return int(np.abs(m.pedestals).max())


def _interpreted(frame_at: Callable[[Any], FrameBuffer]) -> Callable[..., int]:
    """`handle_frame_at` and all that it calls, for the interpreter."""
    names: dict[str, Any] = {}
    for module in (realtime, strips, frame_clock, visits, log_row, integrator):
        names |= vars(module)
    names["np"] = SimpleNamespace(int64=int, int32=int, uint64=int, nan=math.nan)
    for name, value in list(names.items()):
        if hasattr(value, "py_func"):
            names[name] = FunctionType(value.py_func.__code__, names, name)
    names |= {"plane_sums": _plane_sums, "learn_pedestals": _learn_pedestals, "frame_at": frame_at}
    handle: Callable[..., int] = names["handle_frame_at"]
    return handle


class NumpyIntegrator:
    """Works on a copy of a real-time memory; `store` writes its state back into one."""

    def __init__(self, memory: NDArray[Any]) -> None:
        whole = memory[0]
        self.m = SimpleNamespace(
            control=_values(whole["control"]),
            limits=_values(whole["limits"]),
            streams=[_values(record) for record in whole["streams"]],
            state=_values(whole["state"]),
            running=_values(whole["running"]),
            scan=_Values(whole["scan"].tolist()),
            pedestals=whole["pedestals"].copy(),
            strip_off=whole["strip_off"].copy(),
            strip_faults=whole["strip_faults"].copy(),
            strip_sums=whole["strip_sums"].copy(),
            errors_x_mm=_Values(whole["errors_x_mm"].tolist()),
            errors_y_mm=_Values(whole["errors_y_mm"].tolist()),
            plan=_Rows(whole["plan"]),
            measured=_Rows(whole["measured"].copy()),
            rows=_Rows(whole["rows"].copy()),
        )
        self._handle = _interpreted(self._frame)

    @staticmethod
    def _frame(data: Any) -> FrameBuffer:
        view = memoryview(data)
        return FrameBuffer(view, view.cast("H"), view.cast("I"), view.cast("i"), view.cast("Q"), view.cast("q"))

    def __call__(self, data: NDArray[np.uint8], times_ns: NDArray[np.int64]) -> int:
        """Judge all datagrams (one a row); returns the sum of the actions decided."""
        handle, m = self._handle, self.m
        return sum(handle(m, row, 0, t_ns, True) for row, t_ns in zip(data, times_ns.tolist(), strict=True))

    def store(self, memory: NDArray[Any]) -> None:
        """Write what was integrated into a memory, for comparisons."""
        whole, m = memory[0], self.m
        for name in ("state", "running"):
            whole[name] = _tuple(getattr(m, name), whole[name].dtype)
        for index, stream in enumerate(m.streams):
            whole["streams"][index] = _tuple(stream, whole["streams"].dtype)
        for name in ("scan", "pedestals", "strip_off", "strip_faults", "strip_sums", "errors_x_mm", "errors_y_mm"):
            whole[name][:] = getattr(m, name)
        for name in ("measured", "rows"):
            ring = getattr(m, name)
            ring.store()
            whole[name] = ring._records
