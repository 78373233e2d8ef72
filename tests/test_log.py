"""log.h5: says what the journal says, in documented columns, the same bytes every time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from controller.record import log
from controller.record.journal import read_journal
from controller.record.log import write_log
from controller.record.log_columns import ROW_COLUMNS, VISIT_COLUMNS, markdown
from controller.record.schema import ROW_DTYPE, VISIT_DTYPE
from tests.journal_builder import COUNTS_PER_PARTICLE, Builder, complete, interrupted


def logged(journal: Path) -> h5py.File:
    with read_journal(journal) as read:
        write_log(read, journal.with_suffix(".h5"))
    return h5py.File(journal.with_suffix(".h5"))


def columns(group: Any) -> dict[str, np.ndarray[Any, Any]]:
    return {name: group[name][:] for name in group}


def test_every_column_is_there_with_unit_meaning_and_source(tmp_path: Path) -> None:
    with logged(complete(tmp_path / "journal.bin")) as file:
        assert len(file["rows"]) == len(ROW_COLUMNS) >= 41
        for group, table in (("rows", ROW_COLUMNS), ("visits", VISIT_COLUMNS)):
            for column in table:
                dataset = file[group][column.name]
                assert dataset.dtype == np.dtype("<" + column.dtype)
                assert dataset.attrs["unit"] == column.unit
                assert dataset.attrs["meaning"] == column.meaning
                assert dataset.attrs["source"] == column.source


def test_the_page_is_made_from_the_same_table() -> None:
    page = Path(__file__).parents[1] / "docs" / "log.md"
    assert page.read_text() == markdown()


def test_rows_and_visits_are_those_of_the_journal(tmp_path: Path) -> None:
    path = complete(tmp_path / "journal.bin")
    with logged(path) as file, read_journal(path) as journal:
        rows = np.concatenate(list(journal.rows()))
        for name in ("t_ns", "counts_1", "counts_2", "visit", "permit", "trip", "frames_1", "strip_counts"):
            np.testing.assert_array_equal(file["rows"][name][:], rows[name])
        for name in VISIT_DTYPE.names or ():
            np.testing.assert_array_equal(file["visits"][name][:], journal.visits[name])
        assert [json.loads(text) for text in file["events"].asstr()[:]] == journal.events
        assert json.loads(file["headers"].asstr()[0]) == journal.header


def test_counts_of_rows_add_up_to_those_of_the_visits(tmp_path: Path) -> None:
    with logged(complete(tmp_path / "journal.bin")) as file:
        rows, visits = columns(file["rows"]), columns(file["visits"])
    for f in (0, 1):
        for number in (1, 2):
            per_visit = np.bincount(
                rows["visit"][rows["field"] == f], rows[f"counts_{number}_step"][rows["field"] == f]
            )
            expected = visits[f"counts_{number}"][visits["field"] == f]
            np.testing.assert_array_equal(per_visit[1:], expected)


def test_metersets_run_up_to_the_sum_of_the_field(tmp_path: Path) -> None:
    with logged(complete(tmp_path / "journal.bin")) as file:
        rows, visits = columns(file["rows"]), columns(file["visits"])
    for f in (0, 1):
        running = rows["meterset_1"][rows["field"] == f]
        assert running[0] == 0.0
        assert running[-1] == pytest.approx(visits["meterset_1"][visits["field"] == f].sum(), rel=1e-12)


def test_rows_know_their_layer_spot_painting_and_plan(tmp_path: Path) -> None:
    with logged(complete(tmp_path / "journal.bin")) as file:
        rows, visits = columns(file["rows"]), columns(file["visits"])
    for v in range(len(visits["visit"])):
        mine = (rows["field"] == visits["field"][v]) & (rows["visit"] == visits["visit"][v])
        assert mine.any()
        for name in ("layer", "spot", "painting", "planned_x_mm", "planned_y_mm"):
            assert set(rows[name][mine]) == {np.float32(visits[name][v])}
        assert rows["x_mm"][mine] == pytest.approx(visits["x_mm"][v], abs=1e-3)
        np.testing.assert_allclose(rows["x_error_mm"][mine], visits["x_error_mm"][v], atol=1e-3)
    idle = rows["visit"] == 0
    assert idle.any()
    assert set(rows["layer"][idle]) == {-1}
    assert np.isnan(rows["planned_x_mm"][idle]).all()
    assert not rows["beam"][idle].any()
    assert rows["beam"][~idle].all()


def test_units_are_converted_once(tmp_path: Path) -> None:
    with logged(complete(tmp_path / "journal.bin")) as file:
        rows = columns(file["rows"])
    beam = rows["visit"] > 0
    assert rows["charge_1_pc"][beam] == pytest.approx(rows["counts_1_step"][beam] * 10.0 * 1e-3, rel=1e-6)
    np.testing.assert_allclose(
        rows["rate_1_per_s"][beam], rows["counts_1_step"][beam] / 200e-6 / COUNTS_PER_PARTICLE, rtol=1e-6
    )
    assert set(rows["x_set_a"]) == {np.float32(1.5)}
    assert set(rows["x_voltage_v"]) == {np.float32(2.5)}
    assert set(rows["x_field_tm"]) == {np.float32(243e-6)}
    assert rows["energy_readback_mev_u"][beam].min() == pytest.approx(210.001, abs=1e-4)


def test_what_was_not_measured_is_nan(tmp_path: Path) -> None:
    with logged(complete(tmp_path / "journal.bin", no_position=((0, 0, 2),))) as file:
        rows, visits = columns(file["rows"]), columns(file["visits"])
    missing = (rows["field"] == 0) & (rows["layer"] == 0) & (rows["spot"] == 2)
    assert missing.any()
    for name in ("x_strip_mm", "x_mm", "sigma_y_mm", "x_error_mm"):
        assert np.isnan(rows[name][missing]).all()
    assert np.isnan(visits["x_error_mm"]).sum() == 1


def test_the_same_journal_gives_the_same_bytes_whatever_the_chunks_of_the_journal(tmp_path: Path) -> None:
    path = complete(tmp_path / "journal.bin")
    with read_journal(path) as journal:
        write_log(journal, tmp_path / "a.h5")
        write_log(journal, tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_chunks_do_not_change_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = interrupted(tmp_path / "journal.bin", resumed=True)
    with logged(path) as file:
        whole = columns(file["rows"])
    monkeypatch.setattr(log, "CHUNK_ROWS", 64)
    with logged(path) as file:
        chunked = columns(file["rows"])
    for name, values in whole.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(chunked[name], values, rtol=1e-12)
        else:
            np.testing.assert_array_equal(chunked[name], values)


def test_a_resumed_treatment_has_one_log_with_both_parts(tmp_path: Path) -> None:
    with logged(interrupted(tmp_path / "journal.bin", resumed=True)) as file:
        rows = columns(file["rows"])
        assert set(rows["part"]) == {1, 2}
        assert len(file["headers"]) == 2
        second = rows["part"] == 2
        assert rows["counts_1_step"][second][0] == 0
        assert rows["meterset_1"][second][0] == 0


def test_a_treatment_that_ended_before_any_beam_has_an_empty_log(tmp_path: Path) -> None:
    build = Builder(tmp_path / "journal.bin")
    build.begin()
    build.journal.close()
    with logged(tmp_path / "journal.bin") as file:
        assert file["rows"]["t_ns"].shape == (0,)
        assert file["visits"]["visit"].shape == (0,)
        assert len(file["events"]) == 10


def test_rows_are_200_us_and_all_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "journal.bin"
    build = Builder(path)
    build.begin()
    rows = np.zeros(70_000, ROW_DTYPE)
    rows["t_ns"] = (1 + np.arange(len(rows))) * 200_000
    rows["counts_1"] = np.arange(len(rows)) * 3
    build.journal.rows(rows)
    build.journal.close()
    with logged(path) as file:
        assert file["rows"]["t_ns"].shape == (70_000,)
        np.testing.assert_array_equal(file["rows"]["t_ns"][:], rows["t_ns"])
        assert set(file["rows"]["counts_1_step"][1:]) == {3}
        assert set(file["rows"]["field"][:]) == {-1}
