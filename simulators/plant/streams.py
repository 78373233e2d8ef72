"""Frames: what the monitors and the scan controller would send at the end of a frame."""

from __future__ import annotations

import numpy as np

from drivers.compiled import compiled
from drivers.wires.frames import (
    FLAG_ARMED,
    FLAG_BEAM,
    FLAG_CHAIN,
    FLAG_GATE_OPEN,
    FLAG_HOLD,
    FLAG_HV_OK,
    FLAG_LAYER_DONE,
    FLAG_MOVING,
    FLAG_REQUEST,
    FLAG_SATURATED,
    FLAG_SPILL,
    FLAG_TRIPPED,
    STREAM_ELECTROMETER_1,
    STREAM_ELECTROMETER_2,
    STREAM_SCAN,
    STRIPS,
    write_header,
)
from simulators.plant.magnets import field_x_tm, field_y_tm
from simulators.plant.noise import GAUSS_SIZE, hash_of, unit_noise
from simulators.plant.state import (
    CDF_HALF_WIDTH,
    CDF_STEPS,
    ENG_ARMED,
    ENG_DONE,
    ENG_HELD,
    ENG_RUNNING,
    ENG_TRIPPED,
    ION_UNIT,
)

PAYLOAD = 16
"""First 32-bit word of a frame's payload."""
BEAM_COUNTS = 3
"""Counts of a frame above pedestal from which an electrometer says that it sees beam."""


