"""The pictures of report.html: spot maps drawn pixel by pixel, charts by matplotlib, all as data URIs.

Spot maps are small PNGs, one a layer, drawn with numpy so that 160 layers take a second and a few megabytes.
Everything is a function of the journal: no dates, no random ids.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from controller.record.account import LayerAccount
from controller.record.timing import Timing

Floats = NDArray[np.float64]

INK, MUTED, GRID = "#1c2733", "#66737f", "#e3e8ec"
BEAM, MACHINE, CONTROLLER = "#2a6f97", "#b8c4ce", "#d1603d"
DOSE_CLASSES: tuple[tuple[float, str, str], ...] = (
    (-3.0, "#2166ac", "under -3 %"),
    (-1.0, "#67a9cf", "-3 to -1 %"),
    (1.0, "#4a5560", "within 1 %"),
    (3.0, "#ef8a62", "1 to 3 %"),
    (float("inf"), "#b2182b", "over 3 %"),
)
"""Upper edge, colour, name."""
PLANNED, CUT_SHORT, ARROW = "#cdd5db", "#e0a100", "#101820"
ERROR_SCALE = 10.0
"""Position errors in the spot maps are drawn this much larger."""
OVERSAMPLING = 3
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "spotwise",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}


def spot_map(layer: LayerAccount, half_x_mm: float, half_y_mm: float, size: int) -> str:
    """Draw one layer as a PNG data URI: rings where spots were planned, discs where they were delivered.

    The disc's colour is the dose error, its tail the position error, `ERROR_SCALE` times enlarged. y points up.
    """
    scale = size * OVERSAMPLING / (2 * max(half_x_mm, half_y_mm))
    height = max(8, round(2 * half_y_mm * scale / OVERSAMPLING)) * OVERSAMPLING
    width = max(8, round(2 * half_x_mm * scale / OVERSAMPLING)) * OVERSAMPLING
    image = np.full((height, width, 3), 255, np.uint8)

    def pixels(x_mm: Floats, y_mm: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return (
            np.rint(height / 2 - y_mm * scale).astype(np.int64),
            np.rint(width / 2 + x_mm * scale).astype(np.int64),
        )

    image[height // 2, :] = image[:, width // 2] = _rgb(GRID)
    wanted = layer.wanted
    area = max(np.ptp(layer.x_planned_mm), 1.0) * max(np.ptp(layer.y_planned_mm), 1.0)
    spacing = scale * float(np.sqrt(area / max(1, len(layer.planned))))
    radius = min(max(0.38 * spacing, 1.5 * OVERSAMPLING), 6.0 * OVERSAMPLING)
    rows, columns = pixels(layer.x_planned_mm, layer.y_planned_mm)
    _stamp(image, rows[wanted], columns[wanted], radius, PLANNED)
    _stamp(image, rows[wanted], columns[wanted], radius - OVERSAMPLING, "#ffffff")
    error = 100.0 * (layer.meterset_1 / np.where(wanted, layer.planned, 1.0) - 1.0)
    lower = -np.inf
    for upper, colour, _ in DOSE_CLASSES:
        chosen = layer.complete & (error > lower) & (error <= upper)
        _stamp(image, rows[chosen], columns[chosen], radius * 0.8, colour)
        lower = upper
    cut = wanted & ~layer.complete & (layer.counts_1 > 0)
    _stamp(image, rows[cut], columns[cut], radius * 0.8, CUT_SHORT)
    moved = np.isfinite(layer.x_mm) & wanted
    for share in np.linspace(0.0, 1.0, 16):
        off = ERROR_SCALE * share
        at = pixels(
            layer.x_planned_mm[moved] + off * (layer.x_mm - layer.x_planned_mm)[moved],
            layer.y_planned_mm[moved] + off * (layer.y_mm - layer.y_planned_mm)[moved],
        )
        _stamp(image, *at, 0.45 * OVERSAMPLING, ARROW)
    tall = sum(image[i::OVERSAMPLING].astype(np.uint16) for i in range(OVERSAMPLING))
    small = sum(np.asarray(tall)[:, i::OVERSAMPLING] for i in range(OVERSAMPLING)) // OVERSAMPLING**2
    return _png(np.asarray(small).astype(np.uint8))


def error_histograms(dose_pct: Floats, position_mm: Floats) -> str:
    """Dose errors in percent and radial position errors in mm, side by side."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 2.5), layout="constrained")
        left, right = figure.subplots(1, 2)
        _histogram(left, dose_pct, "dose error of a spot / %", symmetric=True)
        _histogram(right, np.hypot(*position_mm.T), "radial position error of a spot / mm", symmetric=False)
        return _svg(figure)


