"""`bench layers`: what share of a treatment the machine spends waiting for the controller.

The plan of 17 layers is delivered in virtual time, with the site's latencies on every wire. The share is the one of
summary.json: all time in which the machine neither works on a request nor delivers, over what the same machine needs
with an instantaneous controller. What that accounting cannot see, a layer change found late by a poll, shows beside
it: the pause from a layer's last ion to the next one's first, less the machine's own gap and ramp.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from controller.bench.figures import BenchResult, Surroundings, percentiles, rounded
from controller.bench.plan import LAYERS, SPOTS_PER_LAYER, write_plan
from controller.bench.virtual import NotDeliveredError, bench_site, deliver_plan, poll_plan
from controller.compose import VirtualWorld
from controller.record.journal_reader import read_journal
from controller.record.rebuild import rebuild


def pauses_ms(visits: NDArray[np.void]) -> list[float]:
    """From the last ion of a layer to the first of the next, in ms."""
    layers = visits["layer"]
    changes = np.flatnonzero(layers[1:] != layers[:-1])
    waits: list[float] = ((visits["t_start_ns"][changes + 1] - visits["t_end_ns"][changes]) * 1e-6).tolist()
    return waits


def bench_layers(*, quick: bool = False) -> BenchResult:
    """Run it."""
    site = bench_site()
    layers, spots = (3, 20) if quick else (LAYERS, SPOTS_PER_LAYER)
    with tempfile.TemporaryDirectory(prefix="spotwise-bench-") as folder:
        plan = write_plan(Path(folder) / "plan.rst", range(layers), spots)
        around = Surroundings()
        treatment = deliver_plan(plan, site, Path(folder) / "treatment", VirtualWorld(site, 0))
        with read_journal(treatment.directory / "journal.bin") as journal:
            waits = pauses_ms(journal.visits)
        summary = rebuild(treatment.directory)
        times, share = summary["time_s"], summary["controller_share"]
        if share is None:
            raise NotDeliveredError("the summary has no controller_share")
        machine_ms = (site.accelerator.gap_s * 1e3) + site.accelerator.extraction_rise_ms
        beyond = [wait - machine_ms for wait in waits]
        seen_s = sum(beyond) * 1e-3
        return BenchResult(
            name="layers",
            unit="ms of a layer change beyond the machine's own gap and ramp",
            ours=percentiles(beyond),
            controller_share=share,
            details={
                "layers": layers,
                "spots": summary["spots_delivered"],
                "total_s": times["total"],
                "ideal_s": times["ideal"],
                "controller_s": times["controller"],
                "machine_gap_and_ramp_ms": machine_ms,
                "layer_change_ms": percentiles(waits),
                "share_with_layer_changes_found_late": rounded(seen_s / (times["total"] - seen_s)),
                "predicted_s": treatment.report.time_s,
            },
            context=around.context(poll_plan=poll_plan(site)),
        )
