"""The dose integrator: frames in, charge, position and width per visit out, every frame judged.

Compiled, free of the interpreter lock, called with one frame at a time: by the real-time thread with what the
socket gave, by the virtual world with what the plant made. Counts and strip sums are integers, so they do not depend
on order or batch; what is computed from them is strict float64.

Charge is booked where it belongs: what is still drifting in the chamber when the beam moves on (rate x lag) belongs to
the visit that ends, though it is counted in the next one. The pedestal is measured in frames without beam.
"""

from __future__ import annotations

from math import sqrt

import numpy as np

from controller.record.schema import QUALITY_FRAMES_LOST, QUALITY_NO_POSITION, QUALITY_SATURATED
from drivers.compiled import compiled, compiled_inline
from drivers.wires.frames import (
    FLAG_BEAM,
    FLAG_REQUEST,
    FLAG_SATURATED,
    FRAME_CORRUPT,
    FRAME_FOREIGN,
    FRAME_OK,
    STREAM_ELECTROMETER_1,
    STREAM_ELECTROMETER_2,
    STREAM_SCAN,
    STRIPS,
    frame_at,
    inspect,
)
from interlocks.numbers import DEVICE_RESTARTED, FRAME_LOSS_1
from interlocks.realtime import (
    judge_frame_1,
    judge_frame_2,
    judge_frame_3,
    judge_liveness,
    judge_pedestal,
    judge_sequence,
    judge_visit,
    latch,
    leases_hold,
)

PAYLOAD = 16
FRAME_NS = 100_000
ROW_NS = 200_000
NO_VALUE = -2147483648
OFFSET_CREEP_NS = 10
"""The clock offset may rise by this much a frame (100 ppm of a 100-us period): device clocks drift."""
QUIET_NS = 10_000_000
"""Frames this long after the last request, and without beam, make the pedestal."""
QUIET_KEPT_NS = 4_000_000_000
"""The pedestal is that of the last two to four quiet seconds: it drifts, and a leak that begins late must show."""
WINDOW_SIGMA = 6.0
ACTION_NONE = 0
ACTION_PERMIT = 1
ACTION_DROP = 2


@compiled
def start_field(m):
    """Forget the sums of the field before."""
    s = m.state
    if m.running.ended == 1:
        # its limits are gone: handed over without the counts of electrometer 2, not judged
        m.measured[s.measured % m.measured.shape[0]].quality |= QUALITY_FRAMES_LOST
        s.measured += 1
        m.running.ended = 0
    s.field_start_1 = s.counts_1 if s.frames_seen_1 == 1 else -1
    s.field_start_2 = s.counts_2 if s.frames_seen_2 == 1 else -1
    s.field_start_1_ns = m.streams[1].t_ns
    s.field_start_2_ns = m.streams[2].t_ns
    s.particles_1 = 0.0
    s.particles_2 = 0.0
    s.visits = 0
    s.mean_count = 0
    m.running.visit = 0
    s.clear_seen = m.control.clear


@compiled
def clear_latch(m):
    """Asyncio has reset the trip; what is still wrong latches again with the next frame."""
    s = m.state
    s.trip = 0
    s.trip_value = 0.0
    s.trip_limit = 0.0
    s.over_rate = 0
    s.off_window = 0
    s.visit_apart = 0
    s.beam_seen_ns = -1
    for stream in range(1, 4):
        m.streams[stream].window_lost = 0
    s.reset_seen = m.control.reset


@compiled_inline
def accept(m, stream, nonce, sequence, t_ns, now_ns):
    """Sequence, clock and loss accounting of one intact frame; False for one that must not be integrated (again)."""
    r = m.streams[stream]
    if r.seen == 0 or nonce != r.nonce:
        if r.seen == 1:
            latch(m, DEVICE_RESTARTED, float(stream), 0.0, t_ns, now_ns)
        r.seen = 1
        r.nonce = nonce
        r.sequence = sequence - 1
        r.t_ns = t_ns - 1
        r.offset_ns = now_ns - t_ns
        r.window_start = sequence
        r.window_lost = 0
    if sequence <= r.sequence or t_ns <= r.t_ns:
        r.repeated += 1
        return False
    lost = sequence - r.sequence - 1
    if sequence - r.window_start >= 10_000:
        r.window_start = sequence
        r.window_lost = 0
    if lost > 0:
        r.lost += lost
        r.window_lost += lost
        m.running.lost += lost
        if lost >= m.limits.lost_in_a_row:
            latch(m, FRAME_LOSS_1 + stream - 1, float(lost), float(m.limits.lost_in_a_row), t_ns, now_ns)
        elif r.window_lost > m.limits.lost_per_second:
            latch(m, FRAME_LOSS_1 + stream - 1, float(r.window_lost), float(m.limits.lost_per_second), t_ns, now_ns)
    r.sequence = sequence
    r.t_ns = t_ns
    r.arrival_ns = now_ns
    r.offset_ns = min(r.offset_ns + OFFSET_CREEP_NS, now_ns - t_ns)
    r.frames += 1
    if now_ns - t_ns - r.offset_ns > m.limits.frame_age_ns:
        r.late += 1
    return True


