"""What the guard expects of a layer, in its own numbers, and what it calls a difference."""

from __future__ import annotations

from typing import Any

import pytest

from drivers.errors import Refused
from drivers.wires.guard_link import LayerLimits
from interlocks import guard_numbers
from interlocks.guard_numbers import (
    COUNT,
    ExpectedField,
    ExpectedLayer,
    air_stopping_mev_cm2_g,
    counts_per_particle,
    differs,
    expected_fields,
    recombination,
)
from interlocks.guard_plan import PlannedDelivery, PlannedField, PlannedLayer
from sites.loader import load_site

SITE = load_site("carbon-fixed")
assert SITE.guard is not None
RULES = SITE.guard
RATE = SITE.accelerator.intensities_per_s[0]
KTP = 1.02


def planned(**changes: Any) -> PlannedDelivery:
    layers = (PlannedLayer(250.0, 10, 2.0), PlannedLayer(240.0, 5, 3.0))
    field = {"number": 1, "machine": "REF-C", "ion": "12C", "unit": "MU", "gantry_deg": 90.0, "layers": layers}
    return PlannedDelivery("", 1, (PlannedField(**{**field, **changes}),))


def test_layers_follow_each_other_and_mu_are_the_machines() -> None:
    (field,) = expected_fields(SITE, planned())
    mu = SITE.treatment_machines["REF-C"].mu
    assert (field.ion, field.port_deg) == ("12C", 90.0)
    assert [(one.energy_mev_u, one.first_visit, one.visits) for one in field.layers] == [(250.0, 1, 10), (240.0, 11, 5)]
    for one, meterset in zip(field.layers, (2.0, 3.0), strict=True):
        per_mu = mu.particles_per_mu * (one.energy_mev_u / mu.reference_mev_u) ** mu.exponent
        assert one.particles == pytest.approx(meterset * per_mu)
        assert one.counts_2 == pytest.approx(one.particles * counts_per_particle(SITE, "12C", one.energy_mev_u))


def test_particles_are_particles_and_a_raster_file_names_no_machine() -> None:
    (field,) = expected_fields(SITE, planned(unit="NP", machine=""))
    assert [one.particles for one in field.layers] == [2.0, 3.0]


@pytest.mark.parametrize(("energy", "refused"), [(1.0, False), (1000.0, False), (0.999, True), (1000.1, True)])
def test_an_energy_that_no_treatment_has_is_refused_before_it_is_reckoned_with(energy: float, refused: bool) -> None:
    plan = planned(layers=(PlannedLayer(energy, 10, 2.0),))
    if refused:
        with pytest.raises(Refused, match="MeV/u; wanted 1 to 1000"):
            expected_fields(SITE, plan)
    else:
        assert expected_fields(SITE, plan)[0].layers[0].counts_2 > 0.0


@pytest.mark.parametrize("energy", [1e-320, 1e-10, 1e300])
def test_an_energy_that_has_no_stopping_power_is_refused_too(energy: float) -> None:
    with pytest.raises(Refused):
        expected_fields(SITE, planned(layers=(PlannedLayer(energy, 10, 2.0),)))


def test_a_gantrys_port_is_always_the_same() -> None:
    site = load_site("proton-gantry")
    name = next(n for n, machine in site.treatment_machines.items() if machine.ion == "1H")
    (field,) = expected_fields(site, planned(machine=name, ion="1H"))
    assert field.port_deg == 0.0


@pytest.mark.parametrize("changes", [{"machine": "NOBODYS"}, {"ion": "1H"}])
def test_a_machine_of_another_name_or_ion_is_refused(changes: dict[str, str]) -> None:
    with pytest.raises(Refused, match="no machine"):
        expected_fields(SITE, planned(**changes))


def test_a_slow_ion_has_not_its_whole_charge() -> None:
    # Barkas: 1 - exp(-125 beta Z^(-2/3)) is 0.83 for carbon at 1 MeV/u
    share = air_stopping_mev_cm2_g("12C", 1.0) / (36 * air_stopping_mev_cm2_g("1H", 1.0))
    assert share == pytest.approx(0.69, abs=0.02)


