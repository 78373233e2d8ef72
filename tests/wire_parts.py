"""Parts for tests of the wires: devices behind them, and a way to run one test on the real and the virtual loop."""

from __future__ import annotations

import asyncio
import inspect
import warnings
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from drivers.deadline import Deadline
from drivers.wires.ports import DeviceBusy, IllegalAddress, IllegalValue
from drivers.wires.virtual_loop import run_virtual


class Registers:
    """A bank of 500 registers; 400 is read-only, 401 is always busy, 402 breaks the device."""

    def __init__(self) -> None:
        self.words = list(range(500))

    def read(self, address: int, count: int) -> list[int]:
        if address + count > len(self.words):
            raise IllegalAddress(f"{address}+{count}")
        if address <= 402 < address + count:
            raise ZeroDivisionError("a bug in the simulated device")
        return self.words[address : address + count]

    def write(self, address: int, values: Sequence[int]) -> None:
        if address + len(values) > len(self.words):
            raise IllegalAddress(f"{address}+{len(values)}")
        if address == 400:
            raise IllegalValue("read-only")
        if address == 401:
            raise DeviceBusy("moving")
        self.words[address : address + len(values)] = values


class Axis:
    """A device on an ASCII line."""

    def __init__(self) -> None:
        self.position_mm = 0.0
        self.asked: list[str] = []

    def answer(self, command: str) -> str:
        self.asked.append(command)
        match command.split():
            case ["GET"]:
                return f"{self.position_mm:.3f}"
            case ["GOTO", value]:
                self.position_mm = float(value)
                return "OK"
            case ["BUSY"]:
                raise DeviceBusy("moving: wait!")
            case ["BUG"]:
                raise ZeroDivisionError("a bug in the simulated device")
        raise IllegalValue(f"no such command {command}")


def within(seconds: float, purpose: str = "test") -> Deadline:
    return Deadline.after(seconds, purpose)


def run_real(main: Coroutine[Any, Any, Any]) -> Any:
    """`asyncio.run` on the real loop; leaked tasks are an error, as on the virtual one."""
    with asyncio.Runner() as runner:
        result = runner.run(main)
        left = asyncio.all_tasks(runner.get_loop())
        if left:
            warnings.warn(f"tasks outlived the main coroutine: {left}", ResourceWarning, stacklevel=2)
    return result


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test on a real loop (sockets, ptys) and on the virtual one."""

    def run(loop_kind: str, **fixtures: Any) -> None:
        (run_virtual if loop_kind == "virtual" else run_real)(test(**fixtures))

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    run.__module__ = test.__module__
    kind = inspect.Parameter("loop_kind", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [kind, *inspect.signature(test).parameters.values()]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    both: Callable[..., None] = pytest.mark.parametrize("loop_kind", ["real", "virtual"])(run)
    return both
