"""One treatment of a campaign: a room, a scenario and a seed in, a frozen verdict out.

The treatment runs in virtual time in this process, with the drivers, devices, judgements and journal of every other
delivery. Afterwards the room goes on for a moment, so that beam that comes back would be seen; then the plant's truth,
which the controller never sees, is compared with the plan and with the journal.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import resource
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from controller.campaign.definition import Room
from controller.campaign.misplaced import misplaced, nothing_planned
from controller.campaign.truth_dose import TruthDose, truth_dose
from controller.campaign.verdict import Facts, Reaction, Verdict, judge
from controller.commands import Commands
from controller.compose import ION_UNIT, Scenario, VirtualWorld, parse_scenario, site_key, wire_latencies
from controller.delivery.run import Run
from controller.plan.check import CheckReport, check_plan
from controller.record.journal_reader import Journal, read_journal
from controller.record.schema import VISIT_PARTIAL
from controller.session import Order, Outcome, deliver
from controller.telemetry_sinks import LatestSink
from drivers.errors import BadInput, SpotwiseError
from drivers.wires.virtual_loop import run_virtual
from sites.schema import Site

AFTER_S = 0.2
"""The room goes on for so long after the end; a chopper needs less than a millisecond, a stopper 50 ms."""
LONGEST_S = 3600.0
"""Virtual time in which every treatment of a campaign has ended."""
ASK_EACH = 256
LONGEST_CPU_S = 300.0
"""Of this process: a treatment takes less than one, compiling a minute."""
MEMORY_FILES = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Case:
    """What is played."""

    room: Room
    seed: int
    scenario: str = ""
    """TOML text as `deliver --fault` takes it; empty: no fault."""
    expected: tuple[str, ...] = ("none",)
    """Conditions that may be first-out."""
    harmless: bool = False
    """The fault is weaker than the one that the catalogue promises to be found."""


class Hang(Exception):
    """A treatment that does not end."""


class WatchedWorld(VirtualWorld):
    """Gives up where a treatment takes longer than any can."""

    def __init__(self, site: Site, seed: int) -> None:
        super().__init__(site, seed)
        self._begun_s = time.process_time()  # of the process, not of the room: it bounds what a defect can cost
        self._turns = 0

    def run_to(self, t_ns: int) -> int:
        if t_ns > LONGEST_S * 1e9:
            raise Hang(f"not over after {LONGEST_S:g} s of the room's time")
        self._turns += 1  # asking the system each time would take half of a campaign
        if self._turns % ASK_EACH == 0 and time.process_time() - self._begun_s > LONGEST_CPU_S:
            raise Hang(f"not over after {LONGEST_CPU_S:g} s of computing, at {t_ns * 1e-9:.3f} s of the room's time")
        return super().run_to(t_ns)


@lru_cache(maxsize=32)
def prepared(room: Room) -> tuple[Site, CheckReport]:
    """A room's site, and its plan, checked once. Raises `BadInput` where the plan does not fit."""
    site = room.load()
    report = check_plan(room.plan_path, site)
    if report.outcome != "deliverable":
        raise BadInput(f"room {room.name}: {room.plan}: {[f.message for f in report.findings]}")
    return site, report


def play(case: Case, *, make_site: Callable[[Site], Site] = lambda site: site) -> Verdict:
    """Deliver and judge. `make_site`: for tests, a room that is deliberately worse than its file."""
    site, report = prepared(case.room)
    site = make_site(site)
    scenario = parse_scenario(case.scenario) if case.scenario else Scenario(())
    folder = MEMORY_FILES if MEMORY_FILES.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="spotwise-case-", dir=folder) as out:
        played = _Played(case, site, report, scenario, Path(out))
        return played.verdict()


@dataclass(frozen=True, slots=True, eq=False)
class Calm:
    """A treatment in which nothing goes wrong: what one with the same seed and a fault is compared with."""

    lasts_s: dict[tuple[int, int], float]
    """How long each visit lasts, by field (from 1) and visit."""
    truths: list[Any]