@compiled
def plane_sums(strips, pedestals, first, expected_mm, sigma_mm, pitch_mm):
    """Charge, first and second moment of one plane inside the window around the expected place; strip index - 64."""
    centre = expected_mm / pitch_mm + STRIPS // 2
    half = max(4.0, WINDOW_SIGMA * sigma_mm / pitch_mm)
    low = min(max(int(centre - half), 0), STRIPS - 1)
    high = min(max(int(centre + half), 0), STRIPS - 1)
    charge = strips[PAYLOAD + first + low : PAYLOAD + first + high + 1]
    base = pedestals[first + low : first + high + 1]
    s0 = 0
    s1 = 0
    s2 = 0
    for i in range(charge.shape[0]):  # over slices: computed indices would be asked for their sign at each strip
        q = np.int64(charge[i]) - ((base[i] + 128) >> 8)
        j = i + low - STRIPS // 2
        s0 += q
        s1 += q * j
        s2 += q * j * j
    return s0, s1, s2


@compiled_inline
def centroid_mm(s0, s1, pitch_mm):
    """Centre of charge; strip i covers (i - 64) to (i - 63) pitches."""
    return (float(s1) / float(s0) + 0.5) * pitch_mm


@compiled_inline
def width_mm(s0, s1, s2, pitch_mm):
    """Standard deviation, less the strips' own width (pitch^2 / 12); NaN if not positive."""
    mean = float(s1) / float(s0)
    variance = float(s2) / float(s0) - mean * mean - 1.0 / 12.0
    return sqrt(variance) * pitch_mm if variance > 0.0 else np.nan


@compiled
def end_visit(m, t_ns, counts, beam_goes_on, now_ns):
    """Close the running visit at a change that the frame of electrometer 1 shows."""
    s = m.state
    v = m.running
    limits = m.limits
    plan = m.plan[v.visit]
    row = m.measured[s.measured % m.measured.shape[0]]
    row.visit = v.visit
    row.t_start_ns = v.t_start_ns
    row.t_end_ns = t_ns
    row.start_1 = v.counts_1
    row.start_2 = v.counts_2
    row.counts_1 = counts
    rate_1 = float(s.delta_0 + s.delta_1 + s.delta_2) / (3.0 * FRAME_NS)
    rate_2 = float(s.delta2_0 + s.delta2_1 + s.delta2_2) / (3.0 * FRAME_NS)
    late_1 = rate_1 * limits.lag_1_ns if beam_goes_on else 0.0
    late_2 = rate_2 * limits.lag_2_ns if beam_goes_on else 0.0
    span_ns = float(t_ns - v.t_start_ns)
    pedestal_1 = float(s.quiet_counts_1) / float(s.quiet_ns_1) if s.quiet_ns_1 > 0 else 0.0
    row.late_1 = late_1 - v.late_1
    row.pedestal_1 = pedestal_1 * span_ns
    row.pedestal_2 = 0.0
    row.delta_1 = float(counts - v.counts_1) - row.pedestal_1 + row.late_1
    row.late_2 = late_2 - v.late_2
    row.counts_2 = -1
    row.delta_2 = np.nan
    row.quality = 0
    if v.saturated == 1:
        row.quality |= QUALITY_SATURATED
    if v.lost > 0:
        row.quality |= QUALITY_FRAMES_LOST
    row.strip_counts = v.strip_counts
    row.strips_x = v.s0_x
    row.strips_y = v.s0_y
    minimum = max(1.0, limits.minimum_counts * float(m.limits.strip_units_per_count))
    row.x_mm = np.nan
    row.y_mm = np.nan
    row.sigma_x_mm = np.nan
    row.sigma_y_mm = np.nan
    if v.s0_x >= minimum and v.s0_y >= minimum:
        row.x_mm = centroid_mm(v.s0_x, v.s1_x, limits.pitch_x_mm) / limits.strip_scale_x
        row.y_mm = centroid_mm(v.s0_y, v.s1_y, limits.pitch_y_mm) / limits.strip_scale_y
        row.sigma_x_mm = width_mm(v.s0_x, v.s1_x, v.s2_x, limits.pitch_x_mm) / limits.strip_scale_x
        row.sigma_y_mm = width_mm(v.s0_y, v.s1_y, v.s2_y, limits.pitch_y_mm) / limits.strip_scale_y
    else:
        row.quality |= QUALITY_NO_POSITION
    if plan.per_particle_1 > 0.0:  # else never planned: VISIT_SEQUENCE
        s.particles_1 += row.delta_1 / plan.per_particle_1
    v.late_1 = late_1
    v.late_2 = late_2
    v.ended = 1


