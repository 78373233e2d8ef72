"""What all benches share: percentiles, ratios, and what is known of the PC while they ran."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PERCENTILES = {"p50": 50.0, "p99": 99.0, "p999": 99.9}
STEAL_COLUMN = 8
"""Of the line "cpu" of /proc/stat: ticks in which the host ran somebody else on our CPUs."""


def percentiles(values: Sequence[float] | NDArray[Any]) -> dict[str, float]:
    """p50, p99 and p99.9 of measured values, to four digits."""
    return {name: rounded(float(np.percentile(values, share))) for name, share in PERCENTILES.items()}


def rounded(value: float) -> float:
    """Four significant digits: more would be noise."""
    return float(f"{value:.4g}")


def ratio(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float]:
    """Ours over theirs, percentile by percentile; smaller is better."""
    return {name: rounded(ours[name] / theirs[name]) for name in PERCENTILES}


def steal_ticks() -> int:
    """Ticks (10 ms) that the host has taken from this virtual machine since it started; 0 where Linux does not say."""
    try:
        words = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
        return int(words[STEAL_COLUMN])
    except (OSError, ValueError, IndexError):
        return 0


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


class Surroundings:
    """The PC around a bench: made before it, asked after it."""

    def __init__(self) -> None:
        self._steal = steal_ticks()
        self._load = os.getloadavg()

    def context(self, **more: Any) -> dict[str, Any]:
        """CPU, versions, load before and after, ticks stolen meanwhile. The host's name is nobody's business."""
        return {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.release()}",
            "python": sys.version.split()[0],
            "versions": {name: version(name) for name in ("spotwise", "numpy", "numba", "pymodbus")},
            "load_before": [round(value, 2) for value in self._load],
            "load_after": [round(value, 2) for value in os.getloadavg()],
            "steal_ticks": steal_ticks() - self._steal,
            **more,
        }


@dataclass
class BenchResult:
    """One bench's figures, as `--json` gives them."""

    name: str
    unit: str
    ours: dict[str, float]
    context: dict[str, Any]
    yardsticks: dict[str, dict[str, float]] = field(default_factory=dict)
    ratios: dict[str, dict[str, float]] = field(default_factory=dict)
    controller_share: float | None = None
    real_time_factor: float | None = None
    details: dict[str, Any] = field(default_factory=dict)
    """What else there is to say, by the bench's own names."""

    def to_json(self) -> dict[str, Any]:
        """The keys of `bench NAME --json`."""
        return {
            "name": self.name,
            "unit": self.unit,
            "ours": self.ours,
            "yardsticks": self.yardsticks,
            "ratios": self.ratios,
            "controller_share": self.controller_share,
            "real_time_factor": self.real_time_factor,
            "details": self.details,
            "context": self.context,
        }

    def to_text(self) -> str:
        """The same for people."""
        lines = [f"{self.name} ({self.unit}){'':<10} {'p50':>10} {'p99':>10} {'p99.9':>10}"]
        for name, row in (("ours", self.ours), *self.yardsticks.items()):
            lines.append(f"  {name:<26}" + "".join(f" {row[p]:>10g}" for p in PERCENTILES))
        for name, row in self.ratios.items():
            lines.append(f"  ours / {name:<19}" + "".join(f" {row[p]:>10g}" for p in PERCENTILES))
        if self.controller_share is not None:
            lines.append(f"  controller's share         {self.controller_share:.4%}")
        if self.real_time_factor is not None:
            lines.append(f"  real time factor           {self.real_time_factor:.4g}")
        lines += [f"  {name:<26} {value}" for name, value in self.details.items()]
        loads = f"{self.context['load_before'][0]} -> {self.context['load_after'][0]}"
        lines.append(f"  load {loads}, {self.context['steal_ticks']} ticks stolen, {self.context['cpu']}")
        return "\n".join(lines)
