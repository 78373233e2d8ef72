"""Derives the columns of the log's rows: who is being irradiated, how much, how fast, where, against the plan.

A `RowDeriver` holds the look-up tables of one part (from its PROGRAM records and layer events) and the little that runs
on from block to block: the last counts and the metersets of the field so far.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.record.journal_reader import Part
from controller.record.schema import ROW_NS
from drivers.wires.frames import (
    FLAG_ARMED,
    FLAG_BEAM,
    FLAG_CHAIN,
    FLAG_GATE_OPEN,
    FLAG_HOLD,
    FLAG_HV_OK,
    FLAG_LAYER_DONE,
    FLAG_MOVING,
    FLAG_REQUEST,
    FLAG_SATURATED,
    FLAG_SPILL,
    FLAG_TRIPPED,
)

FLAG_COLUMNS = {
    "beam": FLAG_BEAM,
    "request": FLAG_REQUEST,
    "spill": FLAG_SPILL,
    "hold": FLAG_HOLD,
    "armed": FLAG_ARMED,
    "chain_closed": FLAG_CHAIN,
    "hv_ok": FLAG_HV_OK,
    "saturated": FLAG_SATURATED,
    "layer_done": FLAG_LAYER_DONE,
    "device_tripped": FLAG_TRIPPED,
    "gate_open": FLAG_GATE_OPEN,
    "moving": FLAG_MOVING,
}
NO_VALUE = -(2**31)
"""What a row says where there is no centroid (`schema.ROW_DTYPE`)."""

_NOWHERE = np.array(
    [(-1, -1, -1, np.nan, np.nan, np.nan, np.nan, np.nan, np.nan, np.nan, np.nan, np.nan, np.nan, np.nan, -1)],
    np.dtype(
        [
            ("layer", "<i4"),
            ("spot", "<i4"),
            ("painting", "<i4"),
            ("x_mm", "<f8"),
            ("y_mm", "<f8"),
            ("scale_x", "<f8"),
            ("scale_y", "<f8"),
            ("per_particle_1", "<f8"),
            ("per_particle_2", "<f8"),
            ("per_unit", "<f8"),
            ("energy_set", "<f8"),
            ("energy_readback", "<f8"),
            ("energy_sensor", "<f8"),
            ("rate", "<f8"),
            ("level", "<i4"),
        ]
    ),
)
"""The entry of visit 0, and the type of the look-up tables."""

ADDED_CURRENTS = (
    *((f"{a}_{kind}_a", f"{a}_{kind}_ma", 1e-3) for kind in ("set", "primary", "redundant") for a in "xy"),
    *((f"{a}_voltage_v", f"{a}_voltage_mv", 1e-3) for a in "xy"),
    *((f"{a}_field_tm", f"{a}_field_utm", 1e-6) for a in "xy"),
)


class RowDeriver:
    """Columns of a part's rows, block by block in order of time."""

    def __init__(self, part: Part) -> None:
        self._part = part.number
        dosimetry = part.header["site"]["dosimetry"]
        self._quantum_pc = [dosimetry[which]["quantum_fc"] * 1e-3 for which in ("primary", "secondary")]
        self._tables = _tables(part)
        self._field_t, self._field_of = _fields_by_time(part)
        self._last_t: int | None = None
        self._last_counts = np.zeros(2, np.int64)
        self._metersets = np.zeros(2)
        self._last_field = -1

    def derive(self, rows: NDArray[np.void]) -> dict[str, NDArray[Any]]:
        """All columns of `log_columns.ROW_COLUMNS` for the next rows."""
        t_ns = rows["t_ns"]
        field = self._field_of[np.searchsorted(self._field_t, t_ns, side="right")]
        entry = self._entries(field, rows["visit"].astype(np.int64))
        columns: dict[str, NDArray[Any]] = {
            name: rows[name]
            for name in (
                "t_ns",
                "visit",
                "permit",
                "trip",
                "frames_1",
                "frames_2",
                "counts_1",
                "counts_2",
                "strip_counts",
            )
        }
        columns["part"] = np.full(len(rows), self._part)
        columns["field"] = field
        for name in ("layer", "spot", "painting"):
            columns[name] = entry[name]
        for name, bit in FLAG_COLUMNS.items():
            columns[name] = (rows["flags"] & bit) != 0
        columns["intensity_level"] = entry["level"]
        columns["nominal_rate_per_s"] = entry["rate"]
        columns["energy_set_mev_u"] = entry["energy_set"]
        columns["energy_readback_mev_u"] = entry["energy_readback"]
        columns["energy_sensor_mev_u"] = entry["energy_sensor"]
        self._dose(columns, rows, field, entry)
        _positions(columns, rows, entry)
        for name, source, factor in ADDED_CURRENTS:
            columns[name] = rows[source] * factor
        return columns

    def _entries(self, field: NDArray[np.int64], visit: NDArray[np.int64]) -> NDArray[np.void]:
        entry = np.repeat(_NOWHERE, len(visit))
        for f in np.unique(field):
            table = self._tables.get(int(f))
            if table is not None:
                here = np.flatnonzero((field == f) & (visit < len(table)))
                entry[here] = table[visit[here]]
        return entry

    def _dose(
        self,
        columns: dict[str, NDArray[Any]],
        rows: NDArray[np.void],
        field: NDArray[np.int64],
        entry: NDArray[np.void],
    ) -> None:
        t_ns = rows["t_ns"]
        before = t_ns[0] - ROW_NS if self._last_t is None else self._last_t
        seconds = np.maximum(np.diff(t_ns, prepend=before), 1) * 1e-9
        # Where a new field begins, its sum begins at zero; rows outside visits add nothing.
        begins = np.flatnonzero(np.diff(field, prepend=self._last_field))
        for i, key in enumerate(("1", "2")):
            counts = rows[f"counts_{key}"].astype(np.int64)
            step = np.diff(counts, prepend=counts[0] if self._last_t is None else self._last_counts[i])
            rate = step / seconds
            columns[f"counts_{key}_step"] = step
            columns[f"charge_{key}_pc"] = step * self._quantum_pc[i]
            columns[f"rate_{key}_counts_per_s"] = rate
            columns[f"rate_{key}_per_s"] = rate / entry[f"per_particle_{key}"]
            added = np.nan_to_num(step / (entry[f"per_particle_{key}"] * entry["per_unit"]), nan=0.0)
            total = self._metersets[i] + np.cumsum(added)
            for start in begins:
                total[start:] -= total[start] - added[start]
            columns[f"meterset_{key}"] = total
            self._metersets[i] = total[-1]
            self._last_counts[i] = counts[-1]
        self._last_t = int(t_ns[-1])
        self._last_field = int(field[-1])


