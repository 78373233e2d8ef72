"""What the guard remembers: one file that is the old one or the new one, on a disk that may take its time or fail."""

from __future__ import annotations

import json
import os
import stat
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from drivers.errors import BadInput
from interlocks.guard_state import Delivered, Latched, Memory, StateFile, StateThread

PATIENCE_S = 20.0
"""Only a defect waits so long."""


class Disk:
    """Takes so much as it may, and says when it is asked: twice for each memory, for the file and for its folder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may = threading.Semaphore(0)
        self._asked = threading.Semaphore(0)
        synced = os.fsync

        def fsync(file: int) -> None:
            self._asked.release()
            assert self.may.acquire(timeout=PATIENCE_S)
            synced(file)

        monkeypatch.setattr(os, "fsync", fsync)

    def is_asked(self) -> bool:
        """Once more."""
        return self._asked.acquire(timeout=PATIENCE_S)


class Watched(threading.Condition):
    """Says when somebody begins to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = threading.Semaphore(0)

    def wait(self, timeout: float | None = None) -> bool:
        """The lock is held until the wait has begun."""
        self.waits.release()
        return super().wait(timeout)


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[StateThread, Watched]:
    """A memory with a thread of its own, and what that thread waits on."""
    turn = Watched()
    with monkeypatch.context() as context:
        context.setattr(threading, "Condition", lambda: turn)
        return StateThread(tmp_path / "memory.json"), turn


def ends(file: StateThread) -> bool:
    """It can be closed."""
    closing = threading.Thread(target=file.close, daemon=True)
    closing.start()
    closing.join(PATIENCE_S)
    return not closing.is_alive()


def test_its_memory_comes_back_as_it_was(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "deep" / "memory.json")
    assert file.load() == Memory()
    memory = Memory(5, 6, 2**63 + 1, 1.01, 0.05, "abc:1", 2**63 + 2, 3, 2, {"0": Delivered(1.5, 7, 3)}, 0)
    memory = replace(memory, pedestal_per_s=40.0, latched=Latched("GUARD_VISIT", 7, None, 12.0, "again"))
    file.save(memory)
    assert file.load() == memory
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["memory.json"]
    assert json.loads((tmp_path / "deep" / "memory.json").read_text(encoding="utf-8"))["format"] == 2
    StateFile(None).save(memory)
    assert StateFile(None).load() == Memory()


def test_the_memory_is_on_the_disk_as_a_whole_before_it_takes_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "memory.json", []
    real = os.fsync

    def fsync(fd: int) -> None:
        names = sorted(p.name for p in tmp_path.iterdir())
        synced.append((fd, stat.S_ISDIR(os.fstat(fd).st_mode), os.fstat(fd).st_size, names))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    StateFile(path).save(Memory(counter=5))
    (_, is_folder, size, before), (folder, folder_too, _, after) = synced
    assert (is_folder, size, before) == (False, path.stat().st_size, ["memory.json.new"])
    assert (folder_too, after) == (True, ["memory.json"])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(folder)


def test_what_was_saved_without_a_thread_is_on_the_disk_at_once(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "memory.json")
    file.save(Memory(counter=1))
    assert (file.saved, file.failure) == (True, None)


def test_a_slow_disk_keeps_back_permits_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    file = StateThread(tmp_path / "memory.json")
    assert file.saved
    file.save(Memory(counter=1))  # returns at once
    assert not file.saved
    assert disk.is_asked()
    assert not file.saved  # it is being written, and nothing waits behind it
    file.save(Memory(counter=2))
    file.save(Memory(counter=3))
    disk.may.release(2)
    assert disk.is_asked()
    assert disk.is_asked()  # the first is there, the last is being written
    assert not file.saved
    disk.may.release(2)
    assert ends(file)
    assert (file.saved, file.failure) == (True, None)
    assert StateFile(file.path).load() == Memory(counter=3)
    assert not disk.may.acquire(blocking=False)  # only the newest of those that waited was written


def test_a_thread_that_waits_is_woken_by_what_is_saved_and_by_the_end(watched: tuple[StateThread, Watched]) -> None:
    file, turn = watched
    for counter in (1, 2):
        file.save(Memory(counter=counter))
        assert turn.waits.acquire(timeout=PATIENCE_S)  # for more, once this is written
        assert file.saved
        assert StateFile(file.path).load() == Memory(counter=counter)
    assert ends(file)
    assert not turn.waits.acquire(blocking=False)


def test_without_a_file_nothing_is_written_and_nothing_is_waited_for() -> None:
    file = StateThread(None)
    file.save(Memory(counter=1))
    assert (file.saved, file.failure) == (True, None)
    assert ends(file)


def test_what_a_disk_could_not_take_is_told_and_is_not_saved(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("", encoding="utf-8")
    file = StateThread(tmp_path / "taken" / "memory.json")
    file.save(Memory())
    assert ends(file)
    assert isinstance(file.failure, NotADirectoryError | FileExistsError)
    assert not file.saved


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"format": 2}',
        '{"format": 3, "fields": {}, "latched": null}',
        '{"format": 2, "fields": {}}',
        '{"format": 1, "fields": {"0": {"counts": 1, "moon": 2}}}',
        "\x00",
    ],
)
def test_a_damaged_memory_is_refused_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "memory.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(BadInput, match=r"memory\.json.*physicist"):
        StateFile(path).load()


def test_a_memory_of_a_guard_that_forgot_its_latch_is_read(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "memory.json")
    memory = Memory(5, 6, 7, fields={"0": Delivered(1.5, 7, 3)})
    file.save(memory)
    stored = json.loads((tmp_path / "memory.json").read_text(encoding="utf-8"))
    assert stored.pop("latched", "nothing said") is None
    (tmp_path / "memory.json").write_text(json.dumps({**stored, "format": 1}), encoding="utf-8")
    assert file.load() == memory


@pytest.mark.parametrize("change", [{"id": "GUARD_MOON"}, {"moon": 1}])
def test_a_latch_that_nobody_knows_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    file = StateFile(tmp_path / "memory.json")
    file.save(Memory(latched=Latched("GUARD_VISIT", 7, None, 12.0, "again")))
    stored = json.loads((tmp_path / "memory.json").read_text(encoding="utf-8"))
    stored["latched"] |= change
    (tmp_path / "memory.json").write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(BadInput):
        file.load()


def test_a_memory_of_another_shape_is_refused(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "memory.json")
    file.save(Memory())
    stored = json.loads((tmp_path / "memory.json").read_text(encoding="utf-8"))
    (tmp_path / "memory.json").write_text(json.dumps({**stored, "moon": 1}), encoding="utf-8")
    with pytest.raises(BadInput):
        file.load()
