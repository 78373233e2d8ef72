"""A plant on a bench: layers loaded by hand, permits on demand, frames caught, and a real-time path to feed them to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from controller.dose.integrator import ACTION_NONE, handle_frame
from controller.dose.memory import Monitor
from controller.dose.path import MonitorPath
from controller.dose.sender import make_datagram
from controller.machine.dosimetry import Corrections, measured_corrections
from controller.machine.field_program import build_field, treatment_machine
from controller.machine.program import LayerProgram
from controller.plan.model import Layer, PlanField
from drivers.compiled import compiled
from drivers.wires.frames import BUFFER_BYTES, STREAM_ELECTROMETER_1, STREAM_ELECTROMETER_2, STREAM_SCAN, seal
from drivers.wires.permits import KIND_PERMIT, PERMIT_BYTES, SOURCE_CONTROLLER, key_words, write_permit
from simulators.plant.build import build_plant, permit_key, write_request
from simulators.plant.chain import receive_permit
from simulators.plant.state import CMD_ARM, CMD_START, ENG_ARMED, ENG_RUNNING, FRAME_NS, Plant
from simulators.plant.step import advance_frame
from sites.loader import load_site
from sites.schema import Site
from tests.plan_models import plan_field, proton_field

CARBON = load_site("carbon-fixed")
PROTON = load_site("proton-gantry")
SESSION = 0x5E55
TOKEN = 0x70CE
LATENCY_NS = 40_000
FOREVER_NS = 1 << 62
LONGEST_GAP_NS = 20_000_000
"""Rigs refill the ring, or change energy, in 20 ms: tests need not wait for two seconds of nothing."""


@compiled
def run_plant(plant, frame_1, frame_2, frame_3, permit, key, frames, permits, stop, data, lengths):
    """Advance `frames` frames, a permit before each if `permits`; stop early at the engine's state if `stop`.

    With rows in `data`, the frames of all streams are sealed and copied there. Returns frames done and rows filled.
    """
    s = plant.state
    rows = 0
    done = 0
    for _ in range(frames):
        if permits == 1:
            sequence = np.int64(s.sequence_1) + 1
            write_permit(permit, KIND_PERMIT, SOURCE_CONTROLLER, s.session, s.token, sequence, s.t_ns, 0, 0, key)
            receive_permit(plant, permit, PERMIT_BYTES, s.t_ns)
        streams = advance_frame(plant, frame_1, frame_2, frame_3)
        done += 1
        if data.shape[0] > 0:
            if streams & 1 != 0:
                lengths[rows] = seal(frame_1, STREAM_ELECTROMETER_1)
                data[rows, :] = frame_1.u8
                rows += 1
            if streams & 2 != 0:
                lengths[rows] = seal(frame_2, STREAM_ELECTROMETER_2)
                data[rows, :] = frame_2.u8
                rows += 1
            if streams & 4 != 0:
                lengths[rows] = seal(frame_3, STREAM_SCAN)
                data[rows, :] = frame_3.u8
                rows += 1
        if stop == 1 and s.eng_state not in (ENG_ARMED, ENG_RUNNING):
            break
    return done, rows


@compiled
def feed_path(m, buffer, permit, data, lengths, times, actions):
    """Give datagrams to the real-time path as its loop does; what it decided is in `actions`."""
    for k in range(data.shape[0]):
        buffer.u8[:] = data[k]
        actions[k] = handle_frame(m, buffer, lengths[k], times[k], False)
        if actions[k] != ACTION_NONE:
            make_datagram(m, permit, actions[k], times[k])


@dataclass(frozen=True, slots=True)
class Datagram:
    """Bytes, and when they arrive (local clock, ns)."""

    data: bytes
    t_ns: int


@dataclass
class Rig:
    """A powered-up plant with beam at hand and a closed chain."""

    site: Site = CARBON
    seed: int = 1
    plant: Plant = field(init=False)

    def __post_init__(self) -> None:
        self.plant = build_plant(self.site, self.seed)
        self.key = key_words(permit_key(self.site))
        p, s = self.plant.parameters, self.plant.state
        for pause in ("gap_ns", "step_down_ns", "step_up_ns"):
            p[pause] = min(int(p[pause]), LONGEST_GAP_NS)
        p["guard_required"] = 0  # there is none in the rig
        s["stopper_command"] = s["stopper_open"] = 1
        s["session"] = SESSION

    @property
    def state(self) -> Any:
        return self.plant.state

    def run(self, frames: int, *, permits: bool = True, stop: bool = False) -> int:
        """Advance; returns frames done."""
        done, _ = self._run(frames, permits, stop, 0)
        return done

    def record(self, frames: int, *, permits: bool = True, stop: bool = False) -> list[Datagram]:
        """Advance and catch all frames, as they arrive after the wire's latency."""
        _, datagrams = self._run(frames, permits, stop, 3 * frames)
        return datagrams

    def _run(self, frames: int, permits: bool, stop: bool, room: int) -> tuple[int, list[Datagram]]:
        data = np.zeros((room, BUFFER_BYTES), np.uint8)
        lengths = np.zeros(room, np.int64)
        plant = self.plant
        done, rows = run_plant(
            plant.memory[0],
            plant.frame_1,
            plant.frame_2,
            plant.frame_3,
            plant.permit,
            self.key,
            frames,
            int(permits),
            int(stop),
            data,
            lengths,
        )
        times = data[:rows, 24:32].copy().view("<i8")[:, 0] + LATENCY_NS
        return done, [
            Datagram(row[:length].tobytes(), int(t))
            for row, length, t in zip(data[:rows], lengths[:rows], times, strict=True)
        ]

    def arm_chain(self, token: int = TOKEN) -> None:
        """Write the arm command; the chain closes with the first valid permits."""
        s = self.state
        s["chain_command"], s["chain_command_token"] = 1, token
        s["chain_commands"] += 1

    def request(self, energy_mev_u: float, level: int, *, ion: str | None = None, port_deg: float = 0.0) -> None:
        """Ask the accelerator for beam."""
        ion = ion or self.site.accelerator.ions[0]
        write_request(
            self.plant, self.site, ion=ion, energy_mev_u=energy_mev_u, level=level, port_deg=port_deg, optics=0
        )
        self.state["acc_new_request"] += 1

    def load(self, program: LayerProgram, *, bank: int = 0, gated: bool = False) -> None:
        """What a download leaves in engine and electrometer 2."""
        plant, v = self.plant, program.visits
        rows = slice(0, len(v))
        plant.x_set_ma[bank, rows] = np.rint(v["x_current_a"] * 1000)
        plant.y_set_ma[bank, rows] = np.rint(v["y_current_a"] * 1000)
        plant.preset[bank, rows] = v["preset_counts"]
        plant.time_limit_ms[bank, rows] = v["time_limit_ms"]
        plant.flags[bank, rows] = v["flags"]
        plant.backup[bank, rows] = v["backup_counts"]
        plant.rows[bank] = len(v)
        plant.first_visit[bank] = plant.backup_first[bank] = int(v["visit"][0])
        plant.early_on[bank] = program.early_on_counts
        plant.early_off[bank] = program.early_off_counts
        plant.gated[bank] = int(gated)

    def engine(self, command: int, *, bank: int = 0, token: int = TOKEN) -> None:
        """Write a command into the engine's mailbox."""
        s = self.state
        s["eng_command"], s["eng_command_bank"], s["eng_command_token"] = command, bank, token
        s["eng_commands"] += 1

    def ready(self, program: LayerProgram, *, gated: bool = False) -> None:
        """Beam requested and there, chain closed, layer loaded and armed, magnets at the first spot."""
        self.load(program, gated=gated)
        self.request(program.energy_mev_u, program.intensity_level)
        self.arm_chain()
        self.run(LONGEST_GAP_NS // FRAME_NS + 400)
        assert self.state["closed"] == 1
        assert self.state["spill_on"] == 1
        self.engine(CMD_ARM)
        self.run(300)
        assert self.state["eng_state"] == ENG_ARMED

    def start(self) -> None:
        self.engine(CMD_START)

    def deliver(self, program: LayerProgram, frames: int = 60_000) -> None:
        """A whole layer, without looking."""
        self.ready(program)
        self.start()
        self.run(frames, stop=True)


def corrections_of(site: Site) -> Corrections:
    """What the room's sensors would say."""
    return measured_corrections(site.simulation.temperature_c, site.simulation.pressure_hpa, site.dosimetry)


def programs_of(site: Site, *layers: Layer) -> tuple[LayerProgram, ...]:
    """The programs of a field, with the corrections that the plant's air asks for."""
    return build_field(site, field_of(site, *layers), 0, corrections_of(site))


def field_of(site: Site, *layers: Layer) -> PlanField:
    return plan_field(*layers) if site.accelerator.ions[0] == "12C" else proton_field(*layers)


def monitor_path(site: Site, programs: Sequence[LayerProgram]) -> MonitorPath:
    """A real-time memory that allows these programs' visits, all leases held; permits are not on yet."""
    path = MonitorPath(site, Monitor())
    path.load_key(permit_key(site), SESSION)
    path.load_field(treatment_machine(site, field_of(site)), programs)
    path.allow(int(programs[0].visits["visit"][0]), int(programs[-1].visits["visit"][-1]))
    path.log(True)
    for lease in (0, 1):
        path.renew(lease, FOREVER_NS)
    return path


def feed(path: MonitorPath, datagrams: Sequence[Datagram]) -> list[int]:
    """Give datagrams to the compiled path; returns its action for each."""
    monitor = path.monitor
    data = np.zeros((len(datagrams), BUFFER_BYTES), np.uint8)
    for row, datagram in zip(data, datagrams, strict=True):
        kept = datagram.data[:BUFFER_BYTES]
        row[: len(kept)] = np.frombuffer(kept, np.uint8)
    lengths = np.array([len(d.data) for d in datagrams], np.int64)
    times = np.array([d.t_ns for d in datagrams], np.int64)
    actions = np.zeros(len(datagrams), np.int64)
    feed_path(monitor.memory[0], monitor.buffer, monitor.permit, data, lengths, times, actions)
    return [int(action) for action in actions]


def watch(path: MonitorPath, datagrams: Sequence[Datagram]) -> list[int]:
    """Feed a stream whose first ten datagrams show that all devices live; permits are on after them."""
    actions = feed(path, datagrams[:10])
    path.permit(TOKEN)
    return actions + feed(path, datagrams[10:])


def record_layer(
    site: Site,
    program: LayerProgram,
    *,
    seed: int = 1,
    frames: int = 60_000,
    quiet: int = 600,
    change: Callable[[Rig], None] | None = None,
    gated: bool = False,
) -> tuple[Rig, list[Datagram]]:
    """Frames of one layer: `quiet` frames before (pedestals), the layer until the engine stops, 60 frames after."""
    rig = Rig(site, seed)
    if change is not None:
        change(rig)
    rig.ready(program, gated=gated)
    caught = rig.record(quiet)
    rig.start()
    caught += rig.record(frames, stop=True)
    caught += rig.record(60)
    return rig, caught
