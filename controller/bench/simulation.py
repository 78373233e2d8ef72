"""`bench simulation`: how much faster than life a whole virtual treatment is, start-up apart.

Everything that a treatment does is in it: plant, frames, integrator, judge, permits, chain, device polls, downloads
with their read-back, interlock tasks, journal and accounting. Not in it: imports and compilation, reading and
checking the plan, and the record's files, which are made from the journal afterwards; the times of the latter two are
reported beside it.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from controller.bench.figures import BenchResult, Surroundings, percentiles, rounded
from controller.bench.plan import LAYERS, SPOTS_PER_LAYER, write_plan
from controller.bench.virtual import bench_site, checked, deliver_plan, poll_plan
from controller.compose import VirtualWorld
from controller.record.rebuild import rebuild

RUNS = 3


def bench_simulation(*, quick: bool = False) -> BenchResult:
    """Run it."""
    site = bench_site()
    with tempfile.TemporaryDirectory(prefix="spotwise-bench-") as folder:
        small = write_plan(Path(folder) / "small.rst", range(1), 10)
        deliver_plan(small, site, Path(folder) / "small", VirtualWorld(site, 0))  # compiles, or loads what was compiled
        layers, spots = (2, 20) if quick else (LAYERS, SPOTS_PER_LAYER)
        plan = write_plan(Path(folder) / "plan.rst", range(layers), spots)
        around = Surroundings()
        begun = time.perf_counter()
        checked(plan, site)
        check_s = time.perf_counter() - begun
        runs = [
            deliver_plan(plan, site, Path(folder) / f"treatment-{number}", VirtualWorld(site, 0))
            for number in range(1 if quick else RUNS)
        ]
        context = around.context(poll_plan=poll_plan(site))
        begun = time.perf_counter()
        rebuild(runs[-1].directory)
        files_s = time.perf_counter() - begun
        factors = [run.virtual_s / run.wall_s for run in runs]
        return BenchResult(
            name="simulation",
            unit="s of wall clock for the treatment",
            ours=percentiles([run.wall_s for run in runs]),
            real_time_factor=rounded(float(np.median(factors))),
            details={
                "layers": layers,
                "spots": layers * spots,
                "treatment_s": rounded(runs[-1].virtual_s),
                "real_time_factors": [rounded(factor) for factor in factors],
                "real_time_factor_of_cpu_time": rounded(float(np.median([r.virtual_s / r.cpu_s for r in runs]))),
                "check_s": rounded(check_s),
                "files_s": rounded(files_s),
            },
            context=context,
        )
