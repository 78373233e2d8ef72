"""Two steps to beam: patient and position confirmed for this set-up, in time, then the arm; output QA of today."""

from __future__ import annotations

import asyncio
import io
import os
import pty
import select
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import sites
from controller.ask import ask_for_patient
from controller.cli import main
from controller.delivery import treatment as treatment_module
from controller.delivery.states import State, UndefinedTransition
from controller.doctor import output_qa
from controller.doctor.output_qa import demand_output_qa, enter_output_qa, output_qa_path, why_no_output
from drivers.errors import Refused, Stopped
from interlocks.confirmation import Confirmation, why_not_confirmed
from sites.loader import load_site
from sites.schema import Operators, Site
from tests.delivery_rig import EXAMPLES, Delivery, run_delivery

PLAN = EXAMPLES / "small_carbon.dcm"
GOOD = Confirmation("anna", 1, 3, 1_000)
ASKED: dict[str, Any] = {"field": 1, "set_up": 3, "now_ns": 1_000, "valid_ns": 500}


def test_a_confirmation_holds_for_its_field_and_set_up_and_for_its_time() -> None:
    assert why_not_confirmed(GOOD, **ASKED) == ""
    assert why_not_confirmed(GOOD, **{**ASKED, "now_ns": 1_500}) == ""
    for change, why in (
        ({"now_ns": 1_501}, "more than"),
        ({"now_ns": 999}, "more than"),
        ({"field": 0}, "for field 2, not for field 1"),
        ({"field": 2}, "for field 2, not for field 3"),
        ({"set_up": 4}, "set up anew"),
        ({"set_up": 2}, "set up anew"),
    ):
        assert why in why_not_confirmed(GOOD, **{**ASKED, **change})
    assert "were not confirmed" in why_not_confirmed(None, **ASKED)


def staffed() -> Site:
    operators = Operators(names=("anna", "berta"), confirmation_s=60.0)
    return load_site("carbon-fixed").model_copy(update={"operators": operators})


def patient_id(delivery: Delivery) -> str:
    report = delivery.commands.report
    assert report is not None
    assert report.loaded is not None
    return report.loaded.patient.id


def test_a_confirmation_counts_where_one_was_given_and_wrong_ones_are_refused_and_written_down(tmp_path: Path) -> None:
    async def operator(delivery: Delivery) -> None:
        commands = delivery.commands
        with pytest.raises(UndefinedTransition):
            commands.confirm("anna", patient_id(delivery), 0, position_ok=True)
        await commands.prepare()
        with pytest.raises(Refused, match="field 1 is not set up"):
            commands.confirm("anna", patient_id(delivery), 0, position_ok=True)
        await commands.set_up("anna")
        for who, field, right, why in (
            ("SOMEBODY-ELSE", 0, True, "not the patient of the plan"),
            ("", 0, True, "not the patient of the plan"),
            (patient_id(delivery), 0, False, "position is not right"),
            (patient_id(delivery), 1, True, "field 2 is not the next one"),
        ):
            with pytest.raises(Refused, match=why):
                commands.confirm("anna", who, field, position_ok=right)
        with pytest.raises(Refused, match="operator 'carl'"):
            commands.confirm("carl", patient_id(delivery), 0, position_ok=True)
        commands.confirm("anna", f" {patient_id(delivery)} ", 0, position_ok=True)
        await commands.arm("berta", "test")
        assert delivery.run.field_confirmed == 0
        assert delivery.run.set_ups == 1  # arming did not set up again what was looked at
        await commands.beam_on("berta")
        commands.abort("berta", "enough")

    delivery = run_delivery(PLAN, staffed(), tmp_path / "t", script=operator, alone=True)
    told = [(e["operator"], e["field"], e["passed"]) for e in delivery.named("confirmation")]
    assert told == [*[("anna", 0, False)] * 4, ("anna", 1, False), ("anna", 0, True)]
    assert b"SOMEBODY-ELSE" not in (tmp_path / "t" / "journal.bin").read_bytes()