@compiled
def spread(plant, words, first, centre_mm, sigma_mm, pitch_mm, charge):
    """Add a Gaussian of `charge` units to the 128 strips from words[first] on, by its cumulative over strip edges."""
    scale = CDF_STEPS / (2.0 * CDF_HALF_WIDTH)
    low = int((centre_mm - CDF_HALF_WIDTH * sigma_mm) / pitch_mm + STRIPS // 2)
    high = int((centre_mm + CDF_HALF_WIDTH * sigma_mm) / pitch_mm + STRIPS // 2) + 1
    low = min(max(low, 0), STRIPS - 1)
    high = min(max(high, 0), STRIPS - 1)
    before = -1
    for strip in range(low, high + 2):
        edge = (float(strip - STRIPS // 2) * pitch_mm - centre_mm) / sigma_mm
        at = int((edge + CDF_HALF_WIDTH) * scale + 0.5)
        value = int(plant.cumulative[min(max(at, 0), CDF_STEPS)])
        if before >= 0 and strip <= STRIPS:
            words[first + strip - 1] += np.int32((charge * (value - before)) >> 15)
        before = value


@compiled
def strip_noise(plant, words):
    """Pedestal and noise on all 256 strips: the sum of two slices of the table at hashed places."""
    p = plant.parameters
    s = plant.state
    pedestal = np.int32(p.strip_pedestal)
    if p.strip_noise == 0:
        for i in range(2 * STRIPS):
            words[PAYLOAD + i] = pedestal
        return
    bits = hash_of(p.seed, s.frame, 31)
    a = plant.gauss[int(bits & np.uint64(GAUSS_SIZE - 512)) :]
    b = plant.gauss[int((bits >> np.uint64(20)) & np.uint64(GAUSS_SIZE - 512)) :]
    target = words[PAYLOAD : PAYLOAD + 2 * STRIPS]
    for i in range(2 * STRIPS):
        target[i] = pedestal + ((np.int32(a[i]) + np.int32(b[i])) >> np.int32(12))


@compiled
def bad_strips(p, words):
    """A dead strip's wire is broken: it shows nothing, not even a pedestal. A hot one leaks."""
    if p.hot_strip >= 0:
        words[PAYLOAD + p.hot_strip] += np.int32(p.hot_units)
    if p.dead_strip >= 0:
        for k in range(p.dead_strips):
            at = p.dead_strip + k * p.dead_step
            if at < 2 * STRIPS:
                words[PAYLOAD + at] = 0


@compiled
def electrometer_flags(beam_counts, hv_v, hv_min_v, saturated):
    """Flags of an electrometer's frame."""
    flags = FLAG_BEAM if beam_counts >= BEAM_COUNTS else 0
    if hv_v >= hv_min_v:
        flags |= FLAG_HV_OK
    if saturated == 1:
        flags |= FLAG_SATURATED
    return flags


@compiled
def make_frame_1(plant, buffer, counts, beam_counts):
    """Electrometer 1's frame, without CRC."""
    p = plant.parameters
    s = plant.state
    tune = plant.tune[0]
    strip_noise(plant, buffer.i32)
    for k in range(2):
        units = plant.segments[k, 0]
        if units > 0.0:
            # where so many ions happen to be, on average
            scatter = p.sigma_scale / max(1.0, units / ION_UNIT) ** 0.5
            x_mm = plant.segments[k, 1] / units + tune.sigma_x_mm * scatter * unit_noise(plant, s.frame, 43 + 2 * k)
            y_mm = plant.segments[k, 2] / units + tune.sigma_y_mm * scatter * unit_noise(plant, s.frame, 44 + 2 * k)
            x_mm *= tune.strip_scale_x
            y_mm *= tune.strip_scale_y
            charge = int(units / ION_UNIT * tune.counts_1 * float(p.strip_units_per_count))
            spread(
                plant,
                buffer.i32,
                PAYLOAD,
                x_mm,
                tune.sigma_x_mm * p.sigma_scale * tune.strip_scale_x,
                p.pitch_x_mm,
                charge,
            )
            spread(
                plant,
                buffer.i32,
                PAYLOAD + STRIPS,
                y_mm,
                tune.sigma_y_mm * p.sigma_scale * tune.strip_scale_y,
                p.pitch_y_mm,
                charge,
            )
    bad_strips(p, buffer.i32)
    flags = electrometer_flags(beam_counts, p.hv_1_v, p.hv_min_1_v, s.saturated_1)
    write_header(
        buffer,
        STREAM_ELECTROMETER_1,
        s.nonce_1,
        s.sequence_f1,
        s.t_ns + p.clock_1_ns,
        s.eng_visit,
        flags,
        counts,
        s.change_counts_1,
        s.change_ns + p.clock_1_ns,
    )
    s.sequence_f1 += 1


@compiled
def make_frame_2(plant, buffer, counts, beam_counts):
    """Electrometer 2's frame, without CRC."""
    p = plant.parameters
    s = plant.state
    flags = electrometer_flags(beam_counts, p.hv_2_v, p.hv_min_2_v, s.saturated_2)
    if s.backup_trip != 0:
        flags |= FLAG_TRIPPED
    write_header(
        buffer,
        STREAM_ELECTROMETER_2,
        s.nonce_2,
        s.sequence_f2,
        s.t_ns + p.clock_2_ns,
        s.eng_visit,
        flags,
        counts,
        s.change_counts_2,
        s.change_ns + p.clock_2_ns,
    )
    s.sequence_f2 += 1


@compiled
def make_frame_3(plant, buffer):
    """The scan controller's frame, without CRC."""
    p = plant.parameters
    s = plant.state
    words = buffer.i32
    words[PAYLOAD + 0] = int(round(s.set_x_ma))
    words[PAYLOAD + 1] = int(round(s.set_y_ma))
    words[PAYLOAD + 2] = int(round(s.current_x_ma))
    words[PAYLOAD + 3] = int(round(s.current_y_ma))
    words[PAYLOAD + 4] = int(round(s.current_x_ma * 1.0002))
    words[PAYLOAD + 5] = int(round(s.current_y_ma * 0.9998))
    # supply voltage: resistance 0.05 ohm, and the inductive part while it slews (5 mH seen in the remaining step)
    words[PAYLOAD + 6] = int(round(s.current_x_ma * 0.05 + (s.set_x_ma - s.current_x_ma) * 0.5))
    words[PAYLOAD + 7] = int(round(s.current_y_ma * 0.05 + (s.set_y_ma - s.current_y_ma) * 0.5))
    words[PAYLOAD + 8] = int(round(field_x_tm(plant) * 1e6))
    words[PAYLOAD + 9] = int(round(field_y_tm(plant) * 1e6))
    words[PAYLOAD + 10] = s.eng_state
    words[PAYLOAD + 11] = s.eng_trip
    words[PAYLOAD + 12] = s.eng_visit_beam_ns // 1000
    words[PAYLOAD + 13] = s.results & 0x7FFFFFFF
    words[PAYLOAD + 14] = 0
    words[PAYLOAD + 15] = 0
    held = s.eng_state == ENG_RUNNING and (s.eng_hold == 1 or (s.eng_gated == 1 and s.gate_open == 0))
    flags = 0
    if s.request == 1:
        flags |= FLAG_REQUEST
    if s.spill_on == 1:
        flags |= FLAG_SPILL
    if held or s.eng_state == ENG_HELD:
        flags |= FLAG_HOLD
    if s.eng_state == ENG_ARMED or s.eng_state == ENG_RUNNING:
        flags |= FLAG_ARMED
    if s.closed == 1:
        flags |= FLAG_CHAIN
    if s.eng_state == ENG_DONE:
        flags |= FLAG_LAYER_DONE
    if s.eng_state == ENG_TRIPPED:
        flags |= FLAG_TRIPPED
    if s.gate_open == 1:
        flags |= FLAG_GATE_OPEN
    if s.arrived_ns < 0:
        flags |= FLAG_MOVING
    write_header(
        buffer,
        STREAM_SCAN,
        s.nonce_3,
        s.sequence_f3,
        s.t_ns + p.clock_3_ns,
        s.eng_visit,
        flags,
        s.eng_counted >> 24,
        s.change_counts_1,
        s.change_ns + p.clock_3_ns,
    )
    s.sequence_f3 += 1
