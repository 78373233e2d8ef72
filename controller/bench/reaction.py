"""`bench reaction`: frame in to permit out over real UDP at 10 kHz, against a bare echo in the same run.

The real-time thread of a delivery, on sockets of loopback, gets the frames of three devices: visits of 1.2 ms under
beam, strips, magnets, all judged. A sender stamps electrometer 1's frame before it leaves and the permit when it has
come; half a period later it sends the same bytes to a compiled echo of the same priority on the same CPU and stamps its
answer. A stall of the host hits both. Meanwhile rows go to a journal, telemetry goes to a real broker and from there to
readers in ten processes, and another process keeps a core busy. What is held against the echo is what Spotwise adds:
checksum, integration, judgement, MAC.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.bench.download import own_site
from controller.bench.figures import BenchResult, Surroundings, percentiles, ratio, rounded, steal_ticks
from controller.bench.reaction_loop import (
    COUNTS_PER_FRAME,
    NEVER,
    QUIET_FRAMES,
    SILENT_PERIODS,
    VISIT_FRAMES,
    drive,
    echo,
)
from controller.bench.readers import readership
from controller.bench.virtual import bench_site
from controller.clock import now_ns
from controller.compose import site_key
from controller.dose.acquisition import RealtimeThread
from controller.dose.memory import MAX_VISITS, Monitor
from controller.dose.path import MonitorPath
from controller.heap import Heap
from controller.record.journal import JournalWriter
from controller.telemetry_sinks import SpotBatcher, SpotPoint, TelemetrySink
from drivers.errors import SpotwiseError
from drivers.wires.frames import FRAME_NS, STRIP_UNITS_PER_COUNT, STRIPS, new_buffer
from drivers.wires.libc import monotonic_ns
from drivers.wires.realtime import RealtimeWishes, ask_realtime
from sites.schema import DEVICE_NAMES, Site

FIFO_PRIORITY = 20
SECONDS = 20.0
QUICK_SECONDS = 0.5
LONGEST_S = (MAX_VISITS - 2) * VISIT_FRAMES * FRAME_NS * 1e-9
ANSWER_TIMEOUT_US = 300_000
PATIENCE_NS = 60_000_000_000
"""Limits on age and silence are out of the way: the bench measures stalls, it must not end with the first."""
SIGMA_MM = 2.0
PERIOD_S = 0.05
POLL_TURNS = 2
"""Of PERIOD_S each: devices are published ten times a second."""
READERS, QUICK_READERS = 10, 2
PAYLOAD = 16


def _strips(pitch_mm: float) -> list[int]:
    """Charge of a centred spot on one plane, for a frame's counts."""
    charge = COUNTS_PER_FRAME * STRIP_UNITS_PER_COUNT
    edges = [(i - STRIPS // 2) * pitch_mm / SIGMA_MM / math.sqrt(2) for i in range(STRIPS + 1)]
    below = [round(charge * (0.5 + 0.5 * math.erf(edge))) for edge in edges]
    return [b - a for a, b in pairwise(below)]


def strip_words(site: Site) -> list[int]:
    """Strips of a frame with a centred spot, first x, then y; they stand from PAYLOAD on in its buffer's i32."""
    pitches_mm = (site.dosimetry.strips.pitch_x_mm, site.dosimetry.strips.pitch_y_mm)
    return [word for pitch_mm in pitches_mm for word in _strips(pitch_mm)]


def ready_path(site: Site, monitor: Monitor, key: bytes) -> MonitorPath:
    """A real-time memory that expects the sender's visits and may send permits, signed with the key."""
    path = MonitorPath(site, monitor)
    path.load_key(key, 1)
    counts = float(VISIT_FRAMES * COUNTS_PER_FRAME)
    plan = monitor.plan
    plan["preset"] = plan["expected_2"] = counts
    plan["slack_1"] = plan["slack_2"] = counts
    plan["per_particle_1"] = plan["per_particle_2"] = 0.05
    plan["rate_limit"] = 2.0 * COUNTS_PER_FRAME
    plan["sigma_x_strip_mm"] = plan["sigma_y_strip_mm"] = SIGMA_MM
    plan["position_limit_mm"] = site.tolerances.position_mm
    plan["time_limit_us"] = 1_000_000
    limits, control = monitor.limits, monitor.control
    limits["field_counts_1"] = limits["field_counts_2"] = 1e15
    limits["idle_counts_1"] = limits["idle_counts_2"] = 1e15
    limits["frame_age_ns"] = limits["stale_ns"] = limits["clock_drift_ns"] = PATIENCE_NS
    control["first_visit"], control["last_visit"] = 1, MAX_VISITS - 1
    control["lease_ns_0"] = control["lease_ns_1"] = 1 << 62
    path.log(True)
    return path


def _listener(address: tuple[str, int] = ("127.0.0.1", 0), timeout_us: int = ANSWER_TIMEOUT_US) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(address)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, timeout_us))
    return sock