@pytest.mark.parametrize("how", ["late", "set up again", "refused since"])
def test_a_confirmation_is_void_later_or_after_another_set_up(how: str, tmp_path: Path) -> None:
    async def operator(delivery: Delivery) -> None:
        commands = delivery.commands
        await commands.prepare()
        await commands.set_up("anna")
        commands.confirm("anna", patient_id(delivery), 0, position_ok=True)
        if how == "late":
            await asyncio.sleep(60.1)
        elif how == "set up again":
            given = delivery.run.confirmation
            await commands.set_up("anna")
            assert delivery.run.confirmation is None
            delivery.run.confirmation = given  # even if somebody kept it
        else:
            with pytest.raises(Refused):
                commands.confirm("anna", patient_id(delivery), 0, position_ok=False)
            assert delivery.run.confirmation is None
            delivery.run.confirmation = replace(GOOD, field=1, set_up=1)
        with pytest.raises(Stopped, match="NOT_READY"):
            await commands.arm("anna", "test")
        assert commands.state is State.TRIPPED

    delivery = run_delivery(PLAN, staffed(), tmp_path / "t", script=operator, alone=True)
    assert int(delivery.plant["particles"]) == 0
    assert delivery.first_out == "NOT_READY"


def test_a_couch_that_moves_after_the_position_was_confirmed_gets_no_beam(tmp_path: Path) -> None:
    async def operator(delivery: Delivery) -> None:
        commands = delivery.commands
        await commands.prepare()
        await commands.set_up("anna")
        commands.confirm("anna", patient_id(delivery), 0, position_ok=True)
        await delivery.until(lambda: delivery.run.latch.tripped)
        with pytest.raises(Stopped, match="COUCH_MOVED"):
            await commands.arm("anna", "test")
        assert commands.state is State.TRIPPED

    creep = """
[[fault]]
name = "couch_creep"
axis = "vertical_mm"
per_s = -5.0
at = { state = "prepared", s = 35 }
"""
    delivery = run_delivery(PLAN, staffed(), tmp_path / "t", faults=creep, script=operator, alone=True)
    (confirmed,) = delivery.named("confirmation", passed=True)
    (moved,) = delivery.world.played
    assert confirmed["t_ns"] * 1e-9 < moved["fired_s"]
    assert delivery.first_out == "COUCH_MOVED"
    assert int(delivery.plant["particles"]) == 0


def test_where_a_device_is_real_nobody_confirms_by_himself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def operator(delivery: Delivery) -> None:
        await delivery.commands.prepare()
        monkeypatch.setattr(Site, "all_simulated", property(lambda _site: False))
        with pytest.raises(Stopped, match="patient and position were not confirmed"):
            await delivery.commands.arm("anna", "test")
        monkeypatch.undo()

    delivery = run_delivery(PLAN, staffed(), tmp_path / "t", script=operator, alone=True)
    assert delivery.named("confirmation") == []
    assert int(delivery.plant["particles"]) == 0


def test_in_a_simulated_room_simulated_confirms_and_the_record_says_so(tmp_path: Path) -> None:
    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t")
    told = [(e["operator"], e["field"], e["passed"]) for e in delivery.named("confirmation")]
    assert told == [("simulated", 0, True), ("simulated", 1, True)]


WRONG_PATIENT = '[[fault]]\nname = "wrong_patient"\nwhat = "{what}"\nat = {{ {at} }}\n'
NOT_THE_PATIENT = "not confirmed: this is not the patient of the plan"


@pytest.mark.parametrize(
    ("what", "at", "status", "ends", "said"),
    [
        ("patient", 'state = "prepared"', "refused", 3, NOT_THE_PATIENT),
        ("position", 'state = "start"', "refused", 3, "not confirmed: the position is not right"),
        ("patient", "field = 1, visit = 6", "interrupted", 4, NOT_THE_PATIENT),
        ("field", 'state = "field_done"', "interrupted", 4, "not confirmed: field 3 is not the next one"),
    ],
)
def test_a_wrong_patient_is_refused_before_the_first_field_and_stops_the_treatment_before_a_later_one(
    what: str, at: str, status: str, ends: int, said: str, tmp_path: Path
) -> None:
    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", faults=WRONG_PATIENT.format(what=what, at=at))
    assert (delivery.outcome.status, delivery.outcome.exit_status) == (status, ends)
    assert said in delivery.outcome.message or said in str(delivery.named("trip")[0])
    looks = [e["passed"] for e in delivery.named("confirmation")]
    done = [field["complete"] for field in delivery.summary["per_field"]]
    if status == "refused":
        assert looks == [False]
        assert not any(done)
        assert int(delivery.plant["particles"]) == 0
    else:
        assert looks == [True, False]
        assert done == [True, False]
        assert delivery.first_out == "OPERATOR_ABORT"
    (played,) = delivery.world.played
    assert played["fired_s"] is not None


