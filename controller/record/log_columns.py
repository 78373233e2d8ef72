"""The columns of `log.h5`: one table that the file's attributes and docs/log.md are both made from.

`python -m controller.record.log_columns > docs/log.md` writes the page.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from controller.record.schema import VISIT_DTYPE


@dataclass(frozen=True, slots=True)
class Column:
    """One column: HDF5 type, unit ('' for numbers without one), meaning, and what it is made from."""

    name: str
    dtype: str
    unit: str
    meaning: str
    source: str


def _raw(name: str, dtype: str, unit: str, meaning: str) -> Column:
    return Column(name, dtype, unit, meaning, "ROWS")


def _table(name: str, dtype: str, unit: str, meaning: str) -> Column:
    return Column(name, dtype, unit, meaning, "PROGRAM, by field and visit")


def _flag(name: str, meaning: str) -> Column:
    return Column(name, "u1", "0 or 1", meaning, "ROWS, flags of all streams or-ed over the row")


def _axes(name: str, dtype: str, unit: str, meaning: str, source: str) -> tuple[Column, Column]:
    return tuple(Column(name.format(a), dtype, unit, meaning.format(a), source) for a in "xy")  # type: ignore[return-value]


_STRIPS = "ROWS"
_ISO = "ROWS and the strip scale of the layer's PROGRAM"
_STEP = "ROWS, difference to the row before; 0 in the first row of a part"

ROW_COLUMNS: tuple[Column, ...] = (
    _raw("t_ns", "i8", "ns", "end of the 200-us row, device time on the run's clock"),
    Column("part", "u2", "", "part of the treatment, from 1", "HEADER"),
    Column("field", "i2", "", "index of the field, from 0; -1: none yet", "layer events, by time"),
    _table("layer", "i2", "", "index of the layer, from 0; -1 where visit is 0"),
    _table("spot", "i4", "", "index of the spot in the plan's layer, from 0; -1 where visit is 0"),
    _table("painting", "i2", "", "index of the painting, from 0; -1 where visit is 0"),
    _raw("visit", "u4", "", "visit at the row's end, from 1 in each field; 0: none"),
    _flag("beam", "a chamber saw beam"),
    _flag("request", "the spot engine requested beam"),
    _flag("spill", "flat-top or continuous beam was available"),
    _flag("hold", "the engine was held (gate closed or spill gap)"),
    _flag("armed", "the engine was armed"),
    _flag("chain_closed", "the safety chain was closed"),
    _flag("hv_ok", "the chambers' high voltage was inside its window"),
    _flag("saturated", "a chamber or a strip saturated"),
    _flag("layer_done", "the engine had finished its layer"),
    _flag("device_tripped", "the engine or electrometer 2 had tripped by itself"),
    _flag("gate_open", "the gating device allowed beam"),
    _flag("moving", "the scan magnets were on their way"),
    _raw("permit", "u1", "0 or 1", "a permit was sent in the row"),
    _raw("trip", "u1", "", "number of the latched real-time condition; 0: none"),
    _raw("frames_1", "u1", "", "frames of electrometer 1 in the row (2 if none was lost)"),
    _raw("frames_2", "u1", "", "frames of electrometer 2 in the row"),
    _raw("counts_1", "u8", "counts", "electrometer 1, cumulative since power-up, raw"),
    _raw("counts_2", "u8", "counts", "electrometer 2, cumulative since power-up, raw"),
    Column("counts_1_step", "i4", "counts", "electrometer 1 in this row, raw (may be negative: noise)", _STEP),
    Column("counts_2_step", "i4", "counts", "electrometer 2 in this row, raw", _STEP),
    Column("charge_1_pc", "f4", "pC", "charge of chamber 1 in this row", "counts_1_step x the site's quantum"),
    Column("charge_2_pc", "f4", "pC", "charge of chamber 2 in this row", "counts_2_step x the site's quantum"),
    Column(
        "rate_1_counts_per_s", "f4", "1/s", "count rate of electrometer 1", "counts_1_step / time since the row before"
    ),
    Column(
        "rate_2_counts_per_s", "f4", "1/s", "count rate of electrometer 2", "counts_2_step / time since the row before"
    ),
    Column(
        "rate_1_per_s",
        "f4",
        "1/s",
        "particle rate by chamber 1; NaN where visit is 0",
        "count rate / PROGRAM calibration",
    ),
    Column(
        "rate_2_per_s",
        "f4",
        "1/s",
        "particle rate by chamber 2; NaN where visit is 0",
        "count rate / PROGRAM calibration",
    ),
    Column(
        "meterset_1",
        "f8",
        "field's unit",
        "meterset by chamber 1 since the field began in this part: raw counts inside visits, pedestal not subtracted",
        "counts_1_step / (counts per particle x particles per MU) of the layer, summed",
    ),
    Column("meterset_2", "f8", "field's unit", "the same by chamber 2", "as meterset_1"),
    _raw("strip_counts", "i4", "counts", "sum of both strip planes in the row, pedestal subtracted"),
    *_axes("{}_strip_mm", "f4", "mm", "measured centroid in {} at the strip plane; NaN: none", _STRIPS),
    *_axes("sigma_{}_strip_mm", "f4", "mm", "measured sigma in {} at the strip plane; NaN: none", _STRIPS),
    *_axes("{}_mm", "f4", "mm", "measured {} at isocentre; NaN: none, or visit is 0", _ISO),
    *_axes("sigma_{}_mm", "f4", "mm", "measured sigma in {}, scaled to isocentre by geometry; NaN: none", _ISO),
    *_axes("planned_{}_mm", "f4", "mm", "planned {} at isocentre; NaN where visit is 0", "PROGRAM, by field and visit"),
    *_axes("{}_error_mm", "f4", "mm", "measured minus planned {} at isocentre", "the two columns above"),
    *_axes("{}_set_a", "f4", "A", "set current of the engine, {}", "ROWS"),
    *_axes("{}_primary_a", "f4", "A", "primary read-back of the current, {}", "ROWS"),
    *_axes("{}_redundant_a", "f4", "A", "redundant read-back of the current, {}", "ROWS"),
    *_axes("{}_voltage_v", "f4", "V", "voltage of the magnet supply, {}", "ROWS"),
    *_axes("{}_field_tm", "f4", "T m", "integral field by Hall probe, {}", "ROWS"),
    Column("energy_set_mev_u", "f4", "MeV/u", "set energy of the layer; NaN where visit is 0", "PROGRAM"),
    Column(
        "energy_readback_mev_u", "f4", "MeV/u", "energy that the accelerator read back for the layer", "layer events"
    ),
    Column("energy_sensor_mev_u", "f4", "MeV/u", "energy by the independent sensor for the layer", "layer events"),
    _table("intensity_level", "i2", "", "index into the site's intensities; -1 where visit is 0"),
    _table("nominal_rate_per_s", "f4", "1/s", "particle rate of that level"),
)

_VISIT_TEXT = {
    "t_start_ns": ("ns", "start of the visit"),
    "t_end_ns": ("ns", "end of the visit"),
    "beam_on_ns": ("ns", "beam-on time by the engine"),
    "counts_1": ("counts", "electrometer 1, latched at the visit's end minus at its start (authoritative)"),
    "counts_2": ("counts", "electrometer 2, the same"),
    "frame_counts_1": ("counts", "the PC's own integral from frames, pedestal subtracted, electrometer 1"),
    "frame_counts_2": ("counts", "the same, electrometer 2"),
    "late_counts_1": (
        "counts",
        "charge that arrived after the visit minus charge of the one before that arrived in it",
    ),
    "late_counts_2": ("counts", "the same, electrometer 2"),
    "particles_1": ("", "particles by electrometer 1, all corrections included"),
    "particles_2": ("", "particles by electrometer 2, all corrections included"),
    "meterset_1": ("field's unit", "meterset by electrometer 1"),
    "meterset_2": ("field's unit", "meterset by electrometer 2"),
    "planned_particles": ("", "planned particles of this painting"),
    "planned_meterset": ("field's unit", "planned meterset of this painting"),
    "x_mm": ("mm", "measured x at isocentre; NaN: none (see quality)"),
    "y_mm": ("mm", "measured y at isocentre; NaN: none (see quality)"),
    "sigma_x_mm": ("mm", "measured sigma in x at isocentre"),
    "sigma_y_mm": ("mm", "measured sigma in y at isocentre"),
    "planned_x_mm": ("mm", "planned x at isocentre"),
    "planned_y_mm": ("mm", "planned y at isocentre"),
    "x_current_a": ("A", "current measured by the engine at the visit's end, x"),
    "y_current_a": ("A", "current measured by the engine at the visit's end, y"),
    "visit": ("", "number of the visit, from 1 in each field"),
    "spot": ("", "index of the spot in the plan's layer, from 0"),
    "field": ("", "index of the field, from 0"),
    "layer": ("", "index of the layer, from 0"),
    "painting": ("", "index of the painting, from 0"),
    "part": ("", "part of the treatment, from 1"),
    "quality": (
        "bits",
        "1 no position, 2 saturated, 4 frames lost, 8 more than one stretch of beam, 16 from frames, "
        "32 bad strip in the window, 64 bad strip found, 128 no beam: a rest smaller than the machine can give, "
        "256 booked from the rings by a later part, 512 booked from a retained counter by decision",
    ),
    "flags": ("bits", "1 move with beam off, 2 beam off after, 32768 stopped before its preset"),
    "ks_1": ("", "recombination correction of chamber 1 at the visit's own rate; NaN: the layer's nominal rate"),
    "ks_2": ("", "the same, chamber 2"),
    "u_particles_1": ("", "standard uncertainty of particles_1, independent from visit to visit (type A)"),
    "u_particles_2": ("", "the same, chamber 2"),
    "u_common_1": ("", "relative standard uncertainty that all visits share (type B), chamber 1"),
    "u_common_2": ("", "the same, chamber 2"),
    "u_x_mm": ("mm", "standard uncertainty of x_mm, independent from visit to visit; NaN: no position"),
    "u_y_mm": ("mm", "the same of y_mm"),
}

VISIT_COLUMNS: tuple[Column, ...] = (
    *(Column(name, str(VISIT_DTYPE[name].str[1:]), *_VISIT_TEXT[name], "VISITS") for name in VISIT_DTYPE.names or ()),
    Column("dose_error_pct", "f8", "%", "(meterset_1 - planned) / planned", "VISITS"),
    Column("monitor_difference_pct", "f8", "%", "(meterset_2 - meterset_1) / planned", "VISITS"),
    Column("x_error_mm", "f8", "mm", "measured minus planned x at isocentre", "VISITS"),
    Column("y_error_mm", "f8", "mm", "measured minus planned y at isocentre", "VISITS"),
)

_INTRODUCTION = """# log.h5

