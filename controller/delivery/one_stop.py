"""One command at a time, and one stop: begun by whoever finds first that it is due, ended whoever goes away.

A command that is under way when its treatment is stopped ends its own work first, and then waits for the stop. Where
none is, as between arming and beam on, the stop begins by itself: nothing stays armed until somebody commands again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from controller.delivery.states import UndefinedTransition


class OneStop:
    """The stop of a part, a task of the treatment's group."""

    def __init__(
        self, due: asyncio.Event, group: asyncio.TaskGroup, stop_in_order: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        self.busy = ""
        """The command that is under way; empty: none."""
        self._due = due
        self._group = group
        self._stop_in_order = stop_in_order
        self._task: asyncio.Task[None] | None = None
        self._free = asyncio.Event()
        self._free.set()

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """A command's time: the second click of a double one is refused. Raises `UndefinedTransition`."""
        if self.busy:
            raise UndefinedTransition(f"{what}: not now, {self.busy} is under way")
        self.busy = what
        self._free.clear()
        try:
            yield
        finally:
            self.busy = ""
            self._free.set()

    def watch(self) -> asyncio.Task[None]:
        """From now on the stop begins by itself where no command is under way; the caller cancels this at the end."""
        return self._group.create_task(self._watch(), name="stop without a command")

    async def _watch(self) -> None:
        await self._due.wait()
        await self._free.wait()
        self._begin()

    def _begin(self) -> asyncio.Task[None]:
        if self._task is None:
            self._task = self._group.create_task(self._stop_in_order(), name="stop in order")
        return self._task

    async def done(self) -> None:
        """Begin the stop unless it has begun, and wait for its end. Who is cancelled meanwhile does not cancel it."""
        task = self._begin()
        await asyncio.wait((task,))
        task.result()

    async def settled(self) -> None:
        """Wait for the end of a stop that has begun, whatever it ends with: its group says so."""
        if self._task is not None:
            await asyncio.wait((self._task,))

    @property
    def over(self) -> bool:
        """The stop has run."""
        return self._task is not None and self._task.done()