def test_a_wrong_patient_that_nobody_looks_at_any_more_never_fired(tmp_path: Path) -> None:
    faults = WRONG_PATIENT.format(what="patient", at="field = 2, visit = 3")
    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", faults=faults)
    assert delivery.outcome.status == "completed"
    (played,) = delivery.world.played
    assert played["fired_s"] is None


def asked(typed: str) -> tuple[str, str, list[tuple[str, bool]]]:
    """Ask on a real terminal; returns how it ended, what was shown, and what was confirmed."""
    ours, theirs = pty.openpty()
    shown = io.StringIO()
    given: list[tuple[str, bool]] = []

    def confirm(patient: str, position_ok: bool) -> None:
        given.append((patient, position_ok))
        if (patient, position_ok) != ("P-17", True):
            raise Refused("not confirmed: wrong")

    async def ask() -> str:
        lines = iter(typed.splitlines())

        async def type_on() -> None:
            seen = ""
            for line in lines:
                while shown.getvalue().count(": ") <= seen.count(": ") or shown.getvalue()[-2:] != ": ":
                    await asyncio.sleep(0.001)
                seen = shown.getvalue()
                os.write(ours, f"{line}\n".encode())

        typing = asyncio.create_task(type_on(), name="operator")
        try:
            async with asyncio.timeout(10):
                await ask_for_patient("A", confirm, theirs, shown)
        except Refused as error:
            return str(error)
        finally:
            typing.cancel()
        return ""

    try:
        return asyncio.run(ask()), shown.getvalue(), given
    finally:
        os.close(ours)
        os.close(theirs)


def test_the_operator_types_the_patients_id_at_a_terminal() -> None:
    end, shown, given = asked("P-17\nyes\n")
    assert (end, given) == ("", [("P-17", True)])
    assert "P-17" not in shown


def test_a_wrong_patient_or_position_may_be_corrected_twice() -> None:
    assert asked("P-18\nyes\nP-17\nno\nP-17\nyes\n")[2] == [("P-18", True), ("P-17", False), ("P-17", True)]
    end, shown, given = asked("P-18\nyes\n" * 3)
    assert len(given) == 3
    assert "not confirmed" in end
    assert shown.count("not confirmed") == 3


def typed_ahead(before: str, then: tuple[str, ...]) -> list[tuple[str, bool]]:
    """What is confirmed where `before` lies in a real terminal at the first question, and `then` answers the others."""
    ours, theirs = pty.openpty()
    shown = io.StringIO()
    given: list[tuple[str, bool]] = []

    async def ask() -> None:
        asking = asyncio.create_task(
            ask_for_patient("A", lambda patient, ok: given.append((patient, ok)), theirs, shown), name="ask"
        )
        for number, lines in enumerate(then, 1):
            async with asyncio.timeout(10):
                while shown.getvalue().count(": ") < 2 * number - (number > 1):
                    await asyncio.sleep(0.001)
            await asyncio.sleep(0)  # the question is shown in the step that begins to read
            os.write(ours, lines.encode())
        async with asyncio.timeout(10):
            await asking

    try:
        os.write(ours, before.encode())
        assert select.select([theirs], [], [], 10.0)[0]  # the terminal has it
        asyncio.run(ask())
    finally:
        os.close(ours)
        os.close(theirs)
    return given


