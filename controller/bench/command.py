"""`spotwise bench NAME`: which bench is run, with which options."""

from __future__ import annotations

import gc
from collections.abc import Callable

from controller.bench.download import bench_download
from controller.bench.figures import BenchResult
from controller.bench.integrator import bench_integrator
from controller.bench.layers import bench_layers
from controller.bench.reaction import bench_reaction
from controller.bench.simulation import bench_simulation
from controller.bench.step import bench_step
from drivers.errors import BadInput

PLAIN: dict[str, Callable[[bool], BenchResult]] = {
    "integrator": lambda quick: bench_integrator(quick=quick),
    "download": lambda quick: bench_download(quick=quick),
    "step": lambda quick: bench_step(quick=quick),
    "layers": lambda quick: bench_layers(quick=quick),
    "simulation": lambda quick: bench_simulation(quick=quick),
}
"""Benches without options of their own."""


def run(name: str, *, quick: bool = False, seconds: float | None = None) -> BenchResult:
    """Run a bench. Raises `BadInput` for an option that it does not have, and what the bench raises."""
    if seconds is not None and name != "reaction":
        raise BadInput(f"bench {name}: --seconds is for reaction only")
    gc.collect()
    gc.freeze()  # as a delivery does: what start-up made is not collected again
    try:
        return bench_reaction(quick=quick, seconds=seconds) if name == "reaction" else PLAIN[name](quick)
    finally:
        gc.unfreeze()
