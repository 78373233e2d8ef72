"""One frame of the room: 100 us in ten steps while anything happens, in one stroke while nothing does."""

from __future__ import annotations

from drivers.compiled import compiled
from simulators.plant.accelerator import advance_accelerator, advance_chopper, advance_chopper_test, frame_rate
from simulators.plant.chain import advance_chain, open_chain
from simulators.plant.chambers import advance_chambers, gain_units, idle_chambers
from simulators.plant.engine import drive_request, judge_step, obey_engine_command
from simulators.plant.magnets import advance_magnets, beam_position, magnets_at_rest, wander
from simulators.plant.noise import unit_noise
from simulators.plant.state import (
    CAUSE_NONE,
    CAUSE_OPERATOR,
    CHAIN_ARM,
    CHAIN_TEST,
    ENG_RUNNING,
    FRAME_NS,
    ION_UNIT,
    STEP_NS,
    STEPS_PER_FRAME,
    SUB_TAIL,
    TEST_FAILED,
    TEST_OPENING,
)
from simulators.plant.streams import make_frame_1, make_frame_2, make_frame_3

SELF_TEST_NS = 20_000_000


@compiled
def obey_commands(plant, t_ns):
    """Mailboxes of all devices, read at the start of a frame."""
    s = plant.state
    if s.eng_commands != s.eng_commands_done:
        obey_engine_command(plant, t_ns)
    if s.chain_commands != s.chain_commands_done:
        if s.chain_command == CHAIN_TEST:
            # a chopper that is open already, though nobody asks, has failed
            s.chopper_test = TEST_OPENING if s.beam_on == 0 else TEST_FAILED
            s.chopper_test_ns = t_ns
        elif s.chain_command == CHAIN_ARM:
            s.token = s.chain_command_token
            s.armed = 1
            s.closed = 0
            s.cause = CAUSE_NONE
            s.permit_1_ns = -1
            s.permit_2_ns = -1
        else:
            open_chain(plant, CAUSE_OPERATOR, t_ns)
        s.chain_commands_done = s.chain_commands
    if s.self_test_1 == 1 and t_ns >= s.self_test_end_1_ns:
        s.self_test_1 = 2
    if s.self_test_2 == 1 and t_ns >= s.self_test_end_2_ns:
        s.self_test_2 = 2


@compiled
def watch_backup(plant, t_ns):
    """Electrometer 2's own limits, once a step."""
    s = plant.state
    if s.eng_visit > 0 and s.backup_trip == 0:
        row = s.eng_visit - plant.backup_first[s.backup_bank]
        limit = 0  # a visit that it has no row for may not count anything
        if row >= 0 and row < plant.backup.shape[1]:
            # a visit that is held, or waits for a spill, goes on counting its pedestal
            pedestal = int(plant.backup_pedestal[s.backup_bank]) * (t_ns - s.eng_visit_start_ns) // 1_000_000_000
            limit = int(plant.backup[s.backup_bank, row]) + pedestal
        if s.retained_2 + (s.counts_2 >> 24) - s.backup_counts > limit:
            s.backup_trip = 1
            s.backup_visit = s.eng_visit


@compiled
def busy_frame(plant, t_ns):
    """Ten steps of 10 us."""
    p = plant.parameters
    s = plant.state
    tune = plant.tune[0]
    rate = s.rate_units_ns
    # ions of a full frame free their charge unevenly, in each chamber by itself
    uneven = 1.0 / max(1.0, float(rate) * (FRAME_NS / ION_UNIT)) ** 0.5
    factor_1 = p.gain_1 * (1.0 + tune.spread_1 * uneven * unit_noise(plant, s.frame, 41))
    factor_2 = p.gain_2 * (1.0 + tune.spread_2 * uneven * unit_noise(plant, s.frame, 42))
    gain_1 = gain_units(tune.counts_1, p.ks_1_s, rate, factor_1)
    gain_2 = gain_units(tune.counts_2, p.ks_2_s, rate, factor_2)
    for k in range(STEPS_PER_FRAME):
        t = t_ns + k * STEP_NS
        advance_magnets(plant, t)
        drive_request(plant, t)
        beam_ns = advance_chopper(plant, t, STEP_NS)
        units = rate * beam_ns
        if p.leak > 0.0 and beam_ns < STEP_NS:
            units += int(p.leak * float(rate) * float(STEP_NS - beam_ns))
        counted = s.eng_counted
        counts_1 = s.counts_1
        counts_2 = s.counts_2
        advance_chambers(plant, units, gain_1, gain_2)
        tail = t - s.request_off_ns < p.tail_ns or (
            s.eng_sub == SUB_TAIL and p.step == 0
        )  # a wait for the PC is no tail
        if s.eng_visit > 0 and (s.request == 1 or tail):
            s.eng_counted += s.counts_1 - counts_1
        visit = s.eng_visit
        part = judge_step(plant, t, counted, counts_1, counts_2)
        watch_backup(plant, t)
        if units > 0:
            s.beam_ns += beam_ns
            s.beam_last_ns = t + STEP_NS
            s.spill_left -= units
            s.particles += units
            beam_position(plant)
            here = units * part // 10
            row = plant.truth[visit]
            row.units += here
            row.x += float(here) * s.x_mm
            row.y += float(here) * s.y_mm
            rr_mm2 = s.x_mm * s.x_mm + s.y_mm * s.y_mm
            row.rr += float(here) * rr_mm2
            if units > here:
                row = plant.truth[s.eng_visit]
                row.units += units - here
                row.x += float(units - here) * s.x_mm
                row.y += float(units - here) * s.y_mm
                row.rr += float(units - here) * rr_mm2
            segment = plant.segments[s.eng_changed]
            segment[0] += float(units)
            segment[1] += float(units) * s.x_mm
            segment[2] += float(units) * s.y_mm


