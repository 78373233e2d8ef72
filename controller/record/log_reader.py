"""Reading a treatment's log from Python, for analysis: the stable interface to `log.h5`.

    from controller.record.log_reader import open_log

    with open_log("DIR") as log:
        dose = log.visits["meterset_1"]                    # a numpy array, one entry a visit
        log.columns["visits"]["meterset_1"].unit           # and what it means
        for block in log.rows(["t_ns", "rate_1_per_s"]):   # the 200-us log in blocks that fit into memory
            ...
        table = log.to_pandas("visits")                    # where pandas is installed

Names, units and meanings of columns do not change within a version of the file's format; columns may be added. What is
read here is what `spotwise verify` compares with the journal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from controller.record.log_columns import ROW_COLUMNS, VISIT_COLUMNS, Column
from drivers.errors import BadInput

__all__ = ["API_VERSION", "Column", "Log", "open_log"]

API_VERSION = 1
"""Of this interface; it grows only where something that was there goes or changes its meaning."""
FORMATS = frozenset({1})
BLOCK_ROWS = 65536
TABLES = ("rows", "visits")


class _Table(Mapping[str, NDArray[Any]]):
    """Columns of a table by name, each read when it is asked for."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def __getitem__(self, name: str) -> NDArray[Any]:
        values: NDArray[Any] = self._group[name][:]
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self._group)

    def __len__(self) -> int:
        return len(self._group)


class Log:
    """An open log; a context manager. Made by `open_log`."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path = path
        self._file = file
        self.columns: dict[str, dict[str, Column]] = {name: _columns(file[name]) for name in TABLES}
        """By table ("rows", "visits") and name: type, unit, meaning and what it was made from."""
        self.visits: Mapping[str, NDArray[Any]] = _Table(file["visits"])
        """One entry a visit."""

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def version(self) -> int:
        """Of the file's format."""
        return int(self._file.attrs["version"])

    @property
    def simulated(self) -> bool:
        """Any device was simulated."""
        return bool(json.loads(str(self._file.attrs["simulated"])))

    @property
    def headers(self) -> list[dict[str, Any]]:
        """HEADER of each part: the whole plan, the whole site, version, seed, operator, fraction."""
        return self._texts("headers")

    @property
    def events(self) -> list[dict[str, Any]]:
        """Every event in order."""
        return self._texts("events")

    @property
    def row_count(self) -> int:
        """Entries of the 200-us log."""
        return len(self._file["rows"]["t_ns"])

    def rows(self, names: Sequence[str] | None = None, *, block: int = BLOCK_ROWS) -> Iterator[dict[str, NDArray[Any]]]:
        """The 200-us log in blocks; `names`: only these columns. Raises `BadInput` for a column that is not there."""
        wanted = list(self.columns["rows"]) if names is None else list(names)
        unknown = [name for name in wanted if name not in self.columns["rows"]]
        if unknown:
            raise BadInput(f"{self.path}: rows have no column {', '.join(unknown)}")
        for first in range(0, self.row_count, block):
            yield {name: self._file["rows"][name][first : first + block] for name in wanted}

    def to_pandas(self, table: str = "visits") -> Any:
        """A table as a pandas DataFrame; units are in `attrs["units"]`. Raises `BadInput` without pandas."""
        try:
            import pandas  # noqa: PLC0415
        except ImportError as error:
            raise BadInput("to_pandas needs pandas: pip install pandas") from error
        if table not in TABLES:
            raise BadInput(f"{table!r} is no table of a log; there are {', '.join(TABLES)}")
        frame = pandas.DataFrame({name: self._file[table][name][:] for name in self.columns[table]})
        frame.attrs["units"] = {name: column.unit for name, column in self.columns[table].items()}
        return frame

    def _texts(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(text) for text in self._file[name].asstr()[:]]


def open_log(directory: Path | str) -> Log:
    """Open the log of a treatment directory, or a log file. Raises `BadInput`: none, damaged, or of another format."""
    path = Path(directory)
    path = path / "log.h5" if path.is_dir() else path
    if not path.is_file():
        raise BadInput(f"{path}: no log; spotwise report makes one from a treatment's journal")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise BadInput(f"{path}: cannot be read as HDF5: {error}") from error
    try:
        if file.attrs.get("format") != "spotwise-log" or int(file.attrs["version"]) not in FORMATS:
            raise BadInput(
                f"{path}: format {file.attrs.get('format')!r} version {file.attrs.get('version')}; this Spotwise reads "
                f"'spotwise-log' version {', '.join(map(str, sorted(FORMATS)))}"
            )
        return Log(path, file)
    except BadInput:
        file.close()
        raise
    except (KeyError, OSError, ValueError) as error:
        file.close()
        raise BadInput(f"{path}: a damaged log: {error!r}") from error


def _columns(group: Any) -> dict[str, Column]:
    found = {}
    known = [column.name for column in (*ROW_COLUMNS, *VISIT_COLUMNS)]
    # as the page has them; HDF5 itself sorts them by name
    for name in sorted(group, key=lambda name: known.index(name) if name in known else len(known)):
        dataset = group[name]
        kind = np.dtype(dataset.dtype).str[1:]
        found[name] = Column(name, kind, *(str(dataset.attrs[key]) for key in ("unit", "meaning", "source")))
    return found
