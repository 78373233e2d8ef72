"""Controllers lost at random moments of treatments in virtual time, and what became of it, spot by spot.

    python -m tests.losses --times 1000 --seed 0 --out DIR   play losses until there are so many; goes on where it ended
    python -m tests.losses --page --out DIR...               the table of docs/resume.md, of one series or several

Each treatment is lost up to five times, anywhere: half of the moments are drawn evenly over a part's time, the other
half while it gives beam. It is resumed each time and given to its end; each tenth treatment is left alone, and shows
what a single run's spots look like. Judged is by what only the plant knows. DIR/losses.jsonl has one line a treatment.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.record.journal_reader import read_journal
from controller.record.schema import QUALITY_FORGONE, VISIT_PARTIAL
from sites.loader import load_site
from sites.schema import Site
from tests.delivery_rig import EXAMPLES
from tests.resume_rig import Moment, Resumed, at_second, counts_agree, in_beam, lose_and_resume, spot_errors

FILE = "losses.jsonl"
PER_TREATMENT = 5
LONGEST_S = {"small_carbon": 12.0, "small_proton": 20.0, "gated_carbon": 14.0}
"""About as long as an undisturbed part takes."""
ROOMS = (
    ("carbon, raster, 10 ms", "small_carbon", "carbon-fixed", 10.0),
    ("carbon, raster, 250 ms", "small_carbon", "carbon-fixed", 250.0),
    ("carbon, gated, 10 ms", "gated_carbon", "carbon-gantry", 10.0),
    ("proton, discrete, 10 ms", "small_proton", "proton-gantry", 10.0),
)
"""Name, plan, site, and after how long without a permit the safety chain opens."""


@dataclass(frozen=True, slots=True)
class Case:
    """One treatment of the series."""

    number: int
    seed: int

    @property
    def room(self) -> tuple[str, str, str, float]:
        """One of `ROOMS`."""
        return ROOMS[self.number % len(ROOMS)]

    @property
    def undisturbed(self) -> bool:
        """Nothing is lost: what a single run gives."""
        return self.number // len(ROOMS) % 10 == 0

    def moments(self) -> list[Moment]:
        """When its controllers are lost."""
        draw = random.Random(f"{self.seed}|{self.number}")
        if self.undisturbed:
            return []
        longest_s = LONGEST_S[self.room[1]]
        return [
            at_second(draw.uniform(0.0, longest_s))
            if draw.random() < 0.5
            else in_beam(draw.randrange(0, 16), draw.random() * 0.004)
            for _ in range(PER_TREATMENT)
        ]

    def pause_s(self) -> float:
        """From a loss to the next part."""
        return random.Random(f"{self.seed}|{self.number}|pause").choice((0.0, 0.4, 5.0))


def room_of(site: str, time_out_ms: float) -> Site:
    """A shipped site whose chain opens after this long without a permit."""
    room = load_site(site)
    return room.model_copy(update={"permits": room.permits.model_copy(update={"time_out_ms": time_out_ms})})


def play(case: Case, folder: Path) -> dict[str, Any]:
    """Play one treatment; what it was and all that was found wrong with it."""
    name, plan, site, time_out_ms = case.room
    directory = folder / f"case-{case.number}"
    shutil.rmtree(directory, ignore_errors=True)
    found = lose_and_resume(
        EXAMPLES / f"{plan}.dcm",
        room_of(site, time_out_ms),
        directory,
        case.moments(),
        seed=case.seed * 100_000 + case.number,
        pause_s=case.pause_s(),
    )
    line = {"case": case.number, "seed": case.seed, "room": name, **judged(found)}
    if not line["wrong"]:
        shutil.rmtree(directory)
    return line


def judged(found: Resumed) -> dict[str, Any]:
    """Status, losses, each visit's true error, its pieces, and what is wrong."""
    wrong = []
    if found.outcome.status != "completed":
        wrong.append(f"{found.outcome.status}: {found.outcome.message}")
    try:
        counts_agree(found)
    except AssertionError as error:
        wrong.append(f"journal, rings and counters: {str(error).splitlines()[0] if str(error) else 'do not agree'}")
    with read_journal(found.directory / "journal.bin") as journal:
        booked = journal.booked.copy()
    wrong += [f"given twice: field {f}, visit {v}" for f, v in given_twice(booked)]
    percent, particles = spot_errors(found) if not wrong else (np.zeros(0), np.zeros(0))
    counts, pieces, forgone = visits_of(found, booked) if not wrong else ([], [], 0)
    return {
        "losses": [asdict(lost) for lost in found.losses],
        "parts": len(found.losses) + 1,
        "verdicts": found.verdicts,
        "wrong": wrong,
        "forgone": forgone,
        "counts": counts,
        "pieces": pieces,
        "error_pct": [round(float(v), 4) for v in percent],
        "error_particles": [round(float(v), 1) for v in particles],
    }


