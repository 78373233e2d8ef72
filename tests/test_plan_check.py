"""A check says deliverable, refused or unreadable, and why: expected outcomes, output, and damage by the hundred."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from controller.plan import dicom_layers
from controller.plan.check import check_plan
from controller.plan.model import Layer
from controller.plan.rules_page import PAGE, rules_page
from controller.plan.table import WIDTH, format_report
from sites.loader import load_site
from sites.plans import example_plan
from sites.schema import Site
from tests.make_plan import BeamSpec, LayerSpec, make_plan, write_plan
from tests.mutations import RASTER, Case, base_plans, cases, judge

REAL_LAYER = dicom_layers._layer
SITES = ("carbon-fixed", "carbon-gantry", "proton-gantry")
CARBON_0 = ("good/S12", "good/S16", "good/S17", "bad/B00", "trip98/TST003_carbon")
PROTON_0 = (
    *(f"good/{name}" for name in ["R01", "R02", "R04", "R05", "S10", "S11", "S14", "S18"]),
    "trip98/TST003_proton",
)
MALFORMED = ("B01", "B02", "B03", "B04", "B05", "B07", "B08", "B09", "B14")
REFUSED = ("B06", "B10", "B11", "B12", "B13")
RECORDS = ("record_complete", "record_partial", "record_continuation")
EXPECTED = {
    **{name: (0, 0, 3) for name in CARBON_0},
    **{name: (3, 0, 3) for name in ("good/S13", "good/S15")},
    **{name: (3, 3, 0) for name in PROTON_0},
    "good/R03": (3, 3, 3),
    **{f"bad/{name}": (2, 2, 2) for name in MALFORMED},
    **{f"bad/{name}": (3, 3, 3) for name in REFUSED},
    **{f"example_record/{name}": (2, 2, 2) for name in RECORDS},
}  # fmt: skip
REASONS = {
    "bad/B01": "truncated",
    "bad/B02": "non-finite spot weight",
    "bad/B03": "negative spot weight",
    "bad/B04": "position map length is not 2 x NumberOfScanSpotPositions",
    "bad/B05": "spot count mismatch",
    "bad/B07": "cumulative meterset weight not monotonic",
    "bad/B08": "referenced beam not in plan",
    "bad/B09": "not an RT Ion Plan",
    "bad/B10": "plan not approved",
    "bad/B14": "missing GantryAngle",
}


@pytest.fixture(scope="module")
def sites() -> dict[str, Site]:
    return {name: load_site(name) for name in SITES}


def find(shared: Path, name: str) -> Path:
    return next(shared.glob(f"plans/{name}*"))


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", EXPECTED)
def test_a_reference_file_has_the_expected_outcome(name: str, site: str, shared: Path, sites: dict[str, Site]) -> None:
    report = check_plan(find(shared, name), sites[site])
    expected = EXPECTED[name][SITES.index(site)]
    assert report.exit_status == expected, format_report(report)
    assert (report.time_s is None) or report.time_s > 0
    if expected == 0:
        assert report.time_s is not None
    if expected == 2:
        assert report.loaded is None


def test_the_unapproved_reference_plan_is_delivered_on_request_by_its_own_machine_alone(
    shared: Path, sites: dict[str, Site]
) -> None:
    path = find(shared, "good/R03")
    assert [check_plan(path, sites[name], allow_unapproved=True).exit_status for name in SITES] == [3, 3, 0]


@pytest.mark.parametrize("name", REASONS)
def test_a_bad_file_is_told_its_fault(name: str, shared: Path, sites: dict[str, Site]) -> None:
    report = check_plan(find(shared, name), sites["carbon-fixed"])
    assert REASONS[name] in " ".join(f.message for f in report.findings)


def test_every_reference_file_has_an_expectation(shared: Path) -> None:
    folders = ("good", "bad", "trip98", "example_record")
    files = {f"{folder}/{path.name}" for folder in folders for path in shared.glob(f"plans/{folder}/*.*")}
    assert len(files) >= len(EXPECTED)
    assert [name for name in files if not any(name.startswith(key) for key in EXPECTED)] == []


def test_an_unapproved_plan_is_delivered_on_a_research_site_on_request_alone(
    tmp_path: Path, sites: dict[str, Site]
) -> None:
    clinical = sites["carbon-fixed"].model_copy(update={"research": False})
    for approval in ("UNAPPROVED", None):
        path = write_plan(tmp_path / "plan.dcm", make_plan(approval=approval))
        assert check_plan(path, sites["carbon-fixed"]).exit_status == 3
        allowed = check_plan(path, sites["carbon-fixed"], allow_unapproved=True)
        assert allowed.exit_status == 0
        assert [(f.rule, f.severity) for f in allowed.findings] == [("PLAN_NOT_APPROVED", "warn")]
        assert check_plan(path, clinical, allow_unapproved=True).exit_status == 3
    path = write_plan(tmp_path / "plan.dcm", make_plan(approval="REJECTED"))
    assert check_plan(path, sites["carbon-fixed"], allow_unapproved=True).exit_status == 3


def test_a_raster_file_warns_on_a_research_site_and_is_refused_elsewhere(
    tmp_path: Path, sites: dict[str, Site]
) -> None:
    path = tmp_path / "plan.rst"
    path.write_bytes(RASTER)
    found = [(f.rule, f.severity) for f in check_plan(path, sites["carbon-gantry"]).findings]
    assert ("NO_APPROVAL", "warn") in found
    assert ("ANGLES_NOT_OBEYED", "note") in found
    clinical = sites["carbon-gantry"].model_copy(update={"research": False})
    assert check_plan(path, clinical).exit_status == 3


def test_remarks_on_the_plan_as_a_whole(tmp_path: Path, sites: dict[str, Site]) -> None:
    beams = [
        BeamSpec(layers=[LayerSpec(200.0, [(0.0, 0.0, 2.0), (1.0, 0.0, 0.0)])]),
        BeamSpec(2, "F2", unit="NP", isocenter_mm=(0.0, 0.0, 1.0), layers=[LayerSpec(200.0, [(0.0, 0.0, 1e6)])]),
        BeamSpec(number=3, name="KV", delivery="SETUP"),
    ]
    groups: dict[int, dict[int, float | None]] = {1: {1: 2.0, 2: 1e6}, 2: {1: 2.0}}
    path = write_plan(tmp_path / "plan.dcm", make_plan(beams, groups=groups))
    report = check_plan(path, sites["carbon-fixed"])
    found = {f.rule: f.severity for f in report.findings}
    assert found["FRACTION_GROUP_DEFAULTED"] == "warn"
    for rule in ("SETUP_BEAMS_IGNORED", "SEVERAL_ISOCENTRES", "MIXED_UNITS", "ZERO_WEIGHT_SPOTS"):
        assert found[rule] == "note"
    assert report.fields[0].spots == 1
    chosen = check_plan(path, sites["carbon-fixed"], fraction_group=2)
    assert [f.name for f in chosen.fields] == ["F1"]


def test_the_json_has_the_promised_keys_and_only_numbers_that_json_has(sites: dict[str, Site]) -> None:
    report = check_plan(example_plan("small_carbon"), sites["carbon-fixed"])
    found = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert set(found) == {"outcome", "findings", "fields", "time_s"}
    assert found["outcome"] == "deliverable"
    assert found["time_s"] == pytest.approx(sum(f.time_s for f in report.fields if f.time_s))
    keys = {"name", "ion", "gantry_deg", "couch_deg", "layers", "spots", "mu", "particles", "energy_mev_u"}
    assert [set(field) for field in found["fields"]] == [keys] * len(found["fields"])
    for finding in found["findings"]:
        assert set(finding) == {"rule", "severity", "where", "message"}


def test_monitor_units_and_particles_are_converted_by_the_site(tmp_path: Path, sites: dict[str, Site]) -> None:
    path = write_plan(tmp_path / "mu.dcm", make_plan([BeamSpec(layers=[LayerSpec(100.0, [(0.0, 0.0, 2.0)])])]))
    field = check_plan(path, sites["carbon-fixed"]).fields[0]
    per_mu = sites["carbon-fixed"].treatment_machines["REF-C"].mu
    assert per_mu.reference_mev_u == 100.0
    assert field.mu == 2.0
    assert field.particles == pytest.approx(2 * per_mu.particles_per_mu, rel=1e-12)
    foreign = check_plan(path, sites["proton-gantry"]).fields[0]
    assert (foreign.mu, foreign.particles) == (2.0, None)


def test_the_table_fits_a_terminal_and_says_what_to_do(tmp_path: Path, sites: dict[str, Site]) -> None:
    name = "N" * 64
    path = write_plan(tmp_path / "plan.dcm", make_plan([BeamSpec(name=name, gantry_deg=45.0)], approval=None))
    text = format_report(check_plan(path, sites["carbon-fixed"]))
    assert text.startswith("REFUSED")
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "What to do: Have the plan approved." in text
    assert text.count("MeV/u") == 1
    assert "time estimate" in text
    path.write_bytes(b"no plan")
    unreadable = format_report(check_plan(path, sites["carbon-fixed"]))
    assert unreadable.startswith("UNREADABLE")
    assert "FORMAT_UNKNOWN" in unreadable


def test_the_page_of_rules_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == rules_page(), "run python -m controller.plan.rules_page"


@pytest.mark.parametrize("seed", range(4))
def test_damaged_plans_are_refused_or_understood(seed: int, tmp_path: Path, sites: dict[str, Site]) -> None:
    wrong = []
    outcomes = set()
    for case in cases(seed, 120):
        verdict = judge(case, sites["carbon-gantry"], tmp_path / "case.dcm")
        outcomes.add(verdict.outcome)
        wrong += [f"{case.name}: {fault}" for fault in verdict.faults]
    assert wrong == []
    assert outcomes == {"deliverable", "refused", "unreadable"}


def test_undamaged_plans_pass_the_judge_and_a_misread_one_does_not(
    tmp_path: Path, sites: dict[str, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, data in base_plans():
        assert judge(Case(name, data), sites["carbon-gantry"], tmp_path / "case.dcm").faults == ()
    monkeypatch.setattr("controller.plan.dicom_layers._layer", _relative_layer)
    name, data = base_plans()[0]
    faults = judge(Case(name, data), sites["carbon-gantry"], tmp_path / "case.dcm").faults
    assert any("metersets differ" in fault for fault in faults)


def _relative_layer(index: int, point: dicom_layers._Point, _: float) -> Layer:
    """What a reader that takes relative weights for metersets would make of a layer."""
    return REAL_LAYER(index, point, 1.0)
