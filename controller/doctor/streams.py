"""Frames at 10 kHz into the real-time path on loopback: how many are lost, and how long permits pause.

The path is that of a delivery: same thread, same wishes to Linux, same judgements, with the site's limit on the age of
frames. Only the sender is the doctor's. What pauses here would pause in a treatment, and with it the permits.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import numpy as np
from numpy.typing import NDArray

from controller.bench.reaction import LONGEST_S, PAYLOAD, ready_path, strip_words
from controller.bench.reaction_loop import SILENT_PERIODS
from controller.doctor.items import Item, at_most, rounded
from controller.doctor.limits import Limits, realtime_wishes
from controller.doctor.loops import FIGURES, GAP_NS, LATE_NS, PERMITS, REFUSED, pump
from controller.dose.acquisition import RealtimeThread
from controller.dose.memory import Monitor
from controller.dose.path import MonitorPath
from drivers.wires.frames import FRAME_NS, STRIPS, new_buffer
from drivers.wires.realtime import ask_realtime
from sites.schema import Site, UdpEndpoint

LOOPBACK = "127.0.0.1"
KEY = bytes(range(16))
"""Of permits that only the doctor hears."""
QUEUED_BYTES_PER_PERIOD = 2304 + 768 + 768 // 2
"""What a period's three frames take of a receive buffer, by the kernel's own count (skb truesize, x86-64)."""
SETTLE_S = 0.05


def _socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((LOOPBACK, 0))
    sock.setblocking(False)
    return sock


def _free_port() -> int:
    with _socket() as probe:
        return int(probe.getsockname()[1])


def _send(
    frames: socket.socket,
    permits: socket.socket,
    site: Site,
    path: MonitorPath,
    periods: int,
    figures: NDArray[np.int64],
) -> None:
    buffers = [new_buffer() for _ in range(4)]
    buffers[0].i32[PAYLOAD : PAYLOAD + 2 * STRIPS] = strip_words(site)
    start_ns = (time.monotonic_ns() // FRAME_NS + 10) * FRAME_NS
    silent = min(SILENT_PERIODS, periods)
    pump(*buffers, frames.fileno(), permits.fileno(), start_ns, 0, silent, figures)
    path.permit(1)
    pump(*buffers, frames.fileno(), permits.fileno(), start_ns, silent, periods - silent, figures)


async def stream_items(site: Site, limits: Limits) -> tuple[list[Item], dict[str, object]]:
    """Run it for the site's seconds."""
    periods = round(min(site.qualification.seconds, LONGEST_S) / (FRAME_NS * 1e-9))
    figures: NDArray[np.int64] = np.zeros(FIGURES, np.int64)
    with _socket() as frames, _socket() as permits:
        streams = site.streams.model_copy(
            update={
                "frames": UdpEndpoint(host=LOOPBACK, port=_free_port()),
                "permits": UdpEndpoint(host=LOOPBACK, port=permits.getsockname()[1]),
            }
        )
        looped = site.model_copy(update={"streams": streams})
        monitor = Monitor()
        path = ready_path(looped, monitor, KEY)
        monitor.limits["frame_age_ns"] = round(site.permits.frame_age_max_ms * 1e6)
        frames.connect((LOOPBACK, streams.frames.port))
        wishes = realtime_wishes(site)
        granted: dict[str, object] = {}
        pump(*(new_buffer() for _ in range(4)), -1, -1, 0, 0, 0, figures)  # compile

        def run() -> None:
            granted.update(ask_realtime(wishes))
            _send(frames, permits, site, path, periods, figures)

        with RealtimeThread(looped, monitor, path.notify, wishes) as thread:
            sender = threading.Thread(target=run, name="doctor's frames")
            sender.start()
            await asyncio.to_thread(sender.join)
            await asyncio.sleep(SETTLE_S)
            drops = thread.drops()
            buffer_bytes = int(str(thread.granted["receive_buffer_bytes"]))
    return _judge(monitor, figures, periods, drops, buffer_bytes, limits), thread.granted


def _judge(
    monitor: Monitor, figures: NDArray[np.int64], periods: int, drops: int, buffer_bytes: int, limits: Limits
) -> list[Item]:
    sent = 2 * periods + (periods + 1) // 2
    judged = sum(int(monitor.streams[n]["frames"]) for n in (1, 2, 3))
    trip, permits = int(monitor.state["trip"]), int(figures[PERMITS])
    gap_ms = float(figures[GAP_NS]) * 1e-6 if permits > 1 and trip == 0 else float("nan")
    held_ms = buffer_bytes / QUEUED_BYTES_PER_PERIOD * FRAME_NS * 1e-6
    lost = sent - judged
    return [
        Item(
            "frames lost on loopback",
            "ok" if lost <= limits.frames_lost else "fail",
            lost,
            limits.frames_lost,
            "frames",
            f"{judged} of {sent} judged, {drops} thrown away by the kernel, {int(figures[REFUSED])} not sent",
            "" if lost <= limits.frames_lost else "raise net.core.rmem_max; take other work off this PC",
        ),
        at_most(
            "pause of permits",
            gap_ms,
            limits.permit_gap_ms,
            "ms",
            "the chain would come near its time-out: real-time priority, a quieter PC, or no virtual one",
            f"{permits} permits, trip {trip}, frame in to permit out at most "
            f"{rounded(int(monitor.state['lag_max_ns']) * 1e-6):g} ms, sender at most "
            f"{rounded(float(figures[LATE_NS]) * 1e-6):g} ms late",
        ),
        Item(
            "receive buffer",
            "ok" if held_ms >= limits.buffer_ms else "warn",
            rounded(held_ms),
            rounded(limits.buffer_ms),
            "ms of frames, at least",
            f"{buffer_bytes} bytes granted",
            "" if held_ms >= limits.buffer_ms else "raise net.core.rmem_max to 4194304",
        ),
    ]
