"""The treatment record read back from its file, and held against plan, journal and log.

Nothing of the code that writes records is used: pydicom reads the file, the journal's visits are summed here, and the
log is read as anybody would. A record that only repeats the plan would pass every test of form; here it is a finding.

Roundings, stated: metersets of spots are 32-bit floats (relative 6e-8), those of beams and control points decimal
strings of 16 characters (1e-9 at the least), sums of n spots n times the former at most.
"""

from __future__ import annotations

import shutil
import subprocess
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from controller.record.account import utc
from controller.record.journal_reader import Journal, Part
from controller.record.log_reader import open_log
from drivers.errors import BadInput

SPOT_ROUNDING = 6.0e-8
DECIMAL_ROUNDING = 1e-9
ECHO_SPOTS = 3
"""So many spots, delivered to the last bit as planned, are no accident."""

Floats = NDArray[np.float64]
Key = tuple[int, int]
"""Field and layer, as indices."""


@dataclass
class ReadBack:
    """What the records of a treatment say, in sum, and what is wrong with it."""

    delivered: dict[Key, Floats] = field(default_factory=dict)
    """Meterset of each spot, all parts together, in the field's unit."""
    problems: list[str] = field(default_factory=list)
    echoes: list[str] = field(default_factory=list)


def read_back(journal: Journal, records: Sequence[Path], log: Path | None = None) -> ReadBack:
    """Reconcile records (in order) with the plan and the visits of a journal, and with the log where it is given."""
    found = ReadBack()
    plan = journal.header["plan"]
    for path in records:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what pydicom thinks of odd values is not the question here
                _record(journal, plan, path, found)
        except Exception as error:
            # a boundary: of a damaged file the DICOM library raises whatever it happens to run into
            found.problems.append(f"{path}: cannot be read back: {error!r}")
    if found.problems:
        return found
    for f, planned in enumerate(plan["fields"]):
        for i, layer in enumerate(planned["layers"]):
            got = found.delivered.get((f, i), np.zeros(len(layer["meterset"])))
            wanted = _spots(journal.visits, f, i, len(layer["meterset"]))
            _compare(found, f"all records, field {f + 1}, layer {i + 1}", got, wanted, len(journal.parts))
    _echo(journal.visits, found)
    if log is not None:
        _log(journal, log, found)
    return found


def _record(journal: Journal, plan: dict[str, Any], path: Path, found: ReadBack) -> None:
    dataset = pydicom.dcmread(path)
    begun = f"{dataset.TreatmentDate}{dataset.TreatmentTime}"
    parts = [p for p in journal.parts if f"{utc(p.header, p.records[0].t_ns):%Y%m%d%H%M%S.%f}" == begun]
    if not parts:
        found.problems.append(f"{path}: treatment of {begun}: no part of the journal began then")
        return
    part = parts[-1]
    reference = [str(item.ReferencedSOPInstanceUID) for item in dataset.ReferencedRTPlanSequence]
    if reference != ([plan["sop_instance_uid"]] if plan["sop_instance_uid"] else []):
        found.problems.append(f"{path}: refers to plan {reference}, the journal to {plan['sop_instance_uid']!r}")
    if dataset.ReferencedFractionGroupNumber != plan["fraction_group"]:
        found.problems.append(f"{path}: fraction group {dataset.ReferencedFractionGroupNumber}")
    for beam in dataset.TreatmentSessionIonBeamSequence:
        numbers = [f for f, planned in enumerate(plan["fields"]) if planned["number"] == beam.ReferencedBeamNumber]
        if not numbers:
            found.problems.append(f"{path}: beam {beam.ReferencedBeamNumber}: the plan has none of this number")
            continue
        _beam(path, journal, part, plan["fields"][numbers[0]], numbers[0], beam, found)