class _Echo:
    """The echo's thread and sockets."""

    def __init__(self, wishes: RealtimeWishes) -> None:
        self._wishes = wishes
        self._stop = np.zeros(1, np.int64)
        self._socket = _listener(timeout_us=1000)
        self.asker = _listener()
        self.asker.connect(self._socket.getsockname())
        self._socket.connect(self.asker.getsockname())
        self._thread = threading.Thread(target=self._run, name="echo", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        ask_realtime(self._wishes)
        echo(new_buffer(), self._socket.fileno(), self._socket.fileno(), self._stop)

    def close(self) -> None:
        self._stop[0] = 1
        self._thread.join()
        self._socket.close()
        self.asker.close()


class _Sender:
    """The sender's thread, sockets and table of times."""

    def __init__(
        self, site: Site, path: MonitorPath, asker: socket.socket, periods: int, wishes: RealtimeWishes
    ) -> None:
        self.times_ns: NDArray[np.int64] = np.full((periods, 2), NEVER, np.int64)
        self.counters: NDArray[np.int64] = np.zeros(3, np.int64)
        self.granted: dict[str, object] = {}
        self.done = threading.Event()
        self._wishes = wishes
        self._path = path
        self._asker = asker
        self._frames = _listener()
        self._frames.connect((site.streams.frames.host, site.streams.frames.port))
        self._permits = _listener((site.streams.permits.host, site.streams.permits.port))
        self._buffers = [new_buffer() for _ in range(4)]
        self._buffers[0].i32[PAYLOAD : PAYLOAD + 2 * STRIPS] = strip_words(site)
        self._drive(0, np.zeros((0, 2), np.int64), 0)  # compile
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        self.granted = ask_realtime(self._wishes)
        start_ns = (monotonic_ns(np.zeros(2, np.int64)) // FRAME_NS + 10) * FRAME_NS
        self._drive(0, self.times_ns[:SILENT_PERIODS], start_ns)
        self._path.permit(1)
        self._drive(SILENT_PERIODS, self.times_ns[SILENT_PERIODS:], start_ns)
        self.done.set()

    def _drive(self, first: int, times_ns: NDArray[np.int64], start_ns: int) -> None:
        sockets = (self._frames.fileno(), self._permits.fileno(), self._asker.fileno())
        drive(*self._buffers, *sockets, start_ns, first, times_ns, self.counters)

    def close(self) -> None:
        if self._thread.is_alive():
            self._thread.join()
        self._frames.close()
        self._permits.close()


async def _load(path: MonitorPath, journal: JournalWriter, sender: _Sender, sink: TelemetrySink) -> int:
    """What asyncio does during a delivery: rows to the journal, telemetry published; returns the visits measured."""
    visits = 0
    turn = 0
    batch = SpotBatcher(sink)
    while not sender.done.is_set():
        journal.rows(path.take_rows())
        measured = path.take_measured()
        for row in measured:
            batch.add(now_ns(), 0, 0, "MU", _point(row))
        visits += len(measured)
        for number, name in enumerate(DEVICE_NAMES):
            if (turn + number) % POLL_TURNS == 0:
                sink.publish(f"devices/{name}", _device(path, name))
        turn += 1
        await asyncio.sleep(PERIOD_S)
    return visits + len(path.take_measured())


def _point(row: Any) -> SpotPoint:
    visit = int(row["visit"])
    x_mm, y_mm = float(row["x_mm"]), float(row["y_mm"])
    meterset = float(row["delta_1"]) * 1e-4
    return SpotPoint(visit, visit, x_mm, y_mm, x_mm, y_mm, meterset, meterset, meterset)


def _device(path: MonitorPath, name: str) -> dict[str, Any]:
    values = {f"value_{k}": float(path.monitor.state["alive"]) for k in range(20)}
    return {
        "t_ns": now_ns(), "device": name, "link": "up", "simulated": True, "age_ms": 1.0, "values": values
    }  # fmt: skip


async def _run(seconds: float, folder: Path, readers: int) -> tuple[_Sender, dict[str, Any]]:
    site = own_site(bench_site(), folder)
    monitor = Monitor()
    path = ready_path(site, monitor, site_key(site))
    cpu = max(os.sched_getaffinity(0))
    wishes = RealtimeWishes(fifo_priority=FIFO_PRIORITY, cpu=cpu)
    async with AsyncExitStack() as stack:
        audience = await stack.enter_async_context(readership(site.name, folder, readers))
        journal = stack.enter_context(JournalWriter(folder / "journal.bin"))
        journal.header(0, {"bench": "reaction"})
        echo(new_buffer(), -1, -1, np.ones(1, np.int64))  # compile
        answers = _Echo(wishes)
        stack.callback(answers.close)
        sender = _Sender(site, path, answers.asker, round(seconds / (FRAME_NS * 1e-9)), wishes)
        stack.callback(sender.close)
        thread = stack.enter_context(RealtimeThread(site, monitor, path.notify, wishes))
        heap = stack.enter_context(Heap())
        heap.layer(True)
        stolen = steal_ticks()
        sender.start()
        visits = await _load(path, journal, sender, audience.telemetry)
        stolen = steal_ticks() - stolen
        heap.layer(False)
        drops = thread.drops()
    streams, state = monitor.streams, monitor.state
    return sender, {
        "granted": thread.granted,
        "frames_judged": [int(streams[n]["frames"]) for n in (1, 2, 3)],
        "frames_lost": [int(streams[n]["lost"]) for n in (1, 2, 3)],
        "kernel_drops": drops,
        "bad_datagrams": int(state["foreign"] + state["torn"] + state["corrupt"]),
        "permits": int(state["permits"]),
        "trip": int(state["trip"]),
        "visits": visits,
        "steal_ticks_meanwhile": stolen,
        "collections": heap.figures(),
        "broker": audience.broker,
        "telemetry": {"sent": audience.telemetry.counts.sent, "dropped": audience.telemetry.counts.dropped},
        "received_by_readers": audience.received,
        "longest_in_thread_us": rounded(int(state["lag_max_ns"]) * 1e-3),
    }


@contextmanager
def _busy_core() -> Iterator[None]:
    """Another process that computes without a pause."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def bench_reaction(*, quick: bool = False, seconds: float | None = None, busy: bool = True) -> BenchResult:
    """Run it for so many seconds. Raises `SpotwiseError` where a frame was not judged: then its times mean nothing."""
    seconds = (QUICK_SECONDS if quick else SECONDS) if seconds is None else seconds
    if not 0.1 <= seconds <= LONGEST_S:
        raise SpotwiseError(f"bench reaction: {seconds:g} s; wanted 0.1 to {LONGEST_S:.0f} s")
    with tempfile.TemporaryDirectory(prefix="spotwise-bench-") as name:
        around = Surroundings()
        begun = time.perf_counter()
        with _busy_core() if busy and not quick else nullcontext():
            sender, details = asyncio.run(_run(seconds, Path(name), QUICK_READERS if quick else READERS))
        context = around.context(seconds=round(time.perf_counter() - begun, 1), busy_process=busy and not quick)
    periods = len(sender.times_ns)
    judged, expected = details["frames_judged"], [periods, periods, (periods + 1) // 2]
    if judged != expected or details["trip"] or sender.counters[1]:
        raise SpotwiseError(f"bench reaction: judged {judged} frames of {expected}, trip {details['trip']}: {details}")
    times_us = sender.times_ns[QUIET_FRAMES:] * 1e-3
    answered = (sender.times_ns[QUIET_FRAMES:] >= 0).all(axis=1)
    ours_us, echo_us = times_us[answered].T
    ours, bare = percentiles(ours_us), percentiles(echo_us)
    details |= {
        "max_us": {"ours": rounded(float(ours_us.max())), "echo": rounded(float(echo_us.max()))},
        "unanswered": int(np.count_nonzero(~answered)),
        "late_answers": int(sender.counters[0]),
    }
    return BenchResult(
        name="reaction",
        unit="us",
        ours=ours,
        yardsticks={"echo": bare},
        ratios={"echo": ratio(ours, bare)},
        details=details,
        context=context,
    )
