"""Site files: shipped ones load and agree with each other; wrong ones are named by file, line and key."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.errors import BadInput
from sites.loader import (
    SIZE_LIMIT_BYTES,
    effective_config,
    load_site,
    parse_site,
    shipped_sites,
    site_from_config,
    site_sha256,
)
from sites.positions import key_lines, line_of
from sites.schema import Site, TcpAddress

SITES = Path(__file__).parents[1] / "sites"
TEXT = (SITES / "carbon-fixed.toml").read_text(encoding="utf-8")


def line_with(text: str, after: str = "") -> int:
    """Number of the first line that begins with the text, after the line that begins with `after`."""
    lines = TEXT.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(after))
    return next(i for i, line in enumerate(lines) if i >= start and line.startswith(text)) + 1


def message_for(text: str) -> str:
    with pytest.raises(BadInput) as caught:
        parse_site(text.encode(), "room.toml")
    return str(caught.value)


def changed(old: str, new: str) -> str:
    assert old in TEXT
    return TEXT.replace(old, new, 1)


def test_these_sites_ship() -> None:
    assert shipped_sites() == ["carbon-fixed", "carbon-gantry", "proton-gantry", "step-lab"]


@pytest.mark.parametrize("name", shipped_sites())
def test_a_shipped_site_is_named_like_its_file_is_for_research_and_all_simulated(name: str) -> None:
    site = load_site(name)
    assert site.name == name
    assert site.research
    assert site.all_simulated


@pytest.mark.parametrize("name", shipped_sites())
def test_a_shipped_site_writes_out_every_tolerance(name: str) -> None:
    written = tomllib.loads((SITES / f"{name}.toml").read_text(encoding="utf-8"))["tolerances"]
    assert set(written) == set(Site.model_fields["tolerances"].annotation.model_fields)


@pytest.mark.parametrize("name", shipped_sites())
def test_every_number_of_the_machine_has_a_source_beside_it(name: str) -> None:
    text = (SITES / f"{name}.toml").read_text(encoding="utf-8")
    machine = text[text.index("[accelerator]") : text.index("[permits]")]
    bare = [
        line
        for line in machine.splitlines()
        if re.match(r"[a-z_0-9]+ = -?[\d.]+", line) and "#" not in line and not line.startswith("count")
    ]
    in_tables_with_one_source = re.compile(r"(energy_mev_u|x[xy]|y[xy]|[xy]0_mm|default_deg) = ")
    assert [line for line in bare if not in_tables_with_one_source.match(line)] == []


def test_no_two_shipped_sites_share_an_address() -> None:
    seen: dict[str, str] = {}
    for name in shipped_sites():
        site = load_site(name)
        places = [device.address.place for _, device in site.devices.items()]
        places += [f"udp {site.streams.frames.port}", f"udp {site.streams.permits.port}", site.telemetry.url]
        places += [f"key {site.permits.key_hex}"]
        for place in places:
            assert place not in seen, f"{place} is used by {seen.get(place)} and {name}"
            seen[place] = name
    assert load_site("carbon-gantry").devices.accelerator.address == TcpAddress(
        wire="modbus_tcp", host="127.0.0.1", port=15120
    )


def test_a_site_loads_by_path_as_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(TEXT, encoding="utf-8")
    assert load_site(str(path)) == load_site("carbon-fixed")


def test_an_unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(BadInput, match=r"carbon-fxed: no such site; shipped sites are carbon-fixed, carbon-gantry"):
        load_site("carbon-fxed")


@pytest.mark.parametrize("bad", ["", ".", "/dev/null", "\0", "a" * 5000, "missing/file.toml"])
def test_what_is_no_file_is_bad_input(bad: str) -> None:
    with pytest.raises(BadInput):
        load_site(bad)


def test_the_effective_config_round_trips_and_holds_defaults() -> None:
    site = load_site("carbon-fixed")
    config = effective_config(site)
    assert site_from_config(config) == site
    assert effective_config(site_from_config(config)) == config
    assert '"lease_ms":100.0' in config
    assert " :" not in config


def test_the_hash_depends_on_meaning_not_on_layout() -> None:
    spaced = parse_site(("# a comment\n\n" + TEXT.replace(" = ", "  =  ")).encode(), "a")
    other = parse_site(changed("gap_s = 2.0", "gap_s = 2.1").encode(), "b")
    assert site_sha256(spaced) == site_sha256(load_site("carbon-fixed"))
    assert site_sha256(other) != site_sha256(spaced)


def test_a_stored_config_that_is_no_site_is_bad_input() -> None:
    with pytest.raises(BadInput, match="stored site"):
        site_from_config('{"name": "x"}')


# (old text, new text, key that the message names, line it starts with, part of the message)
MISTAKES = [
    (
        "gap_mm = 5.0",
        "gap_mm = true",
        "dosimetry.primary.gap_mm",
        ("gap_mm", "[dosimetry.primary]"),
        "number, got true",
    ),
    ("hold_max_s = 60.0", 'hold_max_s = "60"', "gating.hold_max_s", ("hold_max_s", ""), 'number, got "60"'),
    ("gap_s = 2.0", "gap_s = nan", "accelerator.gap_s", ("gap_s", ""), "finite number"),
    ("gap_s = 2.0", "gap_s = inf", "accelerator.gap_s", ("gap_s", ""), "finite number"),
    ("gap_s = 2.0", "gap_s = -1", "accelerator.gap_s", ("gap_s", ""), "greater than or equal to 0, got -1"),
    ("gap_s = 2.0", "gap_s = 1979-05-27", "accelerator.gap_s", ("gap_s", ""), "is a date or time"),
    ("settle_us = 200.0", "setle_us = 200.0", "scanning.x.setle_us", ("settle_us", ""), "did you mean settle_us?"),
    ("[gating]", "[gatting]", "gatting", ("[gating]", ""), "unknown key; did you mean gating?"),
    ('mode = "raster"', 'mode = "Raster"', "scanning.mode", ("mode", ""), "'raster' or 'discrete', got \"Raster\""),
    (
        'ripple_filters = [{ id = "RIFI_3MM", code = 301,',
        'ripple_filters = [{ id = "RIFI_3MM", code = 3.5,',
        "treatment_machines.REF-C.ripple_filters.0.code",
        ("ripple_filters", ""),
        "integer, got 3.5",
    ),
    (
        'host = "127.0.0.1", port = 15020',
        'host = "127.0.0.1", port = 80',
        "devices.accelerator.address.port",
        ("address", "[devices.accelerator]"),
        "greater than or equal to 1024, got 80",
    ),
    (
        'host = "127.0.0.1", port = 15020',
        'host = "127.0.0.1", prt = 15020',
        "devices.accelerator.address.prt",
        ("address", "[devices.accelerator]"),
        "unknown key; did you mean port?",
    ),
    ('"12C" = "REF-C"', '"12C" = "REF-D"', "trip98_machine.12C", ('"12C"', ""), "'REF-D' is not in treatment_machines"),
    ('"12C" = "REF-C"', '"13C" = "REF-C"', "trip98_machine.13C", ('"12C"', ""), "must be '1H' or '12C'"),
    ("[2e6, 4e6,", "[2e6, 9e6,", "accelerator.intensities_per_s", ("intensities_per_s", ""), "must rise"),
    (
        "[2e6, 4e6, 8e6,",
        "[2e6, 8e6,",
        "accelerator.intensities_per_s",
        ("intensities_per_s", ""),
        "at most a factor 2 apart",
    ),
    (
        "ports_deg = [0.0, 90.0]",
        "ports_deg = []",
        "gantry.ports_deg",
        ("ports_deg", ""),
        "must be given for a fixed gantry",
    ),
    (
        "port = 15021",
        "port = 15020",
        "devices",
        ("[devices.accelerator]", ""),
        "127.0.0.1:15020 is the address of several",
    ),
    (
        "spot_max_mu = 500.0",
        "spot_max_mu = 0.1",
        "treatment_machines.REF-C.spot_max_mu",
        ("spot_max_mu", ""),
        "must be above",
    ),
    (
        "distance_mm = 1000.0",
        "distance_mm = 8500.0",
        "dosimetry.strips.distance_mm",
        ("distance_mm", ""),
        "less than all virtual source",
    ),
    (
        "xx = 1.0003",
        "xx = 0.0003",
        "scanning.calibration",
        ("[[scanning.calibration]]", ""),
        "at 240 MeV/u xx and yy must be 0.5 to 2",
    ),
    (
        'names = ["simulated"]',
        'names = ["anna", ""]',
        "operators.names",
        ("names", "[operators]"),
        "'' names nobody",
    ),
    (
        'names = ["simulated"]',
        'names = ["anna", " "]',
        "operators.names",
        ("names", "[operators]"),
        "' ' names nobody",
    ),
    (
        'names = ["simulated"]',
        'names = ["anna "]',
        "operators.names",
        ("names", "[operators]"),
        "'anna ' names nobody",
    ),
]


@pytest.mark.parametrize(("old", "new", "key", "start", "part"), MISTAKES, ids=[m[1][:40] for m in MISTAKES])
def test_a_mistake_is_named_with_file_line_and_key(
    old: str, new: str, key: str, start: tuple[str, str], part: str
) -> None:
    rows = message_for(changed(old, new)).splitlines()
    wanted = f"room.toml:{line_with(*start)}: {key}: "
    assert any(row.startswith(wanted) and part in row for row in rows), rows


def test_a_real_device_needs_a_key_file_and_a_short_time_out() -> None:
    real = changed('[devices.gantry]\nkind = "simulated"', '[devices.gantry]\nkind = "real"')
    assert f"room.toml:{line_with('key_hex')}: permits.key_hex: is for all-simulated sites" in message_for(real)
    with_file = real.replace(f"key_hex = {TEXT.split('key_hex = ')[1].split(' ')[0]}", 'key_file = "permit.key"')
    assert "permits.time_out_ms: above 50" in message_for(with_file)


def test_a_missing_key_is_said_at_its_table() -> None:
    text = changed("gap_s = 2.0", "# gap_s = 2.0")
    assert message_for(text) == (
        f"room.toml:{line_with('[accelerator]')}: accelerator.gap_s: missing; this key has no default"
    )


def test_all_mistakes_are_listed_at_once_in_the_order_of_the_file() -> None:
    text = changed("gap_s = 2.0", "gap_s = -1").replace("hold_max_s = 60.0", "hold_max_s = 0").replace("baud", "boud")
    rows = message_for(text).splitlines()
    numbers = [int(row.split(":")[1]) for row in rows]
    assert numbers == sorted(numbers)
    assert len(rows) == 2 + 2 * 3  # three serial devices: an unknown key, and a missing one


def test_bad_syntax_is_said_with_its_line() -> None:
    text = changed("gap_s = 2.0", "gap_s = = 2.0")
    assert message_for(text).startswith(f"room.toml:{line_with('gap_s')}: not valid TOML: ")
    assert message_for("x = [1, 2").startswith("room.toml:1: not valid TOML: ")


def test_a_key_given_twice_is_an_error() -> None:
    assert f"room.toml:{line_with('gap_s') + 1}: not valid TOML" in message_for(
        changed("gap_s = 2.0", "gap_s = 2\ngap_s = 3")
    )


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"name = 'x'\ntitle = '\xff'", "room.toml:2: not UTF-8 text (byte 0xff)"),
        (b"#" * (SIZE_LIMIT_BYTES + 1), "larger than"),
        (b"x = " + b"[" * 100_000, "nested too deeply"),
        (b"x = " + b"9" * 5000, "not a usable site file"),
        (b"\0", "not valid TOML"),
        (b"", "name: missing"),
    ],
    ids=["not utf-8", "large", "deep", "long integer", "nul", "empty"],
)
def test_absurd_content_is_bad_input_not_a_traceback(content: bytes, part: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_site(content, "room.toml")
    assert part in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_bad_input(content: bytes) -> None:
    with pytest.raises(BadInput):
        parse_site(content, "room.toml")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_site_file_loads_or_is_bad_input(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(TEXT) - 1))
    stop = data.draw(st.integers(start, min(start + 40, len(TEXT))))
    text = TEXT[:start] + data.draw(st.text(st.characters(codec="utf-8"), max_size=12)) + TEXT[stop:]
    try:
        site = parse_site(text.encode(), "room.toml")
    except BadInput as error:
        message = str(error)
    else:
        message = ""
        assert site_from_config(effective_config(site)) == site
    assert not message or re.match(r"room\.toml:\d+: ", message)


scalars = st.one_of(st.integers(-5, 5), st.booleans(), st.text("ab#\"'[]{}=,.\\ \n", max_size=6), st.floats(-2, 2))
keys = st.text("abcXY_-1 .\"#'=", min_size=1, max_size=5)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3))


def toml_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return toml_string(value)
    if isinstance(value, list):
        return "[" + ",\n ".join(map(toml_value, value)) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{toml_string(k)} = {toml_value(v)}" for k, v in value.items()) + " }"
    return repr(value)


def toml_string(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(keys, values, max_size=6))
def test_the_scanner_finds_every_key_on_its_line(content: dict[str, object]) -> None:
    text, wanted = "", {}
    for key, value in content.items():
        text += "# a = 1\n\n"
        wanted[(key,)] = text.count("\n") + 1
        text += f"{toml_string(key)} = {toml_value(value)} # b\n"
    assert tomllib.loads(text).keys() == content.keys()
    lines = key_lines(text)
    assert {path: line for path, line in lines.items() if len(path) == 1} == wanted


def test_the_scanner_knows_tables_arrays_of_tables_and_all_kinds_of_string() -> None:
    text = '''a.b = 1
"c d" = """
x = 1
\\"""" # not a key
[t.'u v']
w = \'\'\'
y = "\'\'\'
[[n]]
k = 1
[[n]]
k = [ 1, # comment
  2, { z = 3 } ]
[n.m]
q = 1
'''
    parsed = tomllib.loads(text)
    lines = key_lines(text)
    assert parsed["n"][1]["m"]["q"] == 1
    assert lines["a", "b"] == 1
    assert lines["c d",] == 2
    assert lines["t", "u v"] == 5
    assert lines["t", "u v", "w"] == 6
    assert lines["n", 0, "k"] == 9
    assert lines["n", 1, "k"] == 11
    assert lines["n", 1, "k", 2, "z"] == 12
    assert lines["n", 1, "m", "q"] == 14
    assert line_of(lines, ("n", 1, "m", "missing", 4)) == 13
    assert line_of(lines, ("nothing",)) == 1


def test_the_page_of_sites_has_every_shipped_site_and_every_table() -> None:
    page = (Path(__file__).parents[1] / "docs" / "sites.md").read_text(encoding="utf-8")
    assert [name for name in shipped_sites() if f"| `{name}` |" not in page] == []
    _, _, tables = page.partition("## The tables")
    plain = {"name", "title", "research"}
    assert [name for name in Site.model_fields if name not in plain and f"`{name}" not in tables] == []
