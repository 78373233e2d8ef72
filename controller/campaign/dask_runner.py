"""Plays jobs on a Dask cluster: `spotwise campaign --scheduler ADDRESS`; needs the extra `campaign`.

The workers need the same version of Spotwise. A job is the same function with the same data as by processes, and gives
the same verdicts. Each worker should have one thread: a treatment keeps a core busy.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

from controller.campaign.jobs import Job, run_job
from drivers.errors import BadInput

CONNECT_S = 10.0


def run_jobs_on(scheduler: str, jobs: Sequence[Job]) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Play jobs on the cluster, yielding each as it is done. Raises `BadInput` where there is no cluster to be had."""
    try:
        distributed: Any = importlib.import_module("distributed")  # an extra; it has no annotations
    except ImportError as error:
        raise BadInput(
            "--scheduler needs dask.distributed: install Spotwise with its extra `campaign` (pip install .[campaign])"
        ) from error
    try:
        client = distributed.Client(scheduler, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise BadInput(f"--scheduler {scheduler}: no scheduler answers there: {error}") from error
    with client:
        versions = client.run(version, "spotwise")
        if not versions:
            raise BadInput(f"--scheduler {scheduler}: it has no workers; start some with `dask worker {scheduler}`")
        others = sorted({found for found in versions.values() if found != version("spotwise")})
        if others:
            raise BadInput(
                f"--scheduler {scheduler}: workers run Spotwise {', '.join(others)}, this is another version"
            )
        running = {client.submit(run_job, job, pure=False): job for job in jobs}
        for done in distributed.as_completed(list(running), loop=client.loop):
            yield running[done], done.result()
