"""Read a TRiP98 raster scan file (.rst): particles per raster point, layer by layer.

The format, as files of GSI's treatment planning show it: a header of `keyword values` lines from `rstfile` to
`#particles`, then for each layer `submachine# index energy focus FWHM`, `#particles least greatest total`,
`stepsize x y`, `#points n` and n lines `x y particles`, in mm and particles. Everything declared is checked against
what follows.
Gantry and couch angles in the file follow GSI's convention, which is not IEC 61217: they are shown, not obeyed.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from controller.plan.dicom_layers import MAX_ENERGY_MEV_U, MAX_LAYERS, MAX_POSITION_MM, MAX_VISITS
from controller.plan.files import read_bytes
from controller.plan.ions import MAX_MASS_NUMBER, SYMBOLS, ion_name
from controller.plan.loaded import LoadedPlan
from controller.plan.model import CouchPosition, Layer, PatientIdentity, Plan, PlanField
from controller.plan.rules import MalformedPlan, UnsupportedPlan, finding

FIRST_WORD: Final = b"rstfile"
MAX_TRIP98_BYTES: Final = 64 * 1024 * 1024
MAX_LINE: Final = 200
MAX_SPOTS: Final = 2_000_000
MAX_PARTICLES: Final = 1e15
_LEAST: Final = 1e-3
PRINT_ROUNDING: Final = 2e-5
"""Relative. Six digits are printed: half a unit of the last is at most 5e-6, in the points and in the total."""

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?")
_HEADER = (
    "rstfile",
    "sistable",
    "patient_id",
    "machine#",
    "projectile",
    "charge",
    "mass",
    "gantryangle",
    "couchangle",
    "stereotacticcoordinates",
    "bolus",
    "ripplefilter",
    "#submachines",
    "#particles",
)
_REQUIRED = ("projectile", "charge", "mass", "#submachines", "#particles")


@dataclass(frozen=True, slots=True)
class _Totals:
    """Declared least and greatest particles of a point, and their sum."""

    least: float
    greatest: float
    total: float


class _Lines:
    """The lines of a file, one after the other, with their numbers."""

    def __init__(self, file: str, lines: list[str]) -> None:
        self.file = file
        self._lines = lines
        self.number = 0

    def fail(self, rule: str, message: str) -> MalformedPlan:
        return MalformedPlan(self.file, finding(rule, f"line {self.number}", message))

    def take(self, wanted: str) -> list[str]:
        """Return the words of the next line."""
        if self.number >= len(self._lines):
            raise self.fail("TRUNCATED", f"the file ends where {wanted} was wanted")
        self.number += 1
        words = self._lines[self.number - 1].split()
        if not words:
            raise self.fail("TRIP98_SYNTAX", f"wanted {wanted}, got an empty line")
        return words

    def keyword(self, keyword: str, values: int) -> list[str]:
        """Return the values of a line that must begin with that keyword."""
        words = self.take(f"{keyword!r}")
        if words[0] != keyword or len(words) != values + 1:
            raise self.fail("TRIP98_SYNTAX", f"wanted {keyword!r} with {values} values, got {' '.join(words)[:60]!r}")
        return words[1:]

    def number_from(self, word: str, what: str, low: float, high: float) -> float:
        """Return a finite number within low..high."""
        value = float(word) if _NUMBER.fullmatch(word) else math.nan
        if word.lower().strip("+-") in ("nan", "inf", "infinity") or math.isinf(value):
            raise self.fail("NON_FINITE_VALUE", f"{what}: non-finite value {word[:24]!r}")
        if math.isnan(value):
            raise self.fail("TRIP98_SYNTAX", f"{what}: wanted a number, got {word[:24]!r}")
        if not low <= value <= high:
            rule = "NEGATIVE_WEIGHT" if what == "particles" and value < 0 else "BAD_VALUE"
            raise self.fail(rule, f"{what}: wanted {low:g} to {high:g}, got {word[:24]!r}")
        return value

    def integer_from(self, word: str, what: str, low: int, high: int) -> int:
        """Return an integer within low..high."""
        if not re.fullmatch(r"[+-]?\d{1,9}", word):
            raise self.fail("TRIP98_SYNTAX", f"{what}: wanted an integer, got {word[:24]!r}")
        value = int(word)
        if not low <= value <= high:
            rule = "LIMIT_EXCEEDED" if value > high else "BAD_VALUE"
            raise self.fail(rule, f"{what}: wanted {low} to {high}, got {value}")
        return value

    def end(self) -> None:
        """Check that nothing but empty lines is left."""
        for line in self._lines[self.number :]:
            self.number += 1
            if line.strip():
                raise self.fail("COUNT_MISMATCH", "more lines than the declared layers and points")


def read_trip98(path: Path, *, gantry_deg: float | None, couch_deg: float | None) -> LoadedPlan:
    """Read a raster file as a plan of one field.

    Args:
        path: the file.
        gantry_deg: port to deliver from, degrees IEC 61217. The format has none: None is wrong usage.
        couch_deg: couch rotation; None is 0.

    Raises:
        MalformedPlan: unreadable, malformed, or no port given.
        UnsupportedPlan: the file asks for a bolus.

    """
    if gantry_deg is None:
        message = "a raster file needs a gantry angle from the site or the command line, got none"
        raise MalformedPlan(path.name, finding("WRONG_USAGE", "--gantry-deg", message))
    return parse_trip98(path.name, read_bytes(path, MAX_TRIP98_BYTES), gantry_deg=gantry_deg, couch_deg=couch_deg)


def parse_trip98(name: str, data: bytes, *, gantry_deg: float, couch_deg: float | None) -> LoadedPlan:
    """Read a plan from the bytes of a raster file; like `read_trip98`."""
    lines = _Lines(name, _split(name, data))
    header, totals = _header(lines)
    ion = _ion(lines, header)
    if header.get("bolus", ["0"]) not in ([], ["0"]):
        message = f"bolus is {' '.join(header['bolus'])[:40]!r}"
        raise UnsupportedPlan(name, finding("MODIFIER_NOT_SUPPORTED", "bolus", message))
    count = lines.integer_from(_one(lines, header, "#submachines"), "#submachines", 1, MAX_LAYERS)
    layers = []
    spots = 0
    for index in range(count):
        layers.append(_layer(lines, index))
        spots += layers[-1].spots
        if spots > MAX_SPOTS:
            raise lines.fail("LIMIT_EXCEEDED", f"more than {MAX_SPOTS} points")
    lines.end()
    _check_totals(lines, totals, [n for layer in layers for n in layer.meterset], "the file")
    meterset = math.fsum(n for layer in layers for n in layer.meterset)
    if meterset <= 0:
        raise lines.fail("BAD_VALUE", "no point has particles")
    field = PlanField(
        number=1,
        name="RASTER",
        machine_name="",
        ion=ion,
        unit="NP",
        meterset=meterset,
        gantry_deg=gantry_deg % 360.0 % 360.0,  # twice: -1e-20 % 360.0 is 360.0
        couch=CouchPosition(None, None, None, (couch_deg or 0.0) % 360.0 % 360.0, 0.0, 0.0),
        snout_id=None,
        snout_mm=None,
        vsad_mm=None,
        ripple_filter=" ".join(header.get("ripplefilter", [])) or None,
        lateral_spreaders=(),
        isocenter_mm=None,
        reordering_allowed=False,
        scan_mode="MODULATED",
        control_points=2 * count,
        layers=tuple(layers),
    )
    shown = tuple(
        (keyword, " ".join(header[keyword]))
        for keyword in ("sistable", "machine#", "gantryangle", "couchangle", "stereotacticcoordinates")
        if header.get(keyword)
    )
    plan = Plan(
        format="trip98",
        label="TRIP98",
        sop_instance_uid="",
        approval="NONE",
        fraction_group=1,
        fraction_groups=(1,),
        fractions_planned=None,
        gating=None,
        patient_position=None,
        fields=(field,),
        setup_beams=(),
        shown=shown,
        file_sha256=hashlib.sha256(data).hexdigest(),
    )
    identity = PatientIdentity("", " ".join(header.get("patient_id", []))[:64], *[""] * 9)
    angles = ", ".join(f"{k} {v}" for k, v in shown if k.endswith("angle"))
    message = (
        f"the file says {angles or 'nothing'}; gantry {field.gantry_deg:g}, couch {field.couch.rotation_deg:g} are used"
    )
    return LoadedPlan(plan, identity, (finding("ANGLES_NOT_OBEYED", "beam 1", message),))


def _split(name: str, data: bytes) -> list[str]:
    def fail(rule: str, message: str) -> MalformedPlan:
        return MalformedPlan(name, finding(rule, "", message))

    if len(data) > MAX_TRIP98_BYTES:
        raise fail("LIMIT_EXCEEDED", f"a raster file has at most {MAX_TRIP98_BYTES} bytes, got {len(data)}")
    if not data.isascii() or re.search(rb"[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f]", data):
        raise fail("TRIP98_SYNTAX", "wanted plain ASCII text")
    if not data.endswith(b"\n"):
        raise fail("TRUNCATED", "the last line has no end")
    if data.count(b"\n") > MAX_SPOTS + 5 * MAX_LAYERS:
        raise fail("LIMIT_EXCEEDED", "more lines than any plan needs")
    lines = [line.rstrip(b"\r") for line in data.split(b"\n")[:-1]]
    longest = max(map(len, lines))
    if longest > MAX_LINE:
        raise fail("LIMIT_EXCEEDED", f"a line has at most {MAX_LINE} characters, got {longest}")
    return [line.decode("ascii") for line in lines]


def _header(lines: _Lines) -> tuple[dict[str, list[str]], _Totals]:
    """Read keyword lines up to and including the file's own #particles."""
    header: dict[str, list[str]] = {}
    while "#particles" not in header:
        words = lines.take("a header line")
        if words[0] not in _HEADER:
            raise lines.fail("TRIP98_SYNTAX", f"unknown header keyword {words[0][:24]!r}")
        if words[0] in header:
            raise lines.fail("DUPLICATE_NUMBER", f"header keyword {words[0]!r} occurs twice")
        header[words[0]] = words[1:]
    for keyword in _REQUIRED:
        if not header.get(keyword):
            raise lines.fail("MISSING_VALUE", f"missing {keyword}")
    return header, _totals(lines, header["#particles"])


