"""From the ion control points of a beam to energy layers with absolute metersets.

A layer opens at a control point with spot weights. Most planning systems close it with a second control
point that repeats the spots with zero weights; others go straight to the next layer and end the beam with one
control point of zero weights. Both dialects are read by one rule: a control point without weight that follows a
layer closes it. Values that are absent are carried forward from the last control point that had them, where
DICOM allows that (energy, range shifter settings); spots, tune and paintings must be in every one (1C).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controller.plan.dicom_values import Node
from controller.plan.model import Layer, RangeShifterSetting

MAX_LAYERS: Final = 2_000
MAX_VISITS: Final = 16_384
"""Spots with weight x paintings of one layer: what a spot engine's table holds."""
MAX_ENERGY_MEV_U: Final = 1e4
MAX_POSITION_MM: Final = 1e4
"""Nothing beyond these is a therapy beam; within them no formula overflows. A machine's own limits are far tighter."""
SUM_TOLERANCE: Final = 1e-5
"""Of the final cumulative weight. Spot weights are float32 and cumulative weights text of few digits; the worst
real export known is off by 3.5e-6, a wrong spot by much more."""


@dataclass(frozen=True, slots=True)
class _Point:
    """One control point, everything carried forward."""

    cumulative: float
    energy_mev_u: float
    tune_id: str
    paintings: int
    positions: NDArray[np.float64]
    """x, y, x, y ... in mm."""
    weights: NDArray[np.float64]
    spot_fwhm_mm: tuple[float, float] | None
    range_shifters: tuple[RangeShifterSetting, ...]
    reordering_allowed: bool


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers of a beam, and whether all of them may be reordered."""

    layers: tuple[Layer, ...]
    reordering_allowed: bool


def read_layers(
    beam: Node, nodes: list[Node], *, final_weight: float, meterset: float, shifter_ids: dict[int, str]
) -> Layers:
    """Read the control points of one beam.

    Args:
        beam: the beam, for messages.
        nodes: its control points, at least two.
        final_weight: FinalCumulativeMetersetWeight, above 0.
        meterset: BeamMeterset of the chosen fraction group, MU or NP.
        shifter_ids: id of each range shifter of the beam by its number.

    Raises:
        MalformedPlan: values missing, not finite, negative, or contradicting each other.

    """
    points: list[_Point] = []
    shifters: dict[int, RangeShifterSetting | None] = {}
    energy: float | None = None
    for index, node in enumerate(nodes):
        if node.integer("ControlPointIndex", 0, 10_000_000) != index:
            raise node.fail("CONTROL_POINT_INDEX", f"wanted index {index}, got {node.text('ControlPointIndex')}")
        given = node.optional_decimal("NominalBeamEnergy")
        energy = energy if given is None else given
        if energy is None:
            raise node.missing("NominalBeamEnergy")
        if not 0 < energy <= MAX_ENERGY_MEV_U:
            limits = f"wanted above 0, at most {MAX_ENERGY_MEV_U:g} MeV/u"
            raise node.fail("BAD_VALUE", f"NominalBeamEnergy: {limits}, got {energy:g}")
        _update_shifters(node, shifters, shifter_ids)
        points.append(_read_point(node, energy, shifters))
    _check_weights(beam, nodes, points, final_weight)
    layers = _layers(nodes, points, meterset / final_weight)
    if not any(any(layer.meterset) for layer in layers):
        raise beam.fail("BAD_VALUE", "no spot has a weight above 0")
    return Layers(layers, all(points[layer.control_point].reordering_allowed for layer in layers))


def _update_shifters(node: Node, settings: dict[int, RangeShifterSetting | None], ids: dict[int, str]) -> None:
    """Carry range shifter settings forward; None stands for out."""
    seen: set[int] = set()
    for item in node.items("RangeShifterSettingsSequence", "range shifter setting", most=100):
        number = item.integer("ReferencedRangeShifterNumber", -(2**31), 2**31 - 1)
        if number not in ids or number in seen:
            raise item.fail("RANGE_SHIFTER_SETTING", f"wanted each of the numbers {sorted(ids)} once, got {number}")
        seen.add(number)
        setting = item.code("RangeShifterSetting")
        if setting not in ("IN", "OUT"):
            raise item.fail("RANGE_SHIFTER_SETTING", f"RangeShifterSetting: wanted IN or OUT, got {setting!r}")
        wet = item.optional_single("RangeShifterWaterEquivalentThickness")
        if wet is not None and wet < 0:
            raise item.fail("BAD_VALUE", f"RangeShifterWaterEquivalentThickness: wanted at least 0 mm, got {wet:g}")
        settings[number] = RangeShifterSetting(number, ids[number], wet) if setting == "IN" else None
    unset = sorted(set(ids) - set(settings))
    if unset:
        raise node.fail("RANGE_SHIFTER_SETTING", f"range shifters {unset} have no setting")


def _read_point(node: Node, energy: float, shifters: dict[int, RangeShifterSetting | None]) -> _Point:
    count = node.integer("NumberOfScanSpotPositions", 0, 10_000_000)
    if count > MAX_VISITS:
        raise node.fail("LIMIT_EXCEEDED", f"NumberOfScanSpotPositions: at most {MAX_VISITS}, got {count}")
    positions = node.singles("ScanSpotPositionMap")
    if len(positions) != 2 * count:
        raise node.fail(
            "POSITION_MAP_LENGTH",
            f"position map length is not 2 x NumberOfScanSpotPositions: {len(positions)} values for {count} spots",
        )
    weights = node.singles("ScanSpotMetersetWeights")
    if len(weights) != count:
        raise node.fail("SPOT_COUNT_MISMATCH", f"spot count mismatch: {count} positions, {len(weights)} weights")
    _all_finite(node, weights, "weight", 1)
    _all_finite(node, positions, "position", 2)
    if (np.abs(positions) > MAX_POSITION_MM).any():
        spot = int(np.argmax(np.abs(positions) > MAX_POSITION_MM)) // 2
        raise node.fail("BAD_VALUE", f"spot position: spot {spot} is more than {MAX_POSITION_MM:g} mm off the axis")
    if (weights < 0).any():
        spot = int(np.argmax(weights < 0))
        raise node.fail("NEGATIVE_WEIGHT", f"negative spot weight: spot {spot} has {weights[spot]:g}")
    paintings = node.integer("NumberOfPaintings", 1, MAX_VISITS)
    visits = int(np.count_nonzero(weights)) * paintings
    if visits > MAX_VISITS:
        raise node.fail("LIMIT_EXCEEDED", f"spots x paintings: at most {MAX_VISITS} visits a layer, got {visits}")
    tune = node.text("ScanSpotTuneID")
    if not tune:
        raise node.missing("ScanSpotTuneID")
    reordering = node.code("ScanSpotReorderingAllowed")
    if reordering not in ("", "ALLOWED", "NOT ALLOWED", "NOT_ALLOWED"):
        raise node.fail("BAD_VALUE", f"ScanSpotReorderingAllowed: wanted ALLOWED or NOT ALLOWED, got {reordering!r}")
    return _Point(
        cumulative=node.decimal("CumulativeMetersetWeight"),
        energy_mev_u=energy,
        tune_id=tune,
        paintings=paintings,
        positions=positions,
        weights=weights,
        spot_fwhm_mm=_spot_size(node),
        range_shifters=tuple(s for _, s in sorted(shifters.items()) if s is not None),
        reordering_allowed=reordering == "ALLOWED",
    )


def _all_finite(node: Node, values: NDArray[np.float64], what: str, per_spot: int) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        index = int(np.argmin(finite))
        spot = index // per_spot
        raise node.fail("NON_FINITE_VALUE", f"non-finite spot {what}: spot {spot} has {values[index]}")


def _spot_size(node: Node) -> tuple[float, float] | None:
    size = node.finite_singles("ScanningSpotSize", 2)
    if size is None or size == (0.0, 0.0):
        return None
    if min(size) <= 0 or max(size) > MAX_POSITION_MM:
        limits = f"wanted above 0, at most {MAX_POSITION_MM:g} mm"
        raise node.fail("BAD_VALUE", f"ScanningSpotSize: {limits}, got {size[0]:g}, {size[1]:g}")
    return size[0], size[1]


def _check_weights(beam: Node, nodes: list[Node], points: list[_Point], final: float) -> None:
    """Check the cumulative weights against each other, the spots, and the final weight (PS3.3 C.8.8.14.1)."""
    if points[0].cumulative != 0:
        raise nodes[0].fail("CUMULATIVE_NOT_MONOTONIC", f"wanted cumulative weight 0, got {points[0].cumulative:g}")
    for node, point, following in zip(nodes, points, points[1:], strict=False):
        if following.cumulative < point.cumulative:
            raise node.fail(
                "CUMULATIVE_NOT_MONOTONIC",
                f"cumulative meterset weight not monotonic: {point.cumulative:.10g}, "
                f"then {following.cumulative:.10g} at the next control point",
            )
    tolerance = SUM_TOLERANCE * final
    for node, point, following in zip(nodes, points, points[1:], strict=False):
        total, step = float(point.weights.sum()), following.cumulative - point.cumulative
        if not abs(total - step) <= tolerance:
            raise node.fail(
                "WEIGHT_SUM_MISMATCH",
                f"spot weights add up to {total:.10g}, the cumulative weight steps by {step:.10g} "
                f"(tolerance {tolerance:.3g})",
            )
    if points[-1].weights.any():
        raise nodes[-1].fail("WEIGHT_SUM_MISMATCH", "the last control point must have no spot weights")
    if not abs(points[-1].cumulative - final) <= tolerance:
        raise beam.fail(
            "FINAL_WEIGHT_MISMATCH",
            f"FinalCumulativeMetersetWeight is {final:.10g}, the last control point has {points[-1].cumulative:.10g}",
        )


def _layers(nodes: list[Node], points: list[_Point], scale: float) -> tuple[Layer, ...]:
    layers: list[Layer] = []
    opened: _Point | None = None
    paired = len(points) % 2 == 0 and not any(point.weights.any() for point in points[1::2])
    for index, (node, point) in enumerate(zip(nodes, points, strict=True)):
        if opened is not None and not point.weights.any():
            if paired:
                _check_end_point(node, opened, point)
            opened = None
            continue
        if index == len(points) - 1:
            continue
        opened = point
        layers.append(_layer(index, point, scale))
        if len(layers) > MAX_LAYERS:
            raise node.fail("LIMIT_EXCEEDED", f"more than {MAX_LAYERS} layers")
    return tuple(layers)


def _check_end_point(node: Node, opened: _Point, closed: _Point) -> None:
    """Compare the two copies of a layer's spots: the only redundancy that protects positions."""
    if len(closed.weights) != len(opened.weights):
        return  # Not a copy: the standard lets a control point without weight list other spots.
    for what, first, second in (
        ("energy", opened.energy_mev_u, closed.energy_mev_u),
        ("tune", opened.tune_id, closed.tune_id),
        ("paintings", opened.paintings, closed.paintings),
    ):
        if first != second:
            raise node.fail("END_POINT_DIFFERS", f"{what}: {first!r} where the layer opens, {second!r} where it ends")
    if not np.array_equal(opened.positions, closed.positions):
        spot = int(np.argmax(opened.positions != closed.positions)) // 2
        raise node.fail("END_POINT_DIFFERS", f"spot {spot} has another position than where the layer opens")


def _layer(index: int, point: _Point, scale: float) -> Layer:
    return Layer(
        energy_mev_u=point.energy_mev_u,
        tune_id=point.tune_id,
        paintings=point.paintings,
        x_mm=tuple(point.positions[0::2].tolist()),
        y_mm=tuple(point.positions[1::2].tolist()),
        meterset=tuple((point.weights * scale).tolist()),
        spot_fwhm_mm=point.spot_fwhm_mm,
        range_shifters=point.range_shifters,
        control_point=index,
    )
