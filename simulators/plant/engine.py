"""The spot engine: steps the magnets through the table, ends each visit on electrometer 1's count.

It counts while beam is requested and for a tail after; a visit ends when that count reaches the sum of all presets so
far, less `early`. With the beam off and no tail left, a rest smaller than half of `early` is forgone: beam
cannot be given in so small a portion, and no other spot may get it (unless the chain is open: then the visit stays
unfinished, for a later part). A request that falls in a visit (a hold, the chain) leaves beam on for the chopper's
delay: as long as the count rises as with beam, visits end as with beam.

In step mode there is no engine: electrometer 1 with its preset output counts and ends a visit by the very same rule,
but the magnets are the PC's to set, a visit's preset comes while the one before runs, and beam waits for the PC's go.
"""

from __future__ import annotations

import numpy as np

from drivers.compiled import compiled
from simulators.plant.state import (
    CMD_ABORT,
    CMD_ARM,
    CMD_HOLD,
    CMD_RESUME,
    CMD_START,
    COUNT_UNIT,
    ENG_ABORTED,
    ENG_ARMED,
    ENG_DONE,
    ENG_RUNNING,
    ENG_TRIPPED,
    RING,
    STEP_NS,
    SUB_DELIVER,
    SUB_MOVE,
    SUB_TAIL,
    TRIP_NONE,
    TRIP_SPOT_TIME,
)

MOVE_WITH_BEAM_OFF = 1
BEAM_OFF_AFTER = 2
RESULT_STOPPED = 1
RESULT_SPLIT = 2
RESULT_FORGONE = 4
STEP_US = STEP_NS // 1000


@compiled
def begin_visit(plant, row, t_ns):
    """Point the magnets at a row's spot and raise the trigger."""
    s = plant.state
    bank = s.eng_bank
    s.eng_row = row
    s.eng_target += int(plant.preset[bank, row]) * COUNT_UNIT
    s.eng_visit = plant.first_visit[bank] + row
    s.eng_visit_start_ns = t_ns
    s.eng_visit_beam_ns = 0
    s.eng_visit_stretches = 1 if s.request == 1 else 0
    s.eng_forgone = 0
    s.eng_visit_counted = s.eng_counted
    if plant.parameters.step == 0:
        s.set_x_ma = float(plant.x_set_ma[bank, row]) + s.eng_offset_x_ma
        s.set_y_ma = float(plant.y_set_ma[bank, row]) + s.eng_offset_y_ma
        s.arrived_ns = -1
    s.eng_changed = 1
    s.backup_counts = s.change_counts_2
    if s.request == 0:
        s.eng_sub = SUB_MOVE


@compiled
def end_visit(plant, t_ns, counted, counts_1, counts_2, stopped):
    """Latch the visit in the three rings."""
    s = plant.state
    at = s.results % RING
    row = plant.results[at]
    row.visit = s.eng_visit
    row.counts = (counted - s.eng_visit_counted) >> 24
    row.t_start_ns = s.eng_visit_start_ns
    row.t_end_ns = t_ns
    row.beam_on_us = s.eng_visit_beam_ns // 1000
    row.x_current_ma = int(round(s.current_x_ma))
    row.y_current_ma = int(round(s.current_y_ma))
    row.flags = (RESULT_STOPPED if stopped else 0) | (RESULT_SPLIT if s.eng_visit_stretches > 1 else 0)
    if s.eng_forgone == 1:
        row.flags |= RESULT_FORGONE
    if s.eng_visit < plant.truth.shape[0]:
        much = int(plant.preset[s.eng_bank, s.eng_row]) * COUNT_UNIT // 30
        short = not stopped and s.eng_sub == SUB_TAIL and s.eng_target - counted > much
        plant.truth[s.eng_visit].short = s.session if short else np.uint64(0)
    plant.latches_1[at].visit = s.eng_visit
    plant.latches_1[at].counts = s.retained_1 + (counts_1 >> 24)
    plant.latches_2[at].visit = s.eng_visit
    plant.latches_2[at].counts = s.retained_2 + (counts_2 >> 24)
    s.results += 1
    s.change_ns = t_ns
    s.change_counts_1 = s.retained_1 + (counts_1 >> 24)
    s.change_counts_2 = s.retained_2 + (counts_2 >> 24)


