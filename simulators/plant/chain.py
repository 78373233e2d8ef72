"""The safety chain: a watchdog on permits, and a PLC's inputs. Opens on silence, latches; only arming clears it.

Closed implies armed: arming leaves the chain open, only an armed chain closes, and opening disarms it.
"""

from __future__ import annotations

import numpy as np

from drivers.compiled import compiled, compiled_inline
from drivers.wires.permits import KIND_DROP, KIND_PERMIT, SOURCE_CONTROLLER, SOURCE_GUARD, permit_is_authentic
from simulators.plant.state import (
    CAUSE_ALLOCATION,
    CAUSE_DOOR,
    CAUSE_DROP,
    CAUSE_ELECTROMETER_2,
    CAUSE_EMERGENCY,
    CAUSE_ENGINE,
    CAUSE_GUARD_DROP,
    CAUSE_GUARD_SILENCE,
    CAUSE_NONE,
    CAUSE_OPERATOR,
    CAUSE_SEARCH,
    CAUSE_SILENCE,
    ENG_TRIPPED,
)


@compiled
def open_chain(plant, cause, t_ns):
    """Open, remember why first, disarm."""
    s = plant.state
    if s.cause == CAUSE_NONE:
        s.cause = cause
        s.open_ns = t_ns
    s.closed = 0
    s.armed = 0


@compiled
def receive_permit(plant, buffer, length, t_ns):
    """One datagram arrived at the watchdog."""
    p = plant.parameters
    s = plant.state
    key = np.array([p.key_0, p.key_1])
    if not permit_is_authentic(buffer, length, key) or buffer.u64[1] != s.session:
        s.rejected += 1
        return
    kind = buffer.u8[5]
    source = buffer.u8[6]
    if kind == KIND_DROP:
        if s.armed == 1 and p.drop_ignored == 0:
            open_chain(plant, CAUSE_GUARD_DROP if source == SOURCE_GUARD else CAUSE_DROP, t_ns)
        s.permits += 1
        return
    sequence = buffer.u64[3]
    last = s.sequence_1 if source == SOURCE_CONTROLLER else s.sequence_2
    known = source == SOURCE_CONTROLLER or source == SOURCE_GUARD
    if kind != KIND_PERMIT or not known or s.armed == 0 or buffer.u64[2] != s.token or sequence <= last:
        s.rejected += 1
        return
    s.permits += 1
    if source == SOURCE_CONTROLLER:
        s.sequence_1 = sequence
        s.permit_1_ns = t_ns
    else:
        s.sequence_2 = sequence
        s.permit_2_ns = t_ns


@compiled_inline
def _fresh(last_ns, t_ns, time_out_ns):
    return last_ns >= 0 and t_ns - last_ns <= time_out_ns


@compiled
def advance_chain(plant, t_ns):
    """Judge the chain at the start of a frame."""
    p = plant.parameters
    s = plant.state
    if s.armed == 0:
        return
    if s.emergency_stop == 1:
        open_chain(plant, CAUSE_EMERGENCY, t_ns)
    elif s.door_closed == 0:
        open_chain(plant, CAUSE_DOOR, t_ns)
    elif s.room_searched == 0:
        open_chain(plant, CAUSE_SEARCH, t_ns)
    elif s.room_allocated == 0:
        open_chain(plant, CAUSE_ALLOCATION, t_ns)
    elif s.abort_button == 1:
        open_chain(plant, CAUSE_OPERATOR, t_ns)
    elif s.backup_trip != 0:
        open_chain(plant, CAUSE_ELECTROMETER_2, t_ns)
    elif s.eng_state == ENG_TRIPPED:
        open_chain(plant, CAUSE_ENGINE, t_ns)
    else:
        controller = p.controller_required == 0 or _fresh(s.permit_1_ns, t_ns, s.time_out_ns)
        guard = p.guard_required == 0 or _fresh(s.permit_2_ns, t_ns, s.time_out_ns)
        if s.closed == 1 and not controller:
            open_chain(plant, CAUSE_SILENCE, t_ns)
        elif s.closed == 1 and not guard:
            open_chain(plant, CAUSE_GUARD_SILENCE, t_ns)
        elif controller and guard:
            s.closed = 1
