"""Permits and drops: what leaves the real-time path after a decision."""

from __future__ import annotations

import numpy as np

from controller.dose.integrator import ACTION_DROP
from drivers.compiled import compiled
from drivers.wires.permits import KIND_DROP, KIND_PERMIT, SOURCE_CONTROLLER, write_permit


@compiled
def make_datagram(m, buffer, action, now_ns):
    """Write the permit or the drop that `action` asks for into the buffer, and book it."""
    s = m.state
    c = m.control
    key = np.array([c.key_0, c.key_1])
    age_us = max(0, now_ns - m.streams[1].t_ns - m.streams[1].offset_ns) // 1000
    s.permit_sequence += 1
    kind = KIND_PERMIT
    reason = 0
    if action == ACTION_DROP:
        kind = KIND_DROP
        reason = s.trip
        s.drops += 1
        s.drops_for = s.trips
    else:
        s.permits += 1
        s.row_permits += 1
    write_permit(buffer, kind, SOURCE_CONTROLLER, c.session, c.token, s.permit_sequence, now_ns, age_us, reason, key)
