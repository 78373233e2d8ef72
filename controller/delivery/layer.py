"""One layer: request its energy, download and prove its table, verify, start, wait for the engine to end it."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

from controller.clock import now_ns
from controller.delivery.early_table import Table
from controller.delivery.run import Run
from controller.delivery.setup import port_deg
from controller.delivery.standing import AlreadyTripped, require_beam, trip_on
from controller.machine.program import LayerProgram
from controller.record.journal import program_head
from drivers.contracts import AcceleratorStatus, LayerTable
from drivers.deadline import Deadline
from drivers.errors import ReadbackMismatch
from drivers.flags import FLAG_ARMED, FLAG_HOLD, FLAG_LAYER_DONE, FLAG_SPILL
from interlocks.slow import angle_difference, judge
from sites.schema import Site

READY = 2
COMMAND_S = 2.0
DOWNLOAD_S = 60.0
PEDESTAL_DRIFT = 0.5
"""Of a pedestal, within a field."""
PEDESTAL_FLOOR_PER_S = 10.0
"""Counts a second that a pedestal may be off besides; 60 s of them are the dose of 2e4 carbon ions."""
LOOK_S = 0.1
PORT_TOLERANCE_DEG = 0.5
SAID = (
    "energy_set_mev_u",
    "energy_readback_mev_u",
    "energy_sensor_mev_u",
    "intensity_level",
    "x_offset_a",
    "y_offset_a",
)
"""What telemetry repeats of a layer's phase."""


def layer_event(run: Run, program: LayerProgram, phase: str, **values: float | int | None) -> None:
    """Write a layer's phase down, and say it."""
    run.event("layer", field=program.field_index, layer=program.layer_index, phase=phase, **values)
    run.telemetry.publish(
        "layer",
        {
            "t_ns": now_ns(),
            "field": program.field_index,
            "layer": program.layer_index,
            "phase": phase,
            **{k: v for k, v in values.items() if k in SAID},
        },
    )


def rate_limit_per_s(site: Site, program: LayerProgram) -> float:
    """Counts a second at which electrometer 2 cuts the beam by itself; 10 counts in 100 us are no rate."""
    return site.tolerances.rate_factor * program.rate_per_s * program.counts_per_particle_2 + 10 / 1e-4


def backup_pedestal_per_s(run: Run) -> float:
    """Counts a second that electrometer 2's backup takes for pedestal, as long as a visit is open.

    A visit stays open while a gate holds it, between two spills, and after its controller has died. It is the pedestal
    that frames have shown without beam, with room for its drift: a leak of less than that the backup does not see.
    Never more than the site allows of a pedestal. Measured before the part's first beam, behind a closed stopper, and
    kept: later on a chopper that leaks would be learned as pedestal.
    """
    if run.backup_pedestal_per_s is not None:
        return run.backup_pedestal_per_s
    state = run.path.monitor.state
    quiet_ns = int(state["quiet_ns_2"])
    measured = max(0.0, int(state["quiet_counts_2"]) * 1e9 / quiet_ns) if quiet_ns else 0.0
    allowed = (1.0 + PEDESTAL_DRIFT) * measured + PEDESTAL_FLOOR_PER_S
    run.backup_pedestal_per_s = math.ceil(min(allowed, run.site.tolerances.pedestal_counts_per_s))
    return run.backup_pedestal_per_s


