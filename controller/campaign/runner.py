"""Plays jobs on this computer: in this process, or in several that are kept: compiled code is loaded once each."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from controller.campaign.jobs import Job, run_job


def run_jobs(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Play jobs, yielding each as it is done. One worker: in this process, in order."""
    if workers <= 1 or len(jobs) <= 1:
        for job in jobs:
            yield job, run_job(job)
        return
    # spawned, not forked: a child of a process with threads may inherit a lock that nobody will ever release
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context, initializer=_settle) as pool:
        running = {pool.submit(run_job, job): job for job in jobs}
        try:
            for done in as_completed(running):
                yield running[done], done.result()
        finally:
            for waiting in running:
                waiting.cancel()


def _settle() -> None:
    gc.freeze()
