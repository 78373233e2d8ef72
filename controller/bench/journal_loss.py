"""How much a killed process loses of its journal: `python -m controller.bench.journal_loss`.

A process writes as a delivery on the real clock does: an event each 10 ms, rows of the log handed over each 50 ms,
`sync` once a second. It is killed at a moment of chance; the journal is read; what is missing is the time between its
last record (and its last row) and the kill.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from controller.record.journal import JournalWriter
from controller.record.journal_reader import read_journal
from controller.record.schema import ROW_DTYPE, ROW_NS

FLUSH_S = 0.05
EVENT_S = 0.01
SYNC_S = 1.0


async def write(path: Path) -> None:
    """Write until killed."""
    begun = last_sync = last_flush = time.monotonic_ns()
    with JournalWriter(path) as journal:
        journal.header(begun, {"part": 1, "operator": "bench"})
        print("ready", flush=True)
        told = begun
        while True:
            await asyncio.sleep(EVENT_S)
            now = time.monotonic_ns()
            journal.event(now, "warning", text="still here")
            if now - last_flush >= FLUSH_S * 1e9:
                rows = np.zeros(max(1, (now - told) // ROW_NS), ROW_DTYPE)
                rows["t_ns"] = told + ROW_NS * (1 + np.arange(len(rows)))
                told += ROW_NS * len(rows)
                journal.rows(rows)
                journal.flush()
                last_flush = now
            if now - last_sync >= SYNC_S * 1e9:
                await journal.sync()
                last_sync = now


def killed_once(folder: Path, after_s: float) -> tuple[float, float]:
    """Milliseconds lost of events and of rows by one kill."""
    path = folder / "journal.bin"
    path.unlink(missing_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "controller.bench.journal_loss", "--write", str(path)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(after_s)
    killed = time.monotonic_ns()
    process.kill()
    process.wait()
    process.stdout.close()
    with read_journal(path) as journal:
        events = max(record.t_ns for record in journal.records)
        rows = max((int(block["t_ns"][-1]) for block in journal.rows()), default=events)
    return (killed - events) / 1e6, (killed - rows) / 1e6


def main(kills: int = 20) -> None:
    """Print what `kills` kills lost."""
    chance = random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        lost = np.array([killed_once(Path(folder), 0.5 + chance.random()) for _ in range(kills)])
    said = {
        name: {"p50": round(float(np.median(column)), 1), "max": round(float(column.max()), 1)}
        for name, column in zip(("events_ms", "rows_ms"), lost.T, strict=True)
    }
    print(json.dumps({"kills": kills, **said}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        asyncio.run(write(Path(sys.argv[2])))
    else:
        main()
