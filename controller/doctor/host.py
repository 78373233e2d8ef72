"""The control PC itself: clocks, timers, scheduler, the interpreter's collections, the disk."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.doctor.items import Item, Verdict, at_most, rounded, stated
from controller.doctor.limits import Limits
from controller.doctor.loops import wake_ups
from controller.record.journal import ROWS_PER_RECORD
from controller.record.schema import ROW_DTYPE
from drivers.errors import BadInput
from drivers.wires.realtime import RealtimeWishes, ask_realtime
from sites.schema import Site

CLOCK_READS = 20_000
RESOLUTION_LIMIT_NS = 1000.0
"""A hundredth of a frame period."""
GOOD_SOURCES = ("tsc", "kvm-clock", "arch_sys_counter")
PERIOD_S = 0.002
WAKE_PERIOD_NS = 1_000_000
SYNCS = 20
GIB = float(2**30)
_STA_UNSYNC, _TIME_ERROR = 0x40, 5  # linux/timex.h
RT_ADVICE = "run as a user with RLIMIT_RTPRIO and RLIMIT_MEMLOCK, on a PREEMPT_RT or low-latency kernel"


class _Timex(ctypes.Structure):
    """Struct timex of linux/timex.h, up to what is read here."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    )


def clock_items(site: Site) -> list[Item]:
    """Step of the monotonic clock, its source, and what the kernel knows of the wall clock's error."""
    reads = np.array([time.monotonic_ns() for _ in range(CLOCK_READS)], np.int64)
    steps = np.diff(reads)
    step_ns = float(steps[steps > 0].min()) if (steps > 0).any() else float("nan")
    if (steps < 0).any():
        step_ns = float("nan")
    source = _read("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    items = [
        at_most("clock step", step_ns, RESOLUTION_LIMIT_NS, "ns", "choose a finer clock source (tsc)"),
        stated("clock source", source in GOOD_SOURCES, source or "not readable", "slow to read: boot with tsc", "warn"),
    ]
    timex = _Timex()
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    advice = "start a time service (chrony, ntpd); records are dated by this clock"
    if state < 0:
        items.append(stated("wall clock", False, os.strerror(ctypes.get_errno()), advice, "warn"))
    elif state == _TIME_ERROR or timex.status & _STA_UNSYNC:
        items.append(stated("wall clock", False, "the kernel says: not synchronised", advice, "warn"))
    else:
        error_ms = timex.maxerror * 1e-3
        items.append(at_most("wall clock", error_ms, site.qualification.wall_clock_error_ms, "ms", advice))
    return items


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def percentile_words(values_ms: NDArray[np.floating[Any]]) -> str:
    """p50, p99, p99.9 and the maximum, as text."""
    shares = [("p50", 50.0), ("p99", 99.0), ("p99.9", 99.9), ("max", 100.0)]
    return ", ".join(f"{name} {rounded(float(np.percentile(values_ms, share))):g}" for name, share in shares)


def scheduler_items(site: Site, limits: Limits) -> tuple[list[Item], dict[str, object]]:
    """What Linux grants to a thread that asks as the real-time path does, and how late it wakes such a thread."""
    wishes = RealtimeWishes(fifo_priority=site.qualification.realtime_priority)
    granted: dict[str, object] = {}
    late_ns = np.zeros(round(site.qualification.seconds * 1e9 / WAKE_PERIOD_NS), np.int64)
    wake_ups(late_ns[:0], WAKE_PERIOD_NS)  # compile

    def run() -> None:
        granted.update(ask_realtime(wishes))
        wake_ups(late_ns, WAKE_PERIOD_NS)

    thread = threading.Thread(target=run, name="wake-ups")
    thread.start()
    thread.join()
    granted["lock_memory"] = _may_lock()
    otherwise: Verdict = "fail" if limits.strict else "warn"
    fifo = granted.get("fifo_priority")
    cpus = sorted(os.sched_getaffinity(0))
    governors = {_read(f"/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor") for cpu in cpus} - {""}
    late_ms = late_ns * 1e-6
    items = [
        stated("real-time priority", isinstance(fifo, int), f"SCHED_FIFO {fifo}", RT_ADVICE, otherwise),
        stated("memory lock", granted["lock_memory"] is True, str(granted["lock_memory"]), RT_ADVICE, "warn"),
        stated("cores", len(cpus) > 1, f"may run on {len(cpus)}: {cpus}", "give the PC two cores or more", otherwise),
        stated(
            "frequency governor",
            governors <= {"performance"},
            ", ".join(sorted(governors)) or "none readable (a virtual machine, or fixed)",
            "set it to performance",
            "warn",
        ),
        at_most(
            "wake-ups of such a thread, p99.9",
            float(np.percentile(late_ms, 99.9)),
            limits.wake_usual_ms,
            "ms",
            f"frames would be too old for permits when they are seen; {RT_ADVICE}",
            percentile_words(late_ms),
        ),
        at_most(
            "wake-ups, longest",
            float(late_ms.max()),
            limits.wake_late_ms,
            "ms",
            f"permits would pause for so long; {RT_ADVICE}; keep other work off its core",
            f"{len(late_ns)} wake-ups",
        ),
    ]
    return items, granted