@compiled
def publish_visit(m, counts_2, now_ns):
    """Electrometer 2 has shown the change too (or never will: counts_2 < 0): judge the row and hand it over."""
    s = m.state
    v = m.running
    row = m.measured[s.measured % m.measured.shape[0]]
    plan = m.plan[row.visit]
    if counts_2 >= 0 and v.counts_2 >= 0:
        pedestal_2 = float(s.quiet_counts_2) / float(s.quiet_ns_2) if s.quiet_ns_2 > 0 else 0.0
        row.counts_2 = counts_2
        row.pedestal_2 = pedestal_2 * float(row.t_end_ns - row.t_start_ns)
        row.delta_2 = float(counts_2 - v.counts_2) - row.pedestal_2 + row.late_2
        if plan.per_particle_2 > 0.0:
            s.particles_2 += row.delta_2 / plan.per_particle_2
    else:
        row.quality |= QUALITY_FRAMES_LOST
    judge_visit(m, row, row.t_end_ns, now_ns)
    v.ended = 0
    v.counts_2 = counts_2
    s.visits += 1
    s.measured += 1


@compiled
def begin_visit(m, visit, t_ns, counts):
    """The trigger shows a new visit (0: none)."""
    v = m.running
    v.visit = visit
    v.t_start_ns = t_ns
    v.counts_1 = counts
    v.s0_x = v.s1_x = v.s2_x = 0
    v.s0_y = v.s1_y = v.s2_y = 0
    v.strip_frames = 0
    v.strip_counts = 0
    v.lost = 0
    v.saturated = 0


@compiled
def learn_pedestals(m, words):
    """Strip pedestals from a frame without beam: running mean over about 64 frames."""
    for i in range(2 * STRIPS):
        m.pedestals[i] += ((np.int64(words[PAYLOAD + i]) << 8) - m.pedestals[i]) >> 6


@compiled_inline
def integrate_1(m, buffer, now_ns):
    """A frame of electrometer 1."""
    s = m.state
    v = m.running
    limits = m.limits
    t_ns = buffer.i64[3]
    visit = np.int64(buffer.u32[8])
    s.flags_1 = np.int64(buffer.u32[9])
    counts = buffer.i64[5]
    first = s.frames_seen_1 == 0
    s.frames_seen_1 = 1
    delta = 0 if first else counts - s.counts_1
    s.counts_1 = counts
    if s.field_start_1 < 0:
        s.field_start_1 = counts
        s.field_start_1_ns = t_ns
    s.delta_0 = s.delta_1
    s.delta_1 = s.delta_2
    s.delta_2 = delta
    beam = s.flags_1 & FLAG_BEAM != 0
    requested = s.flags_3 & FLAG_REQUEST != 0
    quiet = not beam and not requested and t_ns - s.request_off_ns > QUIET_NS
    if quiet and not first:
        s.quiet_ns_1 += FRAME_NS
        s.quiet_counts_1 += delta
        if s.quiet_ns_1 >= QUIET_KEPT_NS:
            s.quiet_ns_1 >>= 1
            s.quiet_counts_1 >>= 1
        judge_pedestal(m, s.quiet_counts_1, s.quiet_ns_1, t_ns, now_ns)
        if m.streams[1].sequence % 8 == 0:
            learn_pedestals(m, buffer.i32)
    if visit != v.visit:
        judge_sequence(m, visit, t_ns, now_ns)
        if v.ended == 1:
            publish_visit(m, -1, now_ns)  # electrometer 2 never showed the last change
        if v.visit > 0:
            end_visit(m, buffer.i64[7], buffer.i64[6], visit > 0 and beam and requested, now_ns)
        else:
            v.late_1 = 0.0
            v.late_2 = 0.0
            v.counts_2 = -1
        if visit >= m.plan.shape[0] or visit < 0:
            visit = np.int64(0)
        begin_visit(m, visit, buffer.i64[7], buffer.i64[6])
    elif v.visit > 0 and beam and t_ns - FRAME_NS >= v.t_start_ns + limits.blind_ns:
        plan = m.plan[v.visit]
        s0, s1, s2 = plane_sums(buffer.i32, m.pedestals, 0, plan.x_strip_mm, plan.sigma_x_strip_mm, limits.pitch_x_mm)
        v.s0_x += s0
        v.s1_x += s1
        v.s2_x += s2
        s.row_s0_x += s0
        s.row_s1_x += s1
        s.row_s2_x += s2
        s0, s1, s2 = plane_sums(
            buffer.i32, m.pedestals, STRIPS, plan.y_strip_mm, plan.sigma_y_strip_mm, limits.pitch_y_mm
        )
        v.s0_y += s0
        v.s1_y += s1
        v.s2_y += s2
        s.row_s0_y += s0
        s.row_s1_y += s1
        s.row_s2_y += s2
        v.strip_frames += 1
        v.strip_counts += delta
    if s.flags_1 & FLAG_SATURATED != 0:
        v.saturated = 1
    s.row_flags |= s.flags_1
    s.row_frames_1 += 1
    judge_frame_1(m, delta, counts - buffer.i64[6], t_ns, now_ns)


