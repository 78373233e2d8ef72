"""The guard's own reading of a plan: energies, particles and number of visits of each layer, and nothing else.

Written apart from the controller's reader on purpose, and far smaller: it takes what limits dose and refuses what it
does not find. pydicom parses the file; the meaning is taken from PS3.3 C.8.8.14 and C.8.8.25 here. A TRiP98 raster
file is read by its `submachine#` and `#points` lines.
"""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drivers.errors import BadInput

MAX_BYTES = 512 * 1024 * 1024
SUM_TOLERANCE = 1e-3
IS_END = 2**31


@dataclass(frozen=True, slots=True)
class PlannedLayer:
    """One layer, as the plan has it."""

    energy_mev_u: float
    visits: int
    """Spots with a weight, times paintings."""
    meterset: float
    """In the field's unit, all paintings."""


@dataclass(frozen=True, slots=True)
class PlannedField:
    """One field."""

    number: int
    machine: str
    """'' where the plan names none."""
    ion: str
    unit: str
    """MU, or NP: particles."""
    gantry_deg: float
    layers: tuple[PlannedLayer, ...]


@dataclass(frozen=True, slots=True)
class PlannedDelivery:
    """One fraction group of a plan file."""

    sha256: str
    """Of the file's bytes."""
    fraction_group: int
    fields: tuple[PlannedField, ...]


def read_plan(path: Path, *, fraction_group: int | None, gantry_deg: float) -> PlannedDelivery:
    """Read a plan file. `gantry_deg` is the port of a raster file, which has none. Raises `BadInput`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: the guard cannot read the plan: {error}") from error
    if len(data) > MAX_BYTES:
        raise BadInput(f"{path}: larger than {MAX_BYTES} bytes; is this a plan?")
    try:
        if data[128:132] == b"DICM":
            group, fields = _dicom(data, fraction_group)
        else:
            group, fields = 1, _raster(data, gantry_deg)
    except Exception as error:
        # Boundary: what pydicom raises for a damaged file is in no list (NotImplementedError is), and a guard that
        # ends by it tells nobody why. Whatever it is, the file is not used.
        why = str(error) if type(error) is ValueError else repr(error)  # what we found ourselves is a sentence
        raise BadInput(f"{path}: the guard finds no plan that it understands: {why}") from error
    return PlannedDelivery(hashlib.sha256(data).hexdigest(), group, tuple(fields))


def _dicom(data: bytes, wanted: int | None) -> tuple[int, list[PlannedField]]:
    import pydicom  # noqa: PLC0415  # a raster file needs none

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what pydicom remarks of a file is the check's to say
        plan = pydicom.dcmread(io.BytesIO(data))
        groups = {int(g.FractionGroupNumber): g for g in plan.FractionGroupSequence}
        number = min(groups) if wanted is None else wanted
        if not -IS_END <= number < IS_END:
            raise ValueError(f"fraction group {number}: an integer string has 32 bits (PS3.5, 6.2)")
        metersets = {
            int(r.ReferencedBeamNumber): float(r.get("BeamMeterset") or 0.0)
            for r in groups[number].ReferencedBeamSequence
        }
        fields = [
            _field(beam, metersets[int(beam.BeamNumber)])
            for beam in plan.IonBeamSequence
            if str(beam.TreatmentDeliveryType) != "SETUP" and int(beam.BeamNumber) in metersets
        ]
    return number, fields


def _field(beam: Any, meterset: float) -> PlannedField:
    proton = str(beam.RadiationType) == "PROTON"
    nucleons, charge = (1, 1) if proton else (int(beam.RadiationMassNumber), int(beam.RadiationAtomicNumber))
    ion = {(1, 1): "1H", (12, 6): "12C"}[nucleons, charge]
    first = beam.IonControlPointSequence[0]
    scale = meterset / float(beam.FinalCumulativeMetersetWeight)
    layers = list(_layers(beam, scale))
    total = math.fsum(layer.meterset for layer in layers)
    if not abs(total - meterset) <= SUM_TOLERANCE * meterset or not meterset > 0:
        raise ValueError(f"beam {beam.BeamNumber}: spots add up to {total:g}, BeamMeterset is {meterset:g}")
    return PlannedField(
        number=int(beam.BeamNumber),
        machine=str(beam.get("TreatmentMachineName") or ""),
        ion=ion,
        unit=str(beam.PrimaryDosimeterUnit),
        gantry_deg=float(first.GantryAngle) % 360.0,
        layers=tuple(layers),
    )


def _layers(beam: Any, scale: float) -> Iterator[PlannedLayer]:
    """A control point with weights is a layer; one without ends it. Energy stays what it was until it is given anew."""
    energy = math.nan
    points = list(beam.IonControlPointSequence)
    opened = False
    for index, point in enumerate(points):
        given = point.get("NominalBeamEnergy")
        energy = energy if given is None else float(given)
        value = point.ScanSpotMetersetWeights
        weights = [float(w) for w in (value if hasattr(value, "__iter__") else [value])]
        if not all(0.0 <= w < math.inf for w in weights) or not 0.0 < energy < math.inf:
            raise ValueError(f"beam {beam.BeamNumber}, control point {index}: energy or a weight is no number >= 0")
        used = sum(w > 0 for w in weights)
        if opened and not used:
            opened = False
        elif index < len(points) - 1:
            opened = True
            yield PlannedLayer(energy, used * int(point.NumberOfPaintings), math.fsum(weights) * scale)


def _raster(data: bytes, gantry_deg: float) -> list[PlannedField]:
    if not data.startswith(b"rstfile"):
        raise ValueError("neither DICOM nor a raster file")
    lines = iter(data.decode("ascii").splitlines())
    header = dict(line.split(None, 1) for line in _until_particles(lines) if len(line.split(None, 1)) == 2)
    ion = {("1", "1"): "1H", ("12", "6"): "12C"}[header["mass"].strip(), header["charge"].strip()]
    layers: list[PlannedLayer] = []
    for _ in range(int(header["#submachines"])):
        energy = float(_words(lines, "submachine#")[2])
        _words(lines, "#particles")
        _words(lines, "stepsize")
        count = int(_words(lines, "#points")[1])
        particles = [float(next(lines).split()[2]) for _ in range(count)]
        if not all(0.0 <= n < math.inf for n in particles) or not 0.0 < energy < math.inf:
            raise ValueError(f"layer {len(layers)}: energy or particles are no number >= 0")
        layers.append(PlannedLayer(energy, sum(n > 0 for n in particles), math.fsum(particles)))
    if any(line.strip() for line in lines):
        raise ValueError("more lines than the declared layers")
    return [PlannedField(1, "", ion, "NP", gantry_deg % 360.0, tuple(layers))]


def _until_particles(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        yield line
        if line.startswith("#particles"):
            return


def _words(lines: Iterator[str], keyword: str) -> list[str]:
    words = next(lines).split()
    if words[0] != keyword:
        raise ValueError(f"wanted {keyword}, got {words[0]}")
    return words