LAYER = ExpectedLayer(250.0, 11, 5, 1e6, 4e4)
FIELD = ExpectedField("12C", 90.0, (LAYER,))
HONEST = LayerLimits(0, 1, 11, 5, 250.0, 1e6, RATE, 4e4 / (KTP * recombination(SITE, RATE)))
AGREEMENT = RULES.agreement * (1.0 + 1e-6)


def detail(layer: ExpectedLayer = LAYER, **changes: Any) -> str:
    found = differs(SITE, RULES, FIELD, layer, HONEST._replace(**changes), KTP)
    return "" if found is None else found.detail


def test_an_honest_layer_does_not_differ() -> None:
    assert detail() == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"first_visit": 10}, "visits 5 from 10 on, wanted 5 from 11"),
        ({"visits": 6}, "visits 6"),
        ({"energy_mev_u": 250.0 + SITE.accelerator.energy_tolerance_mev_u * (1 + 3e-6)}, "energy"),
        ({"energy_mev_u": 250.0 - SITE.accelerator.energy_tolerance_mev_u * (1 + 3e-6)}, "energy"),
        ({"rate_per_s": RATE * 1.5}, "no such intensity"),
        ({"particles": 1e6 * (1 + 1.01 * RULES.agreement)}, "particles"),
        ({"particles": 1e6 * (1 - 1.01 * RULES.agreement)}, "particles"),
        ({"particles": float("nan")}, "particles"),
        ({"counts_2": HONEST.counts_2 * (1 + 1.01 * RULES.agreement)}, "counts on electrometer 2"),
        ({"counts_2": HONEST.counts_2 * (1 - 1.01 * RULES.agreement)}, "counts on electrometer 2"),
        ({"counts_2": 4e4}, "counts on electrometer 2"),  # without the corrections
    ],
)
def test_what_differs_is_named(changes: dict[str, Any], words: str) -> None:
    assert words in detail(**changes)
    assert detail(**changes).startswith("field 1, layer 2: ")


@pytest.mark.parametrize(
    "changes",
    [
        {"energy_mev_u": 250.0 + SITE.accelerator.energy_tolerance_mev_u * (1 + 5e-7)},
        {"energy_mev_u": 250.0 - SITE.accelerator.energy_tolerance_mev_u * (1 + 5e-7)},
        {"particles": 1e6 * (1 + RULES.agreement * (1 + 5e-7))},
        {"particles": 1e6 * (1 - 0.99 * RULES.agreement)},
        {"counts_2": HONEST.counts_2 * (1 + 0.99 * RULES.agreement)},
    ],
)
def test_within_its_agreement_nothing_differs(changes: dict[str, Any]) -> None:
    assert detail(**changes) == ""


@pytest.mark.parametrize(
    ("energy", "share", "differ"), [(80.0, 1.5e-3, True), (79.9, 1.5e-3, False), (79.9, 3.1e-3, True)]
)
def test_below_its_fit_the_controller_may_be_further_off(energy: float, share: float, differ: bool) -> None:
    assert (COUNT, guard_numbers.EXTRAPOLATED_AGREEMENT) == (1e-6, 0.003)
    layer = ExpectedLayer(energy, 11, 5, 1e6, 4e4)
    assert bool(detail(layer, energy_mev_u=energy, counts_2=HONEST.counts_2 * (1 + share))) is differ


def test_of_nothing_only_nothing_is_agreed() -> None:
    layer = ExpectedLayer(250.0, 11, 5, 0.0, 0.0)
    assert detail(layer, particles=0.0, counts_2=0.0) == ""
    assert "particles" in detail(layer, particles=-5.0, counts_2=0.0)
    assert "particles" in detail(layer, particles=5.0, counts_2=0.0)


def test_exactly_at_its_limit_nothing_differs() -> None:
    layer = ExpectedLayer(0.0, 11, 5, 0.0, 0.0)
    most_mev_u = SITE.accelerator.energy_tolerance_mev_u * (1.0 + COUNT)
    assert detail(layer, energy_mev_u=most_mev_u, particles=AGREEMENT, counts_2=0.0) == ""