@lru_cache(maxsize=8)
def calm(room: Room, seed: int) -> Calm:
    """Play a treatment without fault."""
    site, report = prepared(room)
    folder = MEMORY_FILES if MEMORY_FILES.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="spotwise-case-", dir=folder) as out:
        played = _Played(Case(room, seed), site, report, Scenario(()), Path(out))
        with read_journal(Path(out) / "journal.bin") as journal:
            visits = journal.visits.copy()
    lasted_s = (visits["t_end_ns"] - visits["t_start_ns"]) * 1e-9
    lasts_s = {
        (int(f) + 1, int(v)): float(s) for f, v, s in zip(visits["field"], visits["visit"], lasted_s, strict=True)
    }
    truths = [truth[: 1 + int(visits["visit"].max(initial=0))].copy() for truth in played.world.room.truths()]
    return Calm(lasts_s, truths)


class _Played:
    """A treatment that has been played, and what is to be known of it."""

    def __init__(self, case: Case, site: Site, report: CheckReport, scenario: Scenario, out: Path) -> None:
        self.case = case
        self.site = site
        self.scenario = scenario
        self.out = out
        self.world = WatchedWorld(site, case.seed)
        self.runs: list[Run] = []
        self.outcome = Outcome("defect")
        self.end_ns = 0
        self.defect = ""
        self.particles_after = 0
        self.counts = [0, 0]
        """Of both electrometers, at the end of the treatment."""
        numbers = random.Random(f"{case.seed}|{site.name}")

        async def main() -> None:
            async with self.world.serve(scenario) as path:
                try:
                    self.outcome, _ = await deliver(
                        Order(case.room.plan_path, site, out, case.seed),
                        report,
                        path,
                        site_key(site),
                        LatestSink(),
                        nonce=lambda: numbers.getrandbits(63) | 1,
                        watch=self._watch,
                    )
                except SpotwiseError as error:
                    # what the command line says in one line and with a status of its own
                    if error.exit_status not in (3, 4):
                        raise
                    self.outcome = Outcome("refused" if error.exit_status == 3 else "interrupted", str(error))
                plant = self.world.room.plant.state
                self.end_ns, before = int(plant["t_ns"]), int(plant["particles"])
                self.counts = [int(plant[f"retained_{n}"]) + (int(plant[f"counts_{n}"]) >> 24) for n in (1, 2)]
                await asyncio.sleep(AFTER_S)
                self.particles_after = (int(plant["particles"]) - before) // ION_UNIT

        tcp, serial = wire_latencies(site)
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            run_virtual(main(), self.world, seed=case.seed, tcp=tcp, serial=serial)
        except Exception:
            # the boundary: whatever a treatment dies of is the campaign's finding, not its end
            self.defect = self._anywhere(_lines(traceback.format_exc()))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, descriptors)  # a fault may have left this process without any

    def _watch(self, run: Run, commands: Commands) -> None:
        self.runs.append(run)
        self.world.follow(run, commands)

    def verdict(self) -> Verdict:
        """What became of it."""
        try:
            with read_journal(self.out / "journal.bin") as journal:
                facts = self._facts(journal)
        except BadInput as error:
            facts = self._without_journal(str(error))
        return judge(facts)

    def _without_journal(self, why: str) -> Facts:
        return replace(self._bare(), defect=self.defect or f"no journal: {why}")

    def _anywhere(self, text: str) -> str:
        """Without the name of this PC's folder: the same case gives the same bytes everywhere."""
        return text.replace(str(self.out), "OUT")

    def _bare(self) -> Facts:
        plant = self.world.room.plant.state
        played = self.world.room.player.played
        fired = [p.fired_ns for p in played if p.fired_ns is not None]
        return Facts(
            room=self.case.room.name,
            seed=self.case.seed,
            scenario=self.case.scenario,
            fault=" + ".join(f.name for f in self.scenario) or "none",
            place="; ".join(f.place.words() for f in self.scenario),
            expected=self.case.expected,
            harmless=self.case.harmless,
            fired=len(fired) == len(played),
            status=self.outcome.status,
            message=self._anywhere(self.outcome.message),
            defect=self.defect,
            beam_at_end=bool(plant["beam_present"]) or bool(plant["closed"]),
            particles_after=self.particles_after,
        )

    def _facts(self, journal: Journal) -> Facts:
        bare = self._bare()
        if not self.runs:
            return replace(bare, defect=self.defect or "the treatment never began")
        run = self.runs[0]
        programs = [list(p) for p in run.planned]
        truths = self.world.room.truths()
        visits = journal.visits.copy()
        events = [event for part in journal.parts for event in part.events]
        end = journal.end or {}
        dose = truth_dose(truths, ION_UNIT, programs) if programs else TruthDose(0, 0, 0, 0, 0, 0, 0)
        usual = calm(self.case.room, self.case.seed).truths if self.case.scenario else []
        misplaced_gy, harm_gy = misplaced(truths, ION_UNIT, programs, usual) if programs else (0.0, 0.0)
        # of a controller that was killed the latch knows more than the disk; the journal knows when the cause was seen
        latched = run.latch.history
        seen_ns = {str(e["id"]): int(e["t_cause_ns"]) for e in reversed(events) if e["event"] == "trip"}
        first = next((trip for trip in latched if trip.first_out), None)
        return replace(
            bare,
            first_out="" if first is None else first.id,
            detail="" if first is None else self._anywhere(first.detail)[:200],
            trips=tuple(dict.fromkeys(trip.id for trip in latched)),
            dose=dose,
            misplaced_gy=misplaced_gy,
            harm_gy=harm_gy,
            outside=_outside_tolerance(self.site, truths, programs, visits),
            unaccounted_gy=_unaccounted(truths, programs, visits),
            miscounted=_miscounted(events, visits, end, self._more()),
            settled=bool(end.get("settled", False)),
            reaction=None if first is None else self._reaction(seen_ns.get(first.id, first.t_ns)),
            beam_s_left=self._beam_after_fault(),
            exposed_s=self._exposed(visits),
        )

    def _more(self) -> Callable[[int, int, int], str]:
        """Compares an electrometer's last reading in the journal (counts, time) with what the plant had at the end."""
        plant = self.world.room.plant.parameters

        def more(number: int, counts: int, t_ns: int) -> str:
            pedestal_per_s = abs(int(plant[f"pedestal_{number}"])) * 1e5 / (1 << 24)
            since_s = READ_S + max(0.0, (self.end_ns - t_ns) * 1e-9)
            least, most = 0, PEDESTAL_AFTER + 1.1 * pedestal_per_s * since_s
            found = self.counts[number - 1] - counts
            if least <= found <= most:
                return ""
            return f"electrometer {number}: the plant has {found} counts more than the journal's last"

        return more

    def _reaction(self, trip_ns: int) -> Reaction:
        plant = self.world.room.plant.state
        fired = [p.fired_ns for p in self.world.room.player.played if p.fired_ns is not None]
        begun_ns = min(fired, default=None)
        return Reaction(
            fault_to_trip_ms=None if begun_ns is None else _ms(max(0, trip_ns - begun_ns)),
            trip_to_open_ms=_ms(max(0, int(plant["open_ns"]) - trip_ns)),
            trip_to_beam_off_ms=_ms(max(0, int(plant["beam_last_ns"]) - trip_ns)),
        )

    def _beam_after_fault(self) -> float:
        """From the fault to the last beam, s: how long there was anything to be found."""
        fired = [p.fired_ns for p in self.world.room.player.played if p.fired_ns is not None]
        if not fired:
            return 0.0
        return max(0.0, (int(self.world.room.plant.state["beam_last_ns"]) - min(fired)) * 1e-9)

    def _exposed(self, visits: Any) -> float:
        """How long visits ran while a fault that has passed was there, s."""
        played = self.world.room.player.played
        if not played or any(p.fired_ns is None or p.ended_ns is None for p in played):
            return math.inf
        begin, end = min(p.fired_ns or 0 for p in played), max(p.ended_ns or 0 for p in played)
        return (
            float(np.clip(np.minimum(visits["t_end_ns"], end) - np.maximum(visits["t_start_ns"], begin), 0, None).sum())
            * 1e-9
        )


