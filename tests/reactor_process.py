"""The real-time path as a process of its own, for tests that stop it: `python -m tests.reactor_process SITE.json`.

Reads commands from stdin, one a line, and answers each with one line of JSON: `permit` lets permits leave, `state` says
what the thread has seen. Ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from controller.dose.acquisition import RealtimeThread
from controller.dose.memory import Monitor
from controller.dose.path import LEASE_DELIVERY, LEASE_INTERLOCKS, MonitorPath
from simulators.plant.build import permit_key
from sites.loader import site_from_config
from tests.realtime_parts import DAY_NS, SESSION, TOKEN

FRAME_AGE_MS = 5.0


def state_of(path: MonitorPath, thread: RealtimeThread) -> dict[str, Any]:
    streams = {
        n: {name: int(path.monitor.streams[n][name]) for name in ("frames", "lost", "late", "offset_ns", "t_ns")}
        for n in (1, 2, 3)
    }
    state = {name: int(path.monitor.state[name]) for name in ("permits", "counts_1", "trip", "trips", "drops")}
    kernel = {"kernel_drops": thread.drops(), "receive_buffer_bytes": thread.granted["receive_buffer_bytes"]}
    return {"streams": streams, **state, **kernel, "alive": path.alive}


async def main(config: str) -> None:
    site = site_from_config(config)
    monitor = Monitor()
    path = MonitorPath(site, monitor)
    path.load_key(permit_key(site), SESSION)
    monitor.limits["field_counts_1"] = monitor.limits["field_counts_2"] = 1e12
    monitor.limits["idle_counts_1"] = monitor.limits["idle_counts_2"] = 1e12
    monitor.limits["frame_age_ns"] = round(FRAME_AGE_MS * 1e6)
    for lease in (LEASE_INTERLOCKS, LEASE_DELIVERY):
        path.renew(lease, time.monotonic_ns() + DAY_NS)
    with RealtimeThread(site, monitor, path.notify) as thread:
        while command := (await asyncio.to_thread(sys.stdin.readline)).strip():
            if command == "permit":
                path.permit(TOKEN)
            print(json.dumps(state_of(path, thread)), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]).read_text(encoding="utf-8")))