def _may_lock() -> object:
    """True where the process may lock its memory; it is not kept locked."""
    libc = ctypes.CDLL(None, use_errno=True)
    page = ctypes.create_string_buffer(1 << 24)
    if libc.mlock(page, ctypes.c_size_t(len(page))):
        return f"not granted: {os.strerror(ctypes.get_errno())}"
    libc.munlock(page, ctypes.c_size_t(len(page)))
    return True


async def asyncio_item(site: Site, limits: Limits) -> Item:
    """How late a timer of the loop fires, where nothing else runs on it."""
    loop = asyncio.get_running_loop()
    late_ms = []
    end = loop.time() + site.qualification.seconds
    while (begun := loop.time()) < end:
        await asyncio.sleep(PERIOD_S)
        late_ms.append((loop.time() - begun - PERIOD_S) * 1e3)
    values = np.array(late_ms)
    return at_most(
        "asyncio timer",
        float(values.max()),
        limits.asyncio_late_ms,
        "ms",
        "leases would lapse and permits pause: take other work off this PC",
        percentile_words(values),
    )


def collection_items(limits: Limits) -> list[Item]:
    """A full collection of the whole heap, and of what a delivery leaves to be collected: its heap is frozen."""
    whole_ms = _collection_ms()
    gc.freeze()
    try:
        frozen_ms = _collection_ms()
    finally:
        gc.unfreeze()
    advice = "collections between layers would cost the lease; take other work off this PC"
    return [
        at_most("collection, heap frozen", frozen_ms, limits.asyncio_late_ms, "ms", advice),
        Item("collection, whole heap", "ok", rounded(whole_ms), None, "ms", "before beam only"),
    ]


def _collection_ms() -> float:
    begun = time.perf_counter()
    gc.collect()
    return (time.perf_counter() - begun) * 1e3


def disk_items(site: Site, directory: Path) -> list[Item]:
    """Half a second of journal written and synchronised, again and again. Raises `BadInput` where nothing can be."""
    chunk = os.urandom(ROWS_PER_RECORD * ROW_DTYPE.itemsize)
    times_ms = []
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            for _ in range(SYNCS):
                begun = time.perf_counter()
                file.write(chunk)
                os.fdatasync(file.fileno())
                times_ms.append((time.perf_counter() - begun) * 1e3)
        stat = os.statvfs(directory)
    except OSError as error:
        raise BadInput(f"{directory}: cannot be written: {error.strerror}; give another --directory") from error
    values = np.array(times_ms)
    free_gib = stat.f_bavail * stat.f_frsize / GIB
    need_gib = site.qualification.disk_free_gib
    return [
        at_most(
            "disk sync",
            float(values.max()),
            site.qualification.disk_sync_ms,
            "ms",
            f"layers wait for it: use a faster disk than that of {directory}",
            f"{SYNCS} writes of {len(chunk)} bytes: {percentile_words(values)}",
        ),
        Item(
            "disk space",
            "ok" if free_gib >= need_gib else "fail",
            rounded(free_gib),
            need_gib,
            "GiB free, at least",
            str(directory),
            "" if free_gib >= need_gib else "remove old treatment directories that are archived",
        ),
    ]
