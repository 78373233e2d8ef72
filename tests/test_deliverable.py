"""Deliverability: each rule fires with a helpful message, none on a good plan, and reference plans end as told."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.machine.deliverable import SITE_RULES, find_problems
from controller.machine.dosimetry import nominal_corrections
from controller.machine.field_program import build_field
from controller.machine.inserts import match_range_shifter, match_ripple_filter, match_snout
from controller.plan.findings import Finding
from controller.plan.load import load_plan
from controller.plan.model import Plan
from drivers.errors import BadInput, Refused
from sites.schema import Site
from tests.plan_models import plan, plan_field, proton_field, spots
from tests.refused_plans import BAD, FIXED, GANTRY, GOOD, PROTON, shifter


def check(site: Site, checked: Plan, *, allow_unapproved: bool = False) -> list[Finding]:
    return find_problems(site, checked, allow_unapproved=allow_unapproved)[0]


def refused(findings: list[Finding]) -> bool:
    return any(finding.severity == "refuse" for finding in findings)


@pytest.mark.parametrize("name", GOOD)
def test_a_good_plan_has_no_findings_and_a_time_for_each_field(name: str) -> None:
    site, good = GOOD[name]
    findings, times = find_problems(site, good, allow_unapproved=False)
    assert findings == []
    assert len(times) == len(good.fields)
    assert all(time_of.total_s > 0 for time_of in times)


@pytest.mark.parametrize(("rule", "site", "bad", "where", "part"), BAD, ids=[f"{row[0]}-{row[4][:30]}" for row in BAD])
def test_a_rule_fires_alone_where_it_should_and_says_what_to_know(
    rule: str, site: Site, bad: Plan, where: str, part: str
) -> None:
    findings, times = find_problems(site, bad, allow_unapproved=False)
    # no raster file is approved, and a spot above the machine's maximum is above what the monitors' gains are known to
    beside = {"NO_APPROVAL", "SPOT_DOSE_UNCERTAIN"} if rule == "SPOT_ABOVE_MAXIMUM" else {"NO_APPROVAL"}
    fired = [finding for finding in findings if finding.rule not in beside]
    assert {finding.rule for finding in fired} == {rule}
    assert (fired[0].where, fired[0].severity) == (where, next(r.severity for r in SITE_RULES if r.name == rule))
    assert part in fired[0].message
    if rule in ("ENERGY_UNAVAILABLE", "SPOT_TOO_SHORT", "MACHINE_UNKNOWN"):
        assert times == []


def test_every_rule_has_a_plan_that_sets_it_off() -> None:
    in_step_mode = {"STEP_EXCESS", "STEP_DEAD_TIME"}  # tests/test_step_gate.py
    assert {row[0] for row in BAD} == {rule.name for rule in SITE_RULES} - in_step_mode
    assert len({rule.name for rule in SITE_RULES}) == len(SITE_RULES)


def test_findings_are_gathered_one_a_rule_and_field_with_first_count_and_worst() -> None:
    wide = [(111.0 + index, 0.0, 2.0) for index in range(30)]
    bad = plan(
        plan_field(spots([(0, 0, 2.0), *wide]), spots(wide, energy_mev_u=240.0)),
        plan_field(spots(wide), number=2),
    )
    found = [finding for finding in check(FIXED, bad) if finding.rule == "FIELD_SIZE"]
    assert [finding.where for finding in found] == ["beam 1, layer 0, spot 1", "beam 2, layer 0, spot 0"]
    assert found[0].message.endswith("; 60 in this beam, the worst at x 140, y 0 mm")
    assert "at x 111, y 0 mm" in found[0].message


@pytest.mark.parametrize("approval", ["UNAPPROVED", "NONE"])
def test_an_unapproved_plan_needs_a_research_site_and_permission(approval: Any) -> None:
    unapproved = plan(approval=approval)
    clinical = FIXED.model_copy(update={"research": False})
    assert check(FIXED, unapproved)[0].rule == "PLAN_NOT_APPROVED"
    assert "plan not approved" in check(FIXED, unapproved)[0].message
    assert refused(check(FIXED, unapproved))
    assert refused(check(clinical, unapproved, allow_unapproved=True))
    allowed = check(FIXED, unapproved, allow_unapproved=True)
    assert [(finding.rule, finding.severity) for finding in allowed] == [("PLAN_NOT_APPROVED", "warn")]


def test_a_rejected_plan_is_refused_whatever_is_allowed() -> None:
    assert refused(check(FIXED, plan(approval="REJECTED"), allow_unapproved=True))


def test_a_raster_file_is_delivered_by_research_sites_alone() -> None:
    raster = plan(
        plan_field(machine_name="", vsad_mm=None, snout_id=None, snout_mm=None), format="trip98", approval="NONE"
    )
    assert [(finding.rule, finding.severity) for finding in check(FIXED, raster)] == [("NO_APPROVAL", "warn")]
    assert refused(check(FIXED.model_copy(update={"research": False}), raster, allow_unapproved=True))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("3 mm RIFI", True),
        ("RIFI_3MM", True),
        ("ripple, 3.0 mm", True),
        ("3MM", True),
        ("13 mm", False),
        ("2 mm", False),
        ("RIFI", False),
    ],
)
def test_a_ripple_filter_is_known_by_id_or_thickness(text: str, found: bool) -> None:
    assert (match_ripple_filter(FIXED.treatment_machines["REF-C"], text) is not None) == found


def test_inserts_are_matched_to_the_machines_own() -> None:
    tr3 = PROTON.treatment_machines["TR3"]
    assert match_range_shifter(tr3, shifter()) is tr3.range_shifters[0]
    assert match_range_shifter(tr3, shifter(wet_mm=34.0)) is tr3.range_shifters[0]
    assert match_range_shifter(tr3, shifter("RS_5CM")) is None
    assert match_snout(tr3, proton_field(snout_id=None)) is tr3.snouts[0]
    assert match_snout(tr3, proton_field(snout_id="S2")) is None


def test_the_check_refuses_whatever_building_refuses() -> None:
    for _, site, bad, _, _ in BAD:
        for index, field in enumerate(bad.fields):
            try:
                build_field(site, field, index, nominal_corrections(site.dosimetry))
            except Refused:
                assert refused(check(site, bad))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-150, 150), st.floats(-150, 150), st.one_of(st.just(0.0), st.floats(0.0, 1e4))),
        min_size=1,
        max_size=12,
    ),
    st.floats(1.0, 600.0),
    st.integers(1, 20),
)
def test_any_layer_gives_findings_or_a_program_within_all_limits(
    points: list[tuple[float, float, float]], energy: float, paintings: int
) -> None:
    checked = plan(plan_field(spots(points, energy_mev_u=energy, paintings=paintings)))
    if refused(check(FIXED, checked)):
        return
    visits = build_field(FIXED, checked.fields[0], 0, nominal_corrections(FIXED.dosimetry))[0].visits
    assert (abs(visits["x_current_a"]) <= FIXED.scanning.x.max_current_a).all()
    assert (visits["preset_counts"] >= 1).all()
    assert (visits["backup_counts"] > visits["expected_counts_2"]).all()
    assert (visits["time_limit_ms"] >= 10).all()
    assert (visits["position_limit_mm"] >= 0.4).all()


def test_twenty_thousand_spots_are_checked_in_less_than_a_second_of_work() -> None:
    """Counts processor time, not the clock on the wall; the limit is ten times what it takes."""
    points = [(2.0 * (i % 50) - 49.0, 2.0 * (i // 50) - 49.0, 1.0 + i % 7) for i in range(2500)]
    big = plan(plan_field(*(spots(points, energy_mev_u=300.0 - 3.0 * index) for index in range(8))))
    check(FIXED, big)
    start = time.process_time()
    assert check(FIXED, big) == []
    assert time.process_time() - start < 1.0


DELIVERABLE = {
    "carbon-fixed": {"B00", "S12", "S16", "S17", "TST003_carbon"},
    "carbon-gantry": {"B00", "S12", "S13", "S15", "S16", "S17", "TST003_carbon"},
    "proton-gantry": {"R01", "R02", "R04", "R05", "S10", "S11", "S14", "S18", "TST003_proton"},
}


@pytest.mark.parametrize("site", [FIXED, GANTRY, PROTON], ids=lambda site: site.name)
def test_the_reference_plans_are_deliverable_exactly_where_they_should_be(site: Site, shared: Path) -> None:
    paths = [*(shared / "plans").glob("*/*.dcm"), *(shared / "plans").glob("*/*.rst")]
    assert len(paths) >= 30
    deliverable = set()
    for path in paths:
        try:
            loaded = load_plan(path, default_gantry_deg=site.gantry.default_deg).plan
        except (BadInput, Refused):
            continue
        findings, times = find_problems(site, loaded, allow_unapproved=False)
        if not refused(findings):
            deliverable.add(path.name[:13] if path.name.startswith("TST") else path.name[:3])
            assert len(times) == len(loaded.fields)
    assert deliverable == DELIVERABLE[site.name]


def test_an_unapproved_reference_plan_is_deliverable_when_allowed(shared: Path) -> None:
    path = shared / "plans" / "good" / "R03_varian_mono160_UNAPPROVED.dcm"
    loaded = load_plan(path, default_gantry_deg=0.0).plan
    assert refused(check(PROTON, loaded))
    assert not refused(check(PROTON, loaded, allow_unapproved=True))


@pytest.mark.parametrize(
    ("name", "rule", "where"),
    [
        ("B06", "ENERGY_UNAVAILABLE", "beam 1, layer 0"),
        ("B10", "PLAN_NOT_APPROVED", ""),
        ("B11", "FIELD_SIZE", "beam 1, layer 2, spot 12"),
        ("B12", "SPOT_BELOW_MINIMUM", "beam 2, layer 3, spot 20"),
        ("B13", "ION_UNAVAILABLE", "beam 1"),
    ],
)
def test_a_bad_reference_plan_is_refused_for_its_own_fault_at_its_place(
    name: str, rule: str, where: str, shared: Path
) -> None:
    path = next((shared / "plans" / "bad").glob(f"{name}_*.dcm"))
    findings = check(FIXED, load_plan(path, default_gantry_deg=90.0).plan)
    assert (findings[0].rule, findings[0].where, findings[0].severity) == (rule, where, "refuse")
