"""The control points of one field in the treatment record: two a layer, with what each spot got and where.

DeliveredMeterset is the measured cumulative meterset (parts before included), not one of the three values
that PS3.3 C.8.8.21.2.2 names: only so do the spots' measured metersets add up to its differences. Metersets of
repaintings are summed per planned spot, so ScanSpotReordered is NO and every spot keeps its index.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.valuerep import format_number_as_ds

from controller.record.account import SOURCE_NONE, SOURCE_UNKNOWN, FieldAccount, LayerAccount, utc
from controller.record.journal_reader import Part
from controller.record.setup_readback import Setup

PRIVATE_GROUP = 0x3009
PRIVATE_CREATOR = "SPOTWISE 1"
POSITION_SOURCE = 0x01
"""Private element: one byte a spot, where its entry in the position map comes from (account.SOURCE_*)."""


def decimal(value: float) -> str:
    """Return a DS value: at most 16 characters; raises ValueError for NaN."""
    return format_number_as_ds(float(value))


def control_points(part: Part, field: FieldAccount, before: FieldAccount | None, setup: Setup | None) -> list[Dataset]:
    """All control points of the plan's field, delivered or not. `before`: what earlier parts delivered."""
    layers = field.layers
    if not layers:
        return []
    total = 0.0 if before is None else sum(float(layer.meterset_1.sum()) for layer in before.layers)
    specified = 0.0
    moment = part.records[0].t_ns
    if field.started:
        moment = min(layer.t_start_ns for layer in layers if layer.t_start_ns >= 0)
    energy: float | None = None
    points = []
    current = layers[0]
    by_point = {layer.plan["control_point"]: layer for layer in layers}
    for index in range(field.plan["control_points"]):
        point = Dataset()
        point.ReferencedControlPointIndex = index
        weights = by_point.get(index)
        if weights is not None:
            current = weights
            if current.t_start_ns >= 0:
                moment = current.t_start_ns
        _when(point, utc(part.header, moment))
        point.SpecifiedMeterset = decimal(specified)
        point.DeliveredMeterset = decimal(total)
        if index == 0:
            _geometry(point, setup)
        if current.energy_readback_mev_u is not None and current.energy_readback_mev_u != energy:
            energy = current.energy_readback_mev_u
            point.NominalBeamEnergy = decimal(energy)
        _spots(point, current, delivered=weights is not None, moment=moment)
        if weights is not None:
            specified += float(current.planned.sum())
            total += float(current.meterset_1.sum())
            if current.t_end_ns >= 0:
                moment = current.t_end_ns
        points.append(point)
    return points


def _when(point: Dataset, moment: datetime) -> None:
    point.TreatmentControlPointDate = moment.strftime("%Y%m%d")
    point.TreatmentControlPointTime = moment.strftime("%H%M%S.%f")


def _spots(point: Dataset, layer: LayerAccount, *, delivered: bool, moment: int) -> None:
    spots = len(layer.planned)
    point.ScanSpotTuneID = layer.plan["tune_id"]
    point.NumberOfScanSpotPositions = spots
    point.NumberOfPaintings = layer.plan["paintings"]
    point.ScanSpotReordered = "NO"
    # The map needs a number for every planned spot. Where nothing was measured the planned position says which
    # spot is meant, and the private element says that it is not a measurement.
    unmeasured = (layer.source == SOURCE_NONE) | (layer.source == SOURCE_UNKNOWN)
    x_mm = np.where(unmeasured, layer.x_planned_mm, layer.x_mm)
    y_mm = np.where(unmeasured, layer.y_planned_mm, layer.y_mm)
    point.ScanSpotPositionMap = _floats(np.column_stack([x_mm, y_mm]).ravel())
    block = point.private_block(PRIVATE_GROUP, PRIVATE_CREATOR, create=True)
    source = layer.source.tobytes()
    block.add_new(POSITION_SOURCE, "OB", source + b"\0" * (len(source) % 2))
    got = layer.meterset_1 if delivered else np.zeros(spots)
    point.ScanSpotMetersetsDelivered = _floats(got)
    began = layer.t_first_ns if delivered else np.full(spots, -1)
    point.ScanSpotTimeOffset = _floats(np.where(began >= 0, (began - moment) / 1000.0, 0.0))


def _floats(values: NDArray[Any]) -> list[float]:
    return [float(v) for v in values.astype(np.float32)]


def _geometry(point: Dataset, setup: Setup | None) -> None:
    """Angles and positions as read back; without a read-back type 2 attributes are empty and others left out."""

    def read(device: str, quantity: str) -> float | None:
        return None if setup is None else setup.value(device, quantity)

    gantry, couch = read("gantry", "angle_deg"), read("couch", "rotation_deg")
    if gantry is not None:
        point.GantryAngle = decimal(gantry % 360.0)
        point.GantryRotationDirection = "NONE"
    # The spots are in the gantry system and there is no collimator that could turn.
    point.BeamLimitingDeviceAngle = "0"
    point.BeamLimitingDeviceRotationDirection = "NONE"
    if couch is not None:
        point.PatientSupportAngle = decimal(couch % 360.0)
        point.PatientSupportRotationDirection = "NONE"
    for keyword, quantity in (
        ("Vertical", "vertical_mm"),
        ("Longitudinal", "longitudinal_mm"),
        ("Lateral", "lateral_mm"),
    ):
        value = read("couch", quantity)
        setattr(point, f"TableTop{keyword}Position", None if value is None else decimal(value))
    for keyword, quantity in (("Pitch", "pitch_deg"), ("Roll", "roll_deg")):
        value = read("couch", quantity)
        setattr(point, f"TableTop{keyword}Angle", None if value is None else float(value % 360.0))
        setattr(point, f"TableTop{keyword}RotationDirection", "NONE")
    point.GantryPitchAngle = None
    point.GantryPitchRotationDirection = None
    point.SnoutPosition = read("nozzle", "snout_mm")
