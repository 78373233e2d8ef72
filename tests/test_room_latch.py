"""A latch belongs to the room: whatever is delivered there next is its reset, and asks for the role (S4)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from controller.cli import main
from controller.delivery.run import Run
from controller.ledger.room_latch import Left, demand_resets, read_room_latch, remember_room_latch, room_latch_path
from controller.plan.check import check_plan
from controller.record.carried import read_carried
from controller.record.journal import JournalWriter
from controller.record.journal_reader import read_journal
from controller.run_virtual import deliver_virtual
from controller.session import Order, header
from drivers.errors import Refused
from sites.loader import load_site
from tests.delivery_rig import EXAMPLES, fault
from tests.test_command_line import site_with_a_real_device
from tests.test_roles import OPERATOR, PHYSICIST, RESERVED, THEIRS, staffed

PLAN = EXAMPLES / "small_carbon.dcm"


def kept(path: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_a_room_with_a_real_device_remembers_beside_its_ledger_and_a_simulated_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert room_latch_path(staffed()) is None
    site = staffed(real="couch")
    assert room_latch_path(site) == tmp_path / "state" / "spotwise" / "latch-carbon-fixed.json"
    record = site.record.model_copy(update={"ledger_file": str(tmp_path / "room" / "ledger.sqlite")})
    site = site.model_copy(update={"record": record})
    assert room_latch_path(site) == tmp_path / "room" / "latch-carbon-fixed.json"


def test_what_is_left_is_what_was_written_and_what_cannot_be_read_is_a_physicists(tmp_path: Path) -> None:
    path = tmp_path / "room" / "latch.json"
    assert read_room_latch(None) == read_room_latch(path) == Left()
    remember_room_latch(path, tmp_path / "t", [RESERVED, THEIRS, RESERVED])
    assert read_room_latch(path) == Left(str(tmp_path / "t"), (RESERVED, THEIRS))
    remember_room_latch(path, tmp_path / "t", [])
    assert read_room_latch(path) == Left(str(tmp_path / "t"))
    for text in ("", "[]", '{"format": 2}', '{"format": 1, "directory": "d", "latched": ["NO_SUCH"]}'):
        path.write_text(text, encoding="utf-8")
        left = read_room_latch(path)
        assert left.problem
        with pytest.raises(Refused, match=r"not reset: what latched last .* cannot be read, so it needs a physicist"):
            demand_resets(staffed(), OPERATOR, (), left)
        assert demand_resets(staffed(), PHYSICIST, (), left) == ()
    remember_room_latch(path, tmp_path / "gone", None)  # under way, and its journal is not there
    assert "gone" in read_room_latch(path).problem
    with pytest.raises(Refused, match="cannot be written down"):
        remember_room_latch(path / "no folder.json", tmp_path, None)


def test_parts_reset_their_own_latch_and_the_rooms_each_once() -> None:
    left = Left("/other", (THEIRS, RESERVED))
    assert demand_resets(staffed(), PHYSICIST, ["DISK", THEIRS], left) == ("DISK", THEIRS, RESERVED)
    with pytest.raises(Refused, match=rf"not reset: {RESERVED} needs a physicist .* latched in /other"):
        demand_resets(staffed(), OPERATOR, ["DISK"], left)
    assert demand_resets(staffed(), OPERATOR, ["DISK"], Left("/other", (THEIRS,))) == ("DISK", THEIRS)


def test_another_plan_in_the_room_is_refused_to_who_may_not_reset_what_the_last_one_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, latch = staffed(), tmp_path / "latch.json"
    report = check_plan(PLAN, site)
    under_way: list[object] = []
    stopped = Run.trip

    def trip(run: Run, *args: object, **values: object) -> None:
        under_way.append(kept(latch)["latched"])
        stopped(run, *args, **values)  # type: ignore[arg-type]

    monkeypatch.setattr(Run, "trip", trip)

    def deliver(name: str, operator: str, faults: str | None = None) -> str:
        out = tmp_path / name
        out.mkdir()
        file = tmp_path / f"{name}.toml"
        file.write_text(faults or "", encoding="utf-8")
        order = Order(PLAN, site, out, operator=operator, reason=f"reason of {name}", latch=latch)
        return deliver_virtual(order, report, file if faults else None).status

    def resets(name: str) -> list[tuple[str, str, list[str]]]:
        with read_journal(tmp_path / name / "journal.bin") as journal:
            return [(e["operator"], e["reason"], e["ids"]) for e in journal.events if e["event"] == "reset"]

    assert deliver("first", OPERATOR, fault("plant.gain_1", value=3.0)) == "interrupted"
    assert set(under_way) == {None}  # noted before it could trip
    left = kept(latch)["latched"]
    assert isinstance(left, list)
    assert left
    with pytest.raises(Refused, match=rf"needs a physicist .* latched in {tmp_path / 'first'}, the last part in this"):
        deliver("second", OPERATOR)
    assert not (tmp_path / "second" / "journal.bin").exists()
    remember_room_latch(latch, tmp_path / "first", None)  # as if its controller had been killed after the trip
    with pytest.raises(Refused, match="needs a physicist"):
        deliver("third", OPERATOR)
    journal = tmp_path / "first" / "journal.bin"
    assert report.loaded is not None
    with JournalWriter(journal) as writer:  # and as if a later part had died before it could say whose reset it is
        writer.header(0, header(Order(PLAN, site, journal.parent, carried=read_carried(journal)), report.loaded))
    assert read_carried(journal).parts == 2
    with pytest.raises(Refused, match="needs a physicist"):
        deliver("third again", OPERATOR)
    assert deliver("fourth", PHYSICIST) == "completed"
    assert resets("fourth") == [(PHYSICIST, "reason of fourth", left)]
    assert kept(latch) == {"format": 1, "directory": str(tmp_path / "fourth"), "latched": []}
    assert deliver("fifth", OPERATOR) == "completed"
    assert resets("fifth") == []


def test_deliver_says_so_with_status_3_before_there_is_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = site_with_a_real_device(tmp_path)
    staff = f'names = ["{OPERATOR}", "{PHYSICIST}"]\nphysicists = ["{PHYSICIST}"]'
    text = file.read_text(encoding="utf-8").replace('names = ["simulated"]', staff)
    record = f'[record]\nledger_file = "{tmp_path}/l.sqlite"\npseudonym_key_file = "{tmp_path}/secret"\n'
    file.write_text(f"{text}\n{record}", encoding="utf-8")
    site = load_site(str(file))
    path = room_latch_path(site)
    assert path is not None
    assert path.parent == tmp_path
    remember_room_latch(path, tmp_path / "before", [RESERVED])
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    out = tmp_path / "t"
    asked = ["deliver", str(PLAN), "--site", str(file), "--out", str(out), "--operator", OPERATOR, "--reason", "next"]
    assert main(asked) == 3
    assert f"not reset: {RESERVED} needs a physicist ({PHYSICIST})" in capsys.readouterr().err
    assert not out.exists()
