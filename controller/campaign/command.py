"""`spotwise campaign`: many treatments with faults, here or on a cluster; what is done is never done again."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from controller.campaign.dask_runner import run_jobs_on
from controller.campaign.definition import shipped
from controller.campaign.jobs import Job, jobs_of
from controller.campaign.report import write_report
from controller.campaign.runner import run_jobs
from controller.campaign.shrink import write_shrunk
from controller.campaign.store import Store
from controller.campaign.summary import summarise
from drivers.errors import BadInput

SUMMARY = "campaign.json"
SHORT = ("cases", "safe_named", "safe_unnamed", "unsafe", "false_trips", "worst_overdose_gy")


def campaign(options: argparse.Namespace) -> dict[str, Any]:
    """Play what is missing, write report and figures; returns the figures."""
    definition = shipped()
    size = "slice" if options.slice else "full"
    jobs = jobs_of(definition, size, options.seed)
    if options.only:
        jobs = [job for job in jobs if options.only in job.name]
        if not jobs:
            raise BadInput(f"--only {options.only}: no job of the campaign has that in its name")
    out: Path = options.out if options.out is not None else Path(f"campaign-{size}-{options.seed}")
    store = Store(out, definition, size, options.seed)
    missing = store.missing(jobs)
    done = len(jobs) - len(missing)
    for job, result in _played(options, missing):
        store.put(job, result)
        done += 1
        print(f"[{done:>4}/{len(jobs)}] {_line(result)}", file=sys.stderr, flush=True)
    summary = summarise(store.results(jobs), store.head, len(jobs))
    if options.shrink:
        write_shrunk(out, summary)
    summary["report"] = str(write_report(out, summary))
    (out / SUMMARY).write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return summary


def _played(options: argparse.Namespace, jobs: list[Job]) -> Iterator[tuple[Job, dict[str, Any]]]:
    if not jobs:
        return iter(())
    if options.scheduler is not None:
        return run_jobs_on(options.scheduler, jobs)
    return run_jobs(jobs, options.workers or os.cpu_count() or 1)


def _line(result: dict[str, Any]) -> str:
    cases = result["cases"]
    bad = [case for case in cases if case["verdict"] != "safe_named"]
    worst = max((case["harm_gy"] for case in cases), default=0.0)
    text = f"{result['job']}: {len(cases)} treatments, at worst {worst:.3g} Gy too much"
    for case in bad:
        text += f"\n    {case['verdict']}: {case['place']}: {'; '.join(case['why'])}"
    return text


def to_text(summary: dict[str, Any]) -> str:
    """For people."""
    lines = [f"{key:<20} {summary[key]:.4g}" if key.endswith("gy") else f"{key:<20} {summary[key]}" for key in SHORT]
    return "\n".join([*lines, f"{'report':<20} {summary['report']}"])


def exit_status(summary: dict[str, Any]) -> int:
    """3: a case is unsafe, or something stopped that nothing was wrong with."""
    return 3 if summary["unsafe"] or summary["false_trips"] else 0
