"""The dose integrator: frames in, charge, position and width per visit out, every frame judged.

Compiled, free of the interpreter lock, called with one frame at a time: by the real-time thread with what the
socket gave, by the virtual world with what the plant made. This file takes frames; `frame_clock` says which of them
count, `strips` what the strip planes show, `visits` what belongs to which visit, `log_row` what is logged. Counts and
strip sums are integers, so they do not depend on order or batch; what is computed from them is strict float64.

The pedestal is measured in frames without beam.
"""

from __future__ import annotations

import numpy as np

from controller.dose.frame_clock import accept, anchor_clocks, is_fresh
from controller.dose.log_row import write_row
from controller.dose.strips import PAYLOAD, find_hot, known_strips, learn_pedestals, plane_sums
from controller.dose.visits import begin_visit, end_visit, publish_visit
from controller.record.schema import QUALITY_FRAMES_LOST
from drivers.compiled import compiled, compiled_inline
from drivers.wires.frames import (
    FLAG_BEAM,
    FLAG_REQUEST,
    FLAG_SATURATED,
    FRAME_CORRUPT,
    FRAME_FOREIGN,
    FRAME_NS,
    FRAME_OK,
    STREAM_ELECTROMETER_1,
    STREAM_ELECTROMETER_2,
    STREAM_SCAN,
    STRIPS,
    frame_at,
    inspect,
)
from interlocks.numbers import CLOCK_DRIFT
from interlocks.realtime import (
    PART_FRAMES,
    bounded_pedestal,
    judge_frame_1,
    judge_frame_2,
    judge_frame_3,
    judge_idle,
    judge_liveness,
    judge_part,
    judge_pedestal,
    judge_sequence,
    leases_hold,
)

QUIET_NS = 10_000_000
"""Frames this long after the last request, and without beam, make the pedestal."""
IDLE_BLOCK = 10
"""Frames (1 ms)."""
QUIET_KEPT_NS = 4_000_000_000
"""The pedestal is that of the last two to four quiet seconds: it drifts, and a leak that begins late must show."""
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
    m.streams[1].base = bounded_pedestal(m, s.quiet_counts_1, s.quiet_ns_1)
    m.streams[2].base = bounded_pedestal(m, s.quiet_counts_2, s.quiet_ns_2)
    for stream in range(1, 3):
        m.streams[stream].idle_ns = 0
        m.streams[stream].idle_counts = 0
        m.streams[stream].idle_frames = 0
        m.streams[stream].idle_new = 0
    s.begun = 0
    s.particles_1 = 0.0
    s.particles_2 = 0.0
    s.visits = 0
    s.mean_count = 0
    m.running.visit = 0
    known_strips(m)
    anchor_clocks(m)
    s.clear_seen = m.control.clear


@compiled
def clear_latch(m):
    """Asyncio has reset the trip; what is still wrong latches again with the next frame."""
    s = m.state
    if s.trip == CLOCK_DRIFT:
        anchor_clocks(m)
    s.trip = 0
    s.trip_value = 0.0
    s.trip_limit = 0.0
    s.over_rate = 0
    s.off_window = 0
    s.visit_apart = 0
    s.unasked_ns = -1
    for stream in range(1, 4):
        m.streams[stream].window_lost = 0
    s.reset_seen = m.control.reset


@compiled
def integrate_idle(m, stream, idle, delta, t_ns, now_ns):
    """Charge while no beam is asked for. A request shows some frames after its beam: the last block never counts."""
    r = m.streams[stream]
    if not idle:
        r.idle_frames = 0
        r.idle_new = 0
        return
    r.idle_frames += 1
    r.idle_new += delta
    if r.idle_frames % IDLE_BLOCK == 0:
        if r.idle_frames > IDLE_BLOCK:
            r.idle_ns += IDLE_BLOCK * FRAME_NS
            r.idle_counts += r.idle_held
            judge_idle(m, stream, t_ns, now_ns)
        r.idle_held = r.idle_new
        r.idle_new = 0


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
    span_ns = np.int64(0) if first else max(np.int64(0), t_ns - s.frame_1_ns)
    s.frame_1_ns = t_ns
    s.counts_1 = counts
    if s.field_start_1 < 0:
        s.field_start_1 = counts
        s.field_start_1_ns = t_ns
    s.delta_0 = s.delta_1
    s.delta_1 = s.delta_2
    s.delta_2 = delta
    beam = s.flags_1 & FLAG_BEAM != 0
    requested = s.flags_3 & FLAG_REQUEST != 0
    idle = not requested and t_ns - s.request_off_ns > QUIET_NS
    integrate_idle(m, 1, idle and not first, delta, t_ns, now_ns)
    if idle and not beam and not first:
        s.quiet_ns_1 += FRAME_NS
        s.quiet_counts_1 += delta
        v.quiet_ns_1 += FRAME_NS
        v.quiet_counts_1 += delta
        if s.quiet_ns_1 >= QUIET_KEPT_NS:
            s.quiet_ns_1 >>= 1
            s.quiet_counts_1 >>= 1
        judge_pedestal(m, s.quiet_counts_1, s.quiet_ns_1, t_ns, now_ns)
        if m.streams[1].sequence % 8 == 0 and learn_pedestals(m, buffer.i32) > limits.hot_pedestal:
            find_hot(m, t_ns, now_ns)
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
        s0, s1, s2 = plane_sums(m, buffer.i32, 0, plan.x_strip_mm, plan.sigma_x_strip_mm, limits.pitch_x_mm)
        s.row_s0_x += s0
        s.row_s1_x += s1
        s.row_s2_x += s2
        v.part_s0_x += s0
        v.part_s1_x += s1
        s0, s1, s2 = plane_sums(m, buffer.i32, STRIPS, plan.y_strip_mm, plan.sigma_y_strip_mm, limits.pitch_y_mm)
        s.row_s0_y += s0
        s.row_s1_y += s1
        s.row_s2_y += s2
        v.part_s0_y += s0
        v.part_s1_y += s1
        v.strip_frames += 1
        v.strip_counts += delta
        v.part_frames += 1
        v.part_counts += delta
        if v.part_frames >= PART_FRAMES:
            judge_part(m, False, t_ns, now_ns)
    if s.flags_1 & FLAG_SATURATED != 0:
        v.saturated = 1
    s.row_flags |= s.flags_1
    s.row_frames_1 += 1
    judge_frame_1(m, delta, counts - buffer.i64[6], span_ns, t_ns, now_ns)


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
    idle = s.flags_3 & FLAG_REQUEST == 0 and t_ns - s.request_off_ns > QUIET_NS
    integrate_idle(m, 2, idle and not first, delta, t_ns, now_ns)
    if idle and s.flags_2 & FLAG_BEAM == 0 and not first:
        s.quiet_ns_2 += FRAME_NS
        s.quiet_counts_2 += delta
        v.quiet_ns_2 += FRAME_NS
        v.quiet_counts_2 += delta
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
    if s.flags_3 & FLAG_REQUEST != 0 and m.running.visit > 0:
        s.unasked_ns = -1
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
def obey_control(m):
    """What asyncio asked for since the last turn."""
    if m.control.clear != m.state.clear_seen:
        start_field(m)
    if m.control.reset != m.state.reset_seen:
        clear_latch(m)


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