def test_what_was_typed_before_a_question_was_asked_answers_nothing() -> None:
    assert typed_ahead("P-17\nyes\n", ("P-18\n", "no\n")) == [("P-18", False)]
    assert typed_ahead("yes\n", ("P-17\nyes\n", "no\n")) == [("P-17", False)]  # two lines at once are one answer


# ---- output QA of the day

RECORD = {"format": 1, "site": "here", "date": "2026-03-02", "operator": "anna", "output_factor": 1.0}


def test_an_output_record_counts_for_its_site_day_and_limit() -> None:
    def why(**changes: Any) -> str:
        return why_no_output({**RECORD, **changes}, site="here", date="2026-03-02", limit=0.0625)

    assert why() == why(output_factor=1.0625) == why(output_factor=0.9375) == ""
    for changes in (
        {"output_factor": 1.063},
        {"output_factor": 0.937},
        {"output_factor": float("nan")},
        {"output_factor": True},
        {"output_factor": None},
        {"date": "2026-03-01"},
        {"site": "there"},
        {"format": 2},
        {"operator": ""},
    ):
        assert why(**changes) != ""
    assert why_no_output(None, site="here", date="2026-03-02", limit=0.02) == "there is none"


def wanting(tmp_path: Path) -> Site:
    site = staffed()
    qa = site.qualification.model_copy(update={"output_qa": True, "file": str(tmp_path / "qualification.json")})
    return site.model_copy(update={"qualification": qa})


def test_output_qa_is_entered_by_name_and_demanded_where_the_site_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = wanting(tmp_path)
    demand_output_qa(staffed())
    with pytest.raises(Refused, match=r"no output QA of today.*there is none"):
        demand_output_qa(site)
    with pytest.raises(Refused, match="operator 'carl'"):
        enter_output_qa(site, 1.0, "carl")
    assert "output factor 1.05" in enter_output_qa(site, 1.05, "anna")
    with pytest.raises(Refused, match=r"output factor 1\.05, wanted 1 within 0\.02"):
        demand_output_qa(site)
    assert enter_output_qa(site, 0.99, "anna") == ""
    assert output_qa_path(site).parent == tmp_path
    demand_output_qa(site)
    monkeypatch.setattr(output_qa, "today", lambda: "2001-01-01")
    with pytest.raises(Refused, match="its date is"):
        demand_output_qa(site)


def test_todays_output_is_entered_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(sites.__file__).parent / "carbon-fixed.toml").read_text(encoding="utf-8")
    assert "[qualification]" not in text
    file = tmp_path / "room.toml"
    kept = tmp_path / "qualification.json"
    file.write_text(f'{text}\n[qualification]\noutput_qa = true\nfile = "{kept}"\n', encoding="utf-8")

    def doctor(*words: str) -> int:
        return main(["doctor", "--site", str(file), *words])

    refused = ["deliver", str(PLAN), "--site", str(file), "--out", str(tmp_path / "t"), "--clock", "virtual"]
    assert main(refused) == 3
    assert "no output QA of today" in capsys.readouterr().err
    assert doctor("--output-qa", "1.003") == 2
    assert "--operator" in capsys.readouterr().err
    assert doctor("--output-qa", "1.05", "--operator", "simulated") == 3
    assert "output factor 1.05" in capsys.readouterr().out
    assert doctor("--output-qa", "1.003", "--operator", "simulated") == 0
    demand_output_qa(load_site(str(file)))


def test_a_room_without_todays_output_is_not_prepared_and_not_armed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = wanting(tmp_path)

    async def operator(delivery: Delivery) -> None:
        with pytest.raises(Refused, match="no output QA of today"):
            await delivery.commands.prepare()
        enter_output_qa(site, 1.0, "anna")
        await delivery.commands.prepare()
        monkeypatch.setattr(output_qa, "today", lambda: "2001-01-01")  # midnight has passed
        with pytest.raises(Refused, match="no output QA of today"):
            await delivery.commands.arm("anna", "test")
        assert delivery.commands.state is State.PREPARED

    delivery = run_delivery(PLAN, site, tmp_path / "t", script=operator, alone=True)
    assert int(delivery.plant["particles"]) == 0
    assert treatment_module.demand_output_qa is demand_output_qa
