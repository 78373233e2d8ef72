"""Judgements of the real-time path: small, dull, compiled; no I/O, no allocation, unknown is unsafe.

Every function takes the real-time memory (`controller.dose.memory`, one record) and latches at most one condition.
The first one wins: it stays with its value, its limit and its time until an operator's reset.
"""

from __future__ import annotations

from drivers.compiled import compiled, compiled_inline
from drivers.flags import (
    FLAG_ARMED,
    FLAG_BEAM,
    FLAG_CHAIN,
    FLAG_HV_OK,
    FLAG_MOVING,
    FLAG_REQUEST,
    FLAG_SATURATED,
    FLAG_TRIPPED,
)
from interlocks.numbers import (
    BACKUP_TRIPPED,
    BEAM_WITHOUT_REQUEST,
    CHAIN_OPENED,
    COUNTS_BACKWARDS,
    ENGINE_TRIPPED,
    FIELD_DOSE_PRIMARY,
    FIELD_DOSE_SECONDARY,
    HIGH_VOLTAGE_1,
    HIGH_VOLTAGE_2,
    IDLE_CHARGE,
    LEASE_EXPIRED,
    MAGNET_READBACK,
    MONITORS_DISAGREE,
    PEDESTAL_HIGH,
    POSITION_MEAN,
    RATE_HIGH,
    SATURATED,
    SPOT_DOSE_PRIMARY,
    SPOT_DOSE_SECONDARY,
    SPOT_NOT_SEEN,
    SPOT_POSITION,
    SPOT_TIME,
    SPOT_WIDTH,
    STREAM_SILENT_1,
    STREAM_SILENT_2,
    STREAM_SILENT_3,
    STRIP_BIAS,
    STRIPS_BAD,
    VISIT_SEQUENCE,
)

OFF_WINDOW_FRAMES = 3
"""Scan frames in a row (200 us each) outside the magnet window that trip."""
MOVING_FRAMES = 5
"""The same while the engine says that its magnets move: a move under beam takes 0.5 ms, a stuck supply for ever."""
VISIT_APART_FRAMES = 5
"""Scan frames in a row in which engine and electrometer 1 may show different visits, both being alive."""
FRESH_NS = 300_000
SEEN_SHARE = 0.5
"""Least share of a spot's charge that the strips around its place must show."""


PART_FRAMES = 15
"""Strip frames (1.5 ms) from which the place of a part of a visit is judged: a long visit does not wait for its end."""
PEDESTAL_SPAN_NS = 200_000_000
FRAME_NS = 100_000


@compiled
def latch(m, number, value, limit, t_ns, now_ns):
    """Latch a condition unless one is latched already."""
    s = m.state
    if s.trip != 0:
        return
    s.trip_value = value
    s.trip_limit = limit
    s.trip_t_ns = t_ns
    s.trip_local_ns = now_ns
    s.trip_visit = m.running.visit
    s.trip = number  # last: whoever sees the number from another thread sees what belongs to it
    s.trips += 1


@compiled_inline
def leases_hold(m, now_ns):
    """True while every slow task has renewed its lease; without it no permit leaves."""
    return now_ns <= m.control.lease_ns_0 and now_ns <= m.control.lease_ns_1


@compiled_inline
def judge_liveness(m, now_ns):
    """Commands, leases and silence; called at every turn of the loop, with or without a frame."""
    c = m.control
    if c.drop != 0:
        latch(m, c.drop, 0.0, 0.0, now_ns, now_ns)
    if c.permit_on == 0:
        return
    for index in range(2):
        lease_ns = c.lease_ns_0 if index == 0 else c.lease_ns_1
        if now_ns - lease_ns > m.limits.lease_grace_ns:
            latch(m, LEASE_EXPIRED, (now_ns - lease_ns) * 1e-6, m.limits.lease_grace_ns * 1e-6, now_ns, now_ns)
    for stream in range(1, 4):
        silence_ns = now_ns - m.streams[stream].arrival_ns
        if m.streams[stream].seen == 0 or silence_ns > m.limits.stale_ns:
            number = STREAM_SILENT_1 if stream == 1 else (STREAM_SILENT_2 if stream == 2 else STREAM_SILENT_3)
            latch(m, number, silence_ns * 1e-6, m.limits.stale_ns * 1e-6, now_ns, now_ns)