@compiled
def stop_layer(plant, state, t_ns):
    """Abort or trip: no more request, the layer is over. The running visit is latched after its tail."""
    s = plant.state
    if s.request == 1:
        s.request_off_ns = t_ns
    s.request = 0
    s.eng_state = state


@compiled
def close_stopped_visit(plant, t_ns):
    """What still arrived after a stop belongs to the visit that was stopped: latch it now."""
    s = plant.state
    end_visit(plant, t_ns, s.eng_counted, s.counts_1, s.counts_2, True)
    s.eng_visit = 0
    s.eng_changed = 1


@compiled
def _finish(plant, t_ns, counted, counts_1, counts_2):
    """The running visit is complete: latch it, go on to the next one or end the layer."""
    s = plant.state
    end_visit(plant, t_ns, counted, counts_1, counts_2, False)
    if s.eng_row + 1 < s.eng_rows:
        begin_visit(plant, s.eng_row + 1, t_ns)
        # counts that this step holds beyond the crossing belong to the new visit
        s.eng_visit_counted = counted
    else:
        s.eng_visit = 0
        s.eng_changed = 1
        s.eng_state = ENG_DONE


@compiled
def obey_engine_command(plant, t_ns):
    """Obey what was written to the command register, or refuse it."""
    s = plant.state
    command = s.eng_command
    s.eng_error = 0
    state = s.eng_state
    if command == CMD_ARM and state != ENG_RUNNING and plant.rows[s.eng_command_bank] > 0:
        if s.eng_visit > 0:
            close_stopped_visit(plant, t_ns)
        s.eng_bank = s.eng_command_bank
        s.eng_rows = plant.rows[s.eng_bank]
        s.eng_gated = plant.gated[s.eng_bank]
        s.eng_token = s.eng_command_token
        s.eng_hold = 0
        s.eng_trip = TRIP_NONE
        s.backup_bank = s.eng_bank
        s.eng_offset_x_ma = s.eng_command_x_ma
        s.eng_offset_y_ma = s.eng_command_y_ma
        s.eng_state = ENG_ARMED
        if plant.parameters.step == 0:
            # the magnets go to the first spot at once, so that they are there when beam may start
            s.set_x_ma = float(plant.x_set_ma[s.eng_bank, 0]) + s.eng_offset_x_ma
            s.set_y_ma = float(plant.y_set_ma[s.eng_bank, 0]) + s.eng_offset_y_ma
            s.arrived_ns = -1
    elif command == CMD_START and state == ENG_ARMED and s.eng_token == s.token and s.closed == 1:
        s.eng_state = ENG_RUNNING
        s.eng_target = 0
        s.eng_counted = 0
        s.change_ns = t_ns
        s.change_counts_1 = s.retained_1 + (s.counts_1 >> 24)
        s.change_counts_2 = s.retained_2 + (s.counts_2 >> 24)
        begin_visit(plant, 0, t_ns)
        s.eng_sub = SUB_MOVE
    elif command == CMD_HOLD and state == ENG_RUNNING:
        s.eng_hold = 1 if plant.parameters.hold_ignored == 0 else 0
    elif command == CMD_RESUME and state == ENG_RUNNING:
        s.eng_hold = 0
    elif command == CMD_ABORT:
        if plant.parameters.abort_ignored == 0:
            stop_layer(plant, ENG_ABORTED, t_ns)
    else:
        s.eng_error = 1
    s.eng_commands_done = s.eng_commands


@compiled
def drive_request(plant, t_ns):
    """Raise or drop the beam request at the start of a step."""
    p = plant.parameters
    s = plant.state
    wanted = 0
    if s.eng_state == ENG_RUNNING:
        held = s.eng_hold == 1 or (s.eng_gated == 1 and s.gate_open == 0)
        if s.eng_sub == SUB_MOVE:
            if p.step == 1:
                there = s.step_go == s.eng_visit
            else:
                there = s.arrived_ns >= 0 and t_ns - s.arrived_ns >= p.settle_ns
            if there:
                s.eng_sub = SUB_DELIVER
        if s.eng_sub == SUB_DELIVER and not held and s.spill_on == 1 and s.closed == 1:
            wanted = 1
            if s.request == 0 and ((s.arrived_ns < 0 and p.step == 0) or t_ns - s.request_off_ns < p.tail_ns):
                wanted = 0  # beam starts only with the magnets inside their window and the last tail collected
    elif p.request_stuck == 1 and s.eng_state == ENG_DONE and s.spill_on == 1 and s.closed == 1:
        wanted = 1
    if wanted == 1 and s.request == 0:
        s.eng_visit_stretches += 1
    if wanted == 0 and s.request == 1:
        s.request_off_ns = t_ns
    s.request = wanted


