"""A recorded stream: every frame of one carbon layer at 8e7 ions/s, and the real-time memory as it was before them.

The layer is delivered in virtual time by the very path that `deliver` takes; from arming to the layer's end the room is
advanced frame by frame, and each frame is kept as the wire would have carried it.
"""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.bench.feed_loop import judge
from controller.bench.plan import SPOTS_PER_LAYER, write_plan
from controller.compose import VirtualWorld, site_key, wire_latencies
from controller.dose.memory import Monitor
from controller.plan.check import check_plan
from controller.session import Order, deliver
from controller.telemetry_sinks import LatestSink
from drivers.errors import SpotwiseError
from drivers.flags import FLAG_ARMED, FLAG_LAYER_DONE
from drivers.wires.frames import BUFFER_BYTES, FRAME_NS, STREAM_ELECTROMETER_1, FrameBuffer, new_buffer, seal
from drivers.wires.virtual_loop import run_virtual
from sites.loader import load_site

SITE = "carbon-fixed"
LAYER = 10
"""Of the benches' plan: the first whose visits last long enough for the highest intensity."""
QUIET_PERIODS = 500
"""Periods without beam that are kept before the first visit."""
FOREVER_NS = 1 << 62


@dataclass(frozen=True, slots=True)
class Recording:
    """Frames in the order in which they arrive."""

    data: NDArray[np.uint8]
    """One datagram a row, CRC included."""
    times_ns: NDArray[np.int64]
    """Arrival, local clock."""
    before: NDArray[Any]
    """The real-time memory before the first frame; leases held, log on."""
    visits: int
    rate_per_s: float

    @property
    def periods(self) -> int:
        """Frame periods of 100 us that the stream covers."""
        return int(np.count_nonzero(self.data[:, 5] == 1))


class _RecordingWorld(VirtualWorld):
    """A room that keeps its frames while the engine is armed."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.rows: list[NDArray[np.uint8]] = []
        self.times_ns: list[int] = []
        self.before: NDArray[Any] | None = None
        self._sequences = [-1, -1, -1]
        self._over = False

    def run_to(self, t_ns: int) -> int:
        state = self.monitor.state
        # the engine is armed for its self-test, too: with a visit of no plan
        armed = int(state["flags_3"]) & FLAG_ARMED != 0 and int(self.monitor.control["first_visit"]) == 1
        if self._over or (self.before is None and not armed):
            return super().run_to(t_ns)
        if self.before is None:
            self.before = self.monitor.memory.copy()
            self._sequences = [int(frame.u64[2]) for frame in self._frames()]
        plant = self.room.plant.state
        while int(plant["t_ns"]) + FRAME_NS <= t_ns:
            flags, trips = int(state["flags_3"]), int(state["trips"])
            reached = super().run_to(int(plant["t_ns"]) + FRAME_NS)
            self._keep(reached)
            if (int(state["flags_3"]), int(state["trips"])) != (flags, trips):
                self._over = int(state["flags_3"]) & FLAG_LAYER_DONE != 0
                return reached
        return t_ns

    def _frames(self) -> tuple[FrameBuffer, ...]:
        plant = self.room.plant
        return plant.frame_1, plant.frame_2, plant.frame_3

    def _keep(self, reached_ns: int) -> None:
        for k, frame in enumerate(self._frames()):
            if int(frame.u64[2]) == self._sequences[k]:
                continue
            self._sequences[k] = int(frame.u64[2])
            copy = new_buffer()
            copy.u8[:] = frame.u8
            seal(copy, k + 1)
            self.rows.append(copy.u8)
            self.times_ns.append(reached_ns + self._latency_ns)


def _first_of_beam(data: NDArray[np.uint8]) -> int:
    """Index of the datagram with which the recording shall begin: waiting for a spill is not what is measured."""
    visit = data[:, 32:36].copy().view("<u4")[:, 0]
    begin = int(np.flatnonzero(visit)[0])
    periods = np.flatnonzero(data[:begin, 5] == STREAM_ELECTROMETER_1)
    return int(periods[max(0, len(periods) - QUIET_PERIODS)])


def record_layer(seed: int = 0, spots: int = SPOTS_PER_LAYER) -> Recording:
    """Deliver one layer of the benches' plan in virtual time and keep its frames."""
    site = load_site(SITE)
    world = _RecordingWorld(site, seed)
    numbers = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="spotwise-bench-") as folder:
        plan = write_plan(Path(folder) / "layer.rst", range(LAYER, LAYER + 1), spots)
        report = check_plan(plan, site, gantry_deg=0.0, couch_deg=0.0)
        out = Path(folder) / "treatment"
        out.mkdir()
        order = Order(plan, site, out, seed)

        async def main() -> Any:
            async with world.serve(()) as path:
                return await deliver(
                    order, report, path, site_key(site), LatestSink(), nonce=lambda: numbers.getrandbits(63) | 1
                )

        tcp, serial = wire_latencies(site)
        outcome, run = run_virtual(main(), world, seed=seed, tcp=tcp, serial=serial)
    if outcome.status != "completed" or world.before is None:
        raise SpotwiseError(f"the layer to be recorded was not delivered: {outcome.status} {outcome.message}")
    data = np.array(world.rows, np.uint8).reshape(-1, BUFFER_BYTES)
    times_ns = np.array(world.times_ns, np.int64)
    monitor = Monitor()
    monitor.memory[:] = world.before
    monitor.control["lease_ns_0"] = monitor.control["lease_ns_1"] = FOREVER_NS  # nobody renews them in a replay
    monitor.control["log_on"] = 1
    first = _first_of_beam(data)
    judge(monitor.memory, data.ctypes.data, data.strides[0], first, times_ns)
    return Recording(
        data=data[first:].copy(),
        times_ns=times_ns[first:].copy(),
        before=monitor.memory,
        visits=spots,
        rate_per_s=run.programs[0][0].rate_per_s,
    )
