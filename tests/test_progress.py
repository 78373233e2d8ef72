"""The progress view on a pty and on a pipe, with readers that read, are slow, or have gone."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import pytest

from controller.progress import Progress, Snapshot

ROOT = Path(__file__).parents[1]
START = Snapshot(
    state="BEAM",
    field_name="A_LATERAL",
    field_index=0,
    layer_index=0,
    layers_in_field=5,
    energy_mev_u=241.41,
    spots_done=0,
    mu_primary=0.0,
    mu_secondary=0.0,
    mu_planned=100.0,
    beam="on",
    elapsed_s=0.0,
    left_s=60.0,
)


def view(stream: TextIO) -> Progress:
    return Progress(stream, fields=2, layers=10, spots=2130)


def through_a_pipe(*snapshots: Snapshot) -> list[str]:
    reading, writing = os.pipe()
    with os.fdopen(reading, encoding="utf-8") as reader, os.fdopen(writing, "w", encoding="utf-8") as stream:
        with view(stream) as progress:
            for snapshot in snapshots:
                progress.update(snapshot)
        stream.close()
        return reader.read().splitlines()


def on_a_terminal(*snapshots: Snapshot) -> str:
    """What a terminal of 100 columns got, read while it is written."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    received: list[bytes] = []

    def read() -> None:
        while True:
            try:
                received.append(os.read(master, 65536))
            except OSError:  # the other side has closed
                return

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(slave, "w", encoding="utf-8") as stream, view(stream) as progress:
        for snapshot in snapshots:
            progress.update(snapshot)
    reader.join()
    os.close(master)
    return b"".join(received).decode()


def test_a_pipe_gets_one_line_a_layer_and_no_control_codes() -> None:
    steps = [replace(START, layer_index=layer, spots_done=layer * 100 + part, elapsed_s=layer * 4.0 + part * 0.01)
             for layer in range(5) for part in range(100)]  # fmt: skip
    lines = through_a_pipe(*steps)
    assert len(lines) == 6, "five layers, and where it ended"
    assert lines[1] == (
        "[     4.0 s] BEAM, beam on, field 1/2 A_LATERAL, layer 2/5, 241.41 MeV/u, spots 100/2130, "
        "0.00 of 100.00 MU, about 60 s left"
    )
    assert not any("\x1b" in line or "\r" in line for line in lines)


def test_a_pipe_gets_a_line_a_state_but_no_more_than_one_a_second() -> None:
    flicker = [replace(START, state=("BEAM", "HOLD")[n % 2], elapsed_s=n * 0.01) for n in range(301)]
    lines = through_a_pipe(*flicker)
    assert 3 <= len(lines) <= 5
    assert "[     3.0 s] BEAM" in lines[-1]


def test_a_trip_is_told_at_once() -> None:
    tripped = replace(START, state="TRIPPED", beam="off", elapsed_s=0.01, trips=("POSITION", "PERMIT_STALE"))
    lines = through_a_pipe(START, tripped)
    assert lines[-1].endswith("TRIPPED: POSITION, PERMIT_STALE")
    assert len(lines) == 2


def test_colour_is_never_forced_on_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    assert "\x1b" not in "".join(through_a_pipe(START))


def test_a_terminal_gets_a_live_view_and_its_cursor_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    end = replace(
        START, state="COMPLETED", beam="off", spots_done=2130, mu_primary=99.9, mu_secondary=99.8, elapsed_s=65
    )
    text = on_a_terminal(START, end)
    assert "\x1b[?25l" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    for wanted in ("COMPLETED", "BEAM OFF", "A_LATERAL", "2130/2130 spots", "primary 99.90", "secondary 99.80", "1:05"):
        assert wanted in text


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in on_a_terminal(START)


@pytest.mark.parametrize("terminal", ["dumb", "xterm"])
def test_names_cannot_send_control_codes(terminal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", terminal)
    text = on_a_terminal(replace(START, field_name="\x1b]0;owned\x07[red]A\n"))
    assert "\x1b]0" not in text
    assert "?]0;owned?[red]A?" in text


def test_a_terminal_that_is_stopped_stops_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    master, slave = pty.openpty()  # nobody reads the master
    with os.fdopen(slave, "w", encoding="utf-8") as stream:
        progress = view(stream)
        for n in range(2000):
            progress.update(replace(START, layer_index=n, elapsed_s=float(n)))
        progress.close()
        os.close(master)  # lets the stuck write fail
        progress._thread.join(10)
        assert not progress._thread.is_alive()


def test_a_full_pipe_stops_neither_updates_nor_the_end_of_the_program() -> None:
    code = (
        "import sys\n"
        "from dataclasses import replace\n"
        "from tests.test_progress import START, view\n"
        "with view(sys.stderr) as progress:\n"
        "    for n in range(5000):\n"
        "        progress.update(replace(START, layer_index=n, elapsed_s=10.0 * n))\n"
        "print('ended')\n"
    )
    reading, writing = os.pipe()  # nobody reads
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=writing, check=False
        )
    finally:
        os.close(reading)
        os.close(writing)
    assert (done.returncode, done.stdout) == (0, b"ended\n")


def test_a_reader_that_has_gone_ends_the_view_alone() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", encoding="utf-8") as stream, view(stream) as progress:
        for n in range(5):
            progress.update(replace(START, layer_index=n, elapsed_s=10.0 * n))
