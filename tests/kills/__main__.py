"""Kills processes of a treatment at random moments, in real time, and measures what becomes of it.

    python -m tests.kills stops --times 100 --seed 0 --out DIR      beam off after each stop, at the plant
    python -m tests.kills resumes --times 100 --seed 0 --out DIR    killed controllers, resumed to the end
    python -m tests.kills keep DIR...                               results go to tests/kills/results.json
    python -m tests.kills page > docs/safety/kills.md

Every trial leaves a line in DIR/stops.jsonl or DIR/resumes.jsonl; a command that is given again goes on after the last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.kills.page import page
from tests.kills.resumes import resume_once, times_of
from tests.kills.room import bench, load
from tests.kills.stops import KINDS, beam_phase_s, share_of, stop_once

RESULTS = Path(__file__).with_name("results.json")
A_ROOM = 12
"""Trials of a room's start."""


def lines(path: Path) -> list[dict[str, Any]]:
    """What is known already."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def commit() -> str:
    """Of the sources that run."""
    told = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=RESULTS.parent
    )
    return told.stdout.strip() or "unknown"


def note(path: Path, result: dict[str, Any]) -> None:
    """One more line."""
    result = {**result, "commit": commit()}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "said"}), flush=True)


def counted(known: list[dict[str, Any]]) -> int:
    """Trials that struck; a treatment that was over before is none."""
    return sum(not one.get("over") or bool(one.get("problems")) for one in known)


async def stops(folder: Path, times: int, seed: int) -> None:
    """The trials that are missing."""
    path = folder / "stops.jsonl"
    start = 0
    while counted(lines(path)) < times:
        while (folder / f"room-{start}").exists():
            start += 1
        async with bench(folder / f"room-{start}") as room:
            phase_s = await beam_phase_s(room, room.room.folder / "undisturbed")
            for _ in range(A_ROOM):
                known = lines(path)
                if counted(known) >= times:
                    break
                kind, share = KINDS[counted(known) % len(KINDS)], share_of(seed, len(known))
                out = room.room.folder / f"trial-{len(known)}"
                result = {"n": len(known), "seed": seed, "phase_s": round(phase_s, 3)}
                result |= await stop_once(room, kind, share, phase_s, out)
                note(path, result)
                if result.get("problems"):
                    break  # a new room: whatever it was, it stays with this trial
                shutil.rmtree(out)
        if not any((folder / f"room-{start}").glob("trial-*")):
            shutil.rmtree(folder / f"room-{start}")


def killed(known: list[dict[str, Any]]) -> int:
    """Controllers that were killed so far."""
    return sum(len(one["kills"]) for one in known if "kills" in one)


async def resumes(folder: Path, times: int, seed: int) -> None:
    """Treatments until so many controllers were killed."""
    path = folder / "resumes.jsonl"
    start = 0
    while killed(lines(path)) < times:
        while (folder / f"room-{start}").exists():
            start += 1
        async with bench(folder / f"room-{start}") as room:
            undisturbed = await times_of(room, room.room.folder / "undisturbed")
            note(path, {"n": len(lines(path)), "undisturbed": True, "load": load(), **undisturbed})
            for _ in range(A_ROOM):
                known = lines(path)
                if killed(known) >= times:
                    break
                out = room.room.folder / f"treatment-{len(known)}"
                result = {"n": len(known), "seed": seed}
                result |= await resume_once(room, len(known), seed, undisturbed, out)
                note(path, result)
                if result["problems"]:
                    break
                shutil.rmtree(out)
        if not any((folder / f"room-{start}").glob("treatment-*")):
            shutil.rmtree(folder / f"room-{start}")


def keep(folders: list[Path]) -> None:
    """Put what folders hold into the results that the page is made of; what they do not hold stays."""
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for what in ("stops", "resumes"):
        found = [one for folder in folders for one in lines(folder / f"{what}.jsonl")]
        found = [one for one in found if not one.get("over") or one.get("problems")]
        if found:
            results[what] = [{k: v for k, v in one.items() if k != "said"} for one in found]
    rows = (
        f' "{what}": [\n' + ",\n".join(f"  {json.dumps(one)}" for one in found) + "\n ]"
        for what, found in results.items()
    )
    RESULTS.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


def main() -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills")
    commands = parser.add_subparsers(dest="what", required=True)
    for what in ("stops", "resumes"):
        trials = commands.add_parser(what)
        trials.add_argument("--times", type=int, default=100)
        trials.add_argument("--seed", type=int, default=0)
        trials.add_argument("--out", type=Path, required=True)
    commands.add_parser("keep").add_argument("folders", type=Path, nargs="+")
    commands.add_parser("page")
    given = parser.parse_args()
    if given.what == "page":
        sys.stdout.write(page(json.loads(RESULTS.read_text(encoding="utf-8"))))
    elif given.what == "keep":
        keep(given.folders)
    else:
        given.out.mkdir(parents=True, exist_ok=True)
        asyncio.run({"stops": stops, "resumes": resumes}[given.what](given.out.resolve(), given.times, given.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
