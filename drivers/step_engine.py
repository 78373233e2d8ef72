"""Step mode: the contract of a scan controller, fulfilled by plain magnet supplies and a presetting electrometer.

A laboratory without a spot engine gets the same delivery as any other room: this driver keeps a downloaded layer's
table and walks through it. For each visit it (1) sets the magnets, (2) proves by read-back that both currents have
been inside their window for the settling time, and only then (3) lets the visit go, in the transaction that also brings
the next visit's preset. The electrometer ends the beam in hardware; this PC only looks (4) whether it has. Wherever the
PC stops between these transactions, no beam is on that is not bounded by a preset verified before it began.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drivers.contracts import ENGINE_RESULT_DTYPE, EngineStatus, Identity, LayerTable, SpotStatus
from drivers.deadline import Deadline
from drivers.errors import DeviceError, DeviceRefused, ReadbackMismatch
from drivers.magnet_supply import PATIENCE_S, TIMER_S, MagnetSupply, SupplyLimits, arrived
from drivers.preset_electrometer import ABORT, HOLD, RESUME, Preset, PresetElectrometer
from drivers.registers import RegisterMap
from drivers.scan_controller import ABORTED, ARMED, BANK_ROWS, HELD, IDLE, LAYER_DONE, RUNNING, TRIPPED
from drivers.verify import Wanted, loop_ns, until

TRANSACTION_S = 0.5
"""A transaction of a step that takes longer has lost its link."""
IDLE_POLL_S = 0.002
"""Between looks at a visit that takes longer than expected: held, or between two spills."""
SURE = 0.95
"""Share of a visit's expected time for which nobody asks."""
EAGER_S = 0.03
"""So long after the expected end the driver asks without a pause."""
BEAM_OFF_BOTH_ENDS = 3


@dataclass
class _Layer:
    """A downloaded layer."""

    table: LayerTable
    bank: int
    x_offset_a: float = 0.0
    """Added to every set-point since the arm."""
    y_offset_a: float = 0.0

    @property
    def visits(self) -> int:
        return len(self.table.x_current_a)

    def place(self, row: int) -> tuple[float, float]:
        """Set-points of a visit, rounded to the supply's resolution."""
        x_a, y_a = float(self.table.x_current_a[row]), float(self.table.y_current_a[row])
        return round(x_a + self.x_offset_a, 3), round(y_a + self.y_offset_a, 3)

    def preset(self, row: int) -> Preset | None:
        if row >= self.visits:
            return None
        t = self.table
        return Preset(t.first_visit + row, int(t.preset_counts[row]), int(t.time_limit_ms[row]))


