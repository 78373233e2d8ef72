"""What a thread with deadlines asks of Linux, and what it was granted.

Nothing here is needed for correctness: without any of it the thread runs as an ordinary one, and stalls are longer.
What was granted is reported, so that a run can say under which conditions its times were reached.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from dataclasses import dataclass

RECEIVE_BUFFER_BYTES = 4 << 20
"""Asked; the kernel grants twice that, where allowed, and then holds 0.3 s of frames."""
_PR_SET_TIMERSLACK = 29  # linux/prctl.h
_MCL_CURRENT, _MCL_FUTURE = 1, 2  # sys/mman.h
_SO_MEMINFO, _MEMINFO_WORDS, _MEMINFO_DROPS = 55, 9, 8  # asm-generic/socket.h, linux/sock_diag.h


@dataclass(frozen=True, slots=True)
class RealtimeWishes:
    """What a thread asks for; the defaults ask only for what costs others nothing."""

    fifo_priority: int | None = None
    """1 to 99: SCHED_FIFO at this priority."""
    cpu: int | None = None
    """Run on this CPU only."""
    timer_slack_ns: int = 1
    """How much later than asked the kernel may wake the thread; ordinary threads have 50,000."""
    lock_memory: bool = False
    """Keep the whole process in memory."""


def ask_realtime(wishes: RealtimeWishes) -> dict[str, object]:
    """Ask for the calling thread; returns per wish what was granted, or why not. Never raises for a refusal."""
    libc = ctypes.CDLL(None, use_errno=True)
    granted: dict[str, object] = {}
    refused = libc.prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(wishes.timer_slack_ns), 0, 0, 0)
    granted["timer_slack_ns"] = _why(ctypes.get_errno()) if refused else wishes.timer_slack_ns
    if wishes.cpu is not None:
        try:
            os.sched_setaffinity(0, {wishes.cpu})
            granted["cpu"] = wishes.cpu
        except OSError as error:
            granted["cpu"] = _why(error.errno)
    if wishes.fifo_priority is not None:
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(wishes.fifo_priority))
            granted["fifo_priority"] = wishes.fifo_priority
        except OSError as error:
            granted["fifo_priority"] = _why(error.errno)
    if wishes.lock_memory:
        refused = libc.mlockall(_MCL_CURRENT | _MCL_FUTURE)
        granted["lock_memory"] = _why(ctypes.get_errno()) if refused else True
    return granted


def _why(number: int | None) -> str:
    return "not granted" if number is None else f"not granted: {os.strerror(number)}"


def ask_receive_buffer(sock: socket.socket) -> int:
    """Ask for a large receive buffer; returns what the kernel granted, in its own bytes (a frame costs 2,304)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)


def kernel_drops(sock: socket.socket) -> int:
    """Datagrams that the kernel threw away because this socket's buffer was full."""
    words = struct.unpack(f"{_MEMINFO_WORDS}I", sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4 * _MEMINFO_WORDS))
    return int(words[_MEMINFO_DROPS])
