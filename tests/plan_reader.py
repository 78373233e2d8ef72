"""A second reader of plans, for comparison: own byte parser, numpy, no checks, nothing of the controller's.

It reads what a file says in the plainest way and does not care whether it should be delivered. Where the controller
accepts a file, both must have understood the same.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Element = dict[int, Any]
LONG_FORM = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
FRACTION_GROUPS, GROUP_BEAMS, BEAMS, POINTS = 0x300A0070, 0x300C0004, 0x300A03A2, 0x300A03A8
SETUPS, MOTION, SHIFTERS, SETTINGS, SNOUTS = 0x300A0180, 0x300A0410, 0x300A0314, 0x300A0360, 0x300A030C
SPREADERS, SPREADER_SETTINGS, MODULATORS = 0x300A0332, 0x300A0370, 0x300A0342
SEQUENCES = {
    *(FRACTION_GROUPS, GROUP_BEAMS, BEAMS, POINTS, SETUPS, MOTION, SHIFTERS, SETTINGS, SNOUTS),
    *(SPREADERS, SPREADER_SETTINGS, MODULATORS),
}
SYMBOLS = {1: "H", 2: "He", 3: "Li", 4: "Be", 5: "B", 6: "C", 7: "N", 8: "O", 10: "Ne"}


@dataclass
class ReadLayer:
    """One layer with weight; metersets are absolute."""

    energy_mev_u: float
    tune: str
    paintings: int
    x_mm: NDArray[np.float64]
    y_mm: NDArray[np.float64]
    meterset: NDArray[np.float64]
    shifters_in: tuple[int, ...]
    point: int


@dataclass
class ReadField:
    """One field of a fraction group."""

    number: int
    machine: str
    ion: str
    unit: str
    meterset: float
    gantry_deg: float
    couch_deg: float
    vsad_mm: tuple[float, ...]
    layers: list[ReadLayer]


@dataclass
class ReadPlan:
    """One fraction group."""

    approval: str
    group: int
    fields: list[ReadField]
    motions: set[tuple[str, str]]
    """Motion synchronisations, those of technique NONE left out, of the set-ups that the fields reference."""


def read(data: bytes, group: int | None = None) -> ReadPlan:
    """Read a file of either format."""
    return _dicom(data, group) if data[128:132] == b"DICM" else _raster(data)


def read_file(path: Path, group: int | None = None) -> ReadPlan:
    """Read a file of either format."""
    return read(path.read_bytes(), group)


def elements(data: bytes) -> Element:
    """Parse a DICOM file into nested dictionaries: tag to bytes, or to a list of items."""
    (meta_length,) = struct.unpack_from("<I", data, 140)
    meta, _ = _parse(data, 132, 144 + meta_length, explicit=True)
    explicit = meta[0x00020010].rstrip(b"\0") == b"1.2.840.10008.1.2.1"
    found, _ = _parse(data, 144 + meta_length, len(data), explicit)
    return found


def _parse(data: bytes, pos: int, end: int, explicit: bool) -> tuple[Element, int]:
    found: Element = {}
    while pos < end:
        group, element, size = struct.unpack_from("<HHI", data, pos)
        tag = group * 65536 + element
        if tag == 0xFFFEE00D:
            return found, pos + 8
        code, pos = data[pos + 4 : pos + 6], pos + 8
        inner_explicit = explicit
        if explicit and code in LONG_FORM:
            (size,) = struct.unpack_from("<I", data, pos)
            pos += 4
            inner_explicit = code != b"UN"
        elif explicit:
            size >>= 16
        if size == 0xFFFFFFFF or (code == b"SQ" and explicit) or (not explicit and tag in SEQUENCES):
            found[tag], pos = _items(data, pos, pos + size if size != 0xFFFFFFFF else None, inner_explicit)
        else:
            found[tag] = data[pos : pos + size]
            pos += size
    return found, pos


def _items(data: bytes, pos: int, end: int | None, explicit: bool) -> tuple[list[Element], int]:
    items: list[Element] = []
    while end is None or pos < end:
        _, element, size = struct.unpack_from("<HHI", data, pos)
        pos += 8
        if element == 0xE0DD:
            return items, pos
        item, pos = _parse(data, pos, len(data) if size == 0xFFFFFFFF else pos + size, explicit)
        items.append(item)
    return items, pos


def _text(item: Element, tag: int) -> str:
    return bytes(item.get(tag, b"")).decode("utf-8", "replace").strip(" \0")


def _number(item: Element, tag: int) -> float:
    return float(_text(item, tag))


def _floats(item: Element, tag: int) -> NDArray[np.float64]:
    return np.frombuffer(item.get(tag, b""), "<f4").astype(float)


def _dicom(data: bytes, group: int | None) -> ReadPlan:
    top = elements(data)
    groups = {int(_number(item, 0x300A0071)): item for item in top[FRACTION_GROUPS]}
    chosen = min(groups) if group is None else group
    metersets = {
        int(_number(reference, 0x300C0006)): _number(reference, 0x300A0086)
        for reference in groups[chosen][GROUP_BEAMS]
        if _text(reference, 0x300A0086)
    }
    setups = {int(_number(item, 0x300A0182)): item for item in top.get(SETUPS, [])}
    fields, motions = [], set()
    for beam in top[BEAMS]:
        number = int(_number(beam, 0x300A00C0))
        if number not in metersets or _text(beam, 0x300A00CE) != "TREATMENT":
            continue
        fields.append(_field(beam, number, metersets[number]))
        reference = _text(beam, 0x300C006A)
        for setup in [setups[int(reference)]] if reference else setups.values():
            for motion in setup.get(MOTION, []):
                if _text(motion, 0x00189170) != "NONE":
                    motions.add((_text(motion, 0x00189170), _text(motion, 0x00189171)))
    return ReadPlan(_text(top, 0x300E0002) or "NONE", chosen, fields, motions)


def _field(beam: Element, number: int, meterset: float) -> ReadField:
    factor = meterset / _number(beam, 0x300A010E)
    energy, settings = float("nan"), dict[int, str]()
    layers = []
    for index, point in enumerate(beam[POINTS]):
        energy = _number(point, 0x300A0114) if _text(point, 0x300A0114) else energy
        for setting in point.get(SETTINGS, []):
            settings[int(_number(setting, 0x300C0100))] = _text(setting, 0x300A0362)
        weights = _floats(point, 0x300A0396)
        if not weights.any():
            continue
        xy = _floats(point, 0x300A0394).reshape(-1, 2)
        inside = tuple(sorted(number for number, setting in settings.items() if setting == "IN"))
        layers.append(
            ReadLayer(
                energy,
                _text(point, 0x300A0390),
                int(_number(point, 0x300A039A)),
                xy[:, 0],
                xy[:, 1],
                weights * factor,
                inside,
                index,
            )
        )
    first = beam[POINTS][0]
    ion = "1H"
    if _text(beam, 0x300A00C6) == "ION":
        mass, atomic = int(_number(beam, 0x300A0302)), int(_number(beam, 0x300A0304))
        ion = f"{mass}{SYMBOLS[atomic]}"
    return ReadField(
        number,
        _text(beam, 0x300A00B2),
        ion,
        _text(beam, 0x300A00B3),
        meterset,
        _number(first, 0x300A011E),
        _number(first, 0x300A0122),
        tuple(_floats(beam, 0x300A030A)),
        layers,
    )


def _raster(data: bytes) -> ReadPlan:
    head, *blocks = data.decode("ascii").split("submachine# ")
    words = dict(line.partition(" ")[::2] for line in head.splitlines())
    layers = []
    for index, block in enumerate(blocks):
        lines = block.splitlines()
        _, energy, focus, _ = lines[0].split()
        points = np.array([line.split() for line in lines[4:] if line.strip()], dtype=float).reshape(-1, 3)
        if points[:, 2].any():
            layers.append(ReadLayer(float(energy), focus, 1, points[:, 0], points[:, 1], points[:, 2], (), 2 * index))
    ion = words["mass"].strip() + SYMBOLS[int(words["charge"])]
    total = float(sum(layer.meterset.sum() for layer in layers))
    field = ReadField(1, "", ion, "NP", total, float("nan"), float("nan"), (), layers)
    return ReadPlan("NONE", 1, [field], set())
