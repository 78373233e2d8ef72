"""One delivery, from plan file to treatment directory: identity, header, the command API, then the files.

The same sequence runs in virtual and in real time; the caller brings the loop and the real-time path.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

from controller.ask import ask_for_patient
from controller.clock import now_ns
from controller.commands import Commands
from controller.delivery.decision import Decision
from controller.delivery.devices import open_devices
from controller.delivery.integrity import Sources
from controller.delivery.run import Run
from controller.delivery.treatment import Treatment
from controller.dose.path import MonitorPath
from controller.guard_start import guard_of
from controller.ledger.booking import treatment_id
from controller.ledger.room_latch import demand_resets, read_room_latch, remember_room_latch
from controller.plan.check import CheckReport
from controller.plan.loaded import LoadedPlan
from controller.record.account import utc
from controller.record.carried import Carried
from controller.record.code_version import code_sha256
from controller.record.disk import THE_DISK, Disk
from controller.record.identity import write_identity
from controller.record.journal import JournalWriter
from controller.record.pseudonym import pseudonym_key
from controller.telemetry_sinks import TelemetrySink
from drivers.errors import BadInput, Refused, Stopped
from sites.loader import effective_config, site_sha256
from sites.schema import DEVICE_NAMES, Site

VIRTUAL_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
FORMAT = 1
BEAM_END_MS = 50.0
"""After the chain opens, until no charge comes any more: chopper, drift, and the chain's own cycle."""


@dataclass(frozen=True, slots=True)
class Order:
    """What to deliver, where to write it, who says so."""

    plan: Path
    site: Site
    out: Path
    seed: int = 0
    clock: str = "virtual"
    operator: str = "simulated"
    reason: str = "simulated delivery"
    site_name: str | None = None
    """Name or path that the site was loaded by; None: it has no file."""
    scenario: Mapping[str, str] | None = None
    """Text and sha256 of the fault scenario that is played."""
    frames_bytes: int = 0
    """Bound on the recording of raw frames; 0: they are not recorded."""
    carried: Carried | None = None
    """What earlier parts left; None: this is the first part."""
    decision: Decision | None = None
    """A physicist's decision of a dispute."""
    epoch: datetime | None = None
    """UTC of 0 ns, where the caller knows better: a later part in virtual time."""
    fraction: int = 1
    """Which fraction of its course this is."""
    ledger: Path | None = None
    """The course ledger that it is booked in; None: in none."""
    latch: Path | None = None
    """Where the room's latch is remembered between treatments; None: it is not."""

    @property
    def part(self) -> int:
        """Number of the part, from 1."""
        return 1 if self.carried is None else self.carried.parts + 1


