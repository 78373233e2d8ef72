"""Builds a plant from a site, and turns an accelerator request into what the plant does with it."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from drivers.wires.frames import STRIP_UNITS_PER_COUNT
from simulators.plant.chambers import drain_share
from simulators.plant.noise import cumulative_table, gauss_table, ripple_table
from simulators.plant.physics import IONS, charge_per_ion_c, ionisation_spread, rigidity_tm
from simulators.plant.state import (
    ACC_IDLE,
    CDF_HALF_WIDTH,
    CDF_STEPS,
    COUNT_UNIT,
    ION_UNIT,
    STEP_NS,
    Plant,
)
from sites.schema import Chamber, Site, TreatmentMachine

STOPPER_DELAY_NS = 50_000_000


def _ns(us: float) -> int:
    return round(us * 1000)


def _nonce(seed: int, what: str) -> int:
    digest = hashlib.sha256(f"{seed}:{what}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def build_plant(site: Site, seed: int, *, boot: str = "", plant: Plant | None = None) -> Plant:
    """A powered-up room, beam off, chain open. `boot` makes the boot nonces of one power-up differ from another's.

    `plant`: an empty one to be filled; None: a new one.
    """
    plant = Plant() if plant is None else plant
    plant.ripple[:] = ripple_table()
    plant.gauss[:] = gauss_table(seed)
    plant.cumulative[:] = cumulative_table(CDF_STEPS, CDF_HALF_WIDTH)
    p = plant.parameters
    s = plant.state
    _accelerator(p, site)
    _magnets(p, site)
    _monitors(p, site)
    key = np.frombuffer(permit_key(site), "<u8")
    p["key_0"], p["key_1"] = key
    p["controller_required"] = "controller" in site.permits.required
    p["guard_required"] = "guard" in site.permits.required
    p["gate_period_ns"] = _ns(site.simulation.breathing_period_s * 1e6)
    p["gate_open_ns"] = _ns(site.simulation.breathing_period_s * site.simulation.gate_duty * 1e6)
    p["seed"] = _nonce(seed, "noise")
    s["acc_state"] = ACC_IDLE
    s["arrived_ns"] = 0
    s["request_off_ns"] = -(10**12)
    s["gate_open"] = 1
    s["door_closed"] = s["room_searched"] = s["room_allocated"] = 1
    s["time_out_ns"] = _ns(site.permits.time_out_ms * 1000)
    s["retained_1"] = 1_000_000 + _nonce(seed, "retained 1") % 1_000_000
    s["retained_2"] = 2_000_000 + _nonce(seed, "retained 2") % 1_000_000
    s["frame_counts_1"] = s["retained_1"]
    s["frame_counts_2"] = s["retained_2"]
    for stream in (1, 2, 3):
        s[f"nonce_{stream}"] = _nonce(seed, f"nonce {stream} {boot}")
    return plant


def permit_key(site: Site) -> bytes:
    """The 16-byte key of the site's permits."""
    if site.permits.key_hex is not None:
        return bytes.fromhex(site.permits.key_hex)
    with open(str(site.permits.key_file), "rb") as file:
        return file.read(16)


def _accelerator(p: Any, site: Site) -> None:
    a = site.accelerator
    p["synchrotron"] = a.kind == "synchrotron"
    p["flat_top_ns"] = _ns(a.flat_top_s * 1e6)
    p["gap_ns"] = _ns(a.gap_s * 1e6)
    p["spill_units"] = round(a.particles_per_spill * ION_UNIT)
    p["spill_spread"] = site.simulation.charge_left_fraction
    p["rise_ns"] = _ns(a.extraction_rise_ms * 1e3)
    p["extended_flat_top"] = a.extended_flat_top
    p["step_down_ns"] = _ns(a.energy_step_s * 1e6)
    p["step_up_ns"] = _ns(a.energy_step_up_s * 1e6)
    p["on_delay_ns"] = _ns(a.beam_on_delay_us)
    true_off_us = site.simulation.beam_off_delay_us
    p["off_delay_ns"] = _ns(a.beam_off_delay_us if true_off_us is None else true_off_us)
    p["stopper_delay_ns"] = STOPPER_DELAY_NS
    p["rate_scale"] = 1.0
    p["ripple"] = site.simulation.ripple_rms
    p["energy_offset_mev_u"] = site.simulation.energy_offset_mev_u


def _magnets(p: Any, site: Site) -> None:
    x, y = site.scanning.x, site.scanning.y
    step_s = STEP_NS * 1e-9
    p["slew_x_ma_step"] = x.slew_a_per_s * 1e3 * step_s
    p["slew_y_ma_step"] = y.slew_a_per_s * 1e3 * step_s
    p["step"] = site.scanning.engine == "step"
    settle_us = max(x.settle_us, y.settle_us)
    # a first-order lag that is down to 0.7 % after the settling time
    p["settle_share"] = min(1.0, 5.0 * 10.0 / max(settle_us, 50.0))
    p["settle_ns"] = _ns(settle_us)
    p["window_ma"] = min(x.window_a, y.window_a) * 1e3
    sim = site.simulation
    p["gain_x"], p["gain_y"] = sim.true_gain_x, sim.true_gain_y
    p["hysteresis_ma"] = sim.hysteresis * min(x.max_current_a, y.max_current_a) * 1e3
    p["offset_x_mm"], p["offset_y_mm"] = sim.offset_x_mm, sim.offset_y_mm
    p["position_noise_mm"] = sim.position_noise_mm
    p["sigma_scale"] = sim.sigma_scale


