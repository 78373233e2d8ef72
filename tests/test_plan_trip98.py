"""TRiP98 raster files: particles, layer by layer; every declared number is checked."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from controller.plan.load import load_plan
from controller.plan.rules import MalformedPlan, UnsupportedPlan
from controller.plan.trip98 import parse_trip98, read_trip98
from tests.mutations import RASTER
from tests.plan_compare import differences
from tests.plan_reader import read


def parse(data: bytes) -> object:
    return parse_trip98("case.rst", data, gantry_deg=90.0, couch_deg=None)


def test_a_raster_file_is_a_plan_of_particles() -> None:
    loaded = parse_trip98("case.rst", RASTER, gantry_deg=90.0, couch_deg=None)
    assert differences(loaded.plan, read(RASTER)) == []
    field = loaded.plan.fields[0]
    assert (field.ion, field.unit, field.machine_name, field.vsad_mm) == ("12C", "NP", "", None)
    assert field.meterset == pytest.approx(306_860.2, abs=0.1)
    assert [(x.energy_mev_u, x.tune_id, x.spot_fwhm_mm) for x in field.layers] == [
        (229.76, "2", (3.7, 3.7)),
        (233.42, "1", (3.7, 3.7)),
    ]
    assert [layer.control_point for layer in field.layers] == [0, 2]
    assert field.ripple_filter == "3 mm RIFI"
    assert loaded.plan.approval == "NONE"


def test_the_file_s_angles_are_shown_and_not_obeyed() -> None:
    loaded = parse_trip98("case.rst", RASTER, gantry_deg=270.0, couch_deg=-10.0)
    field = loaded.plan.fields[0]
    assert (field.gantry_deg, field.couch.rotation_deg) == (270.0, 350.0)
    assert ("couchangle", "-90") in loaded.plan.shown
    assert [f.rule for f in loaded.findings] == ["ANGLES_NOT_OBEYED"]


def test_the_port_is_the_command_line_s_else_the_site_s(tmp_path: Path) -> None:
    path = tmp_path / "any.name"
    path.write_bytes(RASTER)
    assert load_plan(path, default_gantry_deg=90.0).plan.fields[0].gantry_deg == 90.0
    assert load_plan(path, gantry_deg=0.0, default_gantry_deg=90.0).plan.fields[0].gantry_deg == 0.0
    with pytest.raises(MalformedPlan, match="WRONG_USAGE"):
        read_trip98(path, gantry_deg=None, couch_deg=None)


def test_the_patient_is_in_the_identity_alone() -> None:
    loaded = parse_trip98("case.rst", RASTER, gantry_deg=0.0, couch_deg=None)
    assert loaded.patient.id == "phantom"
    assert "phantom" not in repr(loaded.plan)


def test_windows_line_ends_are_read() -> None:
    ours = parse_trip98("case.rst", RASTER.replace(b"\n", b"\r\n"), gantry_deg=0.0, couch_deg=None)
    assert differences(ours.plan, read(RASTER)) == []


def emptied(data: bytes) -> bytes:
    """Return the file with no particles in any point, and totals that agree."""
    without = re.sub(rb"#particles.*", b"#particles 0 0 0", data)
    return re.sub(rb"(?m)^(-?\d -?\d) \d.*$", rb"\1 0", without)


FAULTS: list[tuple[str, str, Callable[[bytes], bytes]]] = [
    ("no projectile", "MISSING_VALUE", lambda d: d.replace(b"projectile 12C\n", b"")),
    ("an unknown keyword", "TRIP98_SYNTAX", lambda d: d.replace(b"bolus 0", b"colour red")),
    ("a keyword twice", "DUPLICATE_NUMBER", lambda d: d.replace(b"bolus 0", b"mass 12")),
    ("a mass that contradicts", "BAD_VALUE", lambda d: d.replace(b"mass 12", b"mass 4")),
    ("a projectile that does not exist", "BAD_VALUE", lambda d: d.replace(b"projectile 12C", b"projectile 12G")),
    ("electrons left", "BAD_VALUE", lambda d: d.replace(b"charge 6", b"charge 4")),
    ("a projectile that contradicts", "BAD_VALUE", lambda d: d.replace(b"projectile 12C", b"projectile 1H")),
    ("a layer more declared", "TRUNCATED", lambda d: d.replace(b"#submachines 2", b"#submachines 3")),
    ("a layer less declared", "COUNT_MISMATCH", lambda d: d.replace(b"#submachines 2", b"#submachines 1")),
    ("a point more declared", "COUNT_MISMATCH", lambda d: d.replace(b"#points 3", b"#points 4")),
    ("a point less declared", "TRIP98_TOTALS", lambda d: d.replace(b"#points 3", b"#points 2")),
    ("no points", "BAD_VALUE", lambda d: d.replace(b"#points 3", b"#points 0")),
    ("a thousand million points", "LIMIT_EXCEEDED", lambda d: d.replace(b"#points 3", b"#points 999999999")),
    ("another total", "TRIP98_TOTALS", lambda d: d.replace(b"181430", b"181440")),
    ("another least", "TRIP98_TOTALS", lambda d: d.replace(b"#particles 60000 65430", b"#particles 60010 65430")),
    ("another total of the file", "TRIP98_TOTALS", lambda d: d.replace(b"306860", b"306900")),
    ("a changed point", "TRIP98_TOTALS", lambda d: d.replace(b"0 0 70000", b"0 0 69990")),
    ("a negative point", "NEGATIVE_WEIGHT", lambda d: d.replace(b"0 0 70000", b"0 0 -70000")),
    ("a point of NaN", "NON_FINITE_VALUE", lambda d: d.replace(b"0 0 70000", b"0 0 nan")),
    ("a point of 1e400", "NON_FINITE_VALUE", lambda d: d.replace(b"0 0 70000", b"0 0 1e400")),
    ("a hexadecimal point", "TRIP98_SYNTAX", lambda d: d.replace(b"0 0 70000", b"0 0 0x11170")),
    ("a number with underscores", "TRIP98_SYNTAX", lambda d: d.replace(b"0 0 70000", b"0 0 70_000")),
    ("an energy of zero", "BAD_VALUE", lambda d: d.replace(b"229.76", b"0")),
    ("an empty line inside", "TRIP98_SYNTAX", lambda d: d.replace(b"0 0 70000\n", b"\n")),
    ("a cut in the middle", "TRUNCATED", lambda d: d[: d.index(b"0 2 65430")]),
    ("a cut in the last number", "TRUNCATED", lambda d: d[:-2]),
    ("a cut in the last number with a line end", "TRIP98_TOTALS", lambda d: d[:-2] + b"\n"),
    ("bytes that are no text", "TRIP98_SYNTAX", lambda d: d.replace(b"bolus 0", b"bolus \x1b[2J")),
    ("a line of 10 kB", "LIMIT_EXCEEDED", lambda d: d.replace(b"bolus 0", b"bolus" + b" " * 10_000)),
    ("three million lines", "LIMIT_EXCEEDED", lambda d: d + b"\n" * 3_000_000),
    ("no particles at all", "BAD_VALUE", emptied),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "deed"), [(r, d) for _, r, d in FAULTS], ids=[what for what, _, _ in FAULTS])
def test_a_raster_file_with_this_fault_is_malformed(rule: str, deed: Callable[[bytes], bytes]) -> None:
    damaged = deed(RASTER)
    assert damaged != RASTER
    with pytest.raises(MalformedPlan, match=rf"case\.rst: \[{rule}\]"):
        parse(damaged)


def test_a_bolus_is_refused() -> None:
    with pytest.raises(UnsupportedPlan, match="MODIFIER_NOT_SUPPORTED"):
        parse(RASTER.replace(b"bolus 0", b"bolus 5"))


def test_another_ion_has_its_name() -> None:
    data = RASTER.replace(b"projectile 12C\ncharge 6\nmass 12", b"projectile 16O\ncharge 8\nmass 16")
    assert parse_trip98("case.rst", data, gantry_deg=0.0, couch_deg=None).plan.fields[0].ion == "16O"
