"""RT Ion Plans are read as they mean it: dialects of real systems, one test a trap."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from controller.plan.dicom import parse_dicom, read_dicom
from controller.plan.load import load_plan
from controller.plan.loaded import LoadedPlan
from controller.plan.model import RangeShifterSetting
from tests.make_plan import BeamSpec, LayerSpec, SetupSpec, grid, make_plan, plan_bytes, write_plan
from tests.plan_compare import differences
from tests.plan_reader import read, read_file


def load(plan: Dataset, *, implicit: bool = False, group: int | None = None) -> LoadedPlan:
    """Read a plan through bytes, and let the second reader confirm what it says."""
    data = plan_bytes(plan, implicit=implicit)
    loaded = parse_dicom("test.dcm", data, fraction_group=group)
    assert differences(loaded.plan, read(data, group)) == []
    return loaded


def rules(loaded: LoadedPlan) -> list[str]:
    return [f.rule for f in loaded.findings]


def reference_plans() -> list[str]:
    folder = Path(os.environ.get("SPOTWISE_SHARED", Path(__file__).parents[2] / "shared")) / "plans"
    files = [*folder.glob("good/*.dcm"), *folder.glob("trip98/*.rst"), folder / "bad" / "B00_control_valid.dcm"]
    return sorted(str(path.relative_to(folder)) for path in files if path.is_file()) or ["good/missing"]


@pytest.mark.parametrize("name", reference_plans())
def test_both_readers_understand_a_reference_plan_alike(name: str, shared: Path) -> None:
    path = shared / "plans" / name
    assert differences(load_plan(path, default_gantry_deg=90.0).plan, read_file(path)) == []


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("one_point_per_layer", [False, True])
def test_one_or_two_control_points_a_layer_and_both_encodings_give_the_same_plan(
    implicit: bool, one_point_per_layer: bool
) -> None:
    loaded = load(make_plan([BeamSpec(one_point_per_layer=one_point_per_layer)]), implicit=implicit)
    field = loaded.plan.fields[0]
    assert [layer.energy_mev_u for layer in field.layers] == [250.0, 240.0, 230.0]
    assert field.control_points == (4 if one_point_per_layer else 6)
    assert [layer.control_point for layer in field.layers] == ([0, 1, 2] if one_point_per_layer else [0, 2, 4])
    assert field.layers[0].meterset[:3] == (2.0, 2.125, 2.25)
    assert loaded.findings == ()


def test_weights_are_relative_to_the_final_weight() -> None:
    absolute = load(make_plan([BeamSpec()])).plan.fields[0]
    relative = load(make_plan([BeamSpec(final_weight=1.0)])).plan.fields[0]
    for a, r in zip(absolute.layers, relative.layers, strict=True):
        np.testing.assert_allclose(r.meterset, a.meterset, rtol=2e-7)


def test_a_meterset_eight_times_the_final_weight_gives_eight_times_the_weights() -> None:
    field = load(make_plan([BeamSpec()], groups={1: {1: 8 * BeamSpec().meterset}})).plan.fields[0]
    assert field.layers[0].meterset[0] == pytest.approx(16.0, rel=1e-12)


def test_a_layer_of_one_spot_is_a_layer_of_one_spot() -> None:
    layer = load(make_plan([BeamSpec(layers=[LayerSpec(200.0, [(1.5, -2.5, 3.0)])])])).plan.fields[0].layers[0]
    assert (layer.x_mm, layer.y_mm, layer.meterset) == ((1.5,), (-2.5,), (3.0,))


def test_a_layer_too_long_for_its_vr_comes_back_from_raw_bytes() -> None:
    with pytest.warns(UserWarning, match="changed from 'FL' to 'UN'"):
        data = plan_bytes(make_plan([BeamSpec(layers=[LayerSpec(200.0, grid(16_384, 0.25, 1.0))])]))
    loaded = parse_dicom("long.dcm", data, fraction_group=None)
    assert loaded.plan.fields[0].spots == 16_384
    assert differences(loaded.plan, read(data)) == []


def test_positions_keep_the_order_of_the_file() -> None:
    spots = [(3.0, 1.0, 2.0), (-1.0, 4.0, 2.0), (3.0, -7.0, 2.0), (3.0, 1.0, 1.0)]
    layer = load(make_plan([BeamSpec(layers=[LayerSpec(200.0, spots)])])).plan.fields[0].layers[0]
    assert list(zip(layer.x_mm, layer.y_mm, layer.meterset, strict=True)) == spots


def test_energies_may_rise_and_repeat_and_are_never_sorted() -> None:
    layers = [LayerSpec(e) for e in (200.0, 220.0, 200.0, 200.0)]
    field = load(make_plan([BeamSpec(layers=layers)])).plan.fields[0]
    assert [layer.energy_mev_u for layer in field.layers] == [200.0, 220.0, 200.0, 200.0]


def test_a_weight_is_the_total_over_all_paintings() -> None:
    layers = [LayerSpec(200.0, paintings=5), LayerSpec(190.0, paintings=2)]
    field = load(make_plan([BeamSpec(layers=layers)])).plan.fields[0]
    assert [layer.paintings for layer in field.layers] == [5, 2]
    assert field.layers[0].meterset[0] == 2.0


def test_zero_weight_spots_keep_their_index() -> None:
    spots = [(0.0, 0.0, 2.0), (4.0, 0.0, 0.0), (8.0, 0.0, 2.0)]
    loaded = load(make_plan([BeamSpec(layers=[LayerSpec(200.0, spots)])]))
    assert loaded.plan.fields[0].layers[0].meterset == (2.0, 0.0, 2.0)


def test_a_layer_without_weight_stays_a_layer_when_layers_are_closed() -> None:
    empty = LayerSpec(220.0, [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0)])
    field = load(make_plan([BeamSpec(layers=[LayerSpec(230.0), empty, LayerSpec(210.0)])])).plan.fields[0]
    assert [layer.energy_mev_u for layer in field.layers] == [230.0, 220.0, 210.0]
    assert field.layers[1].meterset == (0.0, 0.0)


def test_particles_and_monitor_units_are_kept_apart() -> None:
    beams = [BeamSpec(unit="NP"), BeamSpec(number=2, unit="MU", name="F2")]
    assert [f.unit for f in load(make_plan(beams)).plan.fields] == ["NP", "MU"]


def test_the_tune_is_text_and_no_number() -> None:
    layers = [LayerSpec(230.0, tune="4.0"), LayerSpec(220.0, tune="Tune1")]
    assert [x.tune_id for x in load(make_plan([BeamSpec(layers=layers)])).plan.fields[0].layers] == ["4.0", "Tune1"]


def test_an_energy_given_once_holds_for_the_beam() -> None:
    plan = make_plan([BeamSpec(layers=[LayerSpec(200.0), LayerSpec(200.0)])])
    for point in plan.IonBeamSequence[0].IonControlPointSequence[1:]:
        del point.NominalBeamEnergy
    assert [layer.energy_mev_u for layer in load(plan).plan.fields[0].layers] == [200.0, 200.0]


def test_range_shifter_number_zero_is_in_for_all_layers_and_may_lack_its_thickness() -> None:
    field = load(make_plan([BeamSpec(range_shifter=(0, "RS", None))])).plan.fields[0]
    assert [layer.range_shifters for layer in field.layers] == [(RangeShifterSetting(0, "RS", None),)] * 3


def test_a_range_shifter_that_moves_later_in_the_beam_moves_for_the_layers_after_it() -> None:
    layers = [LayerSpec(230.0, range_shifter="OUT"), LayerSpec(220.0, range_shifter="IN"), LayerSpec(210.0)]
    field = load(make_plan([BeamSpec(layers=layers, range_shifter=(2, "RS", 34.5))])).plan.fields[0]
    inside = (RangeShifterSetting(2, "RS", 34.5),)
    assert [layer.range_shifters for layer in field.layers] == [(), inside, inside]


def test_a_fixed_range_modulator_is_a_ripple_filter() -> None:
    assert load(make_plan([BeamSpec(ripple_filter="RIFI_3MM")])).plan.fields[0].ripple_filter == "RIFI_3MM"


def test_scan_magnets_listed_as_spreading_devices_are_kept_for_the_record() -> None:
    field = load(make_plan([BeamSpec(magnets=True)])).plan.fields[0]
    assert field.lateral_spreaders == ((1, "MagnetX"), (2, "MagnetY"))


def test_setup_beams_are_named_and_never_fields() -> None:
    beams = [BeamSpec(number=9, name="KV", delivery="SETUP"), BeamSpec(number=4), BeamSpec(number=2, name="F2")]
    plan = load(make_plan(beams)).plan
    assert [f.number for f in plan.fields] == [4, 2]
    assert plan.setup_beams == ("KV",)


def test_a_setup_beam_may_be_referenced_without_a_meterset() -> None:
    beams = [BeamSpec(number=9, name="KV", delivery="SETUP"), BeamSpec(number=4)]
    plan = load(make_plan(beams, groups={1: {9: None, 4: BeamSpec().meterset}})).plan
    assert [f.number for f in plan.fields] == [4]
    assert plan.fields[0].meterset == BeamSpec().meterset


def test_metersets_are_found_by_beam_number_whatever_the_order() -> None:
    beams = [BeamSpec(number=1), BeamSpec(number=2, name="F2")]
    plan = load(make_plan(beams, groups={1: {2: 20.0, 1: 10.0}})).plan
    assert [(f.number, f.meterset) for f in plan.fields] == [(1, 10.0), (2, 20.0)]


def test_several_fraction_groups_default_to_the_lowest_with_a_warning() -> None:
    beams = [BeamSpec(number=1), BeamSpec(number=2, name="F2")]
    plan = make_plan(beams, groups={3: {2: 5.0}, 2: {1: 10.0, 2: 20.0}})
    loaded = load(plan)
    assert (loaded.plan.fraction_group, loaded.plan.fraction_groups) == (2, (2, 3))
    assert rules(loaded) == ["FRACTION_GROUP_DEFAULTED"]
    chosen = load(plan, group=3)
    assert [(f.number, f.meterset) for f in chosen.plan.fields] == [(2, 5.0)]
    assert chosen.findings == ()


def test_no_number_of_fractions_is_no_number() -> None:
    plan = make_plan(fractions=0)
    assert load(plan).plan.fractions_planned is None
    plan.FractionGroupSequence[0].NumberOfFractionsPlanned = None
    assert load(plan).plan.fractions_planned is None


def test_an_empty_couch_position_is_none_and_not_zero() -> None:
    empty = load(make_plan([BeamSpec()])).plan.fields[0].couch
    assert (empty.vertical_mm, empty.longitudinal_mm, empty.lateral_mm) == (None, None, None)
    given = load(make_plan([BeamSpec(table_mm=(-122.0, 700.0, 0.0))])).plan.fields[0].couch
    assert (given.vertical_mm, given.longitudinal_mm, given.lateral_mm) == (-122.0, 700.0, 0.0)


def test_pitch_and_roll_are_signed() -> None:
    plan = make_plan()
    point = plan.IonBeamSequence[0].IonControlPointSequence[0]
    point.TableTopPitchAngle, point.TableTopRollAngle = 359.5, 2.0
    couch = load(plan).plan.fields[0].couch
    assert (couch.pitch_deg, couch.roll_deg) == (-0.5, 2.0)


def test_a_couch_without_pitch_is_level_and_a_note_says_so() -> None:
    plan = make_plan()
    del plan.IonBeamSequence[0].IonControlPointSequence[0].TableTopPitchAngle
    loaded = load(plan)
    assert loaded.plan.fields[0].couch.pitch_deg == 0.0
    assert rules(loaded) == ["COUCH_LEVEL_ASSUMED"]


@pytest.mark.parametrize(("angle", "means"), [(360.0, 0.0), (-90.0, 270.0), (225.5, 225.5)])
def test_angles_are_brought_into_one_turn(angle: float, means: float) -> None:
    assert load(make_plan([BeamSpec(gantry_deg=angle)])).plan.fields[0].gantry_deg == means


def test_a_collimator_angle_does_not_turn_the_spots_and_is_shown() -> None:
    plan = make_plan()
    plan.IonBeamSequence[0].IonControlPointSequence[0].BeamLimitingDeviceAngle = 90
    loaded = load(plan)
    assert loaded.plan.fields[0].layers == load(make_plan()).plan.fields[0].layers
    assert any("BeamLimitingDeviceAngle" in key for key, _ in loaded.plan.shown)


@pytest.mark.parametrize(
    ("given", "allowed"), [(None, False), ("ALLOWED", True), ("NOT ALLOWED", False), ("NOT_ALLOWED", False)]
)
def test_reordering_needs_permission(given: str | None, allowed: bool) -> None:
    field = load(make_plan([BeamSpec(layers=[LayerSpec(200.0, reordering=given)])])).plan.fields[0]
    assert field.reordering_allowed is allowed


def test_reordering_needs_permission_in_every_layer() -> None:
    layers = [LayerSpec(230.0, reordering="ALLOWED"), LayerSpec(220.0)]
    assert load(make_plan([BeamSpec(layers=layers)])).plan.fields[0].reordering_allowed is False


def test_gating_comes_from_the_setup_that_the_fields_reference() -> None:
    setups = [SetupSpec(1), SetupSpec(2, motion=("GATING", "BELT"))]
    assert load(make_plan([BeamSpec(patient_setup=1)], setups=setups)).plan.gating is None
    assert load(make_plan([BeamSpec(patient_setup=2)], setups=setups)).plan.gating == ("GATING", "BELT")


def test_motion_technique_none_is_no_gating() -> None:
    assert load(make_plan(setups=[SetupSpec(1, motion=("NONE", "NONE"))])).plan.gating is None


def test_a_beam_without_setup_reference_takes_the_only_setup() -> None:
    setups = [SetupSpec(7, motion=("GATING", "BELT"))]
    assert load(make_plan([BeamSpec(patient_setup=None)], setups=setups)).plan.gating == ("GATING", "BELT")


def test_different_patient_positions_are_a_warning() -> None:
    beams = [BeamSpec(patient_setup=1), BeamSpec(number=2, name="F2", patient_setup=2)]
    loaded = load(make_plan(beams, setups=[SetupSpec(1, "HFS"), SetupSpec(2, "FFP")]))
    assert loaded.plan.patient_position is None
    assert rules(loaded) == ["PATIENT_POSITION_VARIES"]


@pytest.mark.parametrize(("ion", "expected"), [("1H", "1H"), ("12C", "12C"), ("4He", "4He"), ("16O", "16O")])
def test_the_ion_has_its_usual_name(ion: str, expected: str) -> None:
    assert load(make_plan([BeamSpec(ion=ion)])).plan.fields[0].ion == expected


def test_stationary_spots_of_mode_modulated_spec_are_read() -> None:
    plan = make_plan([BeamSpec(scan_mode="MODULATED_SPEC")])
    plan.IonBeamSequence[0].ModulatedScanModeType = "STATIONARY"
    assert load(plan).plan.fields[0].scan_mode == "MODULATED_SPEC"


def test_no_approval_module_is_no_approval() -> None:
    assert load(make_plan(approval=None)).plan.approval == "NONE"
    assert load(make_plan(approval="REJECTED")).plan.approval == "REJECTED"


def test_the_patient_is_nowhere_in_the_plan() -> None:
    loaded = load(make_plan())
    assert (loaded.patient.name, loaded.patient.id) == ("PHANTOM^TEST", "T-1")
    assert "PHANTOM" not in repr(loaded.plan)
    assert "T-1" not in repr(loaded.plan)


def test_names_are_decoded_by_their_character_set_and_bad_bytes_are_tolerated() -> None:
    plan = make_plan()
    plan.PatientName = "M\u00fcller^J\u00f6rg"
    data = plan_bytes(plan)
    assert parse_dicom("x", data, fraction_group=None).patient.name == "M\u00fcller^J\u00f6rg"
    damaged = data.replace("J\u00f6rg".encode(), b"J\xff\xffrg")
    assert parse_dicom("x", damaged, fraction_group=None).patient.name == "M\u00fcller^J\ufffd\ufffdrg"


def test_equal_plans_in_both_encodings_have_one_content_hash_and_two_file_hashes(tmp_path: Path) -> None:
    plan = make_plan()
    explicit = read_dicom(write_plan(tmp_path / "e.dcm", plan), fraction_group=None).plan
    implicit = read_dicom(write_plan(tmp_path / "i.dcm", plan, implicit=True), fraction_group=None).plan
    assert explicit.content_sha256() == implicit.content_sha256()
    assert explicit.file_sha256 != implicit.file_sha256


def test_seven_printed_digits_are_within_the_tolerance_of_the_sums() -> None:
    plan = make_plan()
    points = plan.IonBeamSequence[0].IonControlPointSequence
    for point in points:
        point.CumulativeMetersetWeight = f"{float(point.CumulativeMetersetWeight) * (1 + 3e-7):.7g}"
    assert load(plan).plan.fields[0].spots == 27


def test_an_unsupported_beam_of_another_group_does_not_hinder_this_one() -> None:
    plan = make_plan([BeamSpec(), BeamSpec(number=2, name="ARC")], groups={1: {1: 10.0}, 2: {2: 10.0}})
    plan.IonBeamSequence[1].BeamType = "DYNAMIC"
    assert [f.number for f in load(plan, group=1).plan.fields] == [1]