HDF5, made from `journal.bin` by `spotwise report` and at the end of every delivery; the same journal gives the same
bytes. One row per 200 us. Read it with any HDF5 library: every column is a dataset of its own, with its
unit, meaning and source as attributes; chunks are compressed with shuffle and gzip level 1.

| object | what |
| --- | --- |
| `rows/<column>` | the log, {rows} columns, one entry per 200 us |
| `visits/<column>` | one entry per visit, {visits} columns |
| `events` | every event of the journal, one JSON text each, in order |
| `headers` | the HEADER of each part (whole plan, whole effective site), JSON |
| `ends` | the END of each part, JSON; "{{}}" for a part that was never closed |
| attributes | `format`, `version`, `plan_sha256`, `site_sha256`, `epoch`, `simulated`, `journal_chain_sha256` |

Positions are mm in the plane of the isocentre (IEC 61217 gantry system) unless the name says strip. Cumulative counts
are raw and never reset by Spotwise; do not add them up, take differences. `meterset_1` of the rows
is the running sum of raw counts; the authoritative dose of a visit is in `visits/`. NaN means that
nothing was measured: there are no sentinels. A set current is what the engine was told; the two read-backs are
measurements.
"""

_ANALYSIS = """
## From Python

`controller.record.log_reader` is the stable way in; it grows with the file's format, and says so by `API_VERSION`.
Whatever reads HDF5 reads the file as well.

