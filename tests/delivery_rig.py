"""A delivery in virtual time, in this process, with everything that a test wants to look at afterwards."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.commands import Commands
from controller.compose import VirtualWorld, load_scenario, site_key, wire_latencies
from controller.delivery.devices import open_devices
from controller.delivery.run import Run
from controller.delivery.states import State
from controller.delivery.treatment import Treatment
from controller.guard_start import guard_of
from controller.plan.check import check_plan
from controller.record.disk import THE_DISK, Disk
from controller.record.identity import write_identity
from controller.record.journal import JournalWriter
from controller.record.journal_reader import read_journal
from controller.record.rebuild import rebuild, verify_directory
from controller.record.schema import VISIT_DTYPE
from controller.record.unclosed import sentence
from controller.session import Order, Outcome, deliver, header, sources_of
from controller.telemetry_sinks import MemorySink
from drivers.wires.virtual_loop import run_virtual
from sites.loader import load_site
from sites.schema import Site

EXAMPLES = Path(__file__).parents[1] / "sites" / "plans"
Script = Callable[["Delivery"], Coroutine[Any, Any, None]]


@dataclass
class Delivery:
    """A delivery under way, and afterwards."""

    directory: Path
    world: VirtualWorld
    run: Run
    commands: Commands
    sink: MemorySink
    outcome: Outcome = field(default_factory=lambda: Outcome("under way"))
    truth: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    visits: NDArray[Any] = field(default_factory=lambda: np.zeros(0, VISIT_DTYPE))
    events: tuple[dict[str, Any], ...] = ()

    @property
    def plant(self) -> Any:
        """State of the simulated plant."""
        return self.world.room.plant.state

    def named(self, event: str, **values: Any) -> list[dict[str, Any]]:
        """Events of a name, with these values."""
        return [e for e in self.events if e["event"] == event and all(e.get(k) == v for k, v in values.items())]

    @property
    def first_out(self) -> str | None:
        """The condition that stopped it."""
        first = self.run.latch.first_out
        return None if first is None else first.id

    async def until(self, what: Callable[[], object], limit_s: float = 60.0) -> None:
        """Wait in virtual time until something is so."""
        async with asyncio.timeout(limit_s):
            while not what():
                await asyncio.sleep(0.0005)


def run_delivery(
    plan: Path,
    site: str | Site,
    directory: Path,
    *,
    seed: int = 0,
    faults: str | None = None,
    script: Script | None = None,
    alone: bool = False,
    site_name: str | None = None,
    make_world: Callable[[Site, int], VirtualWorld] = VirtualWorld,
    disk: Disk = THE_DISK,
    whole: bool = True,
) -> Delivery:
    """Deliver, rebuild the directory, and check what is true of every delivery.

    `script` plays an operator beside the program that delivers; `alone`: it gives every command itself. Not `whole`:
    nothing is rebuilt, which is half of a short delivery's time; only the journal was written.
    """
    room = load_site(site) if isinstance(site, str) else site
    directory.mkdir(parents=True, exist_ok=True)
    scenario = ()
    if faults is not None:
        path = directory.parent / f"{directory.name}-faults.toml"
        path.write_text(faults, encoding="utf-8")
        scenario = load_scenario(path)
    report = check_plan(plan, room)
    assert report.outcome == "deliverable", [f.message for f in report.findings]
    world = make_world(room, seed)
    numbers = random.Random(seed)
    sink = MemorySink()
    seen: list[Delivery] = []

    async def operated() -> Outcome:
        assert script is not None
        assert report.loaded is not None
        order = Order(plan, room, directory, seed, site_name=site_name)
        async with world.serve(scenario) as path:
            with JournalWriter(directory / "journal.bin", disk) as journal:
                write_identity(directory / "identity.dcm", report.loaded.patient)
                journal.header(0, header(order, report.loaded))
                run = Run(room, report.loaded.plan, open_devices(room), path, journal, sink)
                run.nonce = lambda: numbers.getrandbits(63) | 1
                run.sources = sources_of(order, report.loaded, run)
                run.approved = report.outcome == "deliverable"
                commands = Commands(room)
                commands.report = report
                key = site_key(room)
                loaded = report.loaded.plan
                async with (
                    guard_of(room, key, path, plan, loaded, directory) as run.guard,
                    Treatment(run, key) as treatment,
                ):
                    commands.attach(treatment)
                    seen.append(Delivery(directory, world, run, commands, sink))
                    await script(seen[0])
                    outcome = "completed" if run.state is State.COMPLETED else "interrupted"
                    await treatment.finish(outcome)
        return Outcome(outcome)

    async def main() -> Outcome:
        plays: list[asyncio.Task[None]] = []

        def watch(run: Run, commands: Commands) -> None:
            seen.append(Delivery(directory, world, run, commands, sink))
            world.follow(run, commands)
            if script is not None:
                plays.append(asyncio.create_task(script(seen[0]), name="operator"))  # type: ignore[arg-type]

        async with world.serve(scenario) as path:
            outcome, _ = await deliver(
                Order(plan, room, directory, seed, site_name=site_name),
                report,
                path,
                site_key(room),
                sink,
                nonce=lambda: numbers.getrandbits(63) | 1,
                disk=disk,
                watch=watch,
            )
            for play in plays:
                await play
            return outcome

    tcp, serial = wire_latencies(room)
    outcome = run_virtual(operated() if alone else main(), world, seed=seed, tcp=tcp, serial=serial)
    delivery = seen[0]
    delivery.outcome = outcome
    with read_journal(directory / "journal.bin") as journal:
        delivery.visits = journal.visits.copy()
        delivery.events = tuple(e for part in journal.parts for e in part.events)
        delivery.truth = world.truth(list(delivery.run.planned), journal.visits) or {}
    if delivery.truth:
        (directory / "truth.json").write_text(json.dumps(delivery.truth, sort_keys=True), encoding="utf-8")
    assert sink.rejected == []
    if not whole:
        return delivery
    delivery.summary = rebuild(directory)
    crashed = [f"{directory / 'journal.bin'}: {sentence(part)}" for part in delivery.summary.get("unclosed", [])]
    killed = any(played["name"] == "process_killed" and played["fired_s"] is not None for played in world.played)
    assert verify_directory(directory) == crashed
    assert bool(crashed) == killed  # only a controller that was killed leaves a part without its end
    return delivery


def fault(target: str, *, at: str = "after_visits = 5", **values: Any) -> str:
    """One fault as a scenario writes it."""
    lines = [f'target = "{target}"', at, *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    return "\n".join(["[[fault]]", *lines, ""])


def counts_accounted(delivery: Delivery, fields: Sequence[int]) -> None:
    """S5: what the visits say and what lay between them is what the retained counters say, to the count."""
    visits = delivery.visits
    for index in fields:
        for number in (1, 2):
            told = delivery.named("reconcile", field=index, device=f"electrometer_{number}")
            assert told, f"field {index}: electrometer {number} was not reconciled"
            of_field = visits[visits["field"] == index]
            booked = int(of_field[f"counts_{number}"].sum())
            assert booked == told[-1]["journal"] == told[-1]["ring"]
            assert booked + told[-1]["between_visits"] == told[-1]["retained"]