@compiled_inline
def integrate_2(m, buffer, now_ns):
    """A frame of electrometer 2."""
    s = m.state
    v = m.running
    t_ns = buffer.i64[3]
    s.flags_2 = np.int64(buffer.u32[9])
    counts = buffer.i64[5]
    first = s.frames_seen_2 == 0
    s.frames_seen_2 = 1
    delta = 0 if first else counts - s.counts_2
    s.counts_2 = counts
    if s.field_start_2 < 0:
        s.field_start_2 = counts
        s.field_start_2_ns = t_ns
    s.delta2_0 = s.delta2_1
    s.delta2_1 = s.delta2_2
    s.delta2_2 = delta
    if (
        s.flags_2 & FLAG_BEAM == 0
        and s.flags_3 & FLAG_REQUEST == 0
        and t_ns - s.request_off_ns > QUIET_NS
        and not first
    ):
        s.quiet_ns_2 += FRAME_NS
        s.quiet_counts_2 += delta
        if s.quiet_ns_2 >= QUIET_KEPT_NS:
            s.quiet_ns_2 >>= 1
            s.quiet_counts_2 >>= 1
        judge_pedestal(m, s.quiet_counts_2, s.quiet_ns_2, t_ns, now_ns)
    if buffer.i64[7] == v.t_start_ns and np.int64(buffer.u32[8]) == v.visit:
        # the same change that electrometer 1 has shown
        if v.ended == 1:
            publish_visit(m, buffer.i64[6], now_ns)
        elif v.counts_2 < 0:
            v.counts_2 = buffer.i64[6]
    if s.flags_2 & FLAG_SATURATED != 0:
        v.saturated = 1
    s.row_flags |= s.flags_2
    s.row_frames_2 += 1
    judge_frame_2(m, delta, counts - buffer.i64[6], t_ns, now_ns)


@compiled_inline
def integrate_3(m, buffer, now_ns):
    """A frame of the scan controller; closes a row of the log."""
    s = m.state
    t_ns = buffer.i64[3]
    for i in range(m.scan.shape[0]):
        m.scan[i] = buffer.i32[PAYLOAD + i]
    s.flags_3_before = s.flags_3
    s.flags_3 = np.int64(buffer.u32[9])
    if s.flags_3_before & FLAG_REQUEST != 0 and s.flags_3 & FLAG_REQUEST == 0:
        s.request_off_ns = t_ns
    if s.flags_3 & FLAG_REQUEST != 0:
        s.beam_seen_ns = -1
    s.row_flags |= s.flags_3
    judge_frame_3(m, np.int64(buffer.u32[8]), t_ns, now_ns)
    if m.control.log_on == 1:
        write_row(m, t_ns)
    s.row_flags = 0
    s.row_frames_1 = 0
    s.row_frames_2 = 0
    s.row_permits = 0
    s.row_s0_x = s.row_s1_x = s.row_s2_x = 0
    s.row_s0_y = s.row_s1_y = s.row_s2_y = 0


@compiled_inline
def _um(value_mm):
    return np.int32(NO_VALUE) if value_mm != value_mm else np.int32(round(value_mm * 1000.0))