def given_twice(booked: NDArray[Any]) -> list[tuple[int, int]]:
    """Visits that were complete and got more afterwards, by the order of parts."""
    twice = []
    for key in np.unique(booked[["field", "visit"]]):
        rows = booked[booked[["field", "visit"]] == key]
        whole = (rows["flags"] & VISIT_PARTIAL) == 0
        if whole.sum() > 1 or (whole.any() and rows["part"].max() > rows["part"][whole].max()):
            twice.append((int(key["field"]), int(key["visit"])))
    return twice


def visits_of(found: Resumed, booked: NDArray[Any]) -> tuple[list[int], list[int], int]:
    """Planned counts and number of pieces of each visit, in the order of `spot_errors`; number of forgone rests."""
    gone = (booked["quality"] & QUALITY_FORGONE) != 0
    counts: list[int] = []
    pieces: list[int] = []
    for index, programs in enumerate(found.run.planned):
        for program in programs:
            counts += program.visits["preset_counts"].tolist()
            given = booked[(booked["field"] == index) & ~gone]
            pieces += [int((given["visit"] == visit).sum()) for visit in program.visits["visit"]]
    return counts, pieces, int(gone.sum())


def lines_of(out: Path) -> list[dict[str, Any]]:
    """What was played so far."""
    path = out / FILE
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def series(out: Path, seed: int, times: int) -> Iterator[dict[str, Any]]:
    """Play treatments until `times` controllers were lost in all; a line each, as soon as it is there."""
    out.mkdir(parents=True, exist_ok=True)
    before = lines_of(out)
    lost = sum(len(line["losses"]) for line in before)
    number = len(before)
    while lost < times:
        line = play(Case(number, seed), out)
        with (out / FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        lost += len(line["losses"])
        number += 1
        yield line


def figures(errors: Sequence[float]) -> str:
    """Cells of a row."""
    e = np.array(errors)
    if len(e) == 0:
        return "0 | - | - | - | -"
    size = np.abs(e)
    return f"{len(e)} | {e.mean():+.3f} | {e.std():.3f} | {np.percentile(size, 95):.3f} | {size.max():.3f}"


def page(lines: Sequence[dict[str, Any]]) -> str:
    """The figures of all treatments, as docs/resume.md has them."""
    losses = [lost for line in lines for lost in line["losses"]]
    verdicts = [verdict for line in lines for verdict in line["verdicts"]]
    wrong = [f"case {line['case']}: {what}" for line in lines for what in line["wrong"]]
    text = [
        f"{len(losses)} losses in {len(lines)} treatments, {sum(lost['beam'] for lost in losses)} with beam on; "
        f"reconciliation: {', '.join(f'{verdicts.count(v)} {v}' for v in sorted(set(verdicts)))}; "
        f"rests forgone: {sum(line['forgone'] for line in lines)}; wrong: {len(wrong)}.",
        "",
        "| room | spots | number | mean % | sd % | p95 % | worst % |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, *_ in ROOMS:
        for what, wanted in (
            ("of an undisturbed run", lambda line, _pieces: not line["losses"]),
            ("given in one piece", lambda line, pieces: line["losses"] and pieces <= 1),
            ("given in several", lambda line, pieces: line["losses"] and pieces > 1),
        ):
            errors = [
                error
                for line in lines
                if line["room"] == name
                for error, pieces in zip(line["error_pct"], line["pieces"], strict=True)
                if wanted(line, pieces)
            ]
            text.append(f"| {name} | {what} | {figures(errors)} |")
    return "\n".join([*text, *([""] if wrong else []), *wrong])


def main(arguments: Sequence[str] | None = None) -> int:
    """Play, or print the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.losses")
    parser.add_argument("--times", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, nargs="+")
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args(arguments)
    if not options.page:
        if len(options.out) > 1:
            parser.error("--out: one folder for one series")
        for line in series(options.out[0], options.seed, options.times):
            worst = max(map(abs, line["error_pct"]), default=float("nan"))
            how = "; ".join(line["wrong"]) or f"worst spot {worst:.2f} %"
            print(f"{line['case']}: {line['room']}, {len(line['losses'])} losses, {how}", file=sys.stderr, flush=True)
    lines = [line for out in options.out for line in lines_of(out)]
    print(page(lines))
    return 1 if any(line["wrong"] for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