def _ms(ns: int) -> float:
    return round(ns * 1e-6, 4)


def _lines(text: str) -> str:
    """The end of a traceback without the folders of this PC: verdicts are the same everywhere."""
    kept = [line.replace(os.getcwd() + "/", "") for line in text.strip().splitlines()]
    return "\n".join(kept[-6:])


def _outside_tolerance(site: Site, truths: list[Any], programs: list[list[Any]], visits: Any) -> tuple[str, ...]:
    """Completed visits that got too much, too little, or elsewhere, in truth; a few of them, in words."""
    found: list[str] = []
    tolerances = site.tolerances
    for index, (truth, layers) in enumerate(zip(truths, programs, strict=False)):
        of_field = visits[(visits["field"] == index) & (visits["flags"] & VISIT_PARTIAL == 0)]
        done = np.unique(of_field["visit"])
        for program in layers:
            rows = program.visits[np.isin(program.visits["visit"], done)]
            if not len(rows):
                continue
            units = truth["units"][rows["visit"]].astype(np.float64)
            got, wanted = units / ION_UNIT, rows["particles"]
            limit = np.maximum(
                tolerances.spot_dose * wanted, tolerances.spot_dose_counts / max(1e-30, program.counts_per_particle)
            )
            with np.errstate(invalid="ignore", divide="ignore"):
                away = np.hypot(
                    truth["x"][rows["visit"]] / units - rows["x_mm"], truth["y"][rows["visit"]] / units - rows["y_mm"]
                )
            off = np.abs(got - wanted) > limit
            far = away > rows["position_limit_mm"]
            for row, g, w, a in zip(rows[off | far], got[off | far], wanted[off | far], away[off | far], strict=True):
                found.append(
                    f"field {index + 1}, visit {row['visit']}: {g:.4g} of {w:.4g} particles, {a:.2f} mm from its place"
                )
    return tuple(found[:5])


