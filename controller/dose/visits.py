"""Visits: begun and ended where the trigger says, their charge booked where it belongs, handed over judged.

Compiled. What is still drifting in the chamber when the beam moves on (rate x lag) belongs to the visit that ends,
though it is counted in the next one.
"""

from __future__ import annotations

from math import sqrt

import numpy as np

from controller.dose.strips import centroid_mm, close_plane, width_mm
from controller.record.schema import QUALITY_FRAMES_LOST, QUALITY_NO_POSITION, QUALITY_SATURATED
from drivers.compiled import compiled
from drivers.wires.frames import FRAME_NS, STRIPS
from interlocks.realtime import begin_part, judge_part, judge_visit, visit_pedestal


@compiled
def close_strips(m, row, plan):
    """The sums of both planes over the visit, with bad strips looked for and filled."""
    v = m.running
    limits = m.limits
    v.s0_x, v.s1_x, v.s2_x, v.bias_x_mm, quality = close_plane(
        m, 0, plan.x_strip_mm, plan.sigma_x_strip_mm, limits.pitch_x_mm, plan.fill_x
    )
    row.quality |= quality
    v.s0_y, v.s1_y, v.s2_y, v.bias_y_mm, quality = close_plane(
        m, STRIPS, plan.y_strip_mm, plan.sigma_y_strip_mm, limits.pitch_y_mm, plan.fill_y
    )
    row.quality |= quality


@compiled
def end_visit(m, t_ns, counts, beam_goes_on, now_ns):
    """Close the running visit at a change that the frame of electrometer 1 shows."""
    s = m.state
    v = m.running
    limits = m.limits
    plan = m.plan[v.visit]
    if v.part_frames < v.strip_frames:  # else the visit is its only part, and judged as a whole
        judge_part(m, True, t_ns, now_ns)
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
    span_ns = t_ns - v.t_start_ns
    pedestal_1 = float(s.quiet_counts_1) / float(s.quiet_ns_1) if s.quiet_ns_1 > 0 else 0.0
    pedestal_2 = float(s.quiet_counts_2) / float(s.quiet_ns_2) if s.quiet_ns_2 > 0 else 0.0
    row.late_1 = late_1 - v.late_1
    row.pedestal_1 = visit_pedestal(pedestal_1, span_ns, v.quiet_counts_1, v.quiet_ns_1)
    row.pedestal_2 = visit_pedestal(pedestal_2, span_ns, v.quiet_counts_2, v.quiet_ns_2)
    row.delta_1 = float(counts - v.counts_1) - row.pedestal_1 + row.late_1
    row.late_2 = late_2 - v.late_2
    row.counts_2 = -1
    row.delta_2 = np.nan
    row.quality = 0
    if v.saturated == 1:
        row.quality |= QUALITY_SATURATED
    if v.lost > 0:
        row.quality |= QUALITY_FRAMES_LOST
    close_strips(m, row, plan)
    row.strip_counts = v.strip_counts
    row.strips_x = v.s0_x
    row.strips_y = v.s0_y
    minimum = max(1.0, limits.minimum_counts * float(m.limits.strip_units_per_count))
    row.x_mm = np.nan
    row.y_mm = np.nan
    row.sigma_x_mm = np.nan
    row.sigma_y_mm = np.nan
    row.strip_bias_mm = np.nan
    if v.s0_x >= minimum and v.s0_y >= minimum:
        row.x_mm = centroid_mm(v.s0_x, v.s1_x, limits.pitch_x_mm) / limits.strip_scale_x
        row.y_mm = centroid_mm(v.s0_y, v.s1_y, limits.pitch_y_mm) / limits.strip_scale_y
        row.sigma_x_mm = width_mm(v.s0_x, v.s1_x, v.s2_x, limits.pitch_x_mm) / limits.strip_scale_x
        row.sigma_y_mm = width_mm(v.s0_y, v.s1_y, v.s2_y, limits.pitch_y_mm) / limits.strip_scale_y
        bias_x = v.bias_x_mm / limits.strip_scale_x
        bias_y = v.bias_y_mm / limits.strip_scale_y
        row.strip_bias_mm = sqrt(bias_x * bias_x + bias_y * bias_y)
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
        row.counts_2 = counts_2
        row.delta_2 = float(counts_2 - v.counts_2) - row.pedestal_2 + row.late_2
        if plan.per_particle_2 > 0.0:
            s.particles_2 += row.delta_2 / plan.per_particle_2
    else:
        row.pedestal_2 = 0.0
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
    m.state.begun = max(m.state.begun, visit)
    v.t_start_ns = t_ns
    v.counts_1 = counts
    m.strip_sums[:] = 0
    v.strip_frames = 0
    v.strip_counts = 0
    begin_part(m)
    v.quiet_ns_1 = v.quiet_counts_1 = 0
    v.quiet_ns_2 = v.quiet_counts_2 = 0
    v.lost = 0
    v.saturated = 0
