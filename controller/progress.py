"""Shows how a treatment goes: a live view on a terminal, plain lines anywhere else.

The view is a guest. It runs on a thread of its own, so that a terminal stopped with Ctrl-S or a full pipe holds up
nobody else; what cannot be shown in time is not shown. A stream that breaks ends the view and nothing more. Names
from a plan are stripped of control characters before they reach a terminal.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

REFRESH_S = 0.2
"""Terminal: shortest time between two pictures."""
LINE_S = 1.0
"""Elsewhere: shortest time between two lines; a change within it is told by the next one. New trips never wait."""
LINES_KEPT = 200
"""Lines that wait for a slow reader; older ones are dropped."""
CLOSE_S = 1.0
"""Closing waits this long for a reader that does not read."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Where a treatment stands. Indices count from 0; times are seconds on the run's clock."""

    state: str
    field_name: str
    field_index: int
    layer_index: int
    layers_in_field: int
    energy_mev_u: float
    """Read back, NaN where there is none yet."""
    spots_done: int
    """Of the whole treatment."""
    mu_primary: float
    mu_secondary: float
    mu_planned: float
    beam: Literal["on", "off", "hold"]
    elapsed_s: float
    left_s: float | None
    """Estimate; None where there is none."""
    trips: tuple[str, ...] = ()
    """Latched conditions, first-out first."""
    unit: str = "MU"


class Progress:
    """The view of one treatment, on a stream (standard error). A context manager."""

    def __init__(self, stream: TextIO, *, fields: int, layers: int, spots: int) -> None:
        """Totals of the whole treatment: fields, layers, spots to deliver."""
        self._totals = _Totals(fields, layers, spots)
        self._out = _Output(stream)
        self._terminal = stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
        self._latest: Snapshot | None = None
        self._told: Snapshot | None = None
        self._lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._news = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(
            target=self._show_pictures if self._terminal else self._show_lines, name="progress", daemon=True
        )
        self._thread.start()

    def update(self, snapshot: Snapshot) -> None:
        """Show this; returns at once, never raises."""
        with self._news:
            self._latest = snapshot
            if not self._terminal:
                if _worth_a_line(self._told, snapshot):
                    self._tell(snapshot)
                self._news.notify()
            elif self._told is None or _changed(self._told, snapshot) or _due(self._told, snapshot, REFRESH_S):
                self._told = snapshot
                self._news.notify()

    def close(self) -> None:
        """Show the last state and end; waits at most `CLOSE_S`."""
        with self._news:
            if not self._terminal and self._latest is not None and self._latest != self._told:
                self._tell(self._latest)
            self._closing = True
            self._news.notify()
        self._thread.join(CLOSE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tell(self, snapshot: Snapshot) -> None:
        self._told = snapshot
        self._lines.append(line(snapshot, self._totals) + "\n")

    def _show_lines(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._lines or self._closing)
                if not self._lines:
                    return
                text = self._lines.popleft()
            self._out.write(text)

    def _show_pictures(self) -> None:
        # A Console wants a text stream and uses little of it; _Output has that little.
        console = Console(file=self._out, force_terminal=True)  # type: ignore[arg-type]
        live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        shown: Snapshot | None = None
        with live:
            while True:
                with self._news:
                    while self._told is shown and not self._closing:
                        self._news.wait()
                    closing, snapshot = self._closing, self._latest
                    shown = self._told
                if snapshot is not None:
                    live.update(picture(snapshot, self._totals), refresh=True)
                if closing:
                    return


@dataclass(frozen=True, slots=True)
class _Totals:
    fields: int
    layers: int
    spots: int


def line(now: Snapshot, totals: _Totals) -> str:
    """One plain line, without control codes."""
    parts = [
        f"[{now.elapsed_s:8.1f} s] {_clean(now.state)}, beam {now.beam}",
        _place(now, totals),
        f"spots {now.spots_done}/{totals.spots}",
        f"{now.mu_primary:.2f} of {now.mu_planned:.2f} {_clean(now.unit)}",
    ]
    if now.left_s is not None:
        parts.append(f"about {now.left_s:.0f} s left")
    if now.trips:
        parts.append("TRIPPED: " + ", ".join(map(_clean, now.trips)))
    return ", ".join(parts)


def picture(now: Snapshot, totals: _Totals) -> RenderableType:
    """The live view: four rows, five where something has tripped."""
    beam = Text(
        f" BEAM {now.beam.upper()} ", style={"on": "black on yellow", "hold": "black on cyan"}.get(now.beam, "dim")
    )
    head = Text.assemble((_clean(now.state), "bold"), "  ", beam, "  ", _place(now, totals))
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        ProgressBar(total=max(1, totals.spots), completed=now.spots_done, width=40),
        Text(f"{now.spots_done}/{totals.spots} spots"),
    )
    unit = _clean(now.unit)
    dose = Text(f"{unit} primary {now.mu_primary:.2f}  secondary {now.mu_secondary:.2f}  planned {now.mu_planned:.2f}")
    left = "" if now.left_s is None else f"  about {_clock(now.left_s)} left"
    rows: list[RenderableType] = [head, bar, dose, Text(f"{_clock(now.elapsed_s)} elapsed{left}")]
    if now.trips:
        rows.append(Text("TRIPPED: " + ", ".join(map(_clean, now.trips)), style="bold red"))
    return Group(*rows)


def _place(now: Snapshot, totals: _Totals) -> str:
    energy = "" if math.isnan(now.energy_mev_u) else f", {now.energy_mev_u:.2f} MeV/u"
    return (
        f"field {now.field_index + 1}/{totals.fields} {_clean(now.field_name)}, "
        f"layer {now.layer_index + 1}/{now.layers_in_field}{energy}"
    )


def _changed(told: Snapshot, now: Snapshot) -> bool:
    return (told.state, told.field_index, told.layer_index, told.trips) != (
        now.state,
        now.field_index,
        now.layer_index,
        now.trips,
    )


def _due(told: Snapshot, now: Snapshot, after_s: float) -> bool:
    return now.elapsed_s - told.elapsed_s >= after_s


def _worth_a_line(told: Snapshot | None, now: Snapshot) -> bool:
    if told is None or now.trips != told.trips:
        return True
    return _changed(told, now) and _due(told, now, LINE_S)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes}:{rest:02d}"


def _clean(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


class _Output:
    """A stream without Python's buffer, whose lock a stuck thread would hold beyond the end of the program."""

    encoding = "utf-8"

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._broken = False
        try:
            self._descriptor: int | None = stream.fileno()
        except (OSError, ValueError):  # no file behind it, such as io.StringIO
            self._descriptor = None

    def write(self, text: str) -> int:
        try:
            if not self._broken and self._descriptor is None:
                self._stream.write(text)
            elif not self._broken and self._descriptor is not None:
                rest = memoryview(text.encode("utf-8", errors="replace"))
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
        except (OSError, ValueError):  # the reader has gone: nobody is left to be told
            self._broken = True
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()
