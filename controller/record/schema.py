"""Rows and records of the journal: the one place that says what is written down.

Record types of `journal.bin` and their payloads (all JSON is canonical: sorted keys, no spaces, no NaN):

* HEADER  JSON `{"format", "version", "epoch", "seed", "clock", "plan", "plan_sha256", "site",
  "site_sha256", "operator", "part", "simulated", "gantry_deg", ...}`: the whole plan (`dataclasses.asdict`) and the
  whole effective site, so that everything else can be rebuilt from the journal alone. No patient identity.
* EVENT   JSON `{"t_ns": int, "event": str, ...}`; kinds in `EVENTS`.
* PROGRAM JSON head, a newline, then the layer's `VISIT_PLAN_DTYPE` rows: what was downloaded and read back
  (presets that were adapted are in the event "early"; limits are made from those here).
* VISITS  `VISIT_DTYPE` rows: what was delivered.
* SEEN    `VISIT_DTYPE` rows, QUALITY_FROM_FRAMES set: visits as the frames showed them, written while their layer runs
  (real clock only); VISITS take their place when the rings are read. They count only in a part that was never closed.
* ROWS    `ROW_DTYPE` rows: the 200-us log.
* END     JSON: the totals that close a part; absent after a crash.

VISITS name their part: a later part books what the rings still held of one that died, and those rows belong to the
part that delivered them. Of rows with the same part, field and visit the last one written counts.

Header keys that readers rely on: `epoch` is ISO 8601 text in UTC ("2026-03-02T09:00:00Z"; microseconds allowed),
`part` counts from 1, `plan` is `dataclasses.asdict(Plan)`, `site` is `Site.model_dump(mode="json")`, `simulated` is
true where any device is simulated, `fault_scenario` (only where one was played) holds its text and sha256. END may
carry `outcome` ("completed", "interrupted", "refused", "defect") and `settled`: everything that the rings held is
booked and the counters agree with it.
In "setup" events `quantity` is the attribute's name in the device's status (`drivers.contracts`): `angle_deg` of
the gantry, `vertical_mm` to `roll_deg` of the couch, `snout_code`, `snout_mm`, `range_shifter_code` and
`ripple_filter_code` of the nozzle. A "command" named "pause" or "abort" before the end of a part says that the
operator stopped it.

Times are integer ns from the start of the run (virtual) or of the monotonic clock (real); `epoch` in the header
maps 0 ns to UTC.
"""

from __future__ import annotations

import numpy as np

_VISIT_COLUMNS_1: list[tuple[str, str]] = [
    ("t_start_ns", "<i8"),
    ("t_end_ns", "<i8"),
    ("beam_on_ns", "<i8"),  # beam-on time by the engine
    ("counts_1", "<i8"),  # electrometer 1, latched at the visit's end minus at its start (authoritative)
    ("counts_2", "<i8"),  # electrometer 2, the same
    ("frame_counts_1", "<f8"),  # the PC's own integral from frames, pedestal subtracted
    ("frame_counts_2", "<f8"),
    (
        "late_counts_1",
        "<f8",
    ),  # charge of this visit that arrived after it, minus charge of the one before that arrived in it
    ("late_counts_2", "<f8"),
    ("particles_1", "<f8"),  # from counts_1, pedestal, late charge and corrections included
    ("particles_2", "<f8"),
    ("meterset_1", "<f8"),  # in the field's unit
    ("meterset_2", "<f8"),
    ("planned_particles", "<f8"),
    ("planned_meterset", "<f8"),
    ("x_mm", "<f8"),  # measured, at isocentre; NaN where quality says no position
    ("y_mm", "<f8"),
    ("sigma_x_mm", "<f8"),  # measured, at isocentre
    ("sigma_y_mm", "<f8"),
    ("planned_x_mm", "<f8"),
    ("planned_y_mm", "<f8"),
    ("x_current_a", "<f8"),  # measured by the engine at the visit's end
    ("y_current_a", "<f8"),
    ("visit", "<u4"),
    ("spot", "<u4"),
    ("field", "<u2"),  # index of the field, from 0
    ("layer", "<u2"),  # index of the layer, from 0
    ("painting", "<u2"),
    ("part", "<u2"),
    ("quality", "<u2"),  # QUALITY_* bits
    ("flags", "<u2"),  # of the visit plan, VISIT_PARTIAL and VISIT_SHORT
]
VISIT_DTYPE_1 = np.dtype(_VISIT_COLUMNS_1)
"""Rows of VISITS and SEEN records of version 1."""
VISIT_DTYPE = np.dtype(
    [
        *_VISIT_COLUMNS_1,
        ("ks_1", "<f8"),  # recombination, at the visit's own rate; NaN: booked at the layer's nominal rate
        ("ks_2", "<f8"),
        ("u_particles_1", "<f8"),  # standard uncertainty, independent from visit to visit (type A); NaN: not known
        ("u_particles_2", "<f8"),
        ("u_common_1", "<f8"),  # relative standard uncertainty that all visits share (type B)
        ("u_common_2", "<f8"),
        ("u_x_mm", "<f8"),  # standard uncertainty of the position, independent from visit to visit; NaN: no position
        ("u_y_mm", "<f8"),
    ]
)
ADDED_IN_2 = tuple(name for name in VISIT_DTYPE.names or () if name not in (VISIT_DTYPE_1.names or ()))
"""Columns that version 1 has not: read as NaN."""