def make_directory(out: Path) -> None:
    """Create the treatment directory. Raises `BadInput` where it exists and is not empty."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise BadInput(f"{out}: not empty; a treatment directory is written once: give another --out")
    except OSError as error:
        raise BadInput(f"{out}: cannot be made or read: {error}; give another --out") from error


def epoch(order: Order, plan_sha256: str) -> datetime:
    """UTC of 0 ns: virtual runs derive it from what they are, so that the same run gives the same bytes."""
    if order.epoch is not None:
        return order.epoch
    if order.clock == "virtual":
        what = f"{plan_sha256}|{site_sha256(order.site)}|{order.seed}"
        seconds = int.from_bytes(hashlib.sha256(what.encode()).digest()[:4], "big") % (20 * 365 * 86400)
        return VIRTUAL_EPOCH + timedelta(seconds=seconds, days=order.fraction - 1)
    return datetime.now(UTC) - timedelta(microseconds=now_ns() // 1000)


def _epoch_ns(epoch: datetime) -> int:
    return round((epoch - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1)) * 1000


def header(order: Order, loaded: LoadedPlan) -> dict[str, Any]:
    """The HEADER record: everything that the rest of the journal is to be read with."""
    plan = dataclasses.asdict(loaded.plan)
    plan_sha256 = loaded.plan.content_sha256()
    site = json.loads(effective_config(order.site))
    # the key that permits are signed with is a secret; the record proves the configuration by its hash
    site["permits"]["key_hex"] = None
    played = {} if order.scenario is None else {"fault_scenario": dict(order.scenario)}
    return {
        **played,
        "format": FORMAT,
        "version": version("spotwise"),
        "epoch": epoch(order, plan_sha256).isoformat().replace("+00:00", "Z"),
        "seed": order.seed,
        "clock": order.clock,
        "plan": plan,
        "plan_sha256": plan_sha256,
        "site": site,
        "site_sha256": site_sha256(order.site),
        "operator": order.operator,
        "part": order.part,
        "simulated": any(d.kind == "simulated" for _, d in order.site.devices.items()),
        "patient": loaded.patient.pseudonym(pseudonym_key(order.site)),
        "fraction_group": loaded.plan.fraction_group,
        "fraction": order.fraction,
    }


def write_run(order: Order) -> None:
    """run.json (run-2.json of the second part): what may differ between two runs that are otherwise the same."""
    run = {
        "host": platform.node(),
        "python": sys.version.split()[0],
        "packages": {name: version(name) for name in ("numpy", "numba", "pydicom", "pymodbus", "aiomqtt")},
        "started": datetime.now(UTC).isoformat(),
        "plan": str(order.plan.absolute()),
        "site": order.site_name,
        "pid": os.getpid(),
        "code_sha256": code_sha256(),
        "ledger": None if order.ledger is None else _from(order.out, order.ledger),
    }
    if order.scenario is not None:
        run["fault_scenario"] = dict(order.scenario)
    name = "run.json" if order.part == 1 else f"run-{order.part}.json"
    (order.out / name).write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")


def _from(directory: Path, file: Path) -> str:
    """A path that still holds when the directory is moved with the file in it."""
    absolute = file.absolute()
    inside = absolute.is_relative_to(directory.absolute())
    return str(absolute.relative_to(directory.absolute()) if inside else absolute)


def sources_of(order: Order, loaded: LoadedPlan, run: Run) -> Sources:
    """What a delivery was made from, to be compared again at every arm."""
    maps = tuple(getattr(run.devices, name).map for name in DEVICE_NAMES)
    # a later part delivers the journal's copy; a file that is still there must not have been changed all the same
    plan = order.plan if order.carried is None or order.plan.exists() else None
    return Sources(plan, loaded.plan.file_sha256, order.site, order.site_name, maps)


@dataclass
class Outcome:
    """How a delivery ended."""

    status: str
    """completed, interrupted or refused"""
    message: str = ""
    exit_status: int = 0


def begin_part(
    order: Order,
    loaded: LoadedPlan,
    journal: JournalWriter,
    path: MonitorPath,
    telemetry: TelemetrySink,
    resets: tuple[str, ...] = (),
) -> Run:
    """Write the part's HEADER; returns the run that `Treatment` takes. `resets`: what was latched before it."""
    if order.carried is None:
        write_identity(order.out / "identity.dcm", loaded.patient)
    written = header(order, loaded)
    journal.header(now_ns(), written)
    run = Run(order.site, loaded.plan, open_devices(order.site), path, journal, telemetry)
    run.part, run.carried, run.decision = order.part, order.carried, order.decision
    run.begun_by = (order.operator, order.reason)
    run.fraction = order.fraction
    run.treatment = int(treatment_id(written if order.carried is None else order.carried.header)[:16], 16)
    run.epoch = utc(written, 0)
    run.sources = sources_of(order, loaded, run)
    run.approved = True  # the check let it pass
    if resets:
        run.event("reset", operator=order.operator, reason=order.reason, ids=list(resets))
    if journal.cut is not None:
        run.event("warning", text=f"cut before this part: {journal.cut}")
    return run


