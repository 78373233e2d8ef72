"""Spills, energy changes, stopper and chopper: when there is beam, and how much of it."""

from __future__ import annotations

from drivers.compiled import compiled, compiled_inline
from simulators.plant.noise import unit_noise
from simulators.plant.state import (
    ACC_CHANGING,
    ACC_FAULT,
    ACC_IDLE,
    ACC_READY,
    FRAME_NS,
    TEST_CLOSING,
    TEST_FAILED,
    TEST_OPENING,
    TEST_PASSED,
)

CHOPPER_TEST_NS = 5_000_000
"""The PLC's patience with each way of the chopper's test."""


@compiled
def start_spill(plant, t_ns):
    """A new flat-top (or continuous beam) with the requested settings begins."""
    p = plant.parameters
    s = plant.state
    plant.tune[0] = plant.tune[1]
    s.acc_state = ACC_READY
    s.spill += 1
    s.spill_start_ns = t_ns
    s.spill_end_ns = t_ns + p.flat_top_ns
    s.filled = 1
    spread = 1.0 + p.spill_spread * unit_noise(plant, s.spill, 11)
    s.spill_left = int(float(p.spill_units) * spread)


@compiled
def obey_request(plant, t_ns):
    """A request was written: start the change that it needs."""
    p = plant.parameters
    s = plant.state
    old = plant.tune[0]
    new = plant.tune[1]
    first = s.acc_request == 0
    s.acc_request = s.acc_new_request
    s.acc_cycling = 1
    same = not first and old.energy_mev_u == new.energy_mev_u and old.port_deg == new.port_deg and old.ion == new.ion
    if s.acc_state == ACC_READY and same:
        # intensity is set at extraction: no new filling needed
        plant.tune[0] = plant.tune[1]
        return
    if p.synchrotron == 0:
        down = (not first) and new.energy_mev_u <= old.energy_mev_u
        s.acc_ready_ns = t_ns + (p.step_down_ns if down else p.step_up_ns)
        s.filled = 0
    elif (
        s.acc_state == ACC_READY
        and p.extended_flat_top == 1
        and new.energy_mev_u < old.energy_mev_u
        and new.port_deg == old.port_deg
        and new.ion == old.ion
        and s.spill_left > 0
        and t_ns + p.step_down_ns < s.spill_end_ns
    ):
        s.acc_ready_ns = t_ns + p.step_down_ns
    else:
        if s.acc_state == ACC_CHANGING and s.filled == 0 and s.acc_ready_ns > t_ns:
            pass  # the running cycle has not accelerated yet: it takes the new settings
        else:
            s.acc_ready_ns = t_ns + p.gap_ns
        s.filled = 0
    s.acc_state = ACC_CHANGING


@compiled
def advance_accelerator(plant, t_ns):
    """State of the accelerator at the start of the frame at t_ns."""
    p = plant.parameters
    s = plant.state
    if s.stopper_open != s.stopper_command and t_ns >= s.stopper_change_ns:
        s.stopper_open = s.stopper_command
    if s.acc_release == 1:
        s.acc_release = 0
        s.acc_cycling = 0
        s.filled = 0
        if s.acc_state != ACC_FAULT:
            s.acc_state = ACC_IDLE
    if s.acc_new_request != s.acc_request and s.acc_state != ACC_FAULT:
        obey_request(plant, t_ns)
    if s.acc_state == ACC_CHANGING and t_ns >= s.acc_ready_ns:
        if s.filled == 1:
            plant.tune[0] = plant.tune[1]  # energy change inside one filling
            s.acc_state = ACC_READY
        else:
            start_spill(plant, t_ns)
    elif s.acc_state == ACC_READY and p.synchrotron == 1:
        empty = p.spill_units > 0 and s.spill_left <= 0
        if t_ns >= s.spill_end_ns or empty or p.spill_cut == 1:
            s.filled = 0
            if s.acc_cycling == 1:
                s.acc_state = ACC_CHANGING
                s.acc_ready_ns = t_ns + p.gap_ns
            else:
                s.acc_state = ACC_IDLE
    s.spill_on = 1 if s.acc_state == ACC_READY and p.spill_cut == 0 else 0


@compiled
def frame_rate(plant, t_ns):
    """Ion units per ns that this frame's beam would have, ripple and rise included."""
    p = plant.parameters
    s = plant.state
    tune = plant.tune[0]
    if s.stopper_open == 0 or s.spill_on == 0:
        return 0
    harmonics = plant.ripple[(t_ns // FRAME_NS) % plant.ripple.shape[0]]
    factor = 1.0 + p.ripple * (0.8 * harmonics + 0.6 * unit_noise(plant, t_ns // FRAME_NS, 7))
    if p.synchrotron == 1 and t_ns - s.spill_start_ns < p.rise_ns:
        factor *= float(t_ns - s.spill_start_ns + FRAME_NS) / float(p.rise_ns + FRAME_NS)
    rate = float(tune.rate_units_ns) * factor * p.rate_scale
    return max(0, int(rate))


@compiled
def advance_chopper_test(plant, t_ns):
    """The PLC's test of the chopper, once a frame: open, then closed again, behind a closed stopper."""
    s = plant.state
    if s.chopper_test != TEST_OPENING and s.chopper_test != TEST_CLOSING:
        return
    if s.stopper_open == 1 or s.stopper_command == 1 or s.armed == 1 or s.closed == 1:
        s.chopper_test = TEST_FAILED
    elif s.chopper_test == TEST_OPENING and s.beam_on == 1:
        s.chopper_test = TEST_CLOSING
        s.chopper_test_ns = t_ns
    elif s.chopper_test == TEST_CLOSING and s.beam_on == 0:
        s.chopper_test = TEST_PASSED
        s.chopper_close_ns = t_ns - s.chopper_test_ns
    elif t_ns - s.chopper_test_ns > CHOPPER_TEST_NS:
        s.chopper_test = TEST_FAILED


@compiled_inline
def advance_chopper(plant, t_ns, step_ns):
    """Move the chopper through one step; returns the ns of the step with beam let through."""
    p = plant.parameters
    s = plant.state
    asked = (s.request == 1 and s.closed == 1) or s.chopper_test == TEST_OPENING
    target = 1 if (asked and p.chopper_shut == 0) or p.unasked == 1 else 0
    if target != s.beam_target:
        s.beam_target = target
        s.beam_change_ns = t_ns + (p.on_delay_ns if target == 1 else p.off_delay_ns)
    if s.beam_on == s.beam_target:
        return step_ns if s.beam_on == 1 else 0
    if target == 0 and p.chopper_stuck == 1:
        return step_ns
    if s.beam_change_ns >= t_ns + step_ns:
        return step_ns if s.beam_on == 1 else 0
    at = max(0, s.beam_change_ns - t_ns)
    s.beam_on = s.beam_target
    return at if s.beam_on == 0 else step_ns - at
