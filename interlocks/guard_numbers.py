"""What the guard expects of each layer on electrometer 2, by its own arithmetic, and whether the controller agrees.

Bethe's formula with the mean excitation energy of air, 85.7 eV (ICRU 90), Barkas's effective charge and W from ICRU 90
as quoted in IAEA TRS-398 rev. 1; the controller's physics is a fit of its own, the plant's a third. The calibration
(gain, gap, quantum, MU) is the site's: two readers of one number, which catches a wrong use of it, not a wrong number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from drivers.errors import Refused
from drivers.wires.guard_link import LayerLimits
from interlocks.guard_plan import PlannedDelivery, PlannedField, PlannedLayer
from sites.schema import GuardRules, Site, TreatmentMachine

ELECTRON_MEV = 0.51099895
ELEMENTARY_CHARGE_C = 1.602176634e-19
AIR_EXCITATION_EV = 85.7
AIR_Z_OVER_A = 0.49919
AIR_G_CM3 = 1.2048e-3
"""At 20 C and 1013.25 hPa."""
NITROGEN_TO_AIR = 0.974
W_NITROGEN_EV = 36.6
PARTICLE = {"1H": (1, 1, 938.27208943, 34.44), "12C": (12, 6, 11174.86, 34.71)}
"""Nucleons, charge, rest energy (MeV), W of air (eV)."""
EXTRAPOLATED = {"1H": 60.0, "12C": 80.0}
"""Below this energy (MeV/u) the controller's fit of the stopping power extrapolates, by up to 0.21 % at 55 MeV/u."""
EXTRAPOLATED_AGREEMENT = 0.003
LEAST_MEV_U, MOST_MEV_U = 1.0, 1000.0
"""No treatment has an energy beyond these; far below, Bethe's formula gives nothing that is a number."""
COUNT = 1e-6
"""Relative: what lies nearer is equal, where numbers went through text."""


@dataclass(frozen=True, slots=True)
class ExpectedLayer:
    """A layer's numbers, all visits, at kTP 1 and the reference rate 0."""

    energy_mev_u: float
    first_visit: int
    visits: int
    particles: float
    counts_2: float


@dataclass(frozen=True, slots=True)
class ExpectedField:
    """A field's numbers."""

    ion: str
    port_deg: float
    layers: tuple[ExpectedLayer, ...]


def air_stopping_mev_cm2_g(ion: str, energy_mev_u: float) -> float:
    """Mass electronic stopping power of air for the whole ion."""
    nucleons, charge, rest_mev, _ = PARTICLE[ion]
    gamma = 1.0 + nucleons * energy_mev_u / rest_mev
    beta2 = 1.0 - 1.0 / (gamma * gamma)
    effective = charge * (1.0 - math.exp(-125.0 * math.sqrt(beta2) * charge ** (-2.0 / 3.0)))
    ratio = ELECTRON_MEV / rest_mev
    most_mev = 2.0 * ELECTRON_MEV * beta2 * gamma * gamma / (1.0 + 2.0 * gamma * ratio + ratio * ratio)
    argument = 2.0 * ELECTRON_MEV * beta2 * gamma * gamma * most_mev * 1e12 / AIR_EXCITATION_EV**2
    return 0.307075 * AIR_Z_OVER_A * effective * effective / beta2 * (0.5 * math.log(argument) - beta2)


def counts_per_particle(site: Site, ion: str, energy_mev_u: float) -> float:
    """Counts of electrometer 2 per particle at kTP 1 and vanishing rate."""
    chamber = site.dosimetry.secondary
    warm = (273.15 + 20.0) / (273.15 + site.dosimetry.reference_temperature_c)
    density = AIR_G_CM3 * warm * site.dosimetry.reference_pressure_hpa / 1013.25
    loss_ev = air_stopping_mev_cm2_g(ion, energy_mev_u) * density * chamber.gap_mm / 10.0 * 1e6
    pairs = loss_ev / PARTICLE[ion][3]
    if chamber.gas == "nitrogen":
        pairs = loss_ev * NITROGEN_TO_AIR / W_NITROGEN_EV
    return chamber.gain * ELEMENTARY_CHARGE_C * pairs / (chamber.quantum_fc * 1e-15)


