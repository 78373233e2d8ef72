"""Writes `log.h5`, the physicist's log: a row per 200 us, a row per visit, all events, all from the journal.

Works in chunks of `CHUNK_ROWS`, so memory does not grow with the log: ten million rows need no more than
one million. Chunks are compressed by two threads (zlib releases the interpreter lock) and written in order, which
keeps the bytes a function of the journal alone. Nothing in the file depends on when or where it was made.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from controller.record.journal_format import canonical_json
from controller.record.journal_reader import Journal
from controller.record.log_columns import ROW_COLUMNS, VISIT_COLUMNS, Column
from controller.record.log_rows import RowDeriver
from controller.record.schema import ROW_DTYPE
from drivers.errors import BadInput

CHUNK_ROWS = 65536
COMPRESSION_LEVEL = 1
FORMAT_VERSION = 1


def write_log(journal: Journal, path: Path) -> None:
    """Write the log of a whole journal (all parts). Raises `BadInput` where the disk refuses."""
    try:
        # Oldest object format: newer ones store times of creation, which would differ from run to run.
        with h5py.File(path, "w", libver=("earliest", "v110")) as file, ThreadPoolExecutor(2) as pool:
            _attributes(journal, file)
            _texts(file, "headers", [part.header for part in journal.parts])
            _texts(file, "ends", [part.end or {} for part in journal.parts])
            _texts(file, "events", journal.events)
            _write_rows(journal, file.create_group("rows"), pool)
            _write_visits(journal.visits, file.create_group("visits"), pool)
    except OSError as error:
        raise BadInput(f"{path}: the log cannot be written: {error}") from error


def visit_columns(visits: NDArray[np.void]) -> dict[str, NDArray[Any]]:
    """Columns of the `visits` group from `VISIT_DTYPE` rows."""
    columns: dict[str, NDArray[Any]] = {name: visits[name] for name in visits.dtype.names or ()}
    planned = np.where(visits["planned_meterset"] > 0, visits["planned_meterset"], np.nan)
    columns["dose_error_pct"] = 100.0 * (visits["meterset_1"] - visits["planned_meterset"]) / planned
    columns["monitor_difference_pct"] = 100.0 * (visits["meterset_2"] - visits["meterset_1"]) / planned
    columns["x_error_mm"] = visits["x_mm"] - visits["planned_x_mm"]
    columns["y_error_mm"] = visits["y_mm"] - visits["planned_y_mm"]
    return columns


def _attributes(journal: Journal, file: h5py.File) -> None:
    header = journal.header
    file.attrs["format"] = "spotwise-log"
    file.attrs["version"] = FORMAT_VERSION
    file.attrs["journal_chain_sha256"] = journal.last_hash.hex()
    for key in ("plan_sha256", "site_sha256", "epoch"):
        file.attrs[key] = str(header.get(key, ""))
    file.attrs["simulated"] = json.dumps(header.get("simulated"))


def _texts(file: h5py.File, name: str, values: list[dict[str, Any]]) -> None:
    data = [canonical_json(value).decode() for value in values]
    file.create_dataset(name, data=data, dtype=h5py.string_dtype("utf-8"), track_times=False)


def _datasets(group: h5py.Group, columns: tuple[Column, ...], count: int) -> dict[str, h5py.Dataset]:
    found = {}
    for column in columns:
        dataset = group.create_dataset(
            column.name,
            shape=(count,),
            dtype=np.dtype("<" + column.dtype),
            track_times=False,
            **(
                {"chunks": (min(CHUNK_ROWS, count),), "compression": COMPRESSION_LEVEL, "shuffle": True}
                if count
                else {}
            ),
        )
        dataset.attrs["unit"] = column.unit
        dataset.attrs["meaning"] = column.meaning
        dataset.attrs["source"] = column.source
        found[column.name] = dataset
    return found


def _write_chunk(
    datasets: dict[str, h5py.Dataset], columns: dict[str, NDArray[Any]], first: int, pool: ThreadPoolExecutor
) -> None:
    """One chunk of every column, compressed aside and written in the order of the columns."""
    names = list(datasets)
    rows = datasets[names[0]].chunks[0]
    packed = pool.map(lambda name: _pack(np.asarray(columns[name], datasets[name].dtype), rows), names)
    for name, data in zip(names, packed, strict=True):
        datasets[name].id.write_direct_chunk((first,), data)


def _pack(values: NDArray[Any], rows: int) -> bytes:
    """HDF5's shuffle filter, then gzip's: what the filters of the dataset undo. A last chunk is filled with zeros."""
    size = values.dtype.itemsize
    whole = np.zeros((rows, size), np.uint8)
    whole[: len(values)] = np.ascontiguousarray(values).view(np.uint8).reshape(-1, size)
    return zlib.compress(whole.T.tobytes(), COMPRESSION_LEVEL)


def _write_visits(visits: NDArray[np.void], group: h5py.Group, pool: ThreadPoolExecutor) -> None:
    datasets = _datasets(group, VISIT_COLUMNS, len(visits))
    for first in range(0, len(visits), CHUNK_ROWS):
        _write_chunk(datasets, visit_columns(visits[first : first + CHUNK_ROWS]), first, pool)


def _write_rows(journal: Journal, group: h5py.Group, pool: ThreadPoolExecutor) -> None:
    datasets = _datasets(group, ROW_COLUMNS, journal.row_count)
    first = 0
    waiting: list[dict[str, NDArray[Any]]] = []
    held = 0
    for derived in _derived(journal):
        waiting.append(derived)
        held += len(derived["t_ns"])
        while held >= CHUNK_ROWS:
            whole = {name: np.concatenate([w[name] for w in waiting]) for name in datasets}
            _write_chunk(datasets, {name: v[:CHUNK_ROWS] for name, v in whole.items()}, first, pool)
            waiting = [{name: v[CHUNK_ROWS:] for name, v in whole.items()}]
            held -= CHUNK_ROWS
            first += CHUNK_ROWS
    if held:
        whole = {name: np.concatenate([w[name] for w in waiting]) for name in datasets}
        _write_chunk(datasets, whole, first, pool)


def _derived(journal: Journal) -> Iterator[dict[str, NDArray[Any]]]:
    """Columns of all rows, in blocks of about a chunk; no block spans two parts."""
    for part in journal.parts:
        deriver = RowDeriver(part)
        blocks: list[NDArray[np.void]] = []
        for rows in part.rows():
            blocks.append(rows)
            if sum(map(len, blocks)) >= CHUNK_ROWS:
                yield deriver.derive(np.concatenate(blocks))
                blocks = []
        if blocks:
            yield deriver.derive(np.concatenate([np.zeros(0, ROW_DTYPE), *blocks]))
