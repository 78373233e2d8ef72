"""Spills, energy changes and release of the three kinds of accelerator."""

from __future__ import annotations

import pytest

from simulators.plant.state import ACC_CHANGING, ACC_IDLE, ACC_READY, FRAME_NS, ION_UNIT
from sites.loader import load_site
from tests.plant_rig import CARBON, LONGEST_GAP_NS, PROTON, Rig

GANTRY = load_site("carbon-gantry")


def frames_until(rig: Rig, name: str, value: int, limit: int = 60_000) -> int:
    """Frames until a field of the state has the value."""
    for count in range(limit):
        if rig.state[name] == value:
            return count
        rig.run(1)
    raise AssertionError(f"{name} is {rig.state[name]} after {limit} frames, wanted {value}")


def with_beam(rig: Rig, energy: float, level: int = 0) -> Rig:
    rig.request(energy, level)
    frames_until(rig, "acc_state", ACC_READY)
    return rig


def test_the_first_spill_comes_a_gap_after_the_request_and_they_go_on_until_released() -> None:
    rig = Rig()
    rig.plant.parameters["flat_top_ns"] = 30_000_000
    assert rig.state["acc_state"] == ACC_IDLE
    rig.request(250.0, 0)
    rig.run(1)
    assert rig.state["acc_state"] == ACC_CHANGING
    assert frames_until(rig, "acc_state", ACC_READY) == LONGEST_GAP_NS // FRAME_NS
    for spill in (1, 2, 3):
        assert rig.state["spill"] == spill
        assert frames_until(rig, "acc_state", ACC_CHANGING) == 300
        assert frames_until(rig, "acc_state", ACC_READY) == LONGEST_GAP_NS // FRAME_NS
    rig.state["acc_release"] = 1
    rig.run(1)
    assert rig.state["acc_state"] == ACC_IDLE
    rig.run(1000)
    assert rig.state["spill"] == 4
    assert rig.state["spill_on"] == 0


def test_a_filling_has_its_particles_within_the_sites_spread() -> None:
    rig = Rig()
    rig.plant.parameters["flat_top_ns"] = 1_000_000
    nominal = float(rig.plant.parameters["spill_units"])
    spread = float(rig.plant.parameters["spill_spread"])
    seen = []
    rig.request(250.0, 0)
    for spill in range(1, 30):
        frames_until(rig, "spill", spill)
        seen.append(int(rig.state["spill_left"]) / nominal - 1)
    assert max(abs(share) for share in seen) < 4.5 * spread
    assert len(set(seen)) == len(seen)


def test_intensity_alone_needs_no_new_filling() -> None:
    rig = with_beam(Rig(), 250.0, 0)
    rig.request(250.0, 3)
    rig.run(1)
    assert rig.state["acc_state"] == ACC_READY
    assert rig.state["spill"] == 1
    assert rig.plant.tune[0]["level"] == 3


@pytest.mark.parametrize("energy", [240.0, 260.0])
def test_another_energy_needs_another_filling_where_the_flat_top_is_not_extended(energy: float) -> None:
    rig = with_beam(Rig(), 250.0)
    rig.request(energy, 0)
    rig.run(1)
    assert rig.plant.tune[0]["energy_mev_u"] == 250.0, "read-back is what the machine is in"
    assert frames_until(rig, "acc_state", ACC_READY) == LONGEST_GAP_NS // FRAME_NS
    assert rig.state["spill"] == 2
    assert rig.plant.tune[0]["energy_mev_u"] == energy


def test_an_extended_flat_top_goes_down_in_one_filling_and_up_with_the_next() -> None:
    rig = Rig(GANTRY)
    rig.plant.parameters["step_down_ns"] = 5_000_000
    with_beam(rig, 250.0)
    left = int(rig.state["spill_left"])
    for energy in (240.0, 230.0):
        rig.request(energy, 0)
        rig.run(1)
        assert rig.state["spill_on"] == 0
        assert frames_until(rig, "acc_state", ACC_READY) == 50
        assert rig.plant.tune[0]["energy_mev_u"] == energy
    assert (rig.state["spill"], int(rig.state["spill_left"])) == (1, left)
    rig.request(250.0, 0)
    rig.run(1)
    assert frames_until(rig, "acc_state", ACC_READY) == LONGEST_GAP_NS // FRAME_NS
    assert rig.state["spill"] == 2


def test_an_extended_flat_top_too_short_for_another_step_refills() -> None:
    rig = Rig(GANTRY)
    rig.plant.parameters["step_down_ns"] = 5_000_000
    rig.plant.parameters["flat_top_ns"] = 4_000_000
    with_beam(rig, 250.0)
    rig.request(240.0, 0)
    rig.run(1)
    frames_until(rig, "acc_state", ACC_READY)
    assert rig.state["spill"] == 2


def test_a_cyclotron_has_no_gaps_and_steps_down_faster_than_up() -> None:
    rig = Rig(PROTON)
    rig.plant.parameters["step_down_ns"] = 4_000_000
    rig.plant.parameters["step_up_ns"] = 9_000_000
    with_beam(rig, 120.0)
    rig.run(20_000)
    assert rig.state["acc_state"] == ACC_READY
    for energy, frames in ((110.0, 40), (120.0, 90)):
        rig.request(energy, 0)
        rig.run(1)
        assert rig.state["acc_state"] == ACC_CHANGING
        assert frames_until(rig, "acc_state", ACC_READY) == frames
        assert rig.plant.tune[0]["energy_mev_u"] == energy


def test_an_empty_ring_ends_the_spill_early() -> None:
    rig = Rig()
    rig.plant.parameters["spill_units"] = 1000 * ION_UNIT
    rig.plant.parameters["spill_spread"] = 0.0
    with_beam(rig, 250.0)
    rig.state["spill_left"] = 0
    rig.run(1)
    assert rig.state["acc_state"] == ACC_CHANGING
    assert rig.state["spill_on"] == 0


def test_extraction_rises_over_the_sites_time() -> None:
    rig = Rig(CARBON)
    rig.plant.parameters["ripple"] = 0.0
    rig.request(250.0, 2)
    frames_until(rig, "acc_state", ACC_READY)
    rates = []
    for _ in range(40):
        rates.append(int(rig.state["rate_units_ns"]))
        rig.run(1)
    risen = int(CARBON.accelerator.extraction_rise_ms * 10)
    assert rates == sorted(rates)
    assert rates[0] < 0.1 * rates[-1]
    assert rates[risen:] == [int(rig.plant.tune[0]["rate_units_ns"])] * (40 - risen)


def test_a_closed_stopper_lets_nothing_through() -> None:
    rig = Rig()
    rig.state["stopper_command"] = rig.state["stopper_open"] = 0
    with_beam(rig, 250.0)
    rig.run(50)
    assert rig.state["spill_on"] == 1
    assert rig.state["rate_units_ns"] == 0
