"""The few calls of the C library that compiled loops make themselves, without the interpreter.

Declared as external functions they are looked up by name at load, so that code which calls them can be cached on
disk (numba cannot cache ctypes pointers). Pointers are passed as integers: `array.ctypes.data`. A failed call
returns -1; why is of no use to a loop that must go on, so errno is not read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from drivers.compiled import compiled

recv: Any = types.ExternalFunction("recv", types.intp(types.intc, types.uintp, types.uintp, types.intc))
"""ssize_t recv(int fd, void *buffer, size_t length, int flags)"""
send: Any = types.ExternalFunction("send", types.intp(types.intc, types.uintp, types.uintp, types.intc))
"""ssize_t send(int fd, const void *buffer, size_t length, int flags)"""
write: Any = types.ExternalFunction("write", types.intp(types.intc, types.uintp, types.uintp))
"""ssize_t write(int fd, const void *buffer, size_t count)"""
clock_gettime: Any = types.ExternalFunction("clock_gettime", types.intc(types.intc, types.uintp))
"""int clock_gettime(clockid_t clock, struct timespec *now)"""
clock_nanosleep: Any = types.ExternalFunction(
    "clock_nanosleep", types.intc(types.intc, types.intc, types.uintp, types.uintp)
)
"""int clock_nanosleep(clockid_t clock, int flags, const struct timespec *until, struct timespec *rest)"""

CLOCK_MONOTONIC = 1
TIMER_ABSTIME = 1
MSG_DONTWAIT = 0x40


@compiled
def monotonic_ns(timespec):
    """CLOCK_MONOTONIC in ns; `timespec` is scratch memory, two i64."""
    clock_gettime(np.int32(CLOCK_MONOTONIC), timespec.ctypes.data)
    return timespec[0] * 1_000_000_000 + timespec[1]


@compiled
def sleep_until(t_ns, timespec):
    """Sleep until CLOCK_MONOTONIC shows t_ns, or a signal comes; the caller looks at the clock again."""
    timespec[0] = t_ns // 1_000_000_000
    timespec[1] = t_ns % 1_000_000_000
    clock_nanosleep(np.int32(CLOCK_MONOTONIC), np.int32(TIMER_ABSTIME), timespec.ctypes.data, np.uint64(0))
