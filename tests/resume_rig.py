"""Treatments that lose their controller: thrown away at an instant, while the same plant lives on, and then resumed.

A thrown-away controller reaches nothing any more: its memory is no longer looked at (no frame is judged, no permit and
no drop leaves), its connections are gone and cannot be made anew, its journal takes no byte more than the operating
system had. What it still does on its way out, it does for nobody.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.commands import Commands
from controller.compose import VirtualWorld, site_key, wire_latencies
from controller.delivery.decision import Decision
from controller.delivery.run import Run
from controller.plan.check import check_plan
from controller.record.carried import read_carried
from controller.record.disk import Disk
from controller.record.journal_reader import read_journal
from controller.record.rebuild import rebuild, verify_directory
from controller.record.schema import QUALITY_FORGONE
from controller.session import Order, Outcome, deliver
from controller.telemetry_sinks import MemorySink
from drivers.contracts import SELF_TEST_VISIT
from drivers.wires.virtual_loop import VirtualLoop, run_virtual
from sites.loader import load_site
from sites.schema import Site

Moment = Callable[[VirtualWorld], Awaitable[None]]
"""Returns when the controller shall be lost."""


class MortalDisk(Disk):
    """The journal's disk, until the process dies."""

    def __init__(self) -> None:
        self.dead = False

    def write(self, file: int, data: memoryview) -> int:
        return len(data) if self.dead else super().write(file, data)


@dataclass(frozen=True, slots=True)
class Lost:
    """Where a treatment was when its controller was lost."""

    part: int
    t_s: float
    """Of the plant's time."""
    state: str
    """Of the controller's state machine."""
    visit: int
    """That the engine was at; 0: none."""
    beam: bool


@dataclass
class Resumed:
    """A treatment in several parts, at its end."""

    directory: Path
    world: VirtualWorld
    run: Run
    outcome: Outcome
    summary: dict[str, Any] = field(default_factory=dict)
    truth: dict[str, Any] = field(default_factory=dict)
    verdicts: list[str] = field(default_factory=list)
    """Of the reconciliation of each later part."""
    losses: list[Lost] = field(default_factory=list)
    """The moments that came before their part had ended."""


def after_visits(visits: int, then_s: float) -> Moment:
    """Some time after so many visits ended since the plant began."""

    async def wait(world: VirtualWorld) -> None:
        state = world.room.plant.state
        while int(state["results"]) < visits:
            await asyncio.sleep(0.0005)
        await asyncio.sleep(then_s)

    return wait


def at_second(seconds: float) -> Moment:
    """So long after the part began."""

    async def wait(_world: VirtualWorld) -> None:
        await asyncio.sleep(seconds)

    return wait


def in_beam(visits: int, then_s: float) -> Moment:
    """Some time after the part has begun its first visit with beam and so many more of its visits have ended."""

    async def wait(world: VirtualWorld) -> None:
        state = world.room.plant.state
        began = int(state["results"])
        while not (state["beam_present"] and 0 < int(state["eng_visit"]) < SELF_TEST_VISIT):
            await asyncio.sleep(0.0005)
        while int(state["results"]) < began + visits:
            await asyncio.sleep(0.0005)
        await asyncio.sleep(then_s)

    return wait


def lose_and_resume(
    plan: Path,
    site: str | Site,
    directory: Path,
    moments: Sequence[Moment],
    *,
    seed: int = 0,
    pause_s: float = 0.4,
    decision: Decision | None = None,
    meanwhile: Moment | None = None,
) -> Resumed:
    """Deliver, losing the controller at each moment in turn (each from the beginning of its part); then to the end.

    A part that ends before its moment is the last one, unless something interrupted it.

    `meanwhile`: what happens to the plant while nobody controls it.
    """
    room = load_site(site) if isinstance(site, str) else site
    directory.mkdir(parents=True)
    report = check_plan(plan, room)
    assert report.outcome == "deliverable"
    world = VirtualWorld(room, seed)
    numbers = random.Random(seed)
    runs: list[Run] = []
    losses: list[Lost] = []

    def watch(run: Run, _commands: Commands) -> None:
        runs.append(run)

    async def part(order: Order, disk: Disk) -> Outcome:
        assert world.path is not None
        outcome, _ = await deliver(
            order,
            report,
            world.path,
            site_key(room),
            MemorySink(),
            nonce=lambda: numbers.getrandbits(63) | 1,
            disk=disk,
            watch=watch,
        )
        return outcome

    async def main() -> Outcome:
        async with world.serve(()):
            order = Order(plan, room, directory, seed)
            for moment in moments:
                disk = MortalDisk()
                under_way = asyncio.create_task(part(order, disk), name="part")
                lost = asyncio.create_task(moment(world), name="moment")  # type: ignore[arg-type]
                await asyncio.wait((under_way, lost), return_when=asyncio.FIRST_COMPLETED)
                lost.cancel()
                if not under_way.done():
                    losses.append(_where(world, runs, order.part))
                elif under_way.result().status != "interrupted":
                    return under_way.result()
                disk.dead = True
                await _throw_away(under_way, world)
                await asyncio.sleep(pause_s)
                if meanwhile is not None:
                    await meanwhile(world)
                    world.lose_controller()  # the next one starts after what happened meanwhile
                order = next_order(plan, room, directory, seed, decision)
            return await part(order, Disk())

    tcp, serial = wire_latencies(room)
    outcome = run_virtual(main(), world, seed=seed, tcp=tcp, serial=serial)
    return _look(directory, world, runs[-1], outcome, losses)