@compiled_inline
def write_row(m, t_ns):
    """One 200-us row of the log."""
    s = m.state
    limits = m.limits
    row = m.rows[s.rows % m.rows.shape[0]]
    row.t_ns = t_ns
    row.counts_1 = s.counts_1
    row.counts_2 = s.counts_2
    row.visit = m.running.visit
    row.flags = s.row_flags
    row.strip_counts = s.row_s0_x + s.row_s0_y
    x = y = wx = wy = np.nan
    if s.row_s0_x > 64 and s.row_s0_y > 64:
        x = centroid_mm(s.row_s0_x, s.row_s1_x, limits.pitch_x_mm)
        y = centroid_mm(s.row_s0_y, s.row_s1_y, limits.pitch_y_mm)
        wx = width_mm(s.row_s0_x, s.row_s1_x, s.row_s2_x, limits.pitch_x_mm)
        wy = width_mm(s.row_s0_y, s.row_s1_y, s.row_s2_y, limits.pitch_y_mm)
    row.x_strip_um = _um(x)
    row.y_strip_um = _um(y)
    row.sigma_x_strip_um = _um(wx)
    row.sigma_y_strip_um = _um(wy)
    row.x_set_ma = m.scan[0]
    row.y_set_ma = m.scan[1]
    row.x_primary_ma = m.scan[2]
    row.y_primary_ma = m.scan[3]
    row.x_redundant_ma = m.scan[4]
    row.y_redundant_ma = m.scan[5]
    row.x_voltage_mv = m.scan[6]
    row.y_voltage_mv = m.scan[7]
    row.x_field_utm = m.scan[8]
    row.y_field_utm = m.scan[9]
    row.frames_1 = s.row_frames_1
    row.frames_2 = s.row_frames_2
    row.permit = 1 if s.row_permits > 0 else 0
    row.trip = s.trip
    s.rows += 1


@compiled_inline
def obey_control(m):
    """What asyncio asked for since the last turn."""
    if m.control.clear != m.state.clear_seen:
        start_field(m)
    if m.control.reset != m.state.reset_seen:
        clear_latch(m)


@compiled_inline
def is_fresh(m, now_ns):
    """True while the newest frames of all three streams are young enough for a permit: it rests on each of them.

    Asked with a frame of electrometer 1: the newest of the two others is up to a period older without being late.
    """
    oldest = max(
        now_ns - m.streams[1].t_ns - m.streams[1].offset_ns,
        now_ns - m.streams[2].t_ns - m.streams[2].offset_ns - FRAME_NS,
        now_ns - m.streams[3].t_ns - m.streams[3].offset_ns - ROW_NS,
    )
    return oldest <= m.limits.frame_age_ns


@compiled_inline
def decide(m, fresh, now_ns):
    """What to send now: a permit for a fresh frame of electrometer 1 while nothing is wrong, a drop once tripped."""
    s = m.state
    if s.trip != 0:
        return ACTION_DROP if s.drops_for != s.trips else ACTION_NONE
    if fresh and m.control.permit_on == 1 and leases_hold(m, now_ns):
        return ACTION_PERMIT
    return ACTION_NONE


@compiled_inline
def handle_frame(m, buffer, length, now_ns, checked):
    """One datagram: verify (unless `checked`: it never left this process), integrate, judge, decide.

    Returns ACTION_NONE, ACTION_PERMIT or ACTION_DROP; the caller sends.
    """
    return handle_frame_at(m, buffer.u8.ctypes.data, length, now_ns, checked)


@compiled
def handle_frame_at(m, address, length, now_ns, checked):
    """`handle_frame` for the datagram at an address."""
    s = m.state
    buffer = frame_at(address)
    obey_control(m)
    fresh = False
    verdict = FRAME_OK if checked else inspect(buffer, length)
    if verdict == FRAME_OK:
        stream = np.int64(buffer.u8[5])
        t_ns = buffer.i64[3]
        if accept(m, stream, buffer.u64[1], buffer.i64[2], t_ns, now_ns):
            if stream == STREAM_ELECTROMETER_1:
                integrate_1(m, buffer, now_ns)
                fresh = is_fresh(m, now_ns)
            elif stream == STREAM_ELECTROMETER_2:
                integrate_2(m, buffer, now_ns)
            elif stream == STREAM_SCAN:
                integrate_3(m, buffer, now_ns)
    elif verdict == FRAME_FOREIGN:
        s.foreign += 1
    elif verdict == FRAME_CORRUPT:
        s.corrupt += 1
    else:
        s.torn += 1
    judge_liveness(m, now_ns)
    return decide(m, fresh, now_ns)


@compiled
def handle_silence(m, now_ns):
    """No datagram for a while: leases, silence and commands are judged all the same."""
    obey_control(m)
    judge_liveness(m, now_ns)
    return decide(m, False, now_ns)