@compiled
def judge_step(plant, t_ns, before, counts_1_before, counts_2_before):
    """Judge whether the visit ended in the step that began at t_ns with the engine's count at `before`.

    Returns the us of the step that still belong to the visit that it began with.
    """
    p = plant.parameters
    s = plant.state
    if s.eng_state != ENG_RUNNING:
        if s.eng_visit > 0 and t_ns + STEP_NS - s.request_off_ns >= p.tail_ns:
            close_stopped_visit(plant, t_ns + STEP_NS)
        return STEP_US
    if s.request == 1:
        s.eng_visit_beam_ns += STEP_NS
        limit_ns = int(plant.time_limit_ms[s.eng_bank, s.eng_row]) * 1_000_000
        if s.eng_visit_beam_ns > limit_ns and p.spot_time_ignored == 0:
            s.eng_trip = TRIP_SPOT_TIME
            stop_layer(plant, ENG_TRIPPED, t_ns + STEP_NS)
            return STEP_US
    if s.eng_changed == 1:
        return STEP_US  # one change a frame
    bank = s.eng_bank
    flags = plant.flags[bank, s.eng_row]
    last = s.eng_row + 1 >= s.eng_rows
    off_after = (
        p.step == 1
        or last
        or (flags & BEAM_OFF_AFTER) != 0
        or (plant.flags[bank, s.eng_row + 1] & MOVE_WITH_BEAM_OFF) != 0
    )
    t_end = t_ns + STEP_NS
    if s.eng_sub == SUB_TAIL:
        ready = p.step == 0 or last or s.step_rows > s.eng_row + 1  # else the trigger waits for the next visit's preset
        if t_end - s.request_off_ns >= p.tail_ns and ready:
            _finish(plant, t_end, s.eng_counted, s.counts_1, s.counts_2)
        return STEP_US
    if s.eng_sub != SUB_DELIVER:
        return STEP_US
    early = (plant.early_off[bank] if off_after else plant.early_on[bank]) * COUNT_UNIT
    beam = s.request == 1
    if beam:
        s.eng_step_counted = s.eng_counted - before
    elif not off_after and t_end - s.request_off_ns < p.tail_ns:
        # not off yet: as with beam, what drifts now is counted with the next visit
        beam = 2 * (s.eng_counted - before) > s.eng_step_counted
    if beam:
        threshold = s.eng_target - early
    elif t_end - s.request_off_ns < p.tail_ns:
        threshold = s.eng_target
    else:
        # with the chain open no beam comes any more: what is left is another part's, which may choose its intensity
        threshold = s.eng_target - early // 2 if s.closed == 1 else s.eng_target
    if s.eng_counted < threshold:
        return STEP_US
    if not beam and s.eng_counted < s.eng_target:
        # ended by a hold or a spill's end just before its time: the rest is forgone, never given to another spot
        s.eng_target = s.eng_counted
        s.eng_forgone = 1
    if off_after:
        if s.request == 1:
            s.request = 0
            s.request_off_ns = t_end
        s.eng_sub = SUB_TAIL
        return STEP_US
    # when in the step the count crossed the threshold, on the engine's 1-us clock
    span = s.eng_counted - before
    if threshold <= before or span <= 0:
        part = 0
    else:
        part = min(STEP_US, ((threshold - before) * STEP_US + span - 1) // span)
    counted = before + span * part // STEP_US
    counts_1 = counts_1_before + (s.counts_1 - counts_1_before) * part // STEP_US
    counts_2 = counts_2_before + (s.counts_2 - counts_2_before) * part // STEP_US
    # the rest of the step's beam time is the next visit's
    rest_ns = STEP_NS - part * 1000 if s.request == 1 else 0
    s.eng_visit_beam_ns -= rest_ns
    _finish(plant, t_ns + part * 1000, counted, counts_1, counts_2)
    s.eng_visit_beam_ns = rest_ns
    return part
