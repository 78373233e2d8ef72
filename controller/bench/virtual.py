"""A whole treatment in virtual time for a bench, by the path of `deliver --clock virtual`, without a display."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from pathlib import Path

from controller.compose import VirtualWorld, site_key, wire_latencies
from controller.delivery.run import Run
from controller.plan.check import CheckReport, check_plan
from controller.session import Order, Outcome, deliver
from controller.telemetry_sinks import LatestSink
from drivers.errors import SpotwiseError
from drivers.wires.virtual_loop import run_virtual
from sites.loader import load_site
from sites.schema import Site

SITE = "carbon-fixed"


class NotDeliveredError(SpotwiseError):
    """The bench's own plan was not delivered: there is nothing to time."""


@dataclass(frozen=True, slots=True)
class VirtualTreatment:
    """A delivered plan and what it took."""

    run: Run
    directory: Path
    report: CheckReport
    virtual_s: float
    """From connecting to the devices to the end of the treatment."""
    wall_s: float
    cpu_s: float


def checked(plan: Path, site: Site) -> CheckReport:
    """The plan, checked for the site."""
    return check_plan(plan, site, gantry_deg=0.0, couch_deg=0.0)


def deliver_plan(plan: Path, site: Site, directory: Path, world: VirtualWorld, seed: int = 0) -> VirtualTreatment:
    """Deliver a raster file into a new directory; only the treatment itself is timed. Raises `NotDeliveredError`."""
    report = checked(plan, site)
    directory.mkdir(parents=True)
    order = Order(plan, site, directory, seed)
    numbers = random.Random(seed)
    spent: list[float] = []

    async def main() -> tuple[Outcome, Run]:
        async with world.serve(()) as path:
            loop = asyncio.get_running_loop()
            begun_s, wall_s, cpu_s = loop.time(), time.perf_counter(), time.process_time()
            done = await deliver(
                order, report, path, site_key(site), LatestSink(), nonce=lambda: numbers.getrandbits(63) | 1
            )
            spent.extend((loop.time() - begun_s, time.perf_counter() - wall_s, time.process_time() - cpu_s))
            return done

    tcp, serial = wire_latencies(site)
    outcome, run = run_virtual(main(), world, seed=seed, tcp=tcp, serial=serial)
    if outcome.status != "completed":
        raise NotDeliveredError(f"the bench's plan was not delivered: {outcome.status} {outcome.message}")
    return VirtualTreatment(run, directory, report, *spent)


def bench_site() -> Site:
    """The room in which benches deliver."""
    return load_site(SITE)


def poll_plan(site: Site) -> str:
    """How often which devices are asked for their state: a real time factor means nothing without it."""
    by_rate: dict[float, list[str]] = {}
    for name, device in site.devices.items():
        by_rate.setdefault(device.poll_hz, []).append(name)
    return "; ".join(f"{rate:g} Hz: {', '.join(names)}" for rate, names in sorted(by_rate.items(), reverse=True))