def _unaccounted(truths: list[Any], programs: list[list[Any]], visits: Any) -> float:
    """Gy at the worst point from beam in visits that the journal does not have, and outside all visits."""
    missing = []
    none_planned = []
    for index, (truth, layers) in enumerate(zip(truths, programs, strict=False)):
        left = truth.copy()
        booked = visits["visit"][visits["field"] == index]
        left[booked[booked < len(left)]] = np.zeros(1, left.dtype)
        missing.append(left)
        none_planned.append([nothing_planned(p) for p in layers])
    return truth_dose(missing, ION_UNIT, none_planned).excess_gy if missing else 0.0


def _miscounted(
    events: list[dict[str, Any]], visits: Any, end: dict[str, Any], more: Callable[[int, int, int], str]
) -> tuple[str, ...]:
    """Where journal, rings and the plant's own counters do not agree although the journal says that they do."""
    found = []
    last: dict[tuple[int, int], dict[str, Any]] = {}
    for event in events:
        if event["event"] == "reconcile":
            last[event["field"], int(event["device"][-1])] = event
    for (field, number), told in last.items():
        booked = int(visits[f"counts_{number}"][visits["field"] == field].sum())
        if not (booked == told["journal"] == told["ring"] and booked + told["between_visits"] == told["retained"]):
            found.append(f"field {field + 1}, electrometer {number}: {booked} booked, {told['retained']} retained")
    counters = [e for e in events if e["event"] == "counters"]
    if end.get("settled") and counters and counters[-1]["phase"] == "end":
        last_read = counters[-1]
        found += [more(n, int(last_read[f"counts_{n}"]), int(last_read["t_ns"])) for n in (1, 2)]
    return tuple(why for why in found if why)


READ_S = 0.005
"""From an electrometer's reading to the time that the journal gives it."""
PEDESTAL_AFTER = 200
"""Counts of noise beside the pedestal between the last reading and the end of a treatment: a spot has more."""
