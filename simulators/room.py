"""A room of simulated devices: one plant, one wire adapter a device, faults, and what was really delivered.

The same room is served in virtual time inside the controller's process, and in real time by `spotwise simulate`.
Only devices that the site calls simulated are served; no simulator ever takes the address of a real one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivers.contracts import SELF_TEST_VISIT
from drivers.registers import load_map
from drivers.wires.faults import WireFaults
from simulators.devices.couch import SimulatedCouch
from simulators.devices.gantry import SimulatedGantry
from simulators.devices.gating import SimulatedGating
from simulators.devices.nozzle import SimulatedNozzle
from simulators.devices.plant_accelerator import PlantAccelerator
from simulators.devices.plant_electrometer import Destination, PlantElectrometer
from simulators.devices.plant_magnet_supply import PlantMagnetSupply
from simulators.devices.plant_safety_chain import PlantSafetyChain
from simulators.devices.plant_scan_controller import PlantScanController
from simulators.devices.plant_spot_preset import PlantSpotPreset
from simulators.devices.register_device import DeviceIdentity, RegisterDevice
from simulators.devices.served_wire import ServedWire
from simulators.devices.servers import serve_ascii, serve_modbus_rtu, serve_modbus_tcp
from simulators.fault_player import FaultPlayer
from simulators.faults import Fault
from simulators.plant.build import build_plant
from simulators.plant.engine import RESULT_STOPPED
from simulators.plant.state import RING, TRUTH, Plant
from simulators.retained import restore_retained, save_retained, take_over
from sites.schema import Device, Site

StreamsChanged = Callable[[int, int, Destination], None]


class Room:
    """All simulated devices of a site around one plant."""

    def __init__(
        self,
        site: Site,
        seed: int,
        *,
        boot: str = "",
        streams_changed: StreamsChanged | None = None,
        plant: Plant | None = None,
    ) -> None:
        """`plant`: an empty one whose memory is kept elsewhere (see `simulators.live`)."""
        self.site = site
        self.plant: Plant = build_plant(site, seed, boot=boot, plant=plant)
        self.wire_faults = WireFaults()
        self.streams_changed: StreamsChanged = streams_changed or (lambda _number, _slot, _destination: None)
        self.field_begins: Callable[[], object] = lambda: None
        """Called when a new field has begun: the truth of the one before is not in the plant any more."""
        self._truths: list[NDArray[Any]] = []
        self.begun_ns: int | None = None
        """When the first layer was armed, plant time: the zero of a scenario's seconds."""
        self.woken = asyncio.Event()
        """Set when the visit that the player waits for runs; on the real clock it polls."""
        self.player = FaultPlayer(self)
        self.wires: list[ServedWire] = []
        """The wires that are served, with what has happened on them."""
        machines = site.treatment_machines.values()
        self.gantry = SimulatedGantry(
            self.now_ns,
            start_deg=site.gantry.default_deg,
            speed_deg_per_s=site.gantry.speed_deg_per_s,
            ports_deg=site.gantry.ports_deg,
        )
        self.couch = SimulatedCouch(
            self.now_ns,
            load_map(site.devices.couch.map),
            self._identity("couch"),
            speed_mm_per_s=site.couch.speed_mm_per_s,
            speed_deg_per_s=site.couch.speed_deg_per_s,
        )
        snout = next((s for m in machines for s in m.snouts), None)
        self.nozzle = SimulatedNozzle(
            self.now_ns,
            snout_code=0 if snout is None else snout.code,
            snout_mm=0.0 if snout is None else snout.max_mm,
            snout_speed_mm_per_s=site.nozzle.snout_speed_mm_per_s,
            insert_time_s=site.nozzle.insert_time_s,
            range_shifter_codes={r.code for m in machines for r in m.range_shifters},
            ripple_filter_codes={r.code for m in machines for r in m.ripple_filters},
        )
        self.gating = SimulatedGating(
            self.now_ns,
            sources=len(site.gating.sources),
            period_s=site.simulation.breathing_period_s,
            duty=site.simulation.gate_duty,
            selected=self._gate_selected,
            forced=self._gate_forced,
        )

    def now_ns(self) -> int:
        """The plant's time."""
        return int(self.plant.state["t_ns"])

    def _gate_selected(self, source: int) -> None:
        self.plant.state["gate_source"] = source

    def _gate_forced(self, state: bool | None) -> None:
        self.plant.parameters["gate_forced"] = 0 if state is None else 1 + state

    def _identity(self, name: str) -> DeviceIdentity:
        device: Device = getattr(self.site.devices, name)
        # one power-up for all: the nonces of the plant's streams tell boots apart
        return DeviceIdentity(device.device_id, boot_nonce=int(self.plant.state["nonce_1"]))

    def _layer_armed(self, first_visit: int) -> None:
        """A layer was armed: is it a new field? Its visits are then not beyond those that were completed last.

        What the field before got is kept, and forgotten by the plant. A field that is resumed goes on where it was, so
        that what all its parts gave adds up; so it does where another session gives the rest of a short visit.
        """
        if first_visit == SELF_TEST_VISIT:
            return
        self._look_at_rings()
        session = int(self.plant.state["session"])
        rest = int(self.plant.truth["short"][first_visit]) not in (0, session)
        if first_visit <= self.plant.state["field_completed"] and not rest:
            self._truths.append(self.plant.truth.copy())
            self.plant.truth[:] = np.zeros(1, TRUTH)
            self.plant.state["field_completed"] = 0
            self.field_begins()
        if self.begun_ns is None:
            self.begun_ns = self.now_ns()

    def _look_at_rings(self) -> None:
        """Note the last completed visit of the present field."""
        state = self.plant.state
        results = int(state["results"])
        at = np.arange(max(int(state["results_seen"]), results - RING), results) % RING
        rows = self.plant.results[at]
        done = rows["visit"][(rows["flags"] & RESULT_STOPPED) == 0]
        state["field_completed"] = max(int(state["field_completed"]), int(done.max()) if len(done) else 0)
        state["results_seen"] = results

    def save(self, path: Path) -> None:
        """Write what outlives a loss of power, and what was really delivered so far. Raises OSError."""
        self._look_at_rings()
        completed = int(self.plant.state["field_completed"])
        save_retained(self.plant, self.site.name, path, truths=self.truths(), completed=completed)

    def restore(self, path: Path, killed: Plant | None = None) -> bool:
        """Before the room runs: take over what `save` wrote; False where there is no file. Raises `BadInput`.

        `killed`: the memory of a room that was killed since, and had begun with that file: newer in everything but
        the truths of former fields, which are in the file.
        """
        kept = restore_retained(self.plant, self.site.name, path)
        if kept is not None:
            self.plant.state["field_completed"] = kept.completed
            self.plant.state["results_seen"] = self.plant.state["results"]
            if kept.truths:
                *self._truths, last = kept.truths
                self.plant.truth[:] = last
        if killed is not None:
            take_over(self.plant, killed)
        return kept is not None or killed is not None

    def wait_idle(self, seconds: float) -> None:
        """Before the room runs: so long it stood idle with its devices on; both counters counted their pedestals."""
        simulation = self.site.simulation
        per_s = (simulation.primary_pedestal_counts_per_s, simulation.secondary_pedestal_counts_per_s)
        for number, rate in zip((1, 2), per_s, strict=True):
            counts = int(self.plant.state[f"retained_{number}"]) + round(rate * seconds)
            self.plant.state[f"retained_{number}"] = self.plant.state[f"frame_counts_{number}"] = counts

    def truths(self) -> list[NDArray[Any]]:
        """True particles (2^-20 ion) and position sums per visit id, an array a field begun; the last one lives."""
        return [*self._truths, self.plant.truth]

    def bank(self, name: str) -> RegisterDevice:
        """The register bank of a Modbus device."""
        register_map = load_map(getattr(self.site.devices, name).map)
        identity = self._identity(name)
        if name == "accelerator":
            return PlantAccelerator(self.plant, self.site, self.now_ns).device(register_map, identity)
        step = self.site.scanning.engine == "step"
        if name == "scan_controller" and step:
            return PlantMagnetSupply(self.plant, self.now_ns, self._streams).device(register_map, identity)
        if name == "scan_controller":
            scan = PlantScanController(self.plant, self.now_ns, self._layer_armed, self._streams)
            device = scan.device(register_map, identity)
            device.set("acknowledged", int(self.plant.state["results_ack"]))
            return device
        if name in ("electrometer_1", "electrometer_2"):
            number = int(name[-1])
            electrometer = PlantElectrometer(self.plant, self.site, number, self.now_ns, self._streams)
            preset = PlantSpotPreset(self.plant, self._layer_armed) if step and number == 1 else None
            device = electrometer.device(register_map, identity, preset)
            if preset is not None:
                device.set("spots_acknowledged", int(self.plant.state["results_ack"]))
            device.set("acknowledged", int(self.plant.state[f"latches_{number}_ack"]))
            return device
        if name == "safety_chain":
            return PlantSafetyChain(self.plant, self.now_ns).device(register_map, identity)
        if name == "gantry":
            return self.gantry.device(register_map, identity)
        if name == "nozzle":
            return self.nozzle.device(register_map, identity)
        if name == "gating":
            return self.gating.device(register_map, identity)
        raise KeyError(name)

    def _streams(self, number: int, slot: int, destination: Destination) -> None:
        self.streams_changed(number, slot, destination)

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Serve all simulated devices on the site's addresses, on the running loop."""
        async with AsyncExitStack() as stack:
            for name, device in self.site.devices.items():
                if device.kind != "simulated":
                    continue
                a = device.address
                if a.wire == "modbus_tcp":
                    server = serve_modbus_tcp(self.bank(name), a.host, a.port, faults=self.wire_faults)
                elif a.wire == "modbus_rtu":
                    server = serve_modbus_rtu(self.bank(name), a.path, a.baud, a.unit, faults=self.wire_faults)
                else:
                    server = serve_ascii(self.couch, a.path, a.baud, faults=self.wire_faults)
                self.wires.append(await stack.enter_async_context(server))
            yield

    async def play(self, faults: Iterable[Fault]) -> None:
        """Make the faults of a scenario happen (see `simulators.fault_player`)."""
        await self.player.play(faults)
