"""The interpreter's garbage collections: none while a layer runs, one between two layers.

A collection stops asyncio, and with it the renewal of the leases; the real-time path does not notice. What start-up
made is never collected again: of a quarter of a second that leaves next to nothing.
"""

from __future__ import annotations

import gc
import time
from types import TracebackType
from typing import Any, Self


class Heap:
    """Keeps collections out of layers while the block runs, and counts them."""

    def __init__(self) -> None:
        self._layer_runs = False
        self._begun_ns = 0
        self._collections = 0
        self._in_layers = 0
        self._longest_ns = 0

    def __enter__(self) -> Self:
        gc.collect()
        gc.freeze()
        gc.callbacks.append(self._seen)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        gc.callbacks.remove(self._seen)
        gc.enable()
        gc.unfreeze()

    def layer(self, runs: bool) -> None:
        """A layer begins; or it has ended, and what it left is collected now."""
        if runs:
            gc.disable()
            self._layer_runs = True
        elif self._layer_runs:
            self._layer_runs = False
            gc.enable()
            gc.collect()

    def _seen(self, phase: str, _info: dict[str, int]) -> None:
        if phase == "start":
            self._begun_ns = time.monotonic_ns()
            return
        self._collections += 1
        self._in_layers += self._layer_runs
        self._longest_ns = max(self._longest_ns, time.monotonic_ns() - self._begun_ns)

    def figures(self) -> dict[str, Any]:
        """How many there were since the block began, how many of them while a layer ran, the longest in ms."""
        return {
            "collections": self._collections,
            "in_layers": self._in_layers,
            "longest_ms": round(self._longest_ns * 1e-6, 3),
        }