def recombination(site: Site, rate_per_s: float) -> float:
    """Divide the counts by this at a rate."""
    return 1.0 + site.dosimetry.secondary.ks_per_particle_s * rate_per_s


def expected_fields(site: Site, plan: PlannedDelivery) -> tuple[ExpectedField, ...]:
    """Numbers of all fields. Raises `Refused` for a machine that the site does not have, or an energy that none has."""
    return tuple(_expected_field(site, field) for field in plan.fields)


def _expected_field(site: Site, field: PlannedField) -> ExpectedField:
    machine = _machine(site, field)
    layers = []
    first = 1
    for layer in field.layers:
        if not LEAST_MEV_U <= layer.energy_mev_u <= MOST_MEV_U:
            raise Refused(
                f"guard: beam {field.number}: a layer of {layer.energy_mev_u:g} MeV/u; "
                f"wanted {LEAST_MEV_U:g} to {MOST_MEV_U:g}, as treatments have"
            )
        particles = layer.meterset * (_per_mu(machine, layer) if field.unit == "MU" else 1.0)
        counts = particles * counts_per_particle(site, field.ion, layer.energy_mev_u)
        layers.append(ExpectedLayer(layer.energy_mev_u, first, layer.visits, particles, counts))
        first += layer.visits
    port_deg = field.gantry_deg if site.gantry.kind == "fixed" else 0.0
    return ExpectedField(field.ion, port_deg, tuple(layers))


def _machine(site: Site, field: PlannedField) -> TreatmentMachine:
    by_ion = {str(ion): name for ion, name in site.trip98_machine.items()}
    machine = site.treatment_machines.get(field.machine or by_ion.get(field.ion, ""))
    if machine is None or machine.ion != field.ion:
        raise Refused(f"guard: beam {field.number}: site {site.name} has no machine {field.machine!r} for {field.ion}")
    return machine


def _per_mu(machine: TreatmentMachine, layer: PlannedLayer) -> float:
    mu = machine.mu
    return float(mu.particles_per_mu * (layer.energy_mev_u / mu.reference_mev_u) ** mu.exponent)


@dataclass(frozen=True, slots=True)
class Difference:
    """Where controller and guard do not mean the same: relative difference, or the plain numbers."""

    value: float
    limit: float
    detail: str


def differs(
    site: Site, rules: GuardRules, field: ExpectedField, layer: ExpectedLayer, said: LayerLimits, ktp: float
) -> Difference | None:
    """Compare one layer of the controller's with the guard's own. `ktp`: what the controller corrected by."""
    where = f"field {said.field + 1}, layer {said.layer + 1}"
    if (said.first_visit, said.visits) != (layer.first_visit, layer.visits):
        detail = f"{where}: visits {said.visits} from {said.first_visit} on, wanted {layer.visits} from "
        return Difference(float(said.visits), float(layer.visits), f"{detail}{layer.first_visit}")
    tolerance_mev_u = site.accelerator.energy_tolerance_mev_u * (1.0 + COUNT)
    if not abs(said.energy_mev_u - layer.energy_mev_u) <= tolerance_mev_u:
        return Difference(said.energy_mev_u, layer.energy_mev_u, f"{where}: energy, MeV/u")
    if said.rate_per_s not in site.accelerator.intensities_per_s:
        return Difference(said.rate_per_s, max(site.accelerator.intensities_per_s), f"{where}: no such intensity")
    agreement = rules.agreement * (1.0 + COUNT)
    own = layer.counts_2 / (ktp * recombination(site, said.rate_per_s))
    fits = layer.energy_mev_u >= EXTRAPOLATED[field.ion]
    for what, got, wanted, limit in (
        ("particles", said.particles, layer.particles, agreement),
        ("counts on electrometer 2", said.counts_2, own, agreement if fits else EXTRAPOLATED_AGREEMENT),
    ):
        off = abs(got - wanted) / wanted if wanted > 0 else abs(got)
        if not off <= limit:
            return Difference(off, limit, f"{where}: {what} {got:.8g}, wanted {wanted:.8g}")
    return None
