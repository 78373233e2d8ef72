"""The plan of the benches: a carbon box of 17 layers of 779 spots, in numbers of our own.

It has the size of a plan that treatment planning makes for a 5-cm box: 13,243 raster points 2 mm apart, about
1.9e9 ions, most of them in the deepest layer, as a flat depth dose wants it. It is written as a TRiP98 raster file, so
that a bench starts where a delivery does: at a file.
"""

from __future__ import annotations

from pathlib import Path

LAYERS = 17
SPOTS_PER_LAYER = 779
STEP_MM = 2
HALF_STEPS = 16
SHALLOWEST_MEV_U = 230.0
STEP_MEV_U = 3.36
LEAST_PARTICLES = 6.0e4
STEEPNESS = 0.75
"""How the weights rise with depth: a power of what is left to the deepest layer."""
FWHM_MM = 5.0


def raster_points(count: int) -> list[tuple[int, int]]:
    """The `count` grid points nearest to the axis, in mm, line by line and back."""
    steps = range(-HALF_STEPS, HALF_STEPS + 1)
    grid = sorted((x * x + y * y, y, x) for x in steps for y in steps)[:count]
    lines: list[tuple[int, int]] = []
    for number, y in enumerate(sorted({y for _, y, _ in grid})):
        line = sorted(x for _, y_of, x in grid if y_of == y)
        lines += [(STEP_MM * x, STEP_MM * y) for x in (line if number % 2 == 0 else reversed(line))]
    return lines


def particles_per_point(layer: int, layers: int = LAYERS) -> int:
    """Ions of each point of a layer, counted from the shallowest."""
    rise: float = (layers / (layers - layer)) ** STEEPNESS
    return round(LEAST_PARTICLES * rise)


def write_plan(path: Path, layers: range = range(LAYERS), spots: int = SPOTS_PER_LAYER) -> Path:
    """Write the plan, or some of its layers with fewer spots; returns the path."""
    points = raster_points(spots)
    weights = [particles_per_point(layer) for layer in layers]
    total = float(sum(weights) * spots)
    lines = [
        "rstfile 20030630",
        "sistable 19981218",
        "patient_id bench",
        "machine# 0",
        "projectile 12C",
        "charge 6",
        "mass 12",
        "gantryangle 0",
        "couchangle 0",
        "stereotacticcoordinates",
        "bolus 0",
        "ripplefilter 3 mm RIFI",
        f"#submachines {len(layers)}",
        f"#particles {min(weights)} {max(weights)} {total:.0f}",
    ]
    for layer, weight in zip(layers, weights, strict=True):
        energy_mev_u = SHALLOWEST_MEV_U + STEP_MEV_U * layer
        lines += [
            f"submachine# {layer + 1} {energy_mev_u:.2f} 1 {FWHM_MM}",
            f"#particles {weight} {weight} {weight * spots}",
            f"stepsize {STEP_MM} {STEP_MM}",
            f"#points {spots}",
            *(f"{x} {y} {weight}" for x, y in points),
        ]
    path.write_text("\n".join(lines) + "\n", encoding="ascii")
    return path
