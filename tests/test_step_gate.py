"""Step mode's gate: what PC, links and devices cannot hold is refused before anything moves."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from controller.machine.dosimetry import nominal_corrections
from controller.machine.field_program import build_field
from controller.machine.program import LayerProgram
from controller.machine.step_feasibility import Latencies, Latency, host_ms, spot_bounds, step_problems
from controller.plan.check import check_plan
from drivers.wires.addresses import tcp_address
from drivers.wires.faults import FaultKind, WireFault
from sites.loader import load_site
from sites.schema import Site, TcpAddress
from tests.delivery_rig import EXAMPLES, Delivery, run_delivery

PLAN = EXAMPLES / "small_carbon.dcm"
SITE = load_site("step-lab")


def latency(p99_ms: float) -> Latency:
    return Latency("link", 100, p99_ms, p99_ms, p99_ms, p99_ms)


def links(electrometer_ms: float, supply_ms: float = 0.0, timer_ms: float = 0.0) -> Latencies:
    return Latencies(latency(supply_ms), latency(electrometer_ms), latency(timer_ms))


def changed(**stepping: float) -> Site:
    assert SITE.scanning.stepping is not None
    scanning = SITE.scanning.model_copy(update={"stepping": SITE.scanning.stepping.model_copy(update=stepping)})
    return SITE.model_copy(update={"scanning": scanning})


@pytest.fixture(scope="module")
def program() -> LayerProgram:
    report = check_plan(PLAN, SITE)
    assert report.loaded is not None
    return build_field(SITE, report.loaded.plan.fields[0], 0, nominal_corrections(SITE.dosimetry))[0]


def slow(*devices: str, delay_ms: float):
    """Every reply of these devices late, from the start."""

    async def script(d: Delivery) -> None:
        for name in devices:
            address = getattr(d.run.site.devices, name).address
            assert isinstance(address, TcpAddress)
            place = tcp_address(address.host, address.port)
            d.world.room.wire_faults.add(WireFault(place, FaultKind.DELAY, delay_ns=round(delay_ms * 1e6)))

    return script


def test_the_bound_on_excess_is_made_of_ripple_reaction_and_late_charge(program: LayerProgram) -> None:
    per_particle = program.counts_per_particle
    late_s, surge = (250.0 + 50.0) * 1e-6, 3 * 0.05
    particles = 2e6 * (late_s * surge + 20e-6 * (1 + surge) + 50e-6 * np.exp(-8.0))
    bounds = spot_bounds(SITE, program)
    assert bounds["excess_counts"] == pytest.approx(particles * per_particle + 1.0)
    assert np.array_equal(bounds["excess_limit_counts"], np.maximum(0.05 * program.visits["preset_counts"], 3.0))


def test_no_latency_changes_what_a_spot_can_get(program: LayerProgram) -> None:
    for p99_ms in (0.1, 10.0, 1000.0):
        bounds = spot_bounds(SITE, program, links(p99_ms, p99_ms, p99_ms))
        assert np.array_equal(bounds["excess_counts"], spot_bounds(SITE, program)["excess_counts"])


def test_dead_time_counts_each_transaction_of_a_step(program: LayerProgram) -> None:
    assert host_ms(links(2.0, 3.0, 0.5)) == pytest.approx(3 * 2.0 + 3 * 3.0 + 0.5)
    without, with_links = spot_bounds(SITE, program), spot_bounds(SITE, program, links(2.0, 3.0, 0.5))
    assert with_links["dead_ms"][1:] - without["dead_ms"][1:] == pytest.approx(15.5)
    assert with_links["dead_ms"][0] == 0.0


def test_only_the_spots_after_a_long_move_are_refused_where_the_limit_lies_between(program: LayerProgram) -> None:
    dead_ms = spot_bounds(SITE, program)["dead_ms"]
    limit = float(dead_ms[dead_ms > 0].min() + dead_ms.max()) / 2
    problems = list(step_problems(changed(dead_time_ms=limit), program))
    assert {p.rule for p in problems} == {"STEP_DEAD_TIME"}
    assert [p.visit for p in problems] == program.visits["visit"][dead_ms > limit].tolist()
    assert 0 < len(problems) < len(program.visits)


def test_the_check_refuses_an_electrometer_that_is_too_slow_for_the_small_spots() -> None:
    report = check_plan(PLAN, changed(electrometer_reaction_us=2000.0))
    assert report.exit_status == 3
    found = [f for f in report.findings if f.rule == "STEP_EXCESS"]
    assert len(found) == 2
    assert "beyond its preset" in found[0].message
    assert found[0].where.startswith("beam 1, layer 0, spot ")


def test_a_slow_link_is_refused_at_prepare_with_the_spots_and_the_reason(tmp_path: Path) -> None:
    refused = run_delivery(PLAN, SITE, tmp_path / "t", script=slow("electrometer_1", delay_ms=40.0))
    assert refused.outcome.exit_status == 3
    assert refused.summary["outcome"] == "refused"
    assert "beam 1, layer 0, spot 1 (visit 2): [STEP_DEAD_TIME] beam off for up to " in refused.outcome.message
    assert "the site tolerates 100 ms" in refused.outcome.message
    assert "and 34 more" in refused.outcome.message
    gate = refused.summary["step_gate"]
    assert gate["refused"] == 44  # all but the first spot of four layers
    assert gate["links"][1]["p99_ms"] > 40.0 > gate["links"][0]["max_ms"]
    assert refused.plant["particles"] == 0
    assert refused.named("setup") == []


def test_a_link_that_is_slower_but_quick_enough_delivers(tmp_path: Path) -> None:
    script = slow("electrometer_1", "scan_controller", delay_ms=8.0)
    delivery = run_delivery(PLAN, SITE, tmp_path / "t", script=script)
    assert delivery.summary["outcome"] == "completed", delivery.summary["trips"]
    gate = delivery.summary["step_gate"]
    assert gate["refused"] == 0
    assert 8.0 < gate["links"][0]["p50_ms"] < 12.0
    assert delivery.truth["spot_dose_error_pct"]["max"] < 1.0
    dead_ms = (delivery.visits["t_end_ns"] - delivery.visits["t_start_ns"] - delivery.visits["beam_on_ns"]) * 1e-6
    assert dead_ms.max() <= gate["worst_dead_ms"]


def test_a_room_with_an_engine_has_no_gate(tmp_path: Path) -> None:
    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t")
    assert "step_gate" not in delivery.summary
    assert dataclasses.asdict(latency(1.0))["p99_ms"] == 1.0


def test_the_report_shows_the_gate(tmp_path: Path) -> None:
    delivery = run_delivery(PLAN, SITE, tmp_path / "t")
    page = (delivery.directory / "report.html").read_text(encoding="utf-8")
    assert "Step mode: PC and links at prepare" in page
    assert "% of the tolerated excess over a spot's preset; beam off for" in page