def _where(world: VirtualWorld, runs: Sequence[Run], part: int) -> Lost:
    state = world.room.plant.state
    begun = len(runs) == part
    return Lost(
        part=part,
        t_s=round(int(state["t_ns"]) * 1e-9, 6),
        state=runs[-1].state.name if begun else "CHECKED",
        visit=int(state["eng_visit"]),
        beam=bool(state["beam_present"]),
    )


def next_order(plan: Path, room: Site, directory: Path, seed: int, decision: Decision | None) -> Order:
    """What resumes a treatment whose plant lived on: the same clock goes on."""
    carried = read_carried(directory / "journal.bin")
    epoch = datetime.fromisoformat(carried.header["epoch"])
    return Order(plan, room, directory, seed, carried=carried, decision=decision, epoch=epoch)


async def _throw_away(part: asyncio.Task[Outcome], world: VirtualWorld) -> None:
    """End a controller without its being able to say a word to the plant."""
    if part.done():
        part.result()
        return
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    network: Any = loop._network
    world.lose_controller()
    dial, line = network.dial, network.open_line

    async def nobody(*_args: object, **_options: object) -> None:
        raise ConnectionRefusedError("no controller any more")

    def no_line(*_args: object, **_options: object) -> None:
        raise OSError("no controller any more")

    network.dial, network.open_line = nobody, no_line
    for server in list(network._listeners.values()):
        server.abort_clients()
    for transport in list(network._open_paths.values()):
        transport.abort()
    part.cancel()
    await asyncio.wait((part,))
    network.dial, network.open_line = dial, line


def _look(directory: Path, world: VirtualWorld, run: Run, outcome: Outcome, losses: list[Lost]) -> Resumed:
    found = Resumed(directory, world, run, outcome, losses=losses)
    with read_journal(directory / "journal.bin") as journal:
        found.truth = world.truth([list(programs) for programs in run.planned], journal.visits) or {}
        found.verdicts = [e["verdict"] for e in journal.events if e["event"] == "reconciliation"]
    (directory / "truth.json").write_text(json.dumps(found.truth, sort_keys=True), encoding="utf-8")
    found.summary = rebuild(directory)
    wrong = verify_directory(directory)
    assert wrong == [] or (found.verdicts[-1:] == ["dispute"] and all("was never closed" in w for w in wrong))
    return found


def spot_errors(found: Resumed) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """True particles less planned ones of every visit, in percent and in particles, all parts together."""
    percent, particles = [], []
    for truth, programs in zip(found.world.room.truths(), found.run.planned, strict=False):
        for program in programs:
            wanted = program.visits["particles"]
            got = truth["units"][program.visits["visit"]] / (1 << 20)
            percent.append(100.0 * (got / wanted - 1.0))
            particles.append(got - wanted)
    return np.concatenate(percent), np.concatenate(particles)


def counts_agree(found: Resumed) -> None:
    """Journal = rings = counters: every ring row is booked once, in order, with the counts that were latched."""
    plant = found.world.room.plant
    rows = int(plant.state["results"])
    with read_journal(found.directory / "journal.bin") as journal:
        visits = journal.booked[(journal.booked["quality"] & QUALITY_FORGONE) == 0]
    visits = visits[np.lexsort((visits["t_end_ns"], visits["part"]))]
    ours = plant.results[:rows]["visit"] != SELF_TEST_VISIT
    ring = plant.results[:rows][ours]
    assert visits["visit"].tolist() == ring["visit"].tolist()
    for number in (1, 2):
        latched = getattr(plant, f"latches_{number}")[:rows]["counts"][ours]
        booked = visits[f"counts_{number}"]
        follows = ring["t_start_ns"][1:] == ring["t_end_ns"][:-1]
        assert np.array_equal(booked[1:][follows], np.diff(latched)[follows])
        # and together they are no more than the counter counted, and no less than it, pedestal apart
        total = int(plant.state[f"counts_{number}"]) >> 24
        idle = total - int(booked.sum())
        assert 0 <= idle <= 50 * int(plant.state["t_ns"]) * 1e-9 + 5
