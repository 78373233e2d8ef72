"""From a layer of the plan to the table that the spot engine and electrometer 2 are given.

Paintings are delivered one after the other, each in the plan's order of spots; spots of zero weight get no visit.
Every number that limits or ends beam is made here, once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from controller.machine.dosimetry import Corrections, counts_per_particle, particles_per_meterset
from controller.machine.energies import describe_missing_energy, match_energy
from controller.machine.intensity import choose_intensity
from controller.machine.optics import CURRENT_RESOLUTION_A, Optics, spot_sigma_mm
from controller.machine.overdose import peak_dose_gy_per_particle
from controller.machine.program import BEAM_OFF_AFTER, BEAM_OFF_MOVE, VISIT_PLAN_DTYPE, LayerProgram
from controller.machine.runaway import EXCESS_LIMIT_GY, FRAME_S
from controller.machine.spacing import nearest_neighbour_mm
from controller.machine.wrong_monitor import late_s
from controller.plan.model import Layer, PlanField
from drivers.errors import Refused
from sites.schema import Site, TreatmentMachine

POSITION_LIMIT_FLOOR_MM = 0.4
"""No position limit is tighter than this: monitors of this kind resolve 0.1 to 0.25 mm."""
TIME_LIMIT_MS = 65_535
"""Longest time limit that the engine's 16-bit register holds."""

Floats = NDArray[np.float64]


class LayerRefused(Refused):
    """The machine cannot deliver a layer; `find_problems` reports the same rule."""

    def __init__(self, rule: str, where: str, problem: str) -> None:
        super().__init__(f"[{rule}] {where}: {problem}")
        self.rule = rule
        self.where = where
        self.problem = problem


def build_layer(
    site: Site,
    machine: TreatmentMachine,
    field: PlanField,
    *,
    field_index: int,
    layer_index: int,
    first_visit: int,
    corrections: Corrections,
    optics: Optics | None = None,
) -> LayerProgram:
    """Build the program of one layer; its visits are numbered from `first_visit` on.

    Raises `LayerRefused` where the machine cannot deliver the layer.
    """
    layer = field.layers[layer_index]
    energy = match_energy(site, machine, layer.energy_mev_u)
    if energy is None:
        where = f"beam {field.number}, layer {layer_index}"
        raise LayerRefused("ENERGY_UNAVAILABLE", where, describe_missing_energy(site, machine, layer.energy_mev_u))
    visits = _visits(layer, particles_per_meterset(machine, field.unit, energy), first_visit)
    return program_of(
        site,
        machine,
        field,
        visits,
        field_index=field_index,
        layer_index=layer_index,
        energy_mev_u=energy,
        corrections=corrections,
        optics=optics or Optics(site, machine),
    )


