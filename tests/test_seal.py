"""`spotwise verify`: one changed byte in any file of any treatment directory is found, and the file named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.record.frames_format import FOLDER
from controller.record.seal import SEAL, files_in
from tests.delivery_rig import fault
from tests.test_command_line import one_object, spotwise
from tests.test_ledger_in_use import VIRTUAL, small

KINDS = ("completed", "interrupted", "resumed")


@pytest.fixture(scope="module")
def treatments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One directory of each kind, with all that a run may leave."""
    folder = tmp_path_factory.mktemp("treatments")
    plan = small(folder / "plan.dcm")
    scenario = folder / "scenario.toml"
    scenario.write_text(fault("plant.emergency_stop", at="after_visits = 2", value=1))
    whole, stopped, resumed = (folder / kind for kind in KINDS)
    assert spotwise("deliver", plan, *VIRTUAL, "--record-frames", "--out", whole)[0] == 0
    assert spotwise("deliver", plan, *VIRTUAL, "--out", stopped, "--fault", scenario)[0] == 4
    shutil.copytree(stopped, resumed)
    assert spotwise("resume", resumed)[0] == 0
    # what the guard's own process leaves on the real clock
    for name in ("guard-events.jsonl", "guard-state.json"):
        (whole / name).write_bytes(b'{"event": "started"}\n' * 20)
    (whole / SEAL).unlink()
    assert spotwise("report", whole)[0] == 0
    return {"completed": whole, "interrupted": stopped, "resumed": resumed}


@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_as_it_was_left_is_whole(kind: str, treatments: dict[str, Path]) -> None:
    status, text, _ = spotwise("verify", treatments[kind], "--json")
    assert (status, one_object(text)) == (0, {"whole": True, "problems": [], "notes": []})


def places(size: int) -> Iterator[int]:
    """First and last byte, and some between."""
    yield from sorted({0, size // 3, 3 * size // 4, size - 1})


@pytest.mark.parametrize("kind", KINDS)
def test_one_changed_byte_anywhere_is_found_and_its_file_named(kind: str, treatments: dict[str, Path]) -> None:
    directory = treatments[kind]
    names = [*files_in(directory), SEAL]
    wanted = {
        "journal.bin",
        "run.json",
        "identity.dcm",
        "ledger.sqlite",
        "truth.json",
        "room-state.npz",
        "summary.json",
    }
    assert wanted <= set(names)
    for name in names:
        path = directory / name
        content = path.read_bytes()
        assert content, name
        for at in places(len(content)):
            path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            status, text, _ = spotwise("verify", directory, "--json")
            assert status == 3, (name, at)
            assert any(str(path) in problem for problem in one_object(text)["problems"]), (name, at, text)
        path.write_bytes(content)
    assert spotwise("verify", directory)[0] == 0


def test_the_kinds_hold_what_they_should(treatments: dict[str, Path]) -> None:
    assert f"{FOLDER}/part-1.frames" in files_in(treatments["completed"])
    assert {"faults.json", "run-2.json", "record-2.dcm"} <= set(files_in(treatments["resumed"]))


def test_what_does_not_belong_what_came_later_and_what_is_gone_is_named(
    treatments: dict[str, Path], tmp_path: Path
) -> None:
    directory = tmp_path / "t"
    shutil.copytree(treatments["completed"], directory)
    (directory / "notes.txt").write_text("remember")
    (directory / "frames" / "more").mkdir()
    (directory / "frames" / "more" / "x").write_text("")
    (directory / "run-7.json").write_text("{}")
    (directory / "guard-events.jsonl").unlink()
    found = one_object(spotwise("verify", directory, "--json")[1])["problems"]
    assert f"{directory / 'notes.txt'}: does not belong to a treatment directory" in found
    assert f"{directory / 'frames' / 'more' / 'x'}: does not belong to a treatment directory" in found
    assert f"{directory / 'run-7.json'}: came after the directory was sealed" in found
    assert f"{directory / 'guard-events.jsonl'}: is missing" in found


def test_what_the_simulated_room_keeps_here_may_change_and_go_and_all_else_may_not(
    treatments: dict[str, Path], tmp_path: Path
) -> None:
    """Simulators outlive a killed controller, and go on writing beside a record that was finished by a resume."""
    directory = tmp_path / "t"
    shutil.copytree(treatments["completed"], directory)
    room = ("simulators-state.live", "simulators.log", "simulators-site.json", "truth.npz")
    for name in room:
        (directory / name).write_bytes(b"while they run")
    assert spotwise("report", directory)[0] == 0
    assert not set(room) & set(json.loads((directory / SEAL).read_text())["files"])
    assert spotwise("verify", directory)[0] == 0
    (directory / "simulators.log").write_bytes(b"and more")
    (directory / "simulators-state.live").unlink()
    (directory / "simulators-state.npz").write_bytes(b"their end")
    (directory / "simulators-faults.json").write_bytes(b"their end")
    (directory / ".simulators-state.npz.4711.new").write_bytes(b"killed in their end")
    assert spotwise("verify", directory)[0] == 0
    for name in ("simulators.txt", "room.log"):
        (directory / name).write_bytes(b"somebody's")
        found = one_object(spotwise("verify", directory, "--json")[1])["problems"]
        assert found == [f"{directory / name}: does not belong to a treatment directory"]
        (directory / name).unlink()
    (directory / "guard-state.json").write_bytes(b"another memory")
    assert spotwise("verify", directory)[0] == 3


def test_report_does_not_vouch_for_what_it_did_not_make(treatments: dict[str, Path], tmp_path: Path) -> None:
    directory = tmp_path / "t"
    shutil.copytree(treatments["completed"], directory)
    run = json.loads((directory / "run.json").read_text())
    (directory / "run.json").write_text(json.dumps(run | {"host": "another"}, indent=1) + "\n")
    (directory / "record.dcm").write_bytes(b"not a record")
    assert spotwise("report", directory)[0] == 0
    found = one_object(spotwise("verify", directory, "--json")[1])["problems"]
    assert len(found) == 1
    assert "run.json: SHA-256" in found[0]


def test_a_ledger_that_says_otherwise_than_the_journal_is_named(tmp_path: Path) -> None:
    import sqlite3  # noqa: PLC0415

    plan, ledger, out = small(tmp_path / "plan.dcm"), tmp_path / "course.sqlite", tmp_path / "t"
    assert spotwise("deliver", plan, *VIRTUAL, "--ledger", ledger, "--out", out)[0] == 0
    assert spotwise("verify", out)[0] == 0
    with sqlite3.connect(ledger) as db:
        db.execute("UPDATE spot SET meterset = meterset * 0.5")
    status, text, _ = spotwise("verify", out)
    assert status == 3
    assert "has other doses for spots of part 1 than the journal" in text
    assert spotwise("report", out)[0] == 0
    assert spotwise("verify", out)[0] == 0
    ledger.rename(tmp_path / "gone.sqlite")
    status, text, _ = spotwise("verify", out)
    assert status == 0
    assert "its entry is not compared" in text


def test_a_wrong_directory_is_2_for_report_and_verify(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name in ("missing", "file", "."):
        for command in ("report", "verify"):
            status, _, err = spotwise(command, tmp_path / name)
            assert status == 2
            assert "directory" in err
