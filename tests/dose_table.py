"""Every good reference plan, delivered in virtual time at its site: spot dose and position against the plant's truth.

    python -m tests.dose_table SHARED_FOLDER [SEED]

prints the table of docs/dosimetry.md. A plan goes to each site at which the check calls it deliverable (proton plans to
`proton-gantry`, carbon plans to `carbon-fixed`, or `carbon-gantry` where the angles need it).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SITES = ("carbon-fixed", "carbon-gantry", "proton-gantry")
COLUMNS = ("mean", "sd", "rms", "p99")


def run(*arguments: str) -> tuple[int, dict[str, Any]]:
    """The command with --json, as its own process."""
    done = subprocess.run(
        [sys.executable, "-m", "controller.cli", *arguments, "--json"], capture_output=True, text=True, check=False
    )
    return done.returncode, json.loads(done.stdout) if done.stdout.strip() else {}


def deliveries(shared: Path, seed: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Plan, site and summary of each plan that a site can deliver."""
    plans = [
        *sorted((shared / "plans" / "good").glob("*.dcm")),
        *sorted((shared / "plans" / "trip98").glob("TST*.rst")),
    ]
    for plan in plans:
        for site in SITES:
            if run("check", str(plan), "--allow-unapproved", "--site", site)[0] != 0:
                continue
            with tempfile.TemporaryDirectory() as folder:
                out = str(Path(folder) / "out")
                _, summary = run(
                    "deliver",
                    str(plan),
                    "--allow-unapproved",
                    "--site",
                    site,
                    "--clock",
                    "virtual",
                    "--seed",
                    seed,
                    "--out",
                    out,
                )
            yield plan.name, site, summary
            break


def line(plan: str, site: str, summary: dict[str, Any]) -> str:
    """One line of the table."""
    truth = summary.get("truth") or {}
    dose, place = truth.get("spot_dose_error_pct", {}), truth.get("spot_position_error_mm", {})
    figures = [dose.get(name) for name in COLUMNS] + [place.get("p95")]
    cells = " | ".join("-" if value is None else f"{value:.3f}" for value in figures)
    return f"| `{plan}` | {site} | {summary.get('outcome')} | {summary.get('spots_delivered')} | {cells} |"


def main() -> None:
    """Print the table, a line as soon as it is there."""
    print("| plan | site | outcome | spots | mean % | sd % | RMS % | p99 % | position p95 mm |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for plan, site, summary in deliveries(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "0"):
        print(line(plan, site, summary), flush=True)


if __name__ == "__main__":
    main()
