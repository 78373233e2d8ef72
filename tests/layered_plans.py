"""Plans of several layers, long enough for something to be learned in a field or to drift in it."""

from __future__ import annotations

import sys
from pathlib import Path

from sites.loader import load_site
from sites.schema import Site
from tests.make_plan import BeamSpec, LayerSpec, grid, make_plan, write_plan


def layered_plan(path: Path, layers: int, *, spots: int = 16, pitch_mm: float = 4.0, weight: float = 4.0) -> Path:
    """A carbon field of equal layers, energy falling by 6 MeV/u."""
    specs = [LayerSpec(250.0 - 6.0 * k, grid(spots, weight=weight, pitch_mm=pitch_mm)) for k in range(layers)]
    return write_plan(path, make_plan([BeamSpec(layers=specs)]))


def adapting_site(*, beam_off_delay_us: float | None = None, mode: str = "raster", **scanning: object) -> Site:
    """`carbon-fixed` with other values in `scanning`, and another true delay of the chopper."""
    site = load_site("carbon-fixed")
    return site.model_copy(
        update={
            "scanning": site.scanning.model_copy(update={"mode": mode, **scanning}),
            "simulation": site.simulation.model_copy(update={"beam_off_delay_us": beam_off_delay_us}),
        }
    )


if __name__ == "__main__":
    # python -m tests.layered_plans PLAN: the plan of docs/adaptation.md
    print(layered_plan(Path(sys.argv[1]), 12, spots=25))
