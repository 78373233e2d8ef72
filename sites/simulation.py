"""The table that only the simulated plant reads."""

from __future__ import annotations

from sites.table import Finite, Fraction, NotNegative, Positive, Table


class Simulation(Table):
    """What only the plant knows: its true deviations from the calibration, noise, wire latencies."""

    true_primary_gain: Positive = 1.0
    true_secondary_gain: Positive = 1.0
    true_primary_ks: NotNegative = 1.0
    """True recombination over the calibrated one."""
    true_secondary_ks: NotNegative = 1.0
    true_gain_x: Positive = 1.0
    true_gain_y: Positive = 1.0
    offset_x_mm: Finite = 0.0
    offset_y_mm: Finite = 0.0
    sigma_scale: Positive = 1.0
    hysteresis: NotNegative = 0.0
    """Remanent share of the last current swing."""
    temperature_c: Finite = 22.0
    pressure_hpa: Positive = 1005.0
    beam_off_delay_us: NotNegative | None = None
    """The chopper's true delay; None: what the accelerator's table says."""
    ripple_rms: Fraction
    position_noise_mm: NotNegative = 0.05
    energy_offset_mev_u: Finite = 0.0
    primary_pedestal_counts_per_s: Finite = 0.0
    secondary_pedestal_counts_per_s: Finite = 0.0
    chamber_noise_counts: NotNegative = 0.5
    """rms per frame"""
    strip_noise_counts: NotNegative = 2.0
    charge_left_fraction: Fraction = 0.02
    """Spread of the particles in a filling."""
    modbus_latency_us: Positive = 500.0
    serial_latency_us: Positive = 3000.0
    datagram_latency_us: Positive = 40.0
    breathing_period_s: Positive = 4.0
    gate_duty: Fraction = 0.5