```python
from controller.record.log_reader import open_log

with open_log("DIR") as log:  # a treatment directory, or a log file
    dose = log.visits["meterset_1"]  # a numpy array, one entry a visit
    print(log.columns["visits"]["meterset_1"].unit)  # and .meaning, .source, .dtype
    print(log.headers[0]["plan"]["label"], len(log.events), log.row_count)
    beam_s = 0.0
    for block in log.rows(["t_ns", "beam"]):  # the 200-us log in blocks that fit into memory
        beam_s += 200e-6 * int(block["beam"].sum())
```

`log.to_pandas("visits")` (or `"rows"`) makes a data frame where pandas is installed, units in `attrs["units"]`.

`spotwise export` writes the same tables as files: CSV (`visits.csv`, `rows.csv`, and `columns.csv` with units and
meanings; what was not measured is an empty field), or Parquet with units and meanings in the columns' metadata, which
needs the extra `export` (`requirements/export.txt` has it with its hashes):

```console
$ .venv/bin/spotwise export DIR --csv tables
$ .venv/bin/spotwise export DIR --parquet visits.parquet
```
"""


def markdown() -> str:
    """Return docs/log.md."""
    text = _INTRODUCTION.format(rows=len(ROW_COLUMNS), visits=len(VISIT_COLUMNS))
    for title, columns in (("rows", ROW_COLUMNS), ("visits", VISIT_COLUMNS)):
        text += f"\n## {title}\n\n| column | type | unit | meaning | from |\n| --- | --- | --- | --- | --- |\n"
        for c in columns:
            text += f"| `{c.name}` | {np.dtype('<' + c.dtype).name} | {c.unit} | {c.meaning} | {c.source} |\n"
    return text + _ANALYSIS


if __name__ == "__main__":
    print(markdown(), end="")