def _monitors(p: Any, site: Site) -> None:
    sim = site.simulation
    chambers = ((1, site.dosimetry.primary), (2, site.dosimetry.secondary))
    pedestals = (sim.primary_pedestal_counts_per_s, sim.secondary_pedestal_counts_per_s)
    for (number, chamber), pedestal in zip(chambers, pedestals, strict=True):
        p[f"gain_{number}"] = 1.0
        p[f"drain_{number}"] = drain_share(chamber.lag_us)
        true_ks = sim.true_primary_ks if number == 1 else sim.true_secondary_ks
        p[f"ks_{number}_s"] = chamber.ks_per_particle_s * true_ks
        p[f"pedestal_{number}"] = round(pedestal * STEP_NS * 1e-9 * COUNT_UNIT)
        p[f"saturation_{number}"] = round(chamber.saturation_counts_per_s * 1e-4)
        p[f"hv_{number}_v"] = chamber.high_voltage_v
        p[f"hv_min_{number}_v"] = 0.95 * chamber.high_voltage_v
    p["strip_units_per_count"] = STRIP_UNITS_PER_COUNT
    p["strip_pedestal"] = 3
    p["strip_noise"] = sim.strip_noise_counts > 0
    p["pitch_x_mm"] = site.dosimetry.strips.pitch_x_mm
    p["pitch_y_mm"] = site.dosimetry.strips.pitch_y_mm
    p["dead_strip"] = p["hot_strip"] = -1
    p["dead_strips"] = p["dead_step"] = 1
    p["hot_units"] = 1000
    # the engine waits for the chopper and eight lags of the slower chamber: 0.03 % of the last charge is left
    slower = max(chamber.lag_us for _, chamber in chambers)
    p["tail_ns"] = _ns(site.accelerator.beam_off_delay_us + 8 * slower)


def _counts_per_ion(site: Site, chamber: Chamber, true_gain: float, ion: str, energy_mev_u: float) -> float:
    sim = site.simulation
    charge = charge_per_ion_c(
        ion,
        energy_mev_u,
        gas=chamber.gas,
        gap_mm=chamber.gap_mm,
        temperature_c=sim.temperature_c,
        pressure_hpa=sim.pressure_hpa,
    )
    return charge * chamber.gain * true_gain / (chamber.quantum_fc * 1e-15)


def _interpolate(points: list[tuple[float, float]], at: float) -> float:
    energies, values = zip(*points, strict=True)
    return float(np.interp(at, energies, values))


def other_ion(ion: str) -> str:
    """The one that comes where this one was asked for and the wrong source is switched to the line."""
    return next(other for other in IONS if other != ion)


def write_request(
    plant: Plant, site: Site, *, ion: str, energy_mev_u: float, level: int, port_deg: float, optics: int
) -> None:
    """Put a request into tune[1]; the plant takes it over when the machine gets there.

    `optics` is the index of a treatment machine in the site's order: it stands for the optics set that gives
    that machine's virtual source distances and spot sizes.
    """
    machine: TreatmentMachine = list(site.treatment_machines.values())[optics]
    true_energy = energy_mev_u + float(plant.parameters["energy_offset_mev_u"])
    t = plant.tune[1]
    t["energy_mev_u"], t["ion"], t["port_deg"], t["level"] = energy_mev_u, IONS.index(ion), port_deg, level
    ion = other_ion(ion) if plant.parameters["ion_error"] else ion
    t["true_ion"] = IONS.index(ion)
    t["optics"] = optics
    t["rate_units_ns"] = round(site.accelerator.intensities_per_s[level] * ION_UNIT * 1e-9)
    t["brho_tm"] = rigidity_tm(ion, true_energy)
    t["sad_x_mm"], t["sad_y_mm"] = machine.vsad_x_mm, machine.vsad_y_mm
    t["field_x_tm_ma"] = site.scanning.x.tesla_metre_per_a * 1e-3
    t["field_y_tm_ma"] = site.scanning.y.tesla_metre_per_a * 1e-3
    points = site.scanning.calibration
    if points:

        def at(name: str) -> float:
            return _interpolate([(point.energy_mev_u, getattr(point, name)) for point in points], energy_mev_u)

        matrix = np.array([[at("xx"), at("xy")], [at("yx"), at("yy")]])
        inverse = np.linalg.inv(matrix)
        shift = (at("x0_mm"), at("y0_mm"))
    else:
        inverse, shift = np.eye(2), (0.0, 0.0)
    (t["inv_xx"], t["inv_xy"]), (t["inv_yx"], t["inv_yy"]) = inverse
    t["shift_x_mm"], t["shift_y_mm"] = shift
    sizes = machine.spot_sizes
    t["sigma_x_mm"] = _interpolate([(size.energy_mev_u, size.sigma_x_mm) for size in sizes], energy_mev_u)
    t["sigma_y_mm"] = _interpolate([(size.energy_mev_u, size.sigma_y_mm) for size in sizes], energy_mev_u)
    distance = site.dosimetry.strips.distance_mm
    t["strip_scale_x"] = (machine.vsad_x_mm - distance) / machine.vsad_x_mm
    t["strip_scale_y"] = (machine.vsad_y_mm - distance) / machine.vsad_y_mm
    sim = site.simulation
    for number, chamber in ((1, site.dosimetry.primary), (2, site.dosimetry.secondary)):
        t[f"spread_{number}"] = ionisation_spread(ion, true_energy, gap_mm=chamber.gap_mm)
    t["counts_1"] = _counts_per_ion(site, site.dosimetry.primary, sim.true_primary_gain, ion, true_energy)
    t["counts_2"] = _counts_per_ion(site, site.dosimetry.secondary, sim.true_secondary_gain, ion, true_energy)
