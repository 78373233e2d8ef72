"""The one place that turns the running loop's clock into integer nanoseconds."""

from __future__ import annotations

import asyncio


def now_ns() -> int:
    """Time of the running loop: virtual, or the monotonic clock."""
    loop = asyncio.get_running_loop()
    exact = getattr(loop, "time_ns", None)
    return int(exact()) if exact is not None else round(loop.time() * 1e9)
