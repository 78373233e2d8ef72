"""The guard's own reading of plans, and its own numbers."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from controller.machine.dosimetry import Corrections, counts_per_particle
from controller.plan.load import load_plan
from drivers.errors import BadInput, Refused
from interlocks import guard_numbers, guard_plan
from interlocks.guard_numbers import EXTRAPOLATED, expected_fields
from interlocks.guard_plan import read_plan
from sites.loader import load_site
from tests.delivery_rig import EXAMPLES
from tests.make_plan import BeamSpec, LayerSpec, grid, make_plan, write_plan

RASTER = """rstfile 20030630
sistable 19981218
patient_id x
machine# 0
projectile 12C
charge 6
mass 12
gantryangle 0
couchangle -90
stereotacticcoordinates
bolus 0
ripplefilter 3 mm RIFI
#submachines 2
#particles 0 4000 10000
submachine# 91 229.76 2 3.7
#particles 0 3000 6000
stepsize 2 2
#points 3
0 0 3000
2 0 0
4 0 3000
submachine# 90 227.5 2 3.7
#particles 4000 4000 4000
stepsize 2 2
#points 1
0 0 4000
"""


def agree(path: Path, site_name: str) -> None:
    """Both readers mean the same, layer by layer."""
    site = load_site(site_name)
    theirs = load_plan(path, default_gantry_deg=90.0).plan
    ours = read_plan(path, fraction_group=None, gantry_deg=90.0)
    assert (ours.sha256, ours.fraction_group) == (theirs.file_sha256, theirs.fraction_group)
    assert len(ours.fields) == len(theirs.fields)
    for mine, field in zip(ours.fields, theirs.fields, strict=True):
        assert (mine.number, mine.machine, mine.ion, mine.unit) == (
            field.number,
            field.machine_name,
            field.ion,
            field.unit,
        )
        assert mine.gantry_deg == pytest.approx(field.gantry_deg)
        assert [layer.energy_mev_u for layer in mine.layers] == [layer.energy_mev_u for layer in field.layers]
        assert [layer.visits for layer in mine.layers] == [
            sum(m > 0 for m in layer.meterset) * layer.paintings for layer in field.layers
        ]
        assert [layer.meterset for layer in mine.layers] == pytest.approx(
            [sum(layer.meterset) for layer in field.layers]
        )
    assert len(expected_fields(site, ours)) == len(ours.fields)


@pytest.mark.parametrize("name", ["small_carbon", "demo_carbon_2field", "demo_proton_1field"])
def test_both_readers_agree_on_the_example_plans(name: str) -> None:
    agree(EXAMPLES / f"{name}.dcm", "proton-gantry" if "proton" in name else "carbon-fixed")


def test_both_readers_agree_on_paintings_and_zero_weights(tmp_path: Path) -> None:
    beams = [BeamSpec(layers=[LayerSpec(250.0, grid(9)), LayerSpec(240.0, grid(4))])]
    agree(write_plan(tmp_path / "plan.dcm", make_plan(beams)), "carbon-fixed")


def test_both_readers_agree_on_a_raster_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.rst"
    path.write_text(RASTER, encoding="ascii")
    agree(path, "carbon-fixed")
    layers = read_plan(path, fraction_group=None, gantry_deg=450.0).fields[0].layers
    assert [(layer.visits, layer.meterset) for layer in layers] == [(2, 6000.0), (1, 4000.0)]
    assert read_plan(path, fraction_group=None, gantry_deg=450.0).fields[0].gantry_deg == 90.0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("#points 3", "#points 4"),
        ("mass 12", "mass 13"),
        ("2 0 0", "2 0 -1"),
        ("2 0 0", "2 0 nan"),
        ("229.76", "-1"),
        ("229.76", "0"),
        ("229.76", "inf"),
        ("2 0 0", "2 0 inf"),
        ("rstfile", "rawfile"),
        ("stepsize 2 2\n#points 1", "#points 1"),
        ("#submachines 2", "#submachines 3"),
        ("#submachines 2", "#submachines 1"),
    ],
)
def test_a_raster_file_that_it_does_not_understand_is_refused(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "plan.rst"
    assert old in RASTER
    path.write_text(RASTER.replace(old, new, 1), encoding="ascii")
    with pytest.raises(BadInput, match=r"plan\.rst"):
        read_plan(path, fraction_group=None, gantry_deg=0.0)


def test_what_is_no_plan_or_another_group_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.dcm", Path(__file__)):
        with pytest.raises(BadInput):
            read_plan(path, fraction_group=None, gantry_deg=0.0)
    with pytest.raises(BadInput, match="7"):
        read_plan(EXAMPLES / "small_carbon.dcm", fraction_group=7, gantry_deg=0.0)


def layers_of(path: Path, fraction_group: int | None = None) -> list[tuple[int, list[tuple[float, int, float]]]]:
    """Beam numbers with their layers, as the guard reads them."""
    plan = read_plan(path, fraction_group=fraction_group, gantry_deg=0.0)
    return [(f.number, [(one.energy_mev_u, one.visits, one.meterset) for one in f.layers]) for f in plan.fields]


ONE = BeamSpec(layers=[LayerSpec(250.0, [(0.0, 0.0, 1001.0)])])
"""One spot of 1001 MU."""


def with_meterset(path: Path, meterset: float, edit: Callable[[Any], None] = lambda beam: None) -> Path:
    plan = make_plan([ONE], groups={1: {1: meterset}})
    plan.IonBeamSequence[0].FinalCumulativeMetersetWeight = 1000.0
    edit(plan.IonBeamSequence[0])
    return write_plan(path, plan)


def test_spots_that_do_not_add_up_to_the_beams_meterset_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.dcm"
    assert layers_of(with_meterset(path, 1000.0)) == [(1, [(250.0, 1, 1001.0)])]  # one per mille: just as much
    for weight in (1001.25, 998.75):

        def edit(beam: Any, weight: float = weight) -> None:
            beam.IonControlPointSequence[0].ScanSpotMetersetWeights = [weight]

        with pytest.raises(BadInput, match="add up"):
            layers_of(with_meterset(path, 1000.0, edit))
    with pytest.raises(BadInput, match="BeamMeterset is 0"):
        layers_of(with_meterset(path, 0.0))


@pytest.mark.parametrize("energy", ["0", "-250"])
def test_an_energy_that_is_none_is_refused(tmp_path: Path, energy: str) -> None:
    def edit(beam: Any) -> None:
        for point in beam.IonControlPointSequence:
            point.NominalBeamEnergy = energy

    with pytest.raises(BadInput, match="energy or a weight"):
        layers_of(with_meterset(tmp_path / "plan.dcm", 1001.0, edit))


@pytest.mark.parametrize("energy", [b"inf  ", b"1e400", b"nan  "])
def test_an_energy_without_bounds_is_refused_also_where_a_file_can_say_it(tmp_path: Path, energy: bytes) -> None:
    path = with_meterset(tmp_path / "plan.dcm", 1001.0)
    data = path.read_bytes()
    assert data.count(b"250.0") > 0
    path.write_bytes(data.replace(b"250.0", energy))
    with pytest.raises(BadInput, match="energy or a weight"):
        layers_of(path)


def test_whatever_a_damaged_file_makes_pydicom_raise_the_file_is_refused_by_name(tmp_path: Path) -> None:
    def weightless(beam: Any) -> None:
        beam.FinalCumulativeMetersetWeight = 0.0

    path = with_meterset(tmp_path / "plan.dcm", 1001.0, weightless)
    with pytest.raises(BadInput, match=r"plan\.dcm.*ZeroDivisionError"):
        layers_of(path)
    data = with_meterset(path, 1001.0).read_bytes()
    energy, weights = b"\x0a\x30\x14\x01DS", b"\x0a\x30\x96\x03FL\x04\x00"
    for old, new, raised in (
        (energy, energy[:-1] + b"&", "NotImplementedError"),
        (weights, weights.replace(b"FL", b"FD"), "BytesLengthException"),
    ):
        assert old in data
        path.write_bytes(data.replace(old, new))
        with pytest.raises(BadInput, match=rf"plan\.dcm.*{raised}"):
            layers_of(path)


@pytest.mark.parametrize(
    ("group", "refused"),
    [(2147483647, False), (-2147483648, False), (2147483648, True), (-2147483649, True)],
)
def test_a_fraction_group_that_no_message_can_name_is_refused(tmp_path: Path, group: int, refused: bool) -> None:
    plan = make_plan([ONE], groups={1: {1: 1001.0}})
    element = plan.FractionGroupSequence[0]["FractionGroupNumber"]
    element.VR, element._value = "SH", str(group)  # pydicom writes no such integer string
    path = write_plan(tmp_path / "plan.dcm", plan)
    path.write_bytes(path.read_bytes().replace(b"\x0a\x30\x71\x00SH", b"\x0a\x30\x71\x00IS"))
    if refused:
        with pytest.raises(
            BadInput, match=r"plan\.dcm: the guard finds no plan that it understands: fraction.*32 bits"
        ):
            layers_of(path)
    else:
        assert read_plan(path, fraction_group=group, gantry_deg=0.0).fraction_group == group


def test_what_pydicom_only_remarks_is_no_reason_even_where_warnings_are_errors(tmp_path: Path) -> None:
    path = with_meterset(tmp_path / "plan.dcm", 1001.0)
    data = path.read_bytes()
    assert b"ISO_IR 192" in data
    path.write_bytes(data.replace(b"ISO_IR 192", b"ISO_IR 999"))  # a character set that there is not
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert layers_of(path)


@pytest.mark.parametrize("weights", [[3.0, -1.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_a_weight_that_is_none_is_refused(tmp_path: Path, weights: list[float]) -> None:
    plan = make_plan([BeamSpec(layers=[LayerSpec(250.0, [(0.0, 0.0, 1.0), (2.0, 0.0, 1.0)])])])
    plan.IonBeamSequence[0].IonControlPointSequence[0].ScanSpotMetersetWeights = weights
    with pytest.raises(BadInput, match="energy or a weight"):
        layers_of(write_plan(tmp_path / "plan.dcm", plan))


def test_control_points_are_layers_as_the_standard_pairs_them(tmp_path: Path) -> None:
    path = tmp_path / "plan.dcm"
    layers = [LayerSpec(250.0, [(0.0, 0.0, 2.0)]), LayerSpec(240.0, [(0.0, 0.0, 3.0)], paintings=2)]
    wanted = [(1, [(250.0, 1, 2.0), (240.0, 2, 3.0)])]
    assert layers_of(write_plan(path, make_plan([BeamSpec(layers=layers)]))) == wanted
    assert layers_of(write_plan(path, make_plan([BeamSpec(layers=layers, one_point_per_layer=True)]))) == wanted
    plan = make_plan([BeamSpec(layers=layers)])
    points = plan.IonBeamSequence[0].IonControlPointSequence
    points.append(copy.deepcopy(points[-1]))  # one more that ends nothing
    assert layers_of(write_plan(path, plan)) == wanted
    # a layer whose spots all weigh nothing has no visit, and takes the place of one
    empty = [LayerSpec(260.0, [(0.0, 0.0, 0.0)]), *layers]
    assert layers_of(write_plan(path, make_plan([BeamSpec(layers=empty, one_point_per_layer=True)]))) == [
        (1, [(260.0, 0, 0.0), *wanted[0][1]])
    ]


def test_only_treatment_beams_of_the_fraction_group_are_read(tmp_path: Path) -> None:
    path = tmp_path / "plan.dcm"
    beams = [
        BeamSpec(number=1),
        BeamSpec(number=2, name="F2"),
        BeamSpec(number=3, name="X", delivery="SETUP"),
        BeamSpec(number=4, name="Y", delivery="SETUP"),
    ]
    meterset = beams[0].meterset
    plan = make_plan(beams, groups={2: {1: meterset, 3: 5.0, 4: None}, 5: {2: meterset}})
    del plan.IonBeamSequence[1].TreatmentMachineName
    write_plan(path, plan)
    assert [number for number, _ in layers_of(path)] == [1]
    assert [number for number, _ in layers_of(path, 5)] == [2]
    assert read_plan(path, fraction_group=5, gantry_deg=0.0).fields[0].machine == ""


def test_a_file_that_is_too_large_is_no_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_plan(tmp_path / "plan.dcm", make_plan())
    monkeypatch.setattr(guard_plan, "MAX_BYTES", path.stat().st_size)
    assert layers_of(path)
    monkeypatch.setattr(guard_plan, "MAX_BYTES", path.stat().st_size - 1)
    with pytest.raises(BadInput, match="larger"):
        layers_of(path)


def test_a_machine_that_the_site_does_not_have_is_refused() -> None:
    plan = read_plan(EXAMPLES / "demo_proton_1field.dcm", fraction_group=None, gantry_deg=0.0)
    with pytest.raises(Refused, match="no machine"):
        expected_fields(load_site("carbon-fixed"), plan)


@pytest.mark.parametrize("gas", ["air", "nitrogen"])
@pytest.mark.parametrize(("site_name", "ion"), [("carbon-fixed", "12C"), ("proton-gantry", "1H")])
def test_two_physics_agree_where_the_controllers_fit_was_made(site_name: str, ion: str, gas: str) -> None:
    site = load_site(site_name)
    secondary = site.dosimetry.secondary.model_copy(update={"gas": gas})
    site = site.model_copy(update={"dosimetry": site.dosimetry.model_copy(update={"secondary": secondary})})
    for step in range(200):
        energy = EXTRAPOLATED[ion] + (step / 199) * ({"1H": 250.0, "12C": 430.0}[ion] - EXTRAPOLATED[ion])
        for ktp, rate in ((1.0, 0.0), (1.02, 5e7)):
            theirs = counts_per_particle(
                secondary, site.dosimetry, ion, energy, corrections=Corrections(ktp, 0.0, 0.0), rate_per_s=rate
            )
            own = guard_numbers.counts_per_particle(site, ion, energy) / ktp / guard_numbers.recombination(site, rate)
            assert own == pytest.approx(theirs, rel=3e-4)