@compiled_inline
def judge_frame_1(m, delta, since_change, span_ns, t_ns, now_ns):
    """Dose, rate, high voltage and unrequested beam from a frame of electrometer 1 that counted `delta` in a span."""
    s = m.state
    v = m.running
    limits = m.limits
    flags = s.flags_1
    if flags & FLAG_HV_OK == 0:
        latch(m, HIGH_VOLTAGE_1, 0.0, 0.0, t_ns, now_ns)
    if flags & FLAG_SATURATED != 0:
        latch(m, SATURATED, float(delta), 0.0, t_ns, now_ns)
    # beam without request: seen by either monitor, since the request fell, for longer than the proof time in all;
    # a request for no visit is none
    if s.flags_3 & FLAG_REQUEST != 0 and v.visit > 0:
        s.unasked_ns = -1
    elif (flags | s.flags_2) & FLAG_BEAM != 0:
        s.unasked_ns = s.unasked_ns + span_ns if s.unasked_ns >= 0 else 0
        if s.unasked_ns > limits.proof_ns:
            latch(m, BEAM_WITHOUT_REQUEST, s.unasked_ns * 1e-6, limits.proof_ns * 1e-6, t_ns, now_ns)
    elif s.unasked_ns > 0:
        # beam that flickers adds up; what noise shows now and then is forgotten, at an eighth of the pace
        s.unasked_ns = max(0, s.unasked_ns - (span_ns >> 3))
    judge_direction(m, delta, since_change, t_ns, now_ns)
    field = float(s.counts_1 - s.field_start_1) - m.streams[1].base * float(t_ns - s.field_start_1_ns)
    if m.control.permit_on == 1 and field > limits.field_counts_1:
        latch(m, FIELD_DOSE_PRIMARY, field, limits.field_counts_1, t_ns, now_ns)
    if v.visit <= 0:
        return
    plan = m.plan[v.visit]
    rate = bounded_pedestal(m, s.quiet_counts_1, s.quiet_ns_1)
    pedestal = visit_pedestal(rate, t_ns - v.t_start_ns, v.quiet_counts_1, v.quiet_ns_1)
    counts = float(s.counts_1 - v.counts_1) - pedestal
    limit = plan.preset + max(plan.preset * limits.spot_dose, limits.spot_dose_counts) + plan.slack_1
    if counts > limit:
        latch(m, SPOT_DOSE_PRIMARY, counts, limit, t_ns, now_ns)
    # after lost or overtaken frames the counts are of all of them
    frames = max(1, (span_ns + FRAME_NS // 2) // FRAME_NS)
    if delta > plan.rate_limit * frames:
        s.over_rate += 1
        if s.over_rate >= 2:
            latch(m, RATE_HIGH, float(delta) / float(frames), plan.rate_limit, t_ns, now_ns)
    else:
        s.over_rate = 0


@compiled_inline
def judge_direction(m, delta, since_change, t_ns, now_ns):
    """A cumulative count does not run backwards, nor stand behind its last latch, but for noise and a pedestal."""
    least = min(delta, since_change)
    if least < -m.limits.spot_dose_counts:
        latch(m, COUNTS_BACKWARDS, float(least), -m.limits.spot_dose_counts, t_ns, now_ns)


@compiled
def judge_pedestal(m, counts, span_ns, t_ns, now_ns):
    """What a monitor counts without beam; judged from 0.2 s on."""
    if span_ns < PEDESTAL_SPAN_NS:
        return
    per_s = abs(float(counts)) / float(span_ns) * 1e9
    if per_s > m.limits.pedestal_per_s:
        latch(m, PEDESTAL_HIGH, per_s, m.limits.pedestal_per_s, t_ns, now_ns)


@compiled
def judge_idle(m, stream, t_ns, now_ns):
    """What an armed field counts while no beam is asked for, against its own pedestal: a leak below what frames show.

    A pedestal that falls would hide as much, so either sign trips.
    """
    r = m.streams[stream]
    limit = m.limits.idle_counts_1 if stream == 1 else m.limits.idle_counts_2
    excess = float(r.idle_counts) - r.base * float(r.idle_ns)
    if m.control.permit_on == 1 and abs(excess) > limit:
        latch(m, IDLE_CHARGE, excess, limit, t_ns, now_ns)


@compiled
def bounded_pedestal(m, counts, span_ns):
    """Counts per ns, within what PEDESTAL_HIGH lets pass."""
    pedestal = float(counts) / float(span_ns) if span_ns > 0 else 0.0
    bound = m.limits.pedestal_per_s * 1e-9
    return min(max(pedestal, -bound), bound)


@compiled_inline
def visit_pedestal(rate, span_ns, quiet_counts, quiet_ns):
    """Counts of pedestal in a visit: as counted while it waited without beam, by the measured rate (per ns) else.

    By the rate alone the few counts of its last seconds would be stretched over a pause of minutes.
    """
    return float(quiet_counts) + rate * float(span_ns - quiet_ns)


@compiled_inline
def judge_frame_2(m, delta, since_change, t_ns, now_ns):
    """Dose and state from a frame of electrometer 2 that counted `delta`."""
    s = m.state
    v = m.running
    flags = s.flags_2
    if flags & FLAG_HV_OK == 0:
        latch(m, HIGH_VOLTAGE_2, 0.0, 0.0, t_ns, now_ns)
    if flags & FLAG_SATURATED != 0:
        latch(m, SATURATED, 0.0, 0.0, t_ns, now_ns)
    if flags & FLAG_TRIPPED != 0:
        latch(m, BACKUP_TRIPPED, 0.0, 0.0, t_ns, now_ns)
    judge_direction(m, delta, since_change, t_ns, now_ns)
    field = float(s.counts_2 - s.field_start_2) - m.streams[2].base * float(t_ns - s.field_start_2_ns)
    if m.control.permit_on == 1 and field > m.limits.field_counts_2:
        latch(m, FIELD_DOSE_SECONDARY, field, m.limits.field_counts_2, t_ns, now_ns)
    if v.visit > 0 and v.counts_2 >= 0:
        plan = m.plan[v.visit]
        expected = plan.expected_2
        if v.ended == 1:
            # stream 2 has not shown the last change yet: its counts are of both visits
            expected += m.plan[m.measured[s.measured % m.measured.shape[0]].visit].expected_2
        rate = bounded_pedestal(m, s.quiet_counts_2, s.quiet_ns_2)
        pedestal = visit_pedestal(rate, t_ns - v.t_start_ns, v.quiet_counts_2, v.quiet_ns_2)
        counts = float(s.counts_2 - v.counts_2) - pedestal
        limit = expected + max(expected * m.limits.spot_dose, m.limits.secondary_counts) + plan.slack_2
        if counts > limit:
            latch(m, SPOT_DOSE_SECONDARY, counts, limit, t_ns, now_ns)


@compiled_inline
def judge_frame_3(m, visit, t_ns, now_ns):
    """Engine, chain, magnets, visit line and spot time from a frame of the scan controller that shows `visit`."""
    s = m.state
    flags = s.flags_3
    if flags & FLAG_TRIPPED != 0:
        latch(m, ENGINE_TRIPPED, float(m.scan[11]), 0.0, t_ns, now_ns)
    armed = flags & FLAG_ARMED != 0
    if m.control.permit_on == 1 and flags & FLAG_CHAIN == 0 and s.flags_3_before & FLAG_CHAIN != 0:
        latch(m, CHAIN_OPENED, 0.0, 1.0, t_ns, now_ns)
    moving = flags & FLAG_MOVING != 0 or s.flags_3_before & FLAG_MOVING != 0
    off_x = abs(m.scan[2] - m.scan[0])
    off_y = abs(m.scan[3] - m.scan[1])
    spread = max(abs(m.scan[4] - m.scan[2]), abs(m.scan[5] - m.scan[3]))
    off = max(off_x, off_y, spread)
    if armed and flags & FLAG_REQUEST != 0 and off > m.limits.window_ma:
        s.off_window += 1
        if s.off_window >= (MOVING_FRAMES if moving else OFF_WINDOW_FRAMES):
            latch(m, MAGNET_READBACK, float(off) * 1e-3, m.limits.window_ma * 1e-3, t_ns, now_ns)
    else:
        s.off_window = 0
    if visit != m.running.visit and t_ns - m.streams[1].t_ns < FRESH_NS:
        s.visit_apart += 1
        if s.visit_apart >= VISIT_APART_FRAMES:
            latch(m, VISIT_SEQUENCE, float(visit), float(m.running.visit), t_ns, now_ns)
    else:
        s.visit_apart = 0
    if 0 < visit < m.plan.shape[0] and m.scan[12] > m.plan[visit].time_limit_us:
        latch(m, SPOT_TIME, float(m.scan[12]) * 1e-3, m.plan[visit].time_limit_us * 1e-3, t_ns, now_ns)


@compiled
def judge_sequence(m, visit, t_ns, now_ns):
    """Only the visits of the armed layer, each once, in order; one may be passed over for each frame lost."""
    c = m.control
    if visit == 0:
        return
    following = max(m.state.begun + 1, c.first_visit)
    if visit < following or visit > c.last_visit or visit > following + m.running.lost:
        latch(m, VISIT_SEQUENCE, float(visit), float(c.last_visit), t_ns, now_ns)


@compiled
def judge_visit(m, row, t_ns, now_ns):
    """A visit is complete: dose as booked, position, width, running means, agreement of the monitors."""
    s = m.state
    limits = m.limits
    plan = m.plan[row.visit]
    limit = plan.preset + max(plan.preset * limits.spot_dose, limits.spot_dose_counts)
    if row.delta_1 > limit:
        latch(m, SPOT_DOSE_PRIMARY, row.delta_1, limit, t_ns, now_ns)
    limit = plan.expected_2 + max(plan.expected_2 * limits.spot_dose, limits.secondary_counts)
    if row.delta_2 > limit:
        latch(m, SPOT_DOSE_SECONDARY, row.delta_2, limit, t_ns, now_ns)
    # the greater of the two, so that a monitor that stands still is compared as well
    particles = max(s.particles_1, s.particles_2)
    if particles * plan.per_particle_1 > limits.disagreement_counts:
        difference = abs(s.particles_2 - s.particles_1) / particles
        if difference > limits.disagreement:
            latch(m, MONITORS_DISAGREE, difference, limits.disagreement, t_ns, now_ns)
    seen = min(row.strips_x, row.strips_y) / float(limits.strip_units_per_count)
    if row.strip_counts >= 2.0 * limits.minimum_counts and seen < SEEN_SHARE * row.strip_counts:
        latch(m, SPOT_NOT_SEEN, seen, SEEN_SHARE * row.strip_counts, t_ns, now_ns)
    judge_strips(m, t_ns, now_ns)
    if row.x_mm != row.x_mm:
        return
    limit = limits.bias_share * plan.position_limit_mm
    if row.strip_bias_mm > limit:
        latch(m, STRIP_BIAS, row.strip_bias_mm, limit, t_ns, now_ns)
    dx = row.x_mm - plan.x_strip_mm / limits.strip_scale_x
    dy = row.y_mm - plan.y_strip_mm / limits.strip_scale_y
    error = (dx * dx + dy * dy) ** 0.5
    if error > plan.position_limit_mm:
        latch(m, SPOT_POSITION, error, plan.position_limit_mm, t_ns, now_ns)
    judge_width(m, row.sigma_x_mm, plan.sigma_x_strip_mm / limits.strip_scale_x, t_ns, now_ns)
    judge_width(m, row.sigma_y_mm, plan.sigma_y_strip_mm / limits.strip_scale_y, t_ns, now_ns)
    size = m.errors_x_mm.shape[0]
    m.errors_x_mm[s.mean_count % size] = dx
    m.errors_y_mm[s.mean_count % size] = dy
    s.mean_count += 1
    if s.mean_count >= size:
        mean_x = m.errors_x_mm.sum() / size
        mean_y = m.errors_y_mm.sum() / size
        mean = (mean_x * mean_x + mean_y * mean_y) ** 0.5
        if mean > limits.position_mean_mm:
            latch(m, POSITION_MEAN, mean, limits.position_mean_mm, t_ns, now_ns)


@compiled
def begin_part(m):
    """Forget the part of the running visit that has been judged."""
    v = m.running
    v.part_frames = 0
    v.part_counts = 0
    v.part_s0_x = 0
    v.part_s1_x = 0
    v.part_s0_y = 0
    v.part_s1_y = 0


@compiled
def judge_part(m, rest, t_ns, now_ns):
    """Where the beam has been since this was last judged in this visit, once it has brought the charge to tell.

    Bad strips are left out, not filled: where there are any, twice as much is allowed until the visit's end. Of the
    `rest` at a visit's end nothing is called unseen: charge that drifts after the beam is counted, and has no place.
    """
    v = m.running
    limits = m.limits
    plan = m.plan[v.visit]
    if v.part_counts < 2.0 * limits.minimum_counts:
        return
    doubt = 2.0 if m.state.bad_x + m.state.bad_y > 0 else 1.0
    seen = min(v.part_s0_x, v.part_s0_y) / float(limits.strip_units_per_count)
    wanted = SEEN_SHARE / doubt * v.part_counts
    if seen < wanted:
        if not rest:
            latch(m, SPOT_NOT_SEEN, seen, wanted, t_ns, now_ns)
    else:
        x_mm = (float(v.part_s1_x) / float(v.part_s0_x) + 0.5) * limits.pitch_x_mm
        y_mm = (float(v.part_s1_y) / float(v.part_s0_y) + 0.5) * limits.pitch_y_mm
        dx = (x_mm - plan.x_strip_mm) / limits.strip_scale_x
        dy = (y_mm - plan.y_strip_mm) / limits.strip_scale_y
        error = (dx * dx + dy * dy) ** 0.5
        if error > doubt * plan.position_limit_mm:
            latch(m, SPOT_POSITION, error, doubt * plan.position_limit_mm, t_ns, now_ns)
    begin_part(m)


@compiled
def judge_strips(m, t_ns, now_ns):
    """How many strips of a plane are bad."""
    bad = max(m.state.bad_x, m.state.bad_y)
    if bad > m.limits.strips_bad:
        latch(m, STRIPS_BAD, float(bad), float(m.limits.strips_bad), t_ns, now_ns)


@compiled
def judge_width(m, sigma_mm, expected_mm, t_ns, now_ns):
    """One axis' width against the expected one."""
    if expected_mm <= 0.0:
        return  # a visit that was never planned (VISIT_SEQUENCE)
    # all of its charge on one strip: narrower than can be measured, and no width is not a good width
    deviation = abs(sigma_mm / expected_mm - 1.0) if sigma_mm == sigma_mm else 1.0
    if not deviation <= m.limits.width:
        latch(m, SPOT_WIDTH, deviation, m.limits.width, t_ns, now_ns)