VISIT_PARTIAL = 0x8000
"""Visit flag: stopped before its preset, or short."""
VISIT_SHORT = 0x4000
"""Visit flag, with VISIT_PARTIAL: the machine ended it by itself, but it lacks more than the spot tolerance."""
QUALITY_NO_POSITION = 1
QUALITY_SATURATED = 2
QUALITY_FRAMES_LOST = 4
QUALITY_FROM_FRAMES = 16
"""The result rings could not be read: booked from the counts that the frames showed; rows booked later replace it."""
QUALITY_FROM_RINGS = 256
"""Booked by a later part from the result rings: what was not in the journal when the controller died. Late charge is
the site's model of it."""
QUALITY_FROM_COUNTER = 512
"""Booked by a physicist's decision from a retained counter that no ring explains."""
QUALITY_FORGONE = 128
"""No beam: the rest of an interrupted visit, smaller than the machine can give."""
QUALITY_REST_FORGONE = 1024
"""A hold or a spill's end came just before its end, and the engine gave it no more beam for the rest."""
QUALITY_SPLIT = 8
"""Delivered in more than one stretch of beam (spill end, hold)."""
QUALITY_STRIP_BAD = 32
"""A bad strip lay in the window: filled from its neighbours, or left out with its bias stated."""
QUALITY_STRIP_FOUND = 64
"""A dead or hot strip was found in this visit."""

ROW_DTYPE = np.dtype(
    [
        ("t_ns", "<i8"),  # end of the 200-us row, device time
        ("counts_1", "<u8"),  # electrometer 1, cumulative
        ("counts_2", "<u8"),
        ("visit", "<u4"),
        ("flags", "<u4"),  # frame flags of all streams, or-ed over the row: see drivers.wires.frames
        ("strip_counts", "<i4"),  # sum over both planes, pedestal subtracted
        ("x_strip_um", "<i4"),  # centroid at the strip plane; INT32_MIN: none
        ("y_strip_um", "<i4"),
        ("sigma_x_strip_um", "<i4"),
        ("sigma_y_strip_um", "<i4"),
        ("x_set_ma", "<i4"),  # set current of the engine
        ("y_set_ma", "<i4"),
        ("x_primary_ma", "<i4"),  # primary read-back
        ("y_primary_ma", "<i4"),
        ("x_redundant_ma", "<i4"),  # redundant read-back
        ("y_redundant_ma", "<i4"),
        ("x_voltage_mv", "<i4"),
        ("y_voltage_mv", "<i4"),
        ("x_field_utm", "<i4"),  # integral field by Hall probe, micro tesla metre
        ("y_field_utm", "<i4"),
        ("frames_1", "u1"),  # frames of electrometer 1 in the row (2 if none was lost)
        ("frames_2", "u1"),
        ("permit", "u1"),  # 1: a permit was sent in the row
        ("trip", "u1"),  # number of the latched real-time condition, 0: none
    ]
)

ROW_NS = 200_000

EVENTS = {
    "state": "delivery state changed: state, previous, cause",
    "command": "a command arrived: name, operator, reason",
    "device": "a device's identity at connection: device, id, simulated, map_sha256, boot_nonce",
    "setup": "a field's set-up, set and read back: field, device, quantity, set, readback, unit",
    "layer": "a layer begins or ends: field, layer (both from 0), phase (request | ready | armed | start | end), and "
    "what was read back: energy_set_mev_u, energy_readback_mev_u, energy_sensor_mev_u, intensity_level, port_deg, "
    "beam_since_ns (ready: when its spill began), x_offset_a, y_offset_a (armed: offset of all set-points)",
    "early": "a layer's presets after beam-offs were measured, read back: field, layer, energy_mev_u, intensity_level, "
    "delay_us, uncertainty_us, tail_counts, spots, learned_in (layers), early_off_before, early_off_after, visits with "
    "preset_before and preset_after, moved_counts (the layer as a whole), allowance_counts (left to the field)",
    "steering": "position feedback changed the offset for a layer: field, layer, spots, x_ and y_ of error_mm, "
    "uncertainty_mm, before_mm, after_mm (at isocentre) and offset_a, applied (false: beyond the limit)",
    "confirmation": "patient and position before arming: operator, field, passed, reason (why not; no identity)",
    "self_test": "a self-test at prepare: device, what, measured_ms, limit_ms (null: none of its own), passed, detail",
    "corrections": "frozen for the part: ktp, temperature_c, pressure_hpa",
    "step_gate": "step mode: PC and links as timed at prepare: links (list: name, count, p50_ms, p99_ms, p999_ms, "
    "max_ms), host_ms, worst_excess_of_tolerance, stalled_pc_particles, worst_dead_ms, dead_limit_ms, worst_time_ms, "
    "refused",
    "spill": "a spill began, ended, or (in mid-layer) was verified: phase (begin | end | verified), what was read back",
    "hold": "hold began or ended: phase, cause",
    "trip": "an interlock condition latched: id, value, limit, unit, t_cause_ns, first_out, hint",
    "reset": "latched trips were reset: operator, reason, ids",
    "recombination": "two gaps, at a field's end: field, difference_s (a1 - a2), u_s, expected_s, rate_min_per_s, "
    "rate_max_per_s, visits",
    "permit": "permission begins or ends: phase, arm_token",
    "guard": "what the guard says: phase (agreed: it reads the plan as we do)",
    "counters": "retained counters and ring position: phase (field: before its first count | layer: after its rows "
    "were booked, counts as latched | end: after the field), field, rows, counts_1, counts_2, limits (field, in a "
    "resumed part: counts that both monitors may still count)",
    "reconciliation": "a resumed part compared journal, counters and rings: see docs/resume.md",
    "forgone": "the rest of an interrupted visit that no intensity can give: field, layer, visit, spot, particles, "
    "meterset, reason",
    "reconcile": "counters against rings against journal: field, device, retained, ring, journal",
    "warning": "something worth a look that did not stop anything: text",
}