@compiled
def advance_frame(plant, frame_1, frame_2, frame_3):
    """Advance the room by one frame and fill its frames; returns which streams have one (bit 0: 1, 1: 2, 2: 3)."""
    p = plant.parameters
    s = plant.state
    t_ns = s.t_ns
    obey_commands(plant, t_ns)
    advance_accelerator(plant, t_ns)
    s.gate_open = 1 if s.gate_source == 0 or t_ns % p.gate_period_ns < p.gate_open_ns else 0
    if s.gate_source != 0 and p.gate_flicker_ns > 0:
        s.gate_open = t_ns // p.gate_flicker_ns % 2
    if p.gate_forced != 0:
        s.gate_open = p.gate_forced - 1
    advance_chain(plant, t_ns)
    advance_chopper_test(plant, t_ns)
    s.rate_units_ns = frame_rate(plant, t_ns)
    s.beam_ns = 0
    s.eng_changed = 0
    plant.segments[:] = 0.0
    wander(plant, s.frame)
    pedestal_1 = STEPS_PER_FRAME * p.pedestal_1
    pedestal_2 = STEPS_PER_FRAME * p.pedestal_2
    before_1 = s.counts_1
    before_2 = s.counts_2
    idle = (
        s.beam_on == 0
        and s.beam_target == 0
        and s.chopper_test != TEST_OPENING
        and s.drift_1 == 0
        and s.drift_2 == 0
        and (
            s.eng_visit == 0
            or (s.eng_state == ENG_RUNNING and s.spill_on == 0 and s.request == 0 and s.eng_sub != SUB_TAIL)
        )
        and p.leak == 0.0
        and p.unasked == 0
        and magnets_at_rest(plant)
    )
    if idle:
        idle_chambers(plant, STEPS_PER_FRAME)
    else:
        busy_frame(plant, t_ns)
    s.beam_present = 1 if s.beam_ns > 0 else 0
    s.frame += 1
    s.t_ns = t_ns + FRAME_NS
    raw_1 = s.counts_1 - before_1
    raw_2 = s.counts_2 - before_2
    rate_limit = plant.backup_rate[s.backup_bank]
    if rate_limit > 0 and raw_2 >> 24 > rate_limit and s.backup_trip == 0:
        s.backup_trip = 2
        s.backup_visit = s.eng_visit
    s.saturated_1 = 1 if raw_1 >> 24 >= p.saturation_1 else 0
    s.saturated_2 = 1 if raw_2 >> 24 >= p.saturation_2 else 0
    if p.frozen_1 == 0:
        s.frame_counts_1 = s.retained_1 + (s.counts_1 >> 24)
    if p.frozen_2 == 0:
        s.frame_counts_2 = s.retained_2 + (s.counts_2 >> 24)
    streams = 0
    if p.silent_1 == 0:
        make_frame_1(plant, frame_1, s.frame_counts_1, (raw_1 - pedestal_1) >> 24)
        streams |= 1
    if p.silent_2 == 0:
        make_frame_2(plant, frame_2, s.frame_counts_2, (raw_2 - pedestal_2) >> 24)
        streams |= 2
    if s.frame % 2 == 0 and p.silent_3 == 0:
        make_frame_3(plant, frame_3)
        streams |= 4
    return streams
