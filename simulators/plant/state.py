"""What the plant is made of: its true parameters, its state, and the tables of its devices' memories.

Everything the compiled plant touches lives in the arrays of `Plant`; each field has a unit and a meaning here.
Charge is an integer (2^-20 ion), counts are integers (2^-24 count), time is integer ns: sums are exact,
so cutting the time axis anywhere changes nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from drivers.compiled import records
from drivers.wires.frames import new_buffer
from simulators.plant.noise import GAUSS_SIZE, RIPPLE_FRAMES

FRAME_NS = 100_000
STEP_NS = 10_000
STEPS_PER_FRAME = FRAME_NS // STEP_NS
ION_UNIT = 1 << 20
COUNT_UNIT = 1 << 24
CAPACITY = 16384
RING = 2 * CAPACITY

# accelerator states
ACC_IDLE, ACC_CHANGING, ACC_READY, ACC_FAULT = range(4)
# engine states (as in drivers.contracts.EngineStatus)
ENG_IDLE, ENG_ARMED, ENG_RUNNING, ENG_HELD, ENG_DONE, ENG_ABORTED, ENG_TRIPPED = range(7)
# what a running engine does
SUB_MOVE, SUB_DELIVER, SUB_TAIL = range(3)
# engine commands
CMD_ARM, CMD_START, CMD_HOLD, CMD_RESUME, CMD_ABORT = range(1, 6)
# engine trips
TRIP_NONE, TRIP_SPOT_TIME, TRIP_WINDOW, TRIP_TABLE, TRIP_CHAIN = range(5)
# first-out causes of the chain (as in drivers.contracts.ChainStatus)
(
    CAUSE_NONE,
    CAUSE_SILENCE,
    CAUSE_DROP,
    CAUSE_EMERGENCY,
    CAUSE_DOOR,
    CAUSE_SEARCH,
    CAUSE_ALLOCATION,
    CAUSE_OPERATOR,
    CAUSE_ELECTROMETER_2,
    CAUSE_ENGINE,
    CAUSE_GUARD_SILENCE,
    CAUSE_GUARD_DROP,
) = range(12)

# the chopper's test, as shown in the chain's registers
TEST_NONE, TEST_OPENING, TEST_CLOSING, TEST_PASSED, TEST_FAILED = range(5)
# commands to the chain's PLC
CHAIN_ARM, CHAIN_DISARM, CHAIN_TEST = range(1, 4)

Fields = tuple[tuple[str, str, str], ...]

PARAMETER_FIELDS: Fields = (
    # (name, numpy type, unit and meaning); a fault scenario may change any of them while the plant runs
    ("synchrotron", "i8", "1: fillings with gaps, 0: continuous beam"),
    ("flat_top_ns", "i8", "ns, longest extraction of one filling"),
    ("gap_ns", "i8", "ns, end of a flat-top to the start of the next"),
    ("spill_units", "i8", "ion units in one filling, 0: unlimited"),
    ("spill_spread", "f8", "relative spread of a filling's particles"),
    ("rise_ns", "i8", "ns, intensity rises linearly from 0 at the start of a flat-top"),
    ("extended_flat_top", "i8", "1: falling energies inside one filling"),
    ("step_down_ns", "i8", "ns, energy change inside an extended flat-top, or of a cyclotron downwards"),
    ("step_up_ns", "i8", "ns, energy change of a cyclotron upwards"),
    ("on_delay_ns", "i8", "ns, request to beam"),
    ("off_delay_ns", "i8", "ns, end of request, or chain open, to no beam (chopper)"),
    ("stopper_delay_ns", "i8", "ns, command to stopper in place"),
    ("chopper_stuck", "i8", "fault: 1: the chopper does not close"),
    ("chopper_shut", "i8", "fault: 1: the chopper does not open"),
    ("drop_ignored", "i8", "fault: 1: the chain does not open by a drop"),
    ("hold_ignored", "i8", "fault: 1: the engine takes the command to hold, and does not hold"),
    ("abort_ignored", "i8", "fault: 1: the engine takes the command to abort, and goes on"),
    ("request_stuck", "i8", "fault: 1: the engine's request stays on when a layer is done"),
    ("spot_time_ignored", "i8", "fault: 1: the engine does not watch how long a spot takes"),
    ("unasked", "i8", "fault: 1: the chopper lets beam through that nobody asks for"),
    ("leak", "f8", "fault: share of the intensity that passes a closed chopper"),
    ("rate_scale", "f8", "fault: true intensity over nominal"),
    ("ripple", "f8", "relative rms of the intensity"),
    ("spill_cut", "i8", "fault: 1: extraction stops"),
    ("energy_offset_mev_u", "f8", "MeV/u, true energy minus set energy"),
    ("port_error_deg", "f8", "fault: deg, port that the beam line really leads to, minus the one asked for"),
    ("slew_x_ma_step", "f8", "mA per 10 us"),
    ("slew_y_ma_step", "f8", "mA per 10 us"),
    ("settle_share", "f8", "share of the remaining lag that the field makes up in 10 us"),
    ("settle_ns", "i8", "ns, the engine's own wait after a beam-off move"),
    ("window_ma", "f8", "mA, read-back window of the engine"),
    ("gain_x", "f8", "true field over nominal field"),
    ("gain_y", "f8", "true field over nominal field"),
    ("stuck_x", "i8", "fault: 1: the x supply stays where it is"),
    ("stuck_y", "i8", "fault: 1: the y supply stays where it is"),
    ("tripped_x", "i8", "fault: 1: the x supply has tripped: its current goes to 0"),
    ("tripped_y", "i8", "fault: 1: the y supply has tripped"),
    ("swapped", "i8", "fault: 1: each supply feeds the other axis' magnet"),
    ("hysteresis_ma", "f8", "mA, field memory at saturation"),
    ("offset_x_mm", "f8", "mm at isocentre, beam position error"),
    ("offset_y_mm", "f8", "mm at isocentre, beam position error"),
    ("position_noise_mm", "f8", "mm rms, slow"),
    ("ion_error", "i8", "fault: 1: another ion comes with the next request than was asked for"),
    ("sigma_scale", "f8", "true spot sigma over nominal"),
    ("gain_1", "f8", "fault: factor on electrometer 1's charge"),
    ("gain_2", "f8", "fault: factor on electrometer 2's charge"),
    ("drain_1", "i8", "share of the drifting charge collected in 10 us, 2^-16"),
    ("drain_2", "i8", "the same of chamber 2"),
    ("ks_1_s", "f8", "s, recombination per particle rate, chamber 1"),
    ("ks_2_s", "f8", "s, the same of chamber 2"),
    ("pedestal_1", "i8", "count units per 10 us"),
    ("pedestal_2", "i8", "count units per 10 us"),
    ("saturation_1", "i8", "counts per frame at which chamber 1 saturates"),
    ("saturation_2", "i8", "counts per frame at which chamber 2 saturates"),
    ("frozen_1", "i8", "fault: 1: electrometer 1's reading stands still"),
    ("frozen_2", "i8", "fault: 1: electrometer 2's reading stands still"),
    ("silent_1", "i8", "fault: 1: no frames from electrometer 1"),
    ("silent_2", "i8", "fault: 1: no frames from electrometer 2"),
    ("silent_3", "i8", "fault: 1: no frames from the scan controller"),
    ("clock_1_ns", "i8", "fault: ns by which electrometer 1's clock is ahead of the shared trigger's time"),
    ("clock_2_ns", "i8", "fault: the same of electrometer 2"),
    ("clock_3_ns", "i8", "fault: the same of the scan controller"),
    ("hv_1_v", "f8", "V"),
    ("hv_2_v", "f8", "V"),
    ("hv_min_1_v", "f8", "V, below it the HV flag falls"),
    ("hv_min_2_v", "f8", "V"),
    ("strip_units_per_count", "i8", "strip charge in a plane per count of electrometer 1"),
    ("strip_pedestal", "i8", "units per strip and frame"),
    ("strip_noise", "i8", "1: on"),
    ("pitch_x_mm", "f8", "mm"),
    ("pitch_y_mm", "f8", "mm"),
    ("temperature_error_1_c", "f8", "fault: C, what electrometer 1's sensor shows too much"),
    ("temperature_error_2_c", "f8", "fault: C, the same of electrometer 2"),
    ("pressure_error_1_hpa", "f8", "fault: hPa"),
    ("pressure_error_2_hpa", "f8", "fault: hPa"),
    ("dead_strip", "i8", "fault: index 0..255 of a dead strip, -1: none"),
    ("dead_strips", "i8", "fault: how many are dead from that one on"),
    ("dead_step", "i8", "fault: strips from one dead strip to the next"),
    ("hot_strip", "i8", "fault: index 0..255 of a hot strip, -1: none"),
    ("hot_units", "i8", "fault: what a hot strip shows above the others in each frame"),
    ("tail_ns", "i8", "ns, the engine's wait after beam-off before it latches"),
    ("gate_period_ns", "i8", "ns, breathing period"),
    ("gate_open_ns", "i8", "ns of each period in which the gate is open"),
    ("gate_forced", "i8", "fault: 1: the gate line is closed, 2: open, whatever the breathing; 0: not"),
    ("gate_flicker_ns", "i8", "fault: ns for which the gate line stays before it changes, while a source is selected"),
    ("key_0", "u8", "permit key"),
    ("key_1", "u8", "permit key"),
    ("controller_required", "i8", "1: the chain needs the controller's permits"),
    ("guard_required", "i8", "1: the chain needs the guard's permits"),
    ("step", "i8", "1: no spot engine: the PC sets the magnets and lets each visit go, electrometer 1 ends it"),
    ("seed", "u8", "of all noise"),
)

TUNE_FIELDS: Fields = (
    # what follows from a request: [0] in force, [1] requested
    ("energy_mev_u", "f8", "MeV/u, set"),
    ("ion", "i8", "index into IONS, as asked for"),
    ("true_ion", "i8", "index into IONS, as it comes"),
    ("port_deg", "f8", "deg"),
    ("level", "i8", "intensity level"),
    ("optics", "i8", "index of the treatment machine whose optics are set"),
    ("rate_units_ns", "i8", "ion units per ns at this level"),
    ("brho_tm", "f8", "T m at the true energy"),
    ("sad_x_mm", "f8", "mm"),
    ("sad_y_mm", "f8", "mm"),
    ("field_x_tm_ma", "f8", "T m per mA, nominal"),
    ("field_y_tm_ma", "f8", "T m per mA, nominal"),
    ("inv_xx", "f8", "true position = inv (geometric position - shift)"),
    ("inv_xy", "f8", ""),
    ("inv_yx", "f8", ""),
    ("inv_yy", "f8", ""),
    ("shift_x_mm", "f8", "mm"),
    ("shift_y_mm", "f8", "mm"),
    ("sigma_x_mm", "f8", "mm at isocentre"),
    ("sigma_y_mm", "f8", "mm at isocentre"),
    ("strip_scale_x", "f8", "position at the strips per position at isocentre"),
    ("strip_scale_y", "f8", ""),
    ("counts_1", "f8", "counts of electrometer 1 per ion at rate 0, true air, true gain"),
    ("counts_2", "f8", "the same of electrometer 2"),
    ("spread_1", "f8", "standard deviation of one ion's charge in chamber 1 over its mean"),
    ("spread_2", "f8", "the same of chamber 2"),
)

STATE_FIELDS: Fields = (
    ("t_ns", "i8", "ns, end of the last whole frame"),
    ("frame", "i8", "frames since power-up"),
    # accelerator
    ("acc_state", "i8", "ACC_*"),
    ("acc_request", "i8", "id of the request in force or on its way"),
    ("acc_new_request", "i8", "id of a request just written"),
    ("acc_ready_ns", "i8", "ns, when the running change is over"),
    ("acc_cycling", "i8", "1: spills follow one another until released"),
    ("acc_release", "i8", "command: 1"),
    ("filled", "i8", "1: a filling is in the ring"),
    ("spill", "i8", "number of the current or last spill"),
    ("spill_start_ns", "i8", "ns"),
    ("spill_end_ns", "i8", "ns"),
    ("spill_left", "i8", "ion units"),
    ("spill_on", "i8", "1: flat-top with charge left, or continuous beam"),
    ("stopper_command", "i8", "1: open"),
    ("stopper_open", "i8", "1: open"),
    ("stopper_change_ns", "i8", "ns, when the stopper reaches its command"),
    # beam
    ("request", "i8", "1: the engine's beam request line"),
    ("request_off_ns", "i8", "ns, last fall of the request"),
    ("beam_target", "i8", "1: all lines ask for beam"),
    ("beam_on", "i8", "1: the chopper lets beam through"),
    ("beam_change_ns", "i8", "ns, when the chopper reaches its target"),
    ("rate_units_ns", "i8", "ion units per ns in this frame"),
    ("beam_ns", "i8", "ns of beam in this frame"),
    ("beam_present", "i8", "1: beam in the last frame"),
    ("beam_last_ns", "i8", "ns, end of the last step with beam"),
    ("particles", "i8", "ion units through the nozzle since power-up"),
    # magnets
    ("set_x_ma", "f8", "mA"),
    ("set_y_ma", "f8", "mA"),
    ("current_x_ma", "f8", "mA, supply"),
    ("current_y_ma", "f8", "mA"),
    ("field_x_ma", "f8", "mA, current that the lagging field corresponds to"),
    ("field_y_ma", "f8", "mA"),
    ("memory_x", "f8", "-1..1, hysteresis"),
    ("memory_y", "f8", "-1..1"),
    ("wander_x_mm", "f8", "mm, slow position noise"),
    ("wander_y_mm", "f8", "mm"),
    ("arrived_ns", "i8", "ns since which both currents are inside the window, -1: not"),
    ("x_mm", "f8", "mm at isocentre, beam"),
    ("y_mm", "f8", "mm"),
    # chambers
    ("drift_1", "i8", "ion units of charge still drifting"),
    ("drift_2", "i8", ""),
    ("rest_1", "i8", "remainder of the charge to count conversion"),
    ("rest_2", "i8", ""),
    ("counts_1", "i8", "count units, cumulative"),
    ("counts_2", "i8", "count units, cumulative"),
    ("retained_1", "i8", "counts at power-up"),
    ("retained_2", "i8", ""),
    ("frame_counts_1", "i8", "counts at the end of the last frame"),
    ("frame_counts_2", "i8", ""),
    ("saturated_1", "i8", ""),
    ("saturated_2", "i8", ""),
    # engine
    ("eng_state", "i8", "ENG_*"),
    ("eng_sub", "i8", "SUB_*"),
    ("eng_trip", "i8", "TRIP_*"),
    ("eng_bank", "i8", "bank armed or running"),
    ("eng_row", "i8", "row of the running visit"),
    ("eng_rows", "i8", "rows of the armed bank"),
    ("eng_token", "u8", "arm token"),
    ("eng_hold", "i8", "command: 1: hold"),
    ("eng_command", "i8", "mailbox: CMD_*, obeyed at the next frame"),
    ("eng_command_bank", "i8", "mailbox"),
    ("eng_command_token", "u8", "mailbox"),
    ("eng_command_x_ma", "f8", "mailbox: mA, offset of the set-points"),
    ("eng_command_y_ma", "f8", "mailbox: mA"),
    ("eng_commands", "i8", "mailbox: commands written"),
    ("eng_commands_done", "i8", "commands obeyed or refused"),
    ("eng_error", "i8", "of the last command: 0 obeyed, 1 refused in this state"),
    ("eng_gated", "i8", "1: obey the gate line"),
    ("eng_offset_x_ma", "f8", "mA, added to every set-point, latched at arm"),
    ("eng_offset_y_ma", "f8", "mA"),
    ("eng_target", "i8", "count units: cumulative preset of the running visit"),
    ("eng_counted", "i8", "count units since the layer's start, as the engine counts"),
    ("eng_visit", "i8", "trigger line: visit id, 0: none"),
    ("eng_visit_start_ns", "i8", "ns"),
    ("eng_visit_beam_ns", "i8", "ns of request in this visit"),
    ("eng_visit_stretches", "i8", "stretches of request in this visit"),
    ("eng_forgone", "i8", "1: this visit gets no more beam for its rest"),
    ("eng_visit_counted", "i8", "count units when the visit began"),
    ("eng_step_counted", "i8", "count units of the last step with request: what beam gives"),
    ("step_rows", "i8", "step mode: visits of the armed layer whose presets are there; written by the device"),
    ("step_go", "i8", "step mode: the visit that may have beam; written by the device"),
    ("eng_wait_until_ns", "i8", "ns, end of a tail"),
    ("eng_changed", "i8", "1: the visit changed in this frame"),
    ("change_ns", "i8", "ns of the last change of visit"),
    ("change_counts_1", "i8", "counts then"),
    ("change_counts_2", "i8", "counts then"),
    ("results", "i8", "rows ever written to the three rings"),
    ("results_ack", "i8", "rows acknowledged by the controller, engine"),
    ("latches_1_ack", "i8", "electrometer 1"),
    ("latches_2_ack", "i8", "electrometer 2"),
    ("gate_source", "i8", "gating source, 0: off"),
    ("gate_open", "i8", "gate line"),
    # electrometer 2's backup
    ("backup_bank", "i8", "bank in use, follows the engine"),
    ("backup_counts", "i8", "counts at the visit's start"),
    ("backup_trip", "i8", "1: a visit's limit reached, 2: the limit on rate; latched"),
    ("backup_visit", "i8", "visit that tripped"),
    # self tests
    ("self_test_1", "i8", "0 not since power-up, 1 running, 2 passed, 3 failed"),
    ("self_test_2", "i8", ""),
    ("self_test_end_1_ns", "i8", "ns"),
    ("self_test_end_2_ns", "i8", "ns"),
    # chain
    ("session", "u8", "session nonce"),
    ("token", "u8", "arm token"),
    ("armed", "i8", "1: waits for, or lives on, permits with the token"),
    ("closed", "i8", "1: beam allowed"),
    ("cause", "i8", "CAUSE_*, first-out since the last arm"),
    ("open_ns", "i8", "ns when it opened"),
    ("time_out_ns", "i8", "ns"),
    ("permit_1_ns", "i8", "ns of the last valid permit of the controller, -1: none since arming"),
    ("permit_2_ns", "i8", "of the guard"),
    ("sequence_1", "u8", "last sequence number of the controller"),
    ("sequence_2", "u8", "of the guard"),
    ("permits", "i8", "valid permits received"),
    ("rejected", "i8", "permits rejected"),
    ("chain_command", "i8", "mailbox: CHAIN_*"),
    ("chain_command_token", "u8", "mailbox"),
    ("chain_commands", "i8", "mailbox: commands written"),
    ("chain_commands_done", "i8", "commands obeyed"),
    ("chopper_test", "i8", "TEST_*"),
    ("chopper_test_ns", "i8", "ns, begin of its present phase"),
    ("chopper_close_ns", "i8", "ns, what closing took in the last test that passed"),
    ("emergency_stop", "i8", "1: pressed"),
    ("door_closed", "i8", ""),
    ("room_searched", "i8", ""),
    ("room_allocated", "i8", ""),
    ("abort_button", "i8", "1: pressed"),
    # frames
    ("nonce_1", "u8", "boot nonces"),
    ("nonce_2", "u8", ""),
    ("nonce_3", "u8", ""),
    ("sequence_f1", "i8", "next sequence numbers"),
    ("sequence_f2", "i8", ""),
    ("sequence_f3", "i8", ""),
    # notes of the room; the plant does not look at them
    ("field_completed", "i8", "last completed visit of the present field"),
    ("results_seen", "i8", "results that the room has looked at for it"),
    # faults
    ("wake_visit", "i8", "visit that a fault waits for in virtual time, 0: none"),
)


def record_type(fields: Fields) -> np.dtype[Any]:
    """The numpy type of a field table."""
    return np.dtype([(name, "<" + kind) for name, kind, _ in fields], align=True)


PARAMETERS = record_type(PARAMETER_FIELDS)
TUNE = record_type(TUNE_FIELDS)
STATE = record_type(STATE_FIELDS)

ENGINE_RESULT = np.dtype(
    [
        ("t_start_ns", "<i8"),
        ("t_end_ns", "<i8"),
        ("beam_on_us", "<i8"),
        ("counts", "<i8"),
        ("visit", "<i8"),
        ("x_current_ma", "<i8"),
        ("y_current_ma", "<i8"),
        ("flags", "<i8"),
    ],
    align=True,
)
LATCH = np.dtype([("visit", "<i8"), ("counts", "<i8")], align=True)
TRUTH = np.dtype([("units", "<i8"), ("x", "<f8"), ("y", "<f8"), ("rr", "<f8"), ("short", "<u8")], align=True)
"""Per visit: ion units, sums of ion units x position, and of ion units x squared distance from the isocentre;
session in which the engine ended it with a thirtieth of its preset missing, 0: it did not."""


CDF_HALF_WIDTH = 6.0
CDF_STEPS = 4096
MAX_VISITS = 1 << 17

MEMORY = np.dtype(
    [
        ("parameters", PARAMETERS),
        ("tune", TUNE, (2,)),
        ("state", STATE),
        ("segments", "<f8", (2, 4)),  # before and after a change of visit in a frame: ion units, x and y sums
        # the engine's and electrometer 2's banks
        ("rows", "<i8", (2,)),
        ("first_visit", "<i8", (2,)),
        ("early_on", "<i8", (2,)),
        ("early_off", "<i8", (2,)),
        ("gated", "<i8", (2,)),
        ("backup_first", "<i8", (2,)),
        ("backup_rate", "<i8", (2,)),  # counts per frame that trip, 0: off
        ("backup_pedestal", "<i8", (2,)),  # counts per second by which a visit's limit rises
        ("x_set_ma", "<i4", (2, CAPACITY)),
        ("y_set_ma", "<i4", (2, CAPACITY)),
        ("preset", "<u4", (2, CAPACITY)),
        ("time_limit_ms", "<u2", (2, CAPACITY)),
        ("flags", "<u2", (2, CAPACITY)),
        ("backup", "<u4", (2, CAPACITY)),
        # rings
        ("results", ENGINE_RESULT, (RING,)),
        ("latches_1", LATCH, (RING,)),
        ("latches_2", LATCH, (RING,)),
        # what really happened, by visit; the controller never sees it
        ("truth", TRUTH, (MAX_VISITS,)),
        # tables of noise and of the normal distribution
        ("ripple", "<f8", (RIPPLE_FRAMES,)),
        ("gauss", "<i2", (GAUSS_SIZE,)),
        ("cumulative", "<i4", (CDF_STEPS + 1,)),
    ],
    align=True,
)


class Plant:
    """The memory of one plant, for Python; compiled code takes `memory[0]`, one pointer."""

    def __init__(self, memory: NDArray[Any] | None = None) -> None:
        """`memory`: one record of `MEMORY` that is kept elsewhere; None: a new one."""
        self.memory: NDArray[Any] = records(1, MEMORY) if memory is None else memory
        self.frame_1 = new_buffer()
        self.frame_2 = new_buffer()
        self.frame_3 = new_buffer()
        self.permit = new_buffer()

    def __getattr__(self, name: str) -> Any:
        """A view of one field of the memory: `plant.state["t_ns"]`, `plant.preset[0, :]`."""
        if name == "memory" or name not in (MEMORY.names or ()):
            raise AttributeError(name)
        return self.memory[name][0]