def _one(lines: _Lines, header: dict[str, list[str]], keyword: str) -> str:
    if len(header[keyword]) != 1:
        raise lines.fail("TRIP98_SYNTAX", f"{keyword}: wanted one value, got {len(header[keyword])}")
    return header[keyword][0]


def _totals(lines: _Lines, words: list[str]) -> _Totals:
    if len(words) != 3:
        raise lines.fail("TRIP98_SYNTAX", f"#particles: wanted least, greatest and total, got {len(words)} values")
    return _Totals(*(lines.number_from(word, "#particles", 0, MAX_PARTICLES) for word in words))


def _ion(lines: _Lines, header: dict[str, list[str]]) -> str:
    projectile = _one(lines, header, "projectile")
    mass = lines.integer_from(_one(lines, header, "mass"), "mass", 1, MAX_MASS_NUMBER)
    charge = lines.integer_from(_one(lines, header, "charge"), "charge", 1, len(SYMBOLS))
    if projectile not in (ion_name(mass, charge), SYMBOLS[charge - 1]) or charge > mass:
        raise lines.fail(
            "BAD_VALUE", f"projectile {projectile[:24]!r}, mass {mass}, charge {charge}: no such fully stripped ion"
        )
    return ion_name(mass, charge)


def _layer(lines: _Lines, index: int) -> Layer:
    _, energy, focus, fwhm = lines.keyword("submachine#", 4)
    energy_mev_u = lines.number_from(energy, "energy", _LEAST, MAX_ENERGY_MEV_U)
    fwhm_mm = lines.number_from(fwhm, "focus FWHM", _LEAST, MAX_POSITION_MM)
    lines.integer_from(focus, "focus", 0, 1000)
    totals = _totals(lines, lines.keyword("#particles", 3))
    for step in lines.keyword("stepsize", 2):
        lines.number_from(step, "stepsize", _LEAST, MAX_POSITION_MM)
    count = lines.integer_from(lines.keyword("#points", 1)[0], "#points", 1, MAX_VISITS)
    x_mm, y_mm, particles = [], [], []
    for _ in range(count):
        words = lines.take(f"one of {count} points")
        if len(words) != 3:
            raise lines.fail("COUNT_MISMATCH", f"wanted one of {count} points 'x y particles', got {len(words)} words")
        x_mm.append(lines.number_from(words[0], "x", -MAX_POSITION_MM, MAX_POSITION_MM))
        y_mm.append(lines.number_from(words[1], "y", -MAX_POSITION_MM, MAX_POSITION_MM))
        particles.append(lines.number_from(words[2], "particles", 0, MAX_PARTICLES))
    _check_totals(lines, totals, particles, f"layer {index}")
    return Layer(
        energy_mev_u=energy_mev_u,
        tune_id=focus,
        paintings=1,
        x_mm=tuple(x_mm),
        y_mm=tuple(y_mm),
        meterset=tuple(particles),
        spot_fwhm_mm=(fwhm_mm, fwhm_mm),
        range_shifters=(),
        control_point=2 * index,
    )


def _check_totals(lines: _Lines, totals: _Totals, particles: list[float], what: str) -> None:
    pairs = (
        ("least", totals.least, min(particles)),
        ("greatest", totals.greatest, max(particles)),
        ("total", totals.total, math.fsum(particles)),
    )
    for name, declared, counted in pairs:
        if not abs(declared - counted) <= PRINT_ROUNDING * max(declared, counted):
            message = f"{name} particles of {what}: {declared:g} declared, {counted:g} counted"
            raise lines.fail("TRIP98_TOTALS", message)