def program_of(
    site: Site,
    machine: TreatmentMachine,
    field: PlanField,
    visits: NDArray[np.void],
    *,
    field_index: int,
    layer_index: int,
    energy_mev_u: float,
    corrections: Corrections,
    optics: Optics,
    rest_of: float | None = None,
) -> LayerProgram:
    """Program of some visits of a layer, which it fills in: all of the layer's, or what an earlier part left of them.

    `visits`: id, painting, spot, position, meterset and particles are given. `rest_of`: there is one visit, and
    it is the rest of one of so many particles. Raises `LayerRefused`.
    """
    layer = field.layers[layer_index]
    where = f"beam {field.number}, layer {layer_index}"
    energy = energy_mev_u
    _mark_beam_off(site, visits)

    particles = visits["particles"]
    sigma_x, sigma_y = spot_sigma_mm(machine, energy)
    peak_gy = peak_dose_gy_per_particle(machine.ion, energy, sigma_x, sigma_y)
    level, rate = 0, site.accelerator.intensities_per_s[0]
    if len(visits):
        beam_off_after = (visits["flags"] & BEAM_OFF_AFTER) != 0
        choice = choose_intensity(site, machine.ion, energy, particles, beam_off_after, peak_gy, rest_of=rest_of)
        if choice.level is None:
            at = choice.bound.visit
            raise LayerRefused(
                choice.bound.rule,
                where if at is None else f"{where}, spot {visits['spot'][at]}",
                f"{choice.bound.reason}, so at most {choice.bound.rate_per_s:.4g} particles/s; "
                f"the lowest intensity is {choice.rate_per_s:.4g}/s",
            )
        level, rate = choice.level, choice.rate_per_s

    primary, secondary = site.dosimetry.primary, site.dosimetry.secondary
    per_particle = counts_per_particle(
        primary, site.dosimetry, machine.ion, energy, corrections=corrections, rate_per_s=rate
    )
    per_particle_2 = counts_per_particle(
        secondary, site.dosimetry, machine.ion, energy, corrections=corrections, rate_per_s=rate
    )
    beam_off_s = site.accelerator.beam_off_delay_us * 1e-6
    lag_s = primary.lag_us * 1e-6

    if len(visits):
        _set_currents(optics, energy, visits)
        visits["preset_counts"] = _presets(visits, particles * per_particle, where)
        visits["expected_counts_2"] = particles * per_particle_2
        late_2 = rate * late_s(site) * per_particle_2
        # what comes until the chain has turned and beam is off is in the quarter of a gray, and so is the gain's error
        cap = EXCESS_LIMIT_GY / peak_gy * per_particle_2 - late_2 - rate * FRAME_S * per_particle_2
        visits["backup_counts"] = _backups(site, visits["expected_counts_2"], late_2, cap)
        visits["time_limit_ms"] = _time_limits(site, visits, rate, where)
        visits["position_limit_mm"] = _position_limits(site, layer, visits, max(sigma_x, sigma_y))
    return LayerProgram(
        field_index=field_index,
        layer_index=layer_index,
        plan_energy_mev_u=layer.energy_mev_u,
        energy_mev_u=energy,
        ion=machine.ion,
        intensity_level=level,
        rate_per_s=rate,
        counts_per_particle=per_particle,
        counts_per_particle_2=per_particle_2,
        particles_per_mu=particles_per_meterset(machine, "MU", energy),
        early_on_counts=round(rate * lag_s * per_particle),
        early_off_counts=round(rate * (lag_s + beam_off_s) * per_particle),
        sigma_x_mm=sigma_x,
        sigma_y_mm=sigma_y,
        strip_scale_x=optics.strip_scale_x,
        strip_scale_y=optics.strip_scale_y,
        visits=visits,
    )


def _visits(layer: Layer, per_meterset: float, first_visit: int) -> NDArray[np.void]:
    """Who is visited when, and how many particles each visit gets."""
    meterset = np.asarray(layer.meterset, dtype=np.float64)
    spots = np.flatnonzero(meterset > 0.0)
    count = len(spots) * layer.paintings
    visits = np.zeros(count, dtype=VISIT_PLAN_DTYPE)
    order = np.tile(spots, layer.paintings)
    visits["visit"] = first_visit + np.arange(count)
    visits["painting"] = np.repeat(np.arange(layer.paintings), len(spots))
    visits["spot"] = order
    visits["x_mm"] = np.asarray(layer.x_mm, dtype=np.float64)[order]
    visits["y_mm"] = np.asarray(layer.y_mm, dtype=np.float64)[order]
    visits["meterset"] = meterset[order] / layer.paintings
    visits["particles"] = visits["meterset"] * per_meterset
    return visits


def _mark_beam_off(site: Site, visits: NDArray[np.void]) -> None:
    """Set the flags: in discrete mode beam goes off after each visit, in raster mode before long moves.

    The first visit of a layer is always approached with beam off, and beam goes off after its last.
    """
    if not len(visits):
        return
    if site.scanning.mode == "discrete":
        visits["flags"] = BEAM_OFF_MOVE | BEAM_OFF_AFTER
        return
    move = np.hypot(np.diff(visits["x_mm"]), np.diff(visits["y_mm"]))
    gap = move > site.scanning.gap_beam_off_mm
    visits["flags"][1:][gap] |= BEAM_OFF_MOVE
    visits["flags"][:-1][gap] |= BEAM_OFF_AFTER
    visits["flags"][0] |= BEAM_OFF_MOVE
    visits["flags"][-1] |= BEAM_OFF_AFTER


