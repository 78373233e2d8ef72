"""The log for everybody's analysis: a stable way in from Python, CSV, and Parquet where pyarrow is installed."""

from __future__ import annotations

import csv
import importlib.util
import re
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from controller.record import log_reader
from controller.record.export import write_csv, write_parquet
from controller.record.identity import write_identity
from controller.record.journal_reader import read_journal
from controller.record.log_columns import ROW_COLUMNS, VISIT_COLUMNS
from controller.record.log_reader import open_log
from controller.record.rebuild import rebuild
from drivers.errors import BadInput
from tests.journal_builder import IDENTITY, interrupted
from tests.test_command_line import one_object, spotwise


@pytest.fixture(scope="module")
def treatment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A resumed treatment."""
    folder = tmp_path_factory.mktemp("export") / "treatment"
    folder.mkdir()
    interrupted(folder / "journal.bin", resumed=True, no_position=((0, 0, 1),))
    write_identity(folder / "identity.dcm", IDENTITY)
    rebuild(folder)
    return folder


def test_the_log_is_read_as_the_journal_has_it(treatment: Path) -> None:
    with open_log(treatment) as log, read_journal(treatment / "journal.bin") as journal:
        for name in journal.visits.dtype.names or ():
            np.testing.assert_array_equal(log.visits[name], journal.visits[name])
        rows = np.concatenate(list(journal.rows()))
        blocks = list(log.rows(["t_ns", "counts_1"], block=1000))
        assert all(list(block) == ["t_ns", "counts_1"] for block in blocks)
        assert len(blocks) == -(-len(rows) // 1000)
        np.testing.assert_array_equal(np.concatenate([b["t_ns"] for b in blocks]), rows["t_ns"])
        assert log.row_count == len(rows)
        assert log.events == journal.events
        assert [h["part"] for h in log.headers] == [1, 2]
        assert (log.version, log.simulated) == (1, True)


def test_every_column_has_its_unit_and_meaning(treatment: Path) -> None:
    with open_log(treatment / "log.h5") as log:
        for table, columns in (("rows", ROW_COLUMNS), ("visits", VISIT_COLUMNS)):
            assert {c.name: c for c in columns} == log.columns[table]


def test_the_interface_is_the_one_that_is_promised() -> None:
    """A name that goes, or changes its meaning, needs another API_VERSION (and a line in CHANGELOG.md)."""
    assert log_reader.API_VERSION == 1
    assert log_reader.__all__ == ["API_VERSION", "Column", "Log", "open_log"]
    public = {name for name in vars(log_reader.Log) if not name.startswith("_")}
    assert public == {"close", "events", "headers", "row_count", "rows", "simulated", "to_pandas", "version"}
    assert list(log_reader.Column.__dataclass_fields__) == ["name", "dtype", "unit", "meaning", "source"]


def test_the_example_of_the_page_runs(treatment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[1] / "docs" / "log.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, object] = {}
    exec(example.replace('"DIR"', repr(str(treatment))), names)  # the page's own words
    assert capsys.readouterr().out.startswith("field's unit\nTEST ")
    beam_s = names["beam_s"]
    assert isinstance(beam_s, float)
    with read_journal(treatment / "journal.bin") as journal:
        assert beam_s == pytest.approx(journal.visits["beam_on_ns"].sum() * 1e-9, rel=0.05)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no log"), (b"nothing", "cannot be read as HDF5"), (b"other", "reads 'spotwise-log'")],
)
def test_what_is_no_log_is_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content == b"other":
        with h5py.File(tmp_path / "log.h5", "w") as file:
            file.attrs["format"], file.attrs["version"] = "spotwise-log", 99
    elif content is not None:
        (tmp_path / "log.h5").write_bytes(content)
    with pytest.raises(BadInput, match=message):
        open_log(tmp_path)
    assert spotwise("export", tmp_path, "--csv", tmp_path / "csv")[0] == 2


def test_an_unknown_column_is_named(treatment: Path) -> None:
    with open_log(treatment) as log, pytest.raises(BadInput, match="no column nonsense"):
        next(log.rows(["t_ns", "nonsense"]))


def test_csv_holds_every_number_and_says_what_it_means(treatment: Path, tmp_path: Path) -> None:
    status, text, _ = spotwise("export", treatment, "--csv", tmp_path / "csv", "--json")
    told = one_object(text)
    assert status == 0
    assert sorted(Path(p).name for p in told["files"]) == ["columns.csv", "rows.csv", "visits.csv"]
    with open_log(treatment) as log:
        with (tmp_path / "csv" / "visits.csv").open() as file:
            visits = list(csv.DictReader(file))
        assert len(visits) == told["visits"] == len(log.visits["visit"])
        for name in log.columns["visits"]:
            got = np.array([float(row[name] or "nan") for row in visits])
            np.testing.assert_array_equal(got, log.visits[name].astype(float), err_msg=name)
        with (tmp_path / "csv" / "rows.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == told["rows"] == log.row_count
        for block in log.rows(["t_ns", "x_mm"]):
            np.testing.assert_array_equal([int(r["t_ns"]) for r in rows], block["t_ns"])
            got = np.array([np.float32(r["x_mm"] or "nan") for r in rows])
            np.testing.assert_array_equal(got, block["x_mm"])
    with (tmp_path / "csv" / "columns.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(ROW_COLUMNS) + len(VISIT_COLUMNS)
    assert "PLANTED" not in "".join(p.read_text() for p in (tmp_path / "csv").iterdir())


def test_parquet_without_pyarrow_is_2_and_says_what_to_install(
    treatment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    status, _, err = spotwise("export", treatment, "--parquet", tmp_path / "visits.parquet")
    assert status == 2
    assert "requirements/export.txt" in err
    assert list(tmp_path.iterdir()) == []
    assert spotwise("export", treatment)[0] == 2


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="NOT TESTED: pyarrow (extra export) is missing")
def test_parquet_holds_the_same_with_units(treatment: Path, tmp_path: Path) -> None:
    from pyarrow import parquet  # noqa: PLC0415

    with open_log(treatment) as log:
        visits, rows = write_parquet(log, tmp_path / "visits.parquet")
        table = parquet.read_table(visits)
        for name in log.columns["visits"]:
            np.testing.assert_array_equal(table[name].to_numpy(), log.visits[name])
        assert parquet.read_table(rows).num_rows == log.row_count
    meta = table.schema.field("meterset_1").metadata
    assert meta[b"unit"] == b"field's unit"


@pytest.mark.skipif(importlib.util.find_spec("pandas") is None, reason="NOT TESTED: pandas is missing")
def test_a_data_frame_has_the_same_columns_and_units(treatment: Path) -> None:
    with open_log(treatment) as log:
        frame = log.to_pandas("visits")
        np.testing.assert_array_equal(frame["meterset_1"].to_numpy(), log.visits["meterset_1"])
        assert frame.attrs["units"]["x_mm"] == "mm"
        assert len(log.to_pandas("rows")) == log.row_count
        with pytest.raises(BadInput, match="no table"):
            log.to_pandas("nothing")


def test_without_pandas_a_data_frame_says_what_is_missing(treatment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with open_log(treatment) as log, pytest.raises(BadInput, match="needs pandas"):
        log.to_pandas()


def test_a_folder_that_cannot_be_written_is_named(treatment: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with open_log(treatment) as log, pytest.raises(BadInput, match="cannot be written"):
        write_csv(log, tmp_path / "file" / "below")