async def download(run: Run, program: LayerProgram, bank: int, ends: Table) -> None:
    """Put a layer's table into the engine and its backup limits into electrometer 2, read back and compared.

    `ends`: the presets as they may have been adapted; all else, and every limit, is the program's.
    """
    v = program.visits
    deadline = Deadline.after(DOWNLOAD_S, f"download of layer {program.layer_index + 1}")
    table = LayerTable(
        first_visit=int(v["visit"][0]),
        x_current_a=v["x_current_a"],
        y_current_a=v["y_current_a"],
        preset_counts=ends.preset_counts,
        time_limit_ms=v["time_limit_ms"],
        flags=v["flags"],
        early_on_counts=ends.early_on_counts,
        early_off_counts=ends.early_off_counts,
        gated=run.expected.gating_source is not None and run.expected.gating_source > 0,
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(run.devices.scan_controller.download(bank, table, deadline), name="table")
        group.create_task(
            run.devices.electrometer_2.load_backup(
                bank,
                table.first_visit,
                v["backup_counts"],
                rate_limit_per_s(run.site, program),
                deadline,
                pedestal_per_s=backup_pedestal_per_s(run),
            ),
            name="backup limits",
        )
    run.journal.program(now_ns(), program_head(program), v)


async def request(run: Run, program: LayerProgram) -> int:
    """Ask the accelerator for the layer's beam; the sensors are not judged until it is there."""
    field = run.plan.fields[program.field_index]
    run.expected = replace(run.expected, energy_mev_u=None, ion=None, port_deg=None, request_id=None)
    deadline = Deadline.after(COMMAND_S, f"request of layer {program.layer_index + 1}")
    names = list(run.site.treatment_machines)
    optics = names.index(field.machine_name or run.site.trip98_machine[program.ion])  # type: ignore[index]
    request_id = await run.devices.accelerator.request(
        ion=program.ion,
        energy_mev_u=program.energy_mev_u,
        intensity_level=program.intensity_level,
        port_deg=port_deg(run.site, field),
        optics=optics,
        deadline=deadline,
    )
    layer_event(
        run,
        program,
        "request",
        energy_set_mev_u=program.energy_mev_u,
        energy_plan_mev_u=program.plan_energy_mev_u,
        intensity_level=program.intensity_level,
        port_deg=port_deg(run.site, field),
    )
    return request_id


async def beam_ready(
    run: Run, program: LayerProgram, request_id: int, *, in_layer: bool = False, after: int | None = None
) -> None:
    """Wait for the requested beam, and verify energy, ion and port of this spill: read-back and independent sensor.

    `after`: number of a spill that has ended; what the accelerator says of that one is no word of this one.
    """
    a = run.site.accelerator
    limit_s = 10.0 + 3 * (a.gap_s + a.energy_step_up_s + a.energy_step_s + a.flat_top_s)
    deadline = Deadline.after(limit_s, f"beam for layer {program.layer_index + 1}")
    while True:
        # in mid-layer the request stays the same: only the spill's own line and its number tell this spill from the one
        # before, which slow registers may still speak of
        spill = not in_layer or a.kind != "synchrotron" or bool(run.path.flags & FLAG_SPILL)
        status = await run.devices.accelerator.status(Deadline.after(COMMAND_S, deadline.purpose))
        if spill and status.state == READY and status.request_id == request_id and status.spill != after:
            sensors = await run.devices.safety_chain.status(Deadline.after(COMMAND_S, deadline.purpose))
            if sensors.energy_sensor_mev_u > 0:
                break
        if deadline.remaining_s() <= 0:
            state = f"accelerator in state {status.state} with request {status.request_id}, wanted {request_id}"
            run.trip("NO_BEAM", value=limit_s, limit=limit_s, detail=state)
            raise AlreadyTripped("NO_BEAM")
        try:
            async with asyncio.timeout(LOOK_S):
                await run.path.changed()
        except TimeoutError:
            pass
    run.note("accelerator", status)
    run.note("safety_chain", sensors)
    field = run.plan.fields[program.field_index]
    run.expected = replace(
        run.expected,
        energy_mev_u=program.energy_mev_u,
        energy_tolerance_mev_u=a.energy_sensor_tolerance_mev_u,
        ion=program.ion,
        port_deg=port_deg(run.site, field),
        request_id=request_id,
    )
    _verify(run, program, status)
    run.tally.energy_mev_u = status.energy_mev_u
    run.spill_number = status.spill
    shown: dict[str, float | int] = {
        "energy_set_mev_u": program.energy_mev_u,
        "energy_readback_mev_u": status.energy_mev_u,
        "energy_sensor_mev_u": sensors.energy_sensor_mev_u,
        "intensity_level": status.intensity_level,
        "port_deg": sensors.port_sensor_deg,
        "spill": status.spill,
    }
    if in_layer:
        run.event("spill", phase="verified", field=program.field_index, layer=program.layer_index, **shown)
    else:
        layer_event(run, program, "ready", beam_since_ns=run.spill_since_ns, **shown)


def _verify(run: Run, program: LayerProgram, status: AcceleratorStatus) -> None:
    """The accelerator's own read-back, then the interlock task's judgement of the independent sensors, before beam."""
    port = port_deg(run.site, run.plan.fields[program.field_index])
    for quantity, wanted, got, limit in (
        ("energy_mev_u", program.energy_mev_u, status.energy_mev_u, run.site.accelerator.energy_sensor_tolerance_mev_u),
        ("intensity_level", program.intensity_level, status.intensity_level, 0),
        ("port_deg", 0.0, angle_difference(status.port_deg, port), PORT_TOLERANCE_DEG),
    ):
        if not abs(got - wanted) <= limit:
            raise ReadbackMismatch("accelerator", f"{quantity}: wanted {wanted:g}, got {got:g}, tolerance {limit:g}")
    if status.ion != program.ion:
        raise ReadbackMismatch("accelerator", f"ion: wanted {program.ion}, got {status.ion}")
    found = judge(run.seen, run.expected, now_ns())
    trip_on(run, found)
    if found:
        raise AlreadyTripped(found[0].id)


async def arm(run: Run, program: LayerProgram, bank: int, offset_a: tuple[float, float] = (0.0, 0.0)) -> None:
    """Arm the bank, its set-points shifted by `offset_a`; the real-time path accepts this layer's visits only."""
    v = program.visits
    deadline = Deadline.after(COMMAND_S, f"arming of layer {program.layer_index + 1}")
    run.path.allow(int(v["visit"][0]), int(v["visit"][-1]))
    run.guard.allow(program.layer_index, int(v["visit"][0]), int(v["visit"][-1]), now_ns())
    x_a, y_a = offset_a
    await run.devices.scan_controller.arm(bank, run.arm_token, deadline, x_offset_a=x_a, y_offset_a=y_a)
    # frames may come late: until one shows the engine armed, "layer done" would still be said of the layer before
    async with deadline.timeout():
        while not run.path.flags & FLAG_ARMED:
            await run.path.changed()
    layer_event(run, program, "armed", x_offset_a=x_a, y_offset_a=y_a)


async def start(run: Run, program: LayerProgram, request_id: int) -> None:
    """Let the engine run, once no operator's pause stands in the way; after one, this is another spill."""
    while True:
        if not run.resumed.is_set():
            await run.resumed.wait()
            await beam_ready(run, program, request_id, in_layer=True)
        async with run.engine:
            if run.resumed.is_set():
                require_beam(run)
                deadline = Deadline.after(COMMAND_S, f"start of layer {program.layer_index + 1}")
                await run.devices.scan_controller.start(deadline)
                layer_event(run, program, "start")
                return


async def next_spill(run: Run, program: LayerProgram, request_id: int) -> None:
    """A spill ended in mid-layer: the engine is held until the next one's energy, ion and port are verified."""
    run.spill_verified.clear()
    async with run.engine:
        await run.devices.scan_controller.hold(True, Deadline.after(COMMAND_S, "hold between spills"))
    if run.path.flags & FLAG_LAYER_DONE:
        run.spill_verified.set()
        return
    await beam_ready(run, program, request_id, in_layer=True, after=run.spill_number)
    async with run.engine:
        run.spill_verified.set()
        if run.resumed.is_set():
            require_beam(run)
            await run.devices.scan_controller.hold(False, Deadline.after(COMMAND_S, "beam of the next spill"))


async def done(run: Run, program: LayerProgram, request_id: int) -> None:
    """Wait until the engine has ended the layer; no beam and no progress for too long is an error."""
    a = run.site.accelerator
    limit_s = 10.0 + 3 * (a.flat_top_s + a.gap_s)
    state = run.path.monitor.state
    mark = (-1, -1)
    since_ns = now_ns()
    while not run.path.flags & FLAG_LAYER_DONE:
        if a.kind == "synchrotron" and not run.path.flags & FLAG_SPILL:
            await next_spill(run, program, request_id)
            continue
        try:
            async with asyncio.timeout(LOOK_S):
                await run.path.changed()
        except TimeoutError:
            pass
        now_mark = (int(state["visits"]), int(run.path.monitor.scan[12]))
        if now_mark != mark or run.path.flags & FLAG_HOLD:
            mark, since_ns = now_mark, now_ns()
        elif now_ns() - since_ns > limit_s * 1e9:
            visit = int(run.path.monitor.running["visit"])
            run.trip("NO_BEAM", value=(now_ns() - since_ns) * 1e-9, limit=limit_s, detail=f"visit {visit}")
            raise AlreadyTripped("NO_BEAM")
    layer_event(run, program, "end")