async def deliver(
    order: Order,
    report: CheckReport,
    path: MonitorPath,
    key: bytes,
    telemetry: TelemetrySink,
    *,
    nonce: Callable[[], int] | None = None,
    disk: Disk = THE_DISK,
    watch: Callable[[Run, Commands], None] = lambda _run, _commands: None,
) -> tuple[Outcome, Run]:
    """Deliver a checked plan field by field through the command API; never raises for what the room does.

    Raises `Refused` for a plan that has not passed its check, and where the part before, or the last one in the room,
    ended with what is not `order.operator`'s to reset.

    `watch(run, commands)` is called once, before anything is connected: displays and signals hook in there.
    """
    loaded = report.loaded
    if loaded is None or report.outcome != "deliverable":
        raise Refused("the plan has not passed its check")
    left = read_room_latch(order.latch)
    resets = demand_resets(order.site, order.operator, () if order.carried is None else order.carried.trips, left)
    commands = Commands(order.site)
    commands.report = report
    with JournalWriter(order.out / "journal.bin", disk) as journal:
        run = begin_part(order, loaded, journal, path, telemetry, resets)
        if left.problem:
            run.event("warning", text=f"reset by {order.operator}, unread: {left.problem}")
        await journal.sync()  # whoever dies from here on leaves a directory that can be resumed
        remember_room_latch(order.latch, order.out, None)
        if nonce is not None:
            run.nonce = nonce
        async with AsyncExitStack() as room, Treatment(run, key) as treatment:
            commands.attach(treatment)
            watch(run, commands)
            if order.carried is not None:
                # a controller that died only now: its beam ends when the chain misses its permits, and is its field's
                await asyncio.sleep((order.site.permits.time_out_ms + BEAM_END_MS) * 1e-3)
            try:
                run.guard = await room.enter_async_context(
                    guard_of(order.site, key, path, order.plan, loaded.plan, order.out, epoch_ns=_epoch_ns(run.epoch))
                )
            except Refused as error:
                outcome = Outcome("refused", str(error), error.exit_status)
            else:
                first = run.latch.first_out  # an abort may have come while the guard started
                if first is None:
                    outcome = await _fields(commands, treatment, order)
                else:
                    outcome = Outcome("interrupted", first.message(), Stopped.exit_status)
            await treatment.finish(outcome.status)
    try:
        latched = (*(trip.id for trip in run.latch.latched), *run.guard.latched)
        remember_room_latch(order.latch, order.out, latched)
    except Refused as error:  # it stays noted as under way, and who comes next reads the journal
        print(f"spotwise: {error}", file=sys.stderr)
    return outcome, run


async def _fields(commands: Commands, treatment: Treatment, order: Order) -> Outcome:
    """Every field in turn. Refused only before there could be beam; from the first field on a treatment is stopped."""
    try:
        await commands.prepare()
    except Stopped as error:
        return Outcome("interrupted", str(error), error.exit_status)
    except Refused as error:
        return Outcome("refused", str(error), error.exit_status)
    try:
        while treatment.fields_left:
            if not order.site.all_simulated:
                await _confirm(commands, treatment, order)
            elif treatment.run.look is not None:
                await _confirm_as_played(commands, treatment, order)
            await commands.arm(order.operator, order.reason)
            await commands.beam_on(order.operator)
    except Stopped as error:
        return Outcome("interrupted", str(error), error.exit_status)
    except Refused as error:  # patient, position or output QA: nothing is armed
        if not treatment.run.tally.visits_done and order.carried is None:
            return Outcome("refused", str(error), error.exit_status)
        commands.abort(order.operator, str(error))
        return Outcome("interrupted", str(error), Stopped.exit_status)
    return Outcome("completed")


async def _confirm_as_played(commands: Commands, treatment: Treatment, order: Order) -> None:
    """In a simulated room a scenario may play somebody who looks at the patient. Raises `Refused`, `Stopped`."""
    await commands.set_up(order.operator)
    run, report = treatment.run, commands.report
    assert run.look is not None
    assert report is not None
    assert report.loaded is not None
    field, patient, position_ok = run.look(run.tally.field_index, report.loaded.patient.id)
    commands.confirm(order.operator, patient, field, position_ok=position_ok)


async def _confirm(commands: Commands, treatment: Treatment, order: Order) -> None:
    """With a real device somebody looks at the patient before each arming. Raises `Refused`, `Stopped`."""
    await commands.set_up(order.operator)
    field = treatment.run.tally.field_index

    def confirm(patient: str, position_ok: bool) -> None:
        commands.confirm(order.operator, patient, field, position_ok=position_ok)

    asking = asyncio.create_task(
        ask_for_patient(treatment.run.plan.fields[field].name, confirm, sys.stdin.fileno(), sys.stderr), name="ask"
    )
    stopped = asyncio.create_task(treatment.run.stop.wait(), name="stop")
    try:
        await asyncio.wait((asking, stopped), return_when=asyncio.FIRST_COMPLETED)
        if asking.done():
            await asking  # what it raised; where the treatment was stopped instead, arming says so
    finally:
        for task in (asking, stopped):
            task.cancel()
        await asyncio.wait((asking, stopped))