def rate_over_time(t_s: Floats, rate_per_s: Floats, planned: Sequence[tuple[float, float, float]]) -> str:
    """Particle rate of each visit against time; `planned`: (start s, end s, rate) of each layer."""
    keep = slice(None, None, 1 + len(t_s) // 4000)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 2.4), layout="constrained")
        axes = figure.subplots()
        axes.plot(t_s[keep], rate_per_s[keep], ".", color=BEAM, markersize=2.5, label="measured, per visit")
        for i, (start, end, rate) in enumerate(planned):
            axes.plot(
                [start, end], [rate, rate], color=CONTROLLER, linewidth=1.2, label="chosen level" if i == 0 else None
            )
        axes.set_xlabel("time in the run / s")
        axes.set_ylabel("particles / s")
        axes.set_ylim(0.0, 1.15 * max([*rate_per_s.tolist(), *(rate for _, _, rate in planned)], default=1.0))
        axes.grid(color=GRID)
        if len(t_s):
            axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.22), ncols=2)
        return _svg(figure)


def time_breakdown(names: Sequence[str], times: Sequence[Timing]) -> str:
    """One bar a field: beam on, machine, controller."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 0.8 + 0.32 * len(names)), layout="constrained")
        axes = figure.subplots()
        left = np.zeros(len(names))
        for label, colour, values in (
            ("beam on", BEAM, [t.beam_on_s for t in times]),
            ("machine (energy, moves, spill gaps, holds)", MACHINE, [t.machine_s for t in times]),
            ("controller", CONTROLLER, [t.controller_s for t in times]),
        ):
            axes.barh(range(len(names)), values, left=left, color=colour, height=0.62, label=label)
            left = left + np.array(values)
        axes.set_yticks(range(len(names)), [_plain(name) for name in names])
        axes.invert_yaxis()
        axes.set_xlabel("s")
        axes.grid(axis="x", color=GRID)
        figure.legend(frameon=False, loc="outside upper center", ncols=3)
        return _svg(figure)


def _plain(text: str) -> str:
    """Without what matplotlib would read as mathematics."""
    return text.replace("$", r"\$")


def _histogram(axes: Axes, values: Floats, label: str, *, symmetric: bool) -> None:
    peak = max(float(np.abs(values).max()), 1e-3) if len(values) else 1.0
    axes.hist(values, bins=41, range=(-peak, peak) if symmetric else (0.0, peak), color=BEAM)
    axes.set_xlabel(label)
    axes.set_ylabel("spots")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=GRID)


def _svg(figure: Figure) -> str:
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _stamp(
    image: NDArray[np.uint8], rows: NDArray[np.int64], columns: NDArray[np.int64], radius: float, colour: str
) -> None:
    """Fill discs around the given pixels; what falls outside is left out."""
    reach = int(np.ceil(radius))
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    inside = dy**2 + dx**2 <= radius**2
    y = (rows[:, None] + dy[inside]).ravel()
    x = (columns[:, None] + dx[inside]).ravel()
    ok = (y >= 0) & (y < image.shape[0]) & (x >= 0) & (x < image.shape[1])
    image[y[ok], x[ok]] = _rgb(colour)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _png(image: NDArray[np.uint8]) -> str:
    """An 8-bit RGB PNG (ISO 15948), as a data URI."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, _ = image.shape
    lines = np.zeros((height, 1 + 3 * width), np.uint8)
    lines[:, 1:] = image.reshape(height, -1)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    content += chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(content).decode()