def _positions(columns: dict[str, NDArray[Any]], rows: NDArray[np.void], entry: NDArray[np.void]) -> None:
    for a in "xy":
        centroid = _strip_mm(rows[f"{a}_strip_um"])
        sigma = _strip_mm(rows[f"sigma_{a}_strip_um"])
        columns[f"{a}_strip_mm"] = centroid
        columns[f"sigma_{a}_strip_mm"] = sigma
        columns[f"{a}_mm"] = centroid / entry[f"scale_{a}"]
        columns[f"sigma_{a}_mm"] = sigma / entry[f"scale_{a}"]
        columns[f"planned_{a}_mm"] = entry[f"{a}_mm"]
        columns[f"{a}_error_mm"] = columns[f"{a}_mm"] - entry[f"{a}_mm"]


def _strip_mm(strip_um: NDArray[np.int32]) -> NDArray[np.float64]:
    return np.where(strip_um == NO_VALUE, np.nan, strip_um * 1e-3)


def _tables(part: Part) -> dict[int, NDArray[np.void]]:
    """Per field: what the programs say about each visit, by visit id; a layer loaded again counts as last loaded."""
    fields = part.header["plan"]["fields"]
    energies: dict[tuple[int, int], dict[str, Any]] = {}
    for event in part.events:
        if event["event"] == "layer":
            energies.setdefault((event["field"], event["layer"]), {}).update(event)
    found: dict[int, NDArray[np.void]] = {}
    for program in part.programs:
        head, visits = program.head, program.visits
        if len(visits) == 0:
            continue
        f, layer = head["field_index"], head["layer_index"]
        last = int(visits["visit"].max())
        table = found.get(f, _NOWHERE)
        if last >= len(table):
            table = np.concatenate([table, np.repeat(_NOWHERE, last + 1 - len(table))])
        at = visits["visit"]
        table["layer"][at] = layer
        for name in ("spot", "painting", "x_mm", "y_mm"):
            table[name][at] = visits[name]
        measured = energies.get((f, layer), {})
        for name, value in (
            ("scale_x", head["strip_scale_x"]),
            ("scale_y", head["strip_scale_y"]),
            ("per_particle_1", head["counts_per_particle"]),
            ("per_particle_2", head["counts_per_particle_2"]),
            ("per_unit", head["particles_per_mu"] if fields[f]["unit"] == "MU" else 1.0),
            ("energy_set", head["energy_mev_u"]),
            ("energy_readback", measured.get("energy_readback_mev_u", np.nan)),
            ("energy_sensor", measured.get("energy_sensor_mev_u", np.nan)),
            ("rate", head["rate_per_s"]),
            ("level", head["intensity_level"]),
        ):
            table[name][at] = value
        found[f] = table
    return found


def _fields_by_time(part: Part) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Times at which the field changes, and the field before the first, after the first, and so on.

    A field begins with the first "armed" or "start" of one of its layers; where a journal has neither, with
    its first visit.
    """
    times: list[int] = []
    fields = [-1]
    begins = [
        (e["t_ns"], e["field"]) for e in part.events if e["event"] == "layer" and e["phase"] in {"armed", "start"}
    ]
    if not begins:
        begins = list(zip(part.visits["t_start_ns"].tolist(), part.visits["field"].tolist(), strict=True))
    for t_ns, field in begins:
        if field != fields[-1]:
            times.append(int(t_ns))
            fields.append(int(field))
    return np.array(times, np.int64), np.array(fields, np.int64)
