"""The journal: whole, or it says where it is not."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from controller.machine.program import VISIT_PLAN_DTYPE
from controller.record import journal_format, schema
from controller.record.journal import (
    BACKLOG_LIMIT_BYTES,
    ROWS_PER_RECORD,
    JournalDiskError,
    JournalError,
    JournalWriter,
    RecordType,
    read_journal,
)
from controller.record.journal_format import FILE_HEADER
from controller.record.schema import ROW_DTYPE, VISIT_DTYPE, VISIT_DTYPE_1
from drivers.errors import BadInput


def visits_of(*ids: int) -> np.ndarray:
    array = np.zeros(len(ids), VISIT_DTYPE)
    array["visit"] = ids
    array["t_end_ns"] = np.array(ids) * 1_000_000
    return array


def rows_of(first: int, count: int) -> np.ndarray:
    array = np.zeros(count, ROW_DTYPE)
    array["t_ns"] = (np.arange(first, first + count) + 1) * 200_000
    return array


def write_small(path: Path) -> Path:
    with JournalWriter(path) as journal:
        journal.header(0, {"part": 1, "plan": {"label": "A"}})
        journal.event(5, "state", state="READY", previous="IDLE", cause="prepared")
        journal.program(6, {"layer_index": 0}, np.zeros(2, VISIT_PLAN_DTYPE))
        journal.rows(rows_of(0, 3))
        journal.visits(visits_of(1, 2))
        journal.end(9, {"visits": 2})
    return path


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    with read_journal(write_small(tmp_path / "journal.bin")) as journal:
        assert journal.torn is None
        assert [r.kind.name for r in journal.records] == ["HEADER", "EVENT", "PROGRAM", "ROWS", "VISITS", "END"]
        assert [r.sequence for r in journal.records] == list(range(6))
        assert journal.header["plan"] == {"label": "A"}
        assert journal.events == [
            {"t_ns": 5, "event": "state", "state": "READY", "previous": "IDLE", "cause": "prepared"}
        ]
        assert journal.programs[0].head == {"layer_index": 0}
        assert len(journal.programs[0].visits) == 2
        assert journal.visits["visit"].tolist() == [1, 2]
        assert np.concatenate(list(journal.rows()))["t_ns"].tolist() == [200_000, 400_000, 600_000]
        assert journal.end == {"visits": 2}


def test_visits_of_an_older_version_are_read_and_what_they_lack_is_not_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = np.zeros(2, VISIT_DTYPE_1)
    old["visit"], old["particles_1"] = [1, 2], [10.0, 20.0]
    with JournalWriter(tmp_path / "journal.bin") as journal:
        journal.header(0, {"part": 1})
        with monkeypatch.context() as older:
            older.setattr(journal_format, "version_of", lambda kind: 1)
            journal.append(RecordType.VISITS, 5, old.tobytes())
        journal.visits(visits_of(3))
    with read_journal(tmp_path / "journal.bin") as read:
        visits = read.visits
    assert visits["visit"].tolist() == [1, 2, 3]
    assert visits["particles_1"].tolist() == [10.0, 20.0, 0.0]
    assert np.isnan(visits["u_particles_1"]).tolist() == [True, True, False]


def test_equal_calls_give_equal_bytes(tmp_path: Path) -> None:
    a, b = write_small(tmp_path / "a.bin"), write_small(tmp_path / "b.bin")
    assert a.read_bytes() == b.read_bytes()


def test_real_time_and_in_place_writing_give_the_same_bytes(tmp_path: Path) -> None:
    async def in_loop() -> None:
        write_small(tmp_path / "loop.bin")

    asyncio.run(in_loop())
    assert (tmp_path / "loop.bin").read_bytes() == write_small(tmp_path / "plain.bin").read_bytes()


def test_rows_are_gathered_into_records_whatever_their_portions(tmp_path: Path) -> None:
    contents = []
    for portion in (1, 7, 1000, 6000):
        path = tmp_path / f"{portion}.bin"
        with JournalWriter(path) as journal:
            journal.header(0, {"part": 1})
            for first in range(0, 6000, portion):
                journal.rows(rows_of(first, min(portion, 6000 - first)))
        with read_journal(path) as journal_read:
            assert [len(block) for block in journal_read.rows()] == [ROWS_PER_RECORD, ROWS_PER_RECORD, 1000]
        contents.append(path.read_bytes())
    assert len(set(contents)) == 1


def test_a_torn_tail_is_cut_at_every_byte_of_the_last_record(tmp_path: Path) -> None:
    whole = write_small(tmp_path / "journal.bin").read_bytes()
    with read_journal(tmp_path / "journal.bin") as journal:
        start = journal.records[-1].offset
    for size in range(start, len(whole)):
        torn = tmp_path / "torn.bin"
        torn.write_bytes(whole[:size])
        with read_journal(torn) as journal:
            assert len(journal.records) == 5
            assert journal.end is None
            assert journal.good_bytes == start
            assert (journal.torn is None) == (size == start)
    assert "record 5" in str(journal.torn)


def test_a_tail_that_the_file_system_never_filled_is_cut(tmp_path: Path) -> None:
    whole = write_small(tmp_path / "journal.bin").read_bytes()
    torn = tmp_path / "torn.bin"
    for keep in (0, 10, 60):
        with read_journal(tmp_path / "journal.bin") as journal:
            start = journal.records[-1].offset
        torn.write_bytes(whole[: start + keep] + bytes(9000))
        with read_journal(torn) as journal:
            assert len(journal.records) == 5
            assert journal.torn is not None


def test_every_single_flipped_bit_is_found(tmp_path: Path) -> None:
    whole = write_small(tmp_path / "journal.bin").read_bytes()
    damaged = tmp_path / "damaged.bin"
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << (position % 8)
        damaged.write_bytes(flipped)
        with pytest.raises(BadInput):
            read_journal(damaged)


def test_damage_is_named_with_offset_and_record(tmp_path: Path) -> None:
    path = write_small(tmp_path / "journal.bin")
    with read_journal(path) as journal:
        offset = journal.records[2].offset
    data = bytearray(path.read_bytes())
    data[offset + 40] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadInput, match=rf"byte {offset}, record 2"):
        read_journal(path)


def test_a_removed_record_breaks_the_sequence(tmp_path: Path) -> None:
    path = write_small(tmp_path / "journal.bin")
    with read_journal(path) as journal:
        a, b = journal.records[2].offset, journal.records[3].offset
    data = path.read_bytes()
    path.write_bytes(data[:a] + data[b:])
    with pytest.raises(BadInput, match="sequence 3, wanted 2"):
        read_journal(path)


def test_an_edit_with_a_corrected_crc_breaks_the_chain(tmp_path: Path) -> None:
    one, other = tmp_path / "one.bin", tmp_path / "other.bin"
    for path, label in ((one, "A"), (other, "B")):
        with JournalWriter(path) as writer:
            writer.header(0, {"part": 1, "label": label})
            writer.event(5, "warning", text="x")
    with read_journal(one) as journal:
        start = journal.records[1].offset
    one.write_bytes(other.read_bytes()[:start] + one.read_bytes()[start:])
    with pytest.raises(BadInput, match="hash chain"):
        read_journal(one)


@pytest.mark.parametrize("content", [b"", FILE_HEADER[:5], FILE_HEADER])
def test_a_journal_without_records_is_readable_but_has_no_header(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal.bin"
    path.write_bytes(content)
    with read_journal(path) as journal:
        assert journal.parts == []
        with pytest.raises(BadInput, match="no HEADER"):
            _ = journal.header


def test_another_file_is_no_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.bin"
    path.write_bytes(b"PK\x03\x04 something else entirely")
    with pytest.raises(BadInput, match="not a Spotwise journal"):
        read_journal(path)
    with pytest.raises(BadInput, match="cannot be read"):
        read_journal(tmp_path / "absent.bin")


def test_a_resumed_treatment_continues_the_chain_in_a_new_part(tmp_path: Path) -> None:
    path = write_small(tmp_path / "journal.bin")
    with path.open("ab") as file:
        file.write(b"\x01\x02\x03")
    with JournalWriter(path) as writer:
        assert writer.cut is not None
        assert "torn tail" in writer.cut
        writer.header(100, {"part": 2})
        writer.visits(visits_of(3))
    with read_journal(path) as journal:
        assert journal.torn is None
        assert [part.number for part in journal.parts] == [1, 2]
        assert journal.parts[0].end == {"visits": 2}
        assert journal.parts[1].end is None
        assert journal.parts[1].visits["visit"].tolist() == [3]
        assert journal.visits["visit"].tolist() == [1, 2, 3]
        assert journal.end is None


def test_a_damaged_journal_is_not_continued(tmp_path: Path) -> None:
    path = write_small(tmp_path / "journal.bin")
    data = bytearray(path.read_bytes())
    data[60] ^= 4
    path.write_bytes(data)
    with pytest.raises(BadInput):
        JournalWriter(path)
    assert path.read_bytes() == bytes(data)


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float64("nan"), b"bytes"])
def test_values_that_json_has_no_word_for_are_refused_by_name(tmp_path: Path, value: object) -> None:
    with JournalWriter(tmp_path / "journal.bin") as journal:
        journal.header(0, {"part": 1})
        with pytest.raises(JournalError, match="ktp"):
            journal.event(1, "corrections", ktp=value, temperature_c=22.0)
        assert journal.sequence == 1


def test_unknown_events_are_refused(tmp_path: Path) -> None:
    with JournalWriter(tmp_path / "journal.bin") as journal, pytest.raises(JournalError, match="unknown event 'lunch'"):
        journal.event(1, "lunch")


def test_arrays_of_another_shape_are_refused(tmp_path: Path) -> None:
    with JournalWriter(tmp_path / "journal.bin") as journal, pytest.raises(BadInput, match="rows"):
        journal.rows(visits_of(1))


async def test_records_are_in_the_file_after_sync_and_before_close(tmp_path: Path) -> None:
    path = tmp_path / "journal.bin"
    journal = JournalWriter(path)
    try:
        journal.header(0, {"part": 1})
        journal.rows(rows_of(0, 3))
        await journal.sync()
        with read_journal(path) as read:
            assert read.row_count == 3
    finally:
        journal.close()


async def test_the_disk_is_waited_for_outside_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    real = os.fdatasync

    def noted(fd: int) -> None:
        threads.append(threading.current_thread().name)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", noted)
    journal = JournalWriter(tmp_path / "journal.bin")
    journal.header(0, {"part": 1})
    await journal.sync()
    assert len(threads) == 1
    assert threads[0].startswith("journal")
    journal.close()


async def test_a_full_disk_is_named_and_nothing_is_lost_once_there_is_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.bin"
    journal = JournalWriter(path)
    real = os.write
    room = 100  # bytes that still fit

    def write(fd: int, data: memoryview) -> int:
        nonlocal room
        if room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = real(fd, bytes(data[:room]))
        room -= taken
        return taken

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        journal.header(0, {"part": 1, "padding": "x" * 200})
        with pytest.raises(JournalDiskError, match="No space left"):
            await journal.sync()
        assert journal.fault is not None
        journal.visits(visits_of(1, 2))
        with pytest.raises(JournalDiskError):
            await journal.sync()
    await journal.sync()
    assert journal.fault is None
    journal.close()
    with read_journal(path) as read:
        assert read.visits["visit"].tolist() == [1, 2]


async def test_a_disk_that_stays_full_ends_in_an_error_and_not_in_endless_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = JournalWriter(tmp_path / "journal.bin")

    def full(fd: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        journal.header(0, {"part": 1})
        with pytest.raises(JournalDiskError):
            await journal.sync()
        for _ in range(7):
            journal.append(RecordType.EVENT, 1, bytes(BACKLOG_LIMIT_BYTES // 8))
        with pytest.raises(JournalDiskError, match="wait for the disk"):
            journal.append(RecordType.EVENT, 1, bytes(BACKLOG_LIMIT_BYTES // 8))
    journal.close()


def test_a_directory_is_no_place_to_write(tmp_path: Path) -> None:
    with pytest.raises(JournalDiskError, match="cannot be opened"):
        JournalWriter(tmp_path / "absent" / "journal.bin")


def test_every_quality_has_a_bit_of_its_own() -> None:
    bits = [value for name, value in vars(schema).items() if name.startswith("QUALITY_")]
    assert len(bits) == len(set(bits)) > 8
    assert all(bit & (bit - 1) == 0 and bit < 1 << 16 for bit in bits)
