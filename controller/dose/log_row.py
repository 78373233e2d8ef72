"""One row of the log each 200 us, from what the frames since the last one showed. Compiled."""

from __future__ import annotations

import numpy as np

from controller.dose.strips import centroid_mm, width_mm
from drivers.compiled import compiled_inline

NO_VALUE = -2147483648


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
