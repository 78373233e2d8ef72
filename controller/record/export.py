"""`spotwise export DIR`: visits and log as CSV and as Parquet, read through the interface that is everybody's."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.record.log_columns import Column
from controller.record.log_reader import BLOCK_ROWS, Log
from drivers.errors import BadInput

PARQUET_HINT = "Parquet needs pyarrow: pip install --require-hashes -r requirements/export.txt (or spotwise[export])"


def write_csv(log: Log, folder: Path) -> list[Path]:
    """visits.csv, rows.csv and columns.csv (unit and meaning of each column); returns them. Raises `BadInput`.

    NaN is an empty field: nothing was measured.
    """
    paths = [folder / f"{name}.csv" for name in ("visits", "rows", "columns")]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with paths[0].open("w", newline="", encoding="utf-8") as file:
            _table(file, list(log.columns["visits"]), [{name: log.visits[name] for name in log.columns["visits"]}])
        with paths[1].open("w", newline="", encoding="utf-8") as file:
            _table(file, list(log.columns["rows"]), log.rows())
        with paths[2].open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["table", "column", "type", "unit", "meaning", "from"])
            for table, columns in log.columns.items():
                writer.writerows((table, c.name, c.dtype, c.unit, c.meaning, c.source) for c in columns.values())
    except OSError as error:
        raise BadInput(f"{folder}: cannot be written: {error.strerror}") from error
    return paths


def write_parquet(log: Log, path: Path) -> list[Path]:
    """Visits to `path`, the log beside it ('x.parquet': 'x-rows.parquet'); returns both. Raises `BadInput`.

    Units and meanings are in the metadata of each column; NaN stays NaN.
    """
    try:
        import pyarrow  # noqa: PLC0415
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as error:
        raise BadInput(PARQUET_HINT) from error
    beside = path.with_name(f"{path.stem}-rows{path.suffix}")
    visits = [{name: log.visits[name] for name in log.columns["visits"]}]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for target, columns, blocks in (
            (path, log.columns["visits"], visits),
            (beside, log.columns["rows"], log.rows()),
        ):
            schema = _schema(pyarrow, log, columns)
            with pyarrow.parquet.ParquetWriter(target, schema) as writer:
                for block in blocks:
                    arrays = [pyarrow.array(block[name]) for name in columns]
                    writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error}") from error
    return [path, beside]


def _schema(pyarrow: Any, log: Log, columns: dict[str, Column]) -> Any:
    fields = [
        pyarrow.field(
            c.name,
            pyarrow.from_numpy_dtype(np.dtype(c.dtype)),
            metadata={"unit": c.unit, "meaning": c.meaning, "from": c.source},
        )
        for c in columns.values()
    ]
    first = log.headers[0]
    about = {
        name: json.dumps(first.get(name)) for name in ("plan_sha256", "site_sha256", "epoch", "simulated", "version")
    }
    return pyarrow.schema(fields, metadata={**about, "format": f"spotwise-log {log.version}"})


def _table(
    file: Any, names: Sequence[str], blocks: Iterator[dict[str, NDArray[Any]]] | list[dict[str, NDArray[Any]]]
) -> None:
    writer = csv.writer(file)
    writer.writerow(names)
    for block in blocks:
        for first in range(0, len(block[names[0]]), BLOCK_ROWS):
            writer.writerows(zip(*(_texts(block[name][first : first + BLOCK_ROWS]) for name in names), strict=True))


def _texts(values: NDArray[Any]) -> list[Any]:
    """As short as they can be and still the same number; NaN is nothing."""
    if values.dtype.kind != "f":
        return list(values.tolist())
    texts = values.astype(str)
    return list(np.where(np.isnan(values), "", texts))
