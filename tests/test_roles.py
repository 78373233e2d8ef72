"""Who may reset what, and that nothing can be switched off: by name of the condition, in a run and at a resume."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.cli import main
from controller.cli import parser as build_parser
from controller.commands import Commands
from controller.delivery.roles import demand_reset_role
from controller.delivery.states import State
from controller.plan.check import check_plan
from controller.record.carried import latched_at_the_end, read_carried
from controller.record.journal_reader import read_journal
from controller.run_virtual import deliver_virtual
from controller.session import Order
from drivers.errors import BadInput, Refused, Stopped
from drivers.wires.guard_link import LATCHED, Status
from interlocks.conditions import MATRIX, matrix, parse_matrix
from interlocks.latch import Latch
from interlocks.roles import is_operator, is_physicist, not_theirs_to_reset
from sites.loader import load_site
from sites.schema import Operators, Site
from tests.delivery_rig import EXAMPLES, Delivery, fault, run_delivery

PLAN = EXAMPLES / "small_carbon.dcm"
OPERATOR, PHYSICIST = "anna", "berta"
THEIRS = "CHAIN_INPUT"
RESERVED = "MONITORS_DISAGREE"


def staffed(*, real: str | None = None) -> Site:
    """carbon-fixed with an operator and a physicist; `real`: a device that is none of the simulated ones."""
    site = load_site("carbon-fixed")
    site = site.model_copy(update={"operators": Operators(names=(OPERATOR, PHYSICIST), physicists=(PHYSICIST,))})
    if real is None:
        return site
    device = getattr(site.devices, real).model_copy(update={"kind": "real"})
    return site.model_copy(update={"devices": site.devices.model_copy(update={real: device})})


def test_roles_by_name() -> None:
    site = staffed()
    assert [is_operator(site, n) for n in (OPERATOR, PHYSICIST, "simulated", "carl", "")] == [
        True, True, True, False, False,
    ]  # fmt: skip
    assert [is_physicist(site, n) for n in (OPERATOR, PHYSICIST, "simulated", "carl", "")] == [
        False, True, True, False, False,
    ]  # fmt: skip


def test_with_one_real_device_the_name_simulated_has_no_role_even_if_the_site_lists_it() -> None:
    site = staffed(real="couch")
    names = Operators(names=("simulated",), physicists=("simulated",))
    for room in (site, site.model_copy(update={"operators": names})):
        assert not is_operator(room, "simulated")
        assert not is_physicist(room, "simulated")
        assert not_theirs_to_reset(room, "simulated", [THEIRS]) == (THEIRS,)


@pytest.mark.parametrize("condition", sorted(matrix()))
def test_every_condition_is_reset_by_whom_the_matrix_says(condition: str) -> None:
    site = staffed()
    reserved = matrix()[condition].reset == "physicist"
    assert not_theirs_to_reset(site, PHYSICIST, [condition]) == ()
    assert not_theirs_to_reset(site, "carl", [condition]) == (condition,)
    assert not_theirs_to_reset(site, OPERATOR, [condition]) == ((condition,) if reserved else ())


def test_one_reserved_condition_among_others_is_named_and_once() -> None:
    assert not_theirs_to_reset(staffed(), OPERATOR, [THEIRS, RESERVED, "DISK", RESERVED]) == (RESERVED,)
    with pytest.raises(Refused, match=rf"{RESERVED} needs a physicist \({PHYSICIST}\), and operator '{OPERATOR}'"):
        demand_reset_role(staffed(), OPERATOR, [THEIRS, RESERVED])


def test_a_physicist_must_be_one_of_the_names() -> None:
    with pytest.raises(ValueError, match="physicists: carl is not one of names"):
        Operators(names=(OPERATOR,), physicists=("carl",))


def test_an_operator_cannot_reset_what_is_a_physicists_and_a_physicist_can(tmp_path: Path) -> None:
    async def script(delivery: Delivery) -> None:
        commands = delivery.commands
        await commands.prepare()
        await commands.arm(OPERATOR, "test")
        with pytest.raises(Stopped):
            await commands.beam_on(OPERATOR)
        with pytest.raises(Refused, match=f"not reset: {reserved(delivery)} needs a physicist"):
            commands.reset(OPERATOR, "looks fine")
        assert commands.state is State.TRIPPED
        assert delivery.run.latch.tripped
        commands.reset(PHYSICIST, "gain found and corrected")
        assert commands.state is State.TERMINATED

    def reserved(delivery: Delivery) -> str:
        ids = [t.id for t in delivery.run.latch.latched if matrix()[t.id].reset == "physicist"]
        assert ids
        return ", ".join(ids)

    scenario = fault("plant.gain_1", value=3.0)
    delivery = run_delivery(PLAN, staffed(), tmp_path / "t", faults=scenario, script=script, alone=True)
    assert [e["operator"] for e in delivery.named("reset")] == [PHYSICIST]


def test_what_the_guard_has_latched_counts_although_the_controllers_own_cause_is_an_operators(tmp_path: Path) -> None:
    async def script(delivery: Delivery) -> None:
        commands = delivery.commands
        await commands.prepare()
        await commands.arm(OPERATOR, "test")
        commands.abort(OPERATOR, "enough")
        with pytest.raises(Stopped):
            await commands.beam_on(OPERATOR)
        delivery.run.trip("DISK")  # something that an operator may reset
        delivery.run.state = State.TRIPPED
        delivery.run.guard.status = Status(LATCHED, 1, b"", 1, 0.0, 1.0, 0.0, "GUARD_COUNTS", "")
        with pytest.raises(Refused, match="GUARD_COUNTS needs a physicist"):
            commands.reset(OPERATOR, "space made")
        commands.reset(PHYSICIST, "counted by hand")

    run_delivery(PLAN, staffed(), tmp_path / "t", script=script, alone=True)


def test_latched_at_the_end_is_what_came_after_the_last_reset() -> None:
    trip, reset = {"event": "trip", "id": RESERVED}, {"event": "reset"}
    other = {"event": "trip", "id": "DISK"}
    assert latched_at_the_end([]) == ()
    assert latched_at_the_end([trip, other, trip]) == (RESERVED, "DISK")
    assert latched_at_the_end([trip, reset]) == ()
    assert latched_at_the_end([trip, reset, other]) == ("DISK",)


def test_a_resume_is_the_reset_of_the_part_before_and_asks_for_the_same_role(tmp_path: Path) -> None:
    site, out = staffed(), tmp_path / "t"
    out.mkdir()
    faults = tmp_path / "faults.toml"
    faults.write_text(fault("plant.gain_1", value=3.0, for_s=2.0), encoding="utf-8")
    report = check_plan(PLAN, site)
    first = deliver_virtual(Order(PLAN, site, out, operator=OPERATOR), report, faults)
    assert first.status == "interrupted"
    carried = read_carried(out / "journal.bin")
    wanted = [i for i in carried.trips if matrix()[i].reset == "physicist"]
    assert wanted
    size = (out / "journal.bin").stat().st_size
    with pytest.raises(Refused, match=f"not reset: {', '.join(wanted)} needs a physicist"):
        deliver_virtual(Order(PLAN, site, out, operator=OPERATOR, carried=carried), report, None)
    assert (out / "journal.bin").stat().st_size == size
    order = Order(PLAN, site, out, operator=PHYSICIST, reason="gain corrected", carried=carried)
    deliver_virtual(order, report, None)
    with read_journal(out / "journal.bin") as journal:
        told = [e for e in journal.parts[-1].events if e["event"] == "reset"]
    assert [(e["operator"], e["reason"], e["ids"]) for e in told] == [
        (PHYSICIST, "gain corrected", list(carried.trips))
    ]


def stopped_in_a_room_with_people(tmp_path: Path) -> Path:
    """A treatment of a simulated room with people, stopped for what only a physicist may reset."""
    text = (Path(__file__).parents[1] / "sites" / "carbon-fixed.toml").read_text(encoding="utf-8")
    people = f'names = ["{OPERATOR}", "{PHYSICIST}"]\nphysicists = ["{PHYSICIST}"]'
    site, faults = tmp_path / "site.toml", tmp_path / "faults.toml"
    site.write_text(text.replace('names = ["simulated"]', people), encoding="utf-8")
    faults.write_text(fault("plant.gain_1", value=3.0, for_s=2.0), encoding="utf-8")
    where = ("--site", str(site), "--clock", "virtual", "--out", str(tmp_path / "t"))
    assert main(["deliver", str(PLAN), *where, "--fault", str(faults), "--operator", "carl"]) == 3
    assert main(["deliver", str(PLAN), *where, "--fault", str(faults), "--operator", OPERATOR]) == 4
    return tmp_path / "t"


def test_in_a_simulated_room_a_given_name_counts_and_none_is_simulated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tripped = stopped_in_a_room_with_people(tmp_path)
    *_, before, last = capsys.readouterr().out.splitlines()
    assert "not to be resumed before a physicist understands" in before
    assert last == f"  spotwise resume {tripped} --operator NAME --reason TEXT"
    files = {path.name: path.read_bytes() for path in tripped.iterdir()}
    for name, why in ((OPERATOR, "needs a physicist (berta)"), ("bob", "is not one of this room's: anna, berta")):
        for more in ([], ["--accept-dispute"]):
            assert main(["resume", str(tripped), "--operator", name, "--reason", "x", *more]) == 3
            said = capsys.readouterr().err
            assert why in said
            assert "with no --operator it is" in said
    assert {path.name: path.read_bytes() for path in tripped.iterdir()} == files  # refused before anything was written
    other = tmp_path / "other"
    shutil.copytree(tripped, other)
    assert main(["resume", str(tripped), "--operator", PHYSICIST, "--reason", "gain corrected"]) == 0
    assert main(["resume", str(other)]) == 0
    for directory, name in ((tripped, PHYSICIST), (other, "simulated")):
        with read_journal(directory / "journal.bin") as journal:
            told = {e["operator"] for e in journal.parts[-1].events if e["event"] in ("reset", "command")}
            assert told == {name}
            assert [part.header["operator"] for part in journal.parts] == [OPERATOR, name]


def test_a_simulated_room_that_lists_nobody_takes_any_name_and_a_real_one_does_not() -> None:
    site = load_site("carbon-fixed")
    assert is_operator(site, "bob")
    assert is_physicist(site, "bob")
    assert not is_operator(site, " ")
    real = site.devices.gantry.model_copy(update={"kind": "real"})
    site = site.model_copy(update={"devices": site.devices.model_copy(update={"gantry": real})})
    assert not is_operator(site, "bob")
    assert not is_physicist(site, "bob")


# ---- nothing can be switched off (docs/decisions/0014-no-bypass.md)


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers(below)


WORDS = ("bypass", "override", "ignore", "disable", "skip", "force", "mute", "inhibit-interlock")


def test_no_command_and_no_option_switches_a_condition_off() -> None:
    options = [o for p in parsers(build_parser()) for a in p._actions for o in a.option_strings]
    assert len(options) > 20
    assert [o for o in options if any(word in o for word in WORDS)] == []
    commands = {name for name in vars(Commands) if not name.startswith("_")}
    assert [name for name in commands if any(word in name for word in WORDS)] == []


@pytest.mark.parametrize("key", ["bypass", "override", "disabled"])
def test_the_matrix_knows_no_key_that_switches_a_condition_off(key: str) -> None:
    text = MATRIX.read_text(encoding="utf-8").replace('id = "DISK"\n', f'id = "DISK"\n{key} = true\n', 1)
    with pytest.raises(ValueError, match=f"condition DISK: unknown keys \\['{key}'\\]"):
        parse_matrix(text)


def test_a_site_file_cannot_switch_a_condition_off(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "sites" / "carbon-fixed.toml").read_text(encoding="utf-8")
    file = tmp_path / "site.toml"
    for line in ('bypass = ["DOOR"]', 'service = ["carl"]'):
        file.write_text(text.replace("[operators]\n", f"[operators]\n{line}\n"), encoding="utf-8")
        with pytest.raises(BadInput, match=line.split()[0]):
            load_site(str(file))


def test_every_condition_latches_and_only_a_reset_by_name_clears_it() -> None:
    public = {name for name in vars(Latch) if not name.startswith("_")}
    assert public == {"tripped", "first_out", "latched", "history", "trip", "reset"}
    for condition in matrix():
        latch = Latch()
        assert latch.trip(condition, 1) is not None
        assert latch.tripped
        assert [t.id for t in latch.latched] == [condition]
        latch.reset(OPERATOR, "test")
        assert latch.latched == ()