def _set_currents(optics: Optics, energy_mev_u: float, visits: NDArray[np.void]) -> None:
    x_a, y_a = optics.currents_a(energy_mev_u, visits["x_mm"], visits["y_mm"])
    per_ampere = round(1.0 / CURRENT_RESOLUTION_A)
    visits["x_current_a"] = np.round(x_a * per_ampere) / per_ampere
    visits["y_current_a"] = np.round(y_a * per_ampere) / per_ampere
    visits["x_strip_mm"], visits["y_strip_mm"] = optics.at_strips_mm(visits["x_mm"], visits["y_mm"])


def _presets(visits: NDArray[np.void], counts: Floats, where: str) -> NDArray[np.int64]:
    """Whole counts per visit; the fraction is carried on, so that sums are right to one count everywhere."""
    presets = np.diff(np.rint(np.cumsum(counts)), prepend=0.0).astype(np.int64)
    if presets.min() < 1:
        at = int(np.argmin(presets))
        message = f"{counts[at]:.3g} monitor counts in a painting, at least 1 is needed"
        raise LayerRefused("SPOT_NOT_MEASURABLE", f"{where}, spot {visits['spot'][at]}", message)
    if presets.max() > np.iinfo(np.uint32).max:
        at = int(np.argmax(presets))
        message = f"{presets[at]} monitor counts in a painting, the register holds 2^32 - 1"
        raise LayerRefused("SPOT_TOO_LONG", f"{where}, spot {visits['spot'][at]}", message)
    return presets


def _backups(site: Site, expected: Floats, late_counts: float, cap: float) -> Floats:
    """Counts at which electrometer 2 ends the visit by itself.

    Excess over the expected counts: the greater of the site's share and its floor, and what beam and charge still
    come after a decision at this rate (`late_counts`); not more than 0.25 Gy at the spot's centre (`cap`, less what
    electrometer 2 may be wrong by), and never less than the floor, nor than both chambers' gains may be apart: below
    that electrometer 2 would stop good beam.
    """
    floor = site.tolerances.secondary_spot_counts
    wrong = site.dosimetry.secondary.gain_uncertainty * expected
    apart = wrong + site.dosimetry.primary.gain_uncertainty * expected
    excess = np.maximum(site.tolerances.secondary_spot * expected, floor) + late_counts
    excess = np.maximum(np.minimum(excess, cap - wrong), np.maximum(floor, apart))
    return np.minimum(np.ceil(expected + excess), float(np.iinfo(np.uint32).max))


def _time_limits(site: Site, visits: NDArray[np.void], rate_per_s: float, where: str) -> Floats:
    """Beam-on time (ms) after which the engine gives a visit up."""
    planned_ms = visits["particles"] / rate_per_s * 1e3
    limits = np.ceil(np.maximum(site.tolerances.spot_time_floor_ms, site.tolerances.spot_time_factor * planned_ms))
    if limits.max() > TIME_LIMIT_MS:
        worst = int(np.argmax(limits))
        raise LayerRefused(
            "SPOT_TOO_LONG",
            f"{where}, spot {visits['spot'][worst]}",
            f"it takes {planned_ms[worst]:.0f} ms at {rate_per_s:.4g} particles/s, which "
            f"the layer's smallest visit allows; its time limit of {limits[worst]:.0f} ms exceeds {TIME_LIMIT_MS} ms",
        )
    return limits


def _position_limits(site: Site, layer: Layer, visits: NDArray[np.void], sigma_mm: float) -> Floats:
    """Distance (mm, at isocentre) from the planned position beyond which delivery stops."""
    tolerances = site.tolerances
    widest = max(tolerances.position_mm, tolerances.position_sigma * sigma_mm)
    wanted = np.asarray(layer.meterset, dtype=np.float64) > 0.0
    x_mm = np.asarray(layer.x_mm, dtype=np.float64)[wanted]
    y_mm = np.asarray(layer.y_mm, dtype=np.float64)[wanted]
    limits: Floats = np.zeros(len(wanted))
    neighbour = nearest_neighbour_mm(x_mm, y_mm, widest / tolerances.position_spacing)
    limits[wanted] = np.maximum(np.minimum(widest, tolerances.position_spacing * neighbour), POSITION_LIMIT_FLOOR_MM)
    of_visits: Floats = limits[visits["spot"]]
    return of_visits