def _beam(
    path: Path, journal: Journal, part: Part, planned: dict[str, Any], index: int, beam: Any, found: ReadBack
) -> None:
    where = f"{path}: beam {beam.ReferencedBeamNumber}"
    fraction = part.header.get("fraction")
    if fraction is not None and beam.CurrentFractionNumber != fraction:
        found.problems.append(f"{where}: fraction {beam.CurrentFractionNumber}, the journal says {fraction}")
    _number(found, f"{where}: planned meterset", beam.SpecifiedPrimaryMeterset, planned["meterset"])
    visits = part.visits
    _number(
        found,
        f"{where}: delivered meterset",
        beam.DeliveredPrimaryMeterset,
        visits["meterset_1"][visits["field"] == index].sum(),
    )
    points = {int(point.ReferencedControlPointIndex): point for point in beam.IonControlPointDeliverySequence}
    earlier = [p for p in journal.parts if p.number < part.number]
    running = sum(float(p.visits["meterset_1"][p.visits["field"] == index].sum()) for p in earlier)
    specified, total, size, echo, spots = 0.0, 0.0, 0.0, 0, 0
    for i, layer in enumerate(planned["layers"]):
        point = points.pop(layer["control_point"], None)
        if point is None:
            found.problems.append(f"{where}: no control point {layer['control_point']} of layer {i + 1}")
            return
        _number(found, f"{where}: meterset planned up to layer {i + 1}", point.SpecifiedMeterset, specified)
        _number(found, f"{where}: meterset delivered up to layer {i + 1}", point.DeliveredMeterset, running)
        got = np.atleast_1d(np.array(point.ScanSpotMetersetsDelivered, np.float64))
        plan_spots = np.array(layer["meterset"])
        mine = _spots(visits, index, i, len(plan_spots))
        if len(got) != len(plan_spots):
            found.problems.append(f"{where}: layer {i + 1}: {len(got)} spots, the plan has {len(plan_spots)}")
            return
        _compare(found, f"{where}: layer {i + 1}", got, mine, 1)
        key = (index, i)
        found.delivered[key] = found.delivered.get(key, np.zeros(len(got))) + got
        given = got > 0
        spots += int(given.sum())
        echo += int((given & (got.astype(np.float32) == plan_spots.astype(np.float32))).sum())
        specified += float(plan_spots.sum())
        running += float(mine.sum())
        total += float(got.sum())
        size += float(np.abs(got).sum())
    for number, point in points.items():
        if np.any(np.atleast_1d(np.array(point.ScanSpotMetersetsDelivered, np.float64))):
            found.problems.append(f"{where}: control point {number} ends a layer, and has spots with a meterset")
    # each spot is rounded by itself, and one with next to no charge may be negative
    if abs(total - float(beam.DeliveredPrimaryMeterset)) > SPOT_ROUNDING * size + DECIMAL_ROUNDING:
        found.problems.append(f"{where}: its spots sum up to {total:.9g}, it says {beam.DeliveredPrimaryMeterset}")
    if spots >= ECHO_SPOTS and echo == spots:
        found.echoes.append(
            f"{where}: every one of {spots} delivered spots has its planned meterset to the last bit: this repeats the "
            "plan, and measures nothing"
        )


def _echo(visits: NDArray[np.void], found: ReadBack) -> None:
    """The journal itself may be the echo: visits of which every one got exactly what was planned."""
    given = visits[visits["meterset_1"] > 0]
    if len(given) >= ECHO_SPOTS and bool((given["meterset_1"] == given["planned_meterset"]).all()):
        found.echoes.append(
            f"journal: all {len(given)} visits have their planned meterset to the last bit: nothing was measured"
        )


def _spots(visits: NDArray[np.void], index: int, layer: int, count: int) -> Floats:
    """Meterset of each spot of a layer by electrometer 1."""
    mine = visits[(visits["field"] == index) & (visits["layer"] == layer)]
    sums = np.zeros(count)
    np.add.at(sums, mine["spot"].astype(np.int64), mine["meterset_1"])
    return sums


def _compare(found: ReadBack, where: str, got: Floats, wanted: Floats, roundings: int) -> None:
    off = np.abs(got - wanted) > roundings * SPOT_ROUNDING * np.maximum(np.abs(wanted), 1e-30)
    if off.any():
        at = int(np.flatnonzero(off)[0])
        found.problems.append(
            f"{where}, spot {at + 1}: {got[at]:.9g} delivered, the journal says {wanted[at]:.9g} "
            f"({int(off.sum())} spots differ)"
        )


def _number(found: ReadBack, what: str, said: Any, wanted: float) -> None:
    if abs(float(said) - float(wanted)) > DECIMAL_ROUNDING * max(abs(float(wanted)), 1.0):
        found.problems.append(f"{what}: {said}, wanted {wanted:.12g}")


def _log(journal: Journal, path: Path, found: ReadBack) -> None:
    """The log's visits are the journal's, to the bit."""
    try:
        with open_log(path) as log:
            for name in ("field", "layer", "spot", "part", "visit", "counts_1", "counts_2", "meterset_1"):
                if not np.array_equal(log.visits[name], journal.visits[name]):
                    found.problems.append(f"{path}: visits: column {name} is not the journal's")
    except (BadInput, KeyError, OSError) as error:
        found.problems.append(f"{path}: cannot be read back: {error}")


def dcmtk_metersets(path: Path) -> list[Floats] | None:
    """ScanSpotMetersetsDelivered of every control point as dcmdump reads it; None: dcmdump is not installed.

    A second opinion by another library; dcmdump prints seven to nine digits.
    """
    program = shutil.which("dcmdump")
    if program is None:
        return None
    done = subprocess.run(
        [program, "-q", "-M", "+L", "+P", "3008,0047", str(path)], capture_output=True, text=True, check=True
    )
    found = []
    for line in done.stdout.splitlines():
        values = line.split(" FL ", 1)[-1].split("#", 1)[0].strip()
        found.append(np.array([float(v) for v in values.split("\\")], np.float64))
    return found