class StepEngine:
    """Contract `drivers.contracts.ScanController` over a `MagnetSupply` and a `PresetElectrometer`.

    The electrometer is connected and closed by whoever else holds it; name, map and identity are the supply's.
    """

    def __init__(self, supply: MagnetSupply, electrometer: PresetElectrometer, limits: SupplyLimits) -> None:
        self.name = supply.name
        self.supply = supply
        self.electrometer = electrometer
        self.limits = limits
        self._banks: dict[int, _Layer] = {}
        self._armed: _Layer | None = None
        self._gone = -1
        """Row that was let go last."""
        self._gone_s = 0.0
        self._counts_per_s = 0.0
        self._currents: dict[int, tuple[float, float]] = {}
        """Read-back that let each visit go, until its row is acknowledged."""
        self._rows: dict[int, int] = {}
        """Row of each visit that was read and not acknowledged yet."""

    @property
    def stale_answers(self) -> int:
        """Answers thrown away so far because nobody waited for them."""
        return self.supply.stale_answers  # the electrometer counts its own

    @property
    def map(self) -> RegisterMap:
        """The supply's register map."""
        return self.supply.map

    async def connect(self, deadline: Deadline) -> None:
        """Open the supply's link."""
        await self.supply.connect(deadline)

    async def close(self) -> None:
        """Close the supply's link."""
        await self.supply.close()

    async def identify(self, deadline: Deadline) -> Identity:
        """Who the supply is."""
        return await self.supply.identify(deadline)

    async def stream_to(self, host: str, port: int, slot: int, deadline: Deadline) -> None:
        """The third stream is the supply's: currents, and the lines wired to it."""
        await self.supply.stream_to(host, port, slot, deadline)

    async def download(self, bank: int, table: LayerTable, deadline: Deadline) -> None:
        """Keep a layer's table, once nothing in it is beyond what supply and preset take.

        Nothing is written yet: presets travel one at a time, each read back. Raises `DeviceError` naming the visit.
        """
        await asyncio.sleep(0)
        _check_bank(self.name, bank)
        self._banks.pop(bank, None)
        if not 1 <= len(table.x_current_a) <= BANK_ROWS:
            raise DeviceError(self.name, f"a layer has 1 to {BANK_ROWS} visits, not {len(table.x_current_a)}")
        for axis, values in (("x_set_a", table.x_current_a), ("y_set_a", table.y_current_a)):
            field = self.supply.map.register(axis).field
            low, high = field.minimum or 0.0, field.maximum or 0.0
            bad = ~((values >= low) & (values <= high))
            if bad.any():
                row = int(np.argmax(bad))
                raise DeviceError(
                    self.name, f"visit {table.first_visit + row}: {axis} {values[row]:g} A is outside {low} to {high} A"
                )
        for what, bad in (
            ("preset of no count", table.preset_counts < 1),
            ("time limit of 0 ms", table.time_limit_ms < 1),
            ("beam would stay on: step mode is discrete", table.flags & BEAM_OFF_BOTH_ENDS != BEAM_OFF_BOTH_ENDS),
        ):
            if bad.any():
                raise DeviceError(self.name, f"visit {table.first_visit + int(np.argmax(bad))}: {what}")
        self._banks[bank] = _Layer(table, bank)

    async def arm(
        self, bank: int, arm_token: int, deadline: Deadline, *, x_offset_a: float = 0.0, y_offset_a: float = 0.0
    ) -> None:
        """Send the magnets to the first visit, announce the layer, bring its first preset; nothing goes yet."""
        _check_bank(self.name, bank)
        layer = self._banks.get(bank)
        if layer is None:
            raise DeviceError(self.name, f"arm: bank {bank} holds no verified layer; download one first")
        table = layer.table
        layer.x_offset_a, layer.y_offset_a = x_offset_a, y_offset_a
        await self.supply.set(*layer.place(0), deadline)
        await self.electrometer.arm_layer(
            first_visit=table.first_visit,
            visits=layer.visits,
            early_counts=table.early_off_counts,
            gated=table.gated,
            arm_token=arm_token,
            deadline=deadline,
        )
        self._armed, self._gone = layer, -1
        await until(
            self.electrometer.name,
            Wanted("spot_state, armed_token", f"armed, {arm_token}"),
            lambda: self.electrometer.spot(deadline),
            lambda got: got.state == ARMED and got.armed_token == arm_token,
            lambda got: f"{self.electrometer.label(got.state)}, {got.armed_token}",
            poll_s=self.supply.poll_s,
            deadline=deadline,
        )
        await self.electrometer.step(0, layer.preset(0), deadline)

    async def start(self, deadline: Deadline) -> None:
        """Let the armed layer's first visit go, once the magnets are proved to be there; `attend` does the others."""
        layer = self._armed_layer("start")
        await self._go(layer, 0, asyncio.get_running_loop().time(), 0.0, deadline)
        await self._wait_state((RUNNING, HELD, LAYER_DONE), "start", deadline)

    async def attend(self) -> None:
        """Step through the visits after the first; returns when the last one was let go.

        Raises a `DeviceError` as soon as supply or electrometer do not follow; cancelling it leaves no beam but the
        running visit's, which the electrometer ends.
        """
        layer = self._armed_layer("attend")
        for row in range(1, layer.visits):
            await self._over(layer, row)
            begun_s = asyncio.get_running_loop().time()
            (x, y), (x_before, y_before) = layer.place(row), layer.place(row - 1)
            deadline = Deadline.after(TRANSACTION_S, f"step to visit {layer.table.first_visit + row}")
            await self.supply.set(x, y, deadline)
            travel_s = max(abs(x - x_before), abs(y - y_before)) / self.limits.slew_a_per_s
            await self._go(layer, row, begun_s, travel_s + self.limits.settle_us * 1e-6, deadline.sooner(TRANSACTION_S))

    async def _go(self, layer: _Layer, row: int, begun_s: float, move_s: float, deadline: Deadline) -> None:
        """Read back the magnets, and only then let a visit go, with the next preset in the same transaction."""
        late = Deadline(max(deadline.at_s, begun_s + move_s + PATIENCE_S + TRANSACTION_S), deadline.purpose)
        there = await self.supply.reach(*layer.place(row), self.limits, begun_s, move_s, late)
        visit = layer.table.first_visit + row
        self._currents[visit] = (there.x_current_a, there.y_current_a)
        await self.electrometer.step(visit, layer.preset(row + 1), late)
        self._gone, self._gone_s = row, asyncio.get_running_loop().time()

    async def _over(self, layer: _Layer, row: int) -> None:
        """Wait until the visit before `row` is over: its beam off, its tail counted, the trigger moved on."""
        loop = asyncio.get_running_loop()
        counts = float(layer.table.preset_counts[row - 1])
        # at the rate of the visit before; too short a guess costs a look, too long a one costs time
        expected_s = self._gone_s + (SURE * counts / self._counts_per_s if self._counts_per_s > 0.0 else 0.0)
        if expected_s - loop.time() > 2 * TIMER_S:
            await asyncio.sleep(expected_s - loop.time() - TIMER_S)
        visit = layer.table.first_visit + row
        while True:
            got = await self.electrometer.spot(Deadline.after(TRANSACTION_S, f"end of visit {visit - 1}"))
            if got.waiting and got.visit == visit:
                self._counts_per_s = counts / (got.last_beam_us * 1e-6) if got.last_beam_us else 0.0
                return
            self._still_running(got, visit)
            if loop.time() > expected_s + EAGER_S:
                await asyncio.sleep(IDLE_POLL_S)

    def _still_running(self, got: SpotStatus, visit: int) -> None:
        name = self.electrometer.name
        if got.state not in (RUNNING, HELD):
            label = self.electrometer.map.register("spot_trip").field.label(got.trip)
            raise DeviceRefused(
                name, f"visit {visit - 1}: the layer is {self.electrometer.label(got.state)} (trip: {label})"
            )
        if got.visit not in (visit - 1, visit):
            raise ReadbackMismatch(name, f"spot_visit: wanted {visit - 1} or {visit}, got {got.visit}")

    async def hold(self, on: bool, deadline: Deadline) -> None:
        """Hold, or end this hold; beam returns only to magnets that still read back where they were."""
        if on:
            await self.electrometer.command(HOLD, deadline)
            await self._wait_state((IDLE, ARMED, HELD, LAYER_DONE, ABORTED, TRIPPED), "hold", deadline)
            return
        await self._prove_place(deadline)
        await self.electrometer.command(RESUME, deadline)

    async def _prove_place(self, deadline: Deadline) -> None:
        layer = self._armed
        if layer is None or self._gone < 0:
            return
        spot = await self.electrometer.spot(deadline)
        if spot.waiting or spot.visit != layer.table.first_visit + self._gone:
            return  # between two visits: the next one's place is proved before it goes
        x, y = layer.place(self._gone)
        there = await self.supply.readback(deadline)
        if not arrived(there, x, y, self.limits):
            again = await self.electrometer.spot(deadline)
            if again.waiting or again.visit != spot.visit:
                return  # it was over meanwhile, and `attend` sends the magnets to the next place
            raise ReadbackMismatch(
                self.name,
                f"visit {spot.visit}: x_current_a, y_current_a: wanted {x:.3f} A, {y:.3f} A (tolerance "
                f"{self.limits.window_a:g} A), got {there.x_current_a:.3f} A, {there.y_current_a:.3f} A; no resume",
            )

    async def abort(self, deadline: Deadline) -> None:
        """End the layer here; returns when the preset neither runs nor is armed."""
        self._armed = None
        await self.electrometer.command(ABORT, deadline)
        await self._wait_state((IDLE, LAYER_DONE, ABORTED, TRIPPED), "abort", deadline)

    async def _wait_state(self, states: tuple[int, ...], what: str, deadline: Deadline) -> None:
        label = self.electrometer.label
        got = await until(
            self.electrometer.name,
            Wanted("spot_state", " or ".join(label(s) for s in states)),
            lambda: self.electrometer.spot(deadline),
            lambda got: got.state in states or got.state == TRIPPED,
            lambda got: label(got.state),
            poll_s=TIMER_S,
            deadline=deadline,
        )
        if got.state not in states:
            trip = self.electrometer.map.register("spot_trip").field.label(got.trip)
            raise DeviceRefused(self.electrometer.name, f"{what}: the spot preset is tripped ({trip})")

    async def status(self, deadline: Deadline) -> EngineStatus:
        """Read-back of both devices, as one engine's."""
        t_ns = loop_ns()
        spot = await self.electrometer.spot(deadline)
        there = await self.supply.readback(deadline)
        return EngineStatus(
            t_ns=t_ns,
            state=spot.state,
            trip=spot.trip,
            bank=0 if self._armed is None else self._armed.bank,
            visit=spot.visit,
            results=spot.spots,
            acknowledged=spot.acknowledged,
            x_current_a=there.x_current_a,
            y_current_a=there.y_current_a,
            x_offset_a=0.0 if self._armed is None else self._armed.x_offset_a,
            y_offset_a=0.0 if self._armed is None else self._armed.y_offset_a,
            heartbeat=there.heartbeat,  # the electrometer's own is in its own status
        )

    async def results(self, first: int, count: int, deadline: Deadline) -> NDArray[np.void]:
        """Rows of the electrometer's ring, with the currents that let each visit go (NaN where this PC did not)."""
        rows = await self.electrometer.spots(first, count, deadline)
        self._rows.update(zip(rows["visit"].tolist(), range(first, first + count), strict=True))
        results = np.zeros(count, ENGINE_RESULT_DTYPE)
        for name in ("visit", "counts", "t_start_ns", "t_end_ns", "flags"):
            results[name] = rows[name]
        results["beam_on_ns"] = rows["beam_on_us"].astype(np.int64) * 1000
        nowhere = (np.nan, np.nan)
        places = [self._currents.get(int(visit), nowhere) for visit in rows["visit"]]
        results["x_current_a"] = [x for x, _ in places]
        results["y_current_a"] = [y for _, y in places]
        return results

    async def acknowledge(self, results: int, deadline: Deadline) -> None:
        """Rows before this one are journalled and may be overwritten."""
        await self.electrometer.acknowledge_spots(results, deadline)
        for visit in [visit for visit, row in self._rows.items() if row < results]:
            del self._rows[visit]
            self._currents.pop(visit, None)

    def _armed_layer(self, what: str) -> _Layer:
        if self._armed is None:
            raise DeviceError(self.name, f"{what}: no layer is armed")
        return self._armed


def _check_bank(device: str, bank: int) -> None:
    if bank not in (0, 1):
        raise DeviceError(device, f"there are banks 0 and 1, not {bank}")
