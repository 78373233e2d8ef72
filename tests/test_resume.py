"""Interrupted treatments: what was delivered is known to the count, and the rest is given, once."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from controller.cli import main
from controller.compose import VirtualWorld
from controller.delivery.decision import Decision
from controller.record.journal_reader import read_journal
from controller.record.schema import QUALITY_FROM_COUNTER, QUALITY_FROM_RINGS
from simulators.plant.state import CMD_ABORT
from sites.loader import load_site
from sites.schema import Site
from tests.delivery_rig import EXAMPLES, fault
from tests.resume_rig import Moment, Resumed, after_visits, at_second, counts_agree, lose_and_resume, spot_errors

SMALL = EXAMPLES / "small_carbon.dcm"
"""Two fields of two layers of twelve spots."""
SPOT_PERCENT = 1.0
"""Also of a spot that was begun three times; in an uninterrupted run of this plan the worst is off by 0.7 %."""


def deliver(out: Path, *more: str, plan: Path = SMALL) -> int:
    """Deliver in virtual time."""
    return main(["deliver", str(plan), "--site", "carbon-fixed", "--clock", "virtual", "--out", str(out), *more])


def scenario(folder: Path, text: str) -> str:
    """A fault scenario's file."""
    path = folder / f"faults-{len(list(folder.iterdir()))}.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def summary(out: Path) -> dict[str, Any]:
    """summary.json."""
    loaded: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return loaded


def interrupted(tmp_path: Path, visits: int = 20) -> Path:
    """A treatment that an emergency stop ended after so many visits."""
    stop = scenario(tmp_path, fault("plant.emergency_stop", at=f"after_visits = {visits}", value=1))
    out = tmp_path / "t"
    assert deliver(out, "--fault", stop) == 4
    return out


def whole(out: Path) -> dict[str, Any]:
    """Everything was given, everywhere as much as planned, and the directory is sound."""
    got = summary(out)
    assert got["outcome"] == "completed"
    assert got["spots_delivered"] == got["spots_planned"] == 48
    assert got["mu_primary"] == pytest.approx(got["mu_planned"], rel=0.005)
    assert got["truth"]["spot_dose_error_pct"]["max"] < SPOT_PERCENT
    assert got["truth"]["spot_position_error_mm"]["p95"] < 0.5
    for field in got["truth"]["per_field"]:
        assert abs(field["particles_error_pct"]) < 0.5
    assert main(["verify", str(out)]) == 0
    return got


@pytest.mark.parametrize("visits", [1, 12, 19, 30])
def test_a_stopped_treatment_is_resumed_to_the_spot(
    visits: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = interrupted(tmp_path, visits)
    assert f"spotwise resume {out}" in capsys.readouterr().out.splitlines()[-1]
    assert main(["resume", str(out)]) == 0
    got = whole(out)
    one, two = got["parts"]
    assert (one["outcome"], two["outcome"]) == ("interrupted", "completed")
    assert two["reconciliation"]["verdict"] == "agreement"
    before = (out / "journal.bin").read_bytes()
    assert main(["resume", str(out)]) == 0
    assert (out / "journal.bin").read_bytes() == before  # a completed one is reported, not touched


def test_a_room_of_an_own_site_file_is_found_again_by_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The site's name is that of a shipped one, its file is another."""
    shipped = (Path(__file__).parents[1] / "sites" / "carbon-fixed.toml").read_text(encoding="utf-8")
    (tmp_path / "room.toml").write_text(shipped.replace("gap_s = 2.0", "gap_s = 1.0"), encoding="utf-8")
    stop = scenario(tmp_path, fault("plant.emergency_stop", at="after_visits = 20", value=1))
    monkeypatch.chdir(tmp_path)
    room = ("--site", "room.toml", "--clock", "virtual", "--out", "t", "--fault", stop)
    assert main(["deliver", str(SMALL), *room]) == 4
    monkeypatch.chdir("/")
    assert main(["resume", str(tmp_path / "t")]) == 0
    whole(tmp_path / "t")


def test_each_part_has_its_record_and_they_add_up(tmp_path: Path) -> None:
    out = interrupted(tmp_path)
    assert main(["resume", str(out)]) == 0
    one, two = (pydicom.dcmread(out / name) for name in ("record.dcm", "record-2.dcm"))
    first = [beam.TreatmentTerminationStatus for beam in one.TreatmentSessionIonBeamSequence]
    second = [beam.TreatmentTerminationStatus for beam in two.TreatmentSessionIonBeamSequence]
    assert (first, second) == (["MACHINE"], ["NORMAL", "NORMAL"])
    assert two.ReferencedTreatmentRecordSequence[0].ReferencedSOPInstanceUID == one.SOPInstanceUID
    given = sum(float(beam.DeliveredPrimaryMeterset) for r in (one, two) for beam in r.TreatmentSessionIonBeamSequence)
    assert given == pytest.approx(summary(out)["mu_primary"], abs=1e-6)
    wanted = {
        int(b.ReferencedBeamNumber): float(b.SpecifiedPrimaryMeterset) for b in two.TreatmentSessionIonBeamSequence
    }
    assert sum(wanted.values()) == pytest.approx(summary(out)["mu_planned"])
    assert (two.TreatmentDate, two.TreatmentTime) > (one.TreatmentDate, one.TreatmentTime)


def test_a_resumed_field_gets_the_limit_less_what_was_given(tmp_path: Path) -> None:
    out = interrupted(tmp_path, 20)
    assert main(["resume", str(out)]) == 0
    with read_journal(out / "journal.bin") as journal:
        begun = [e for e in journal.parts[1].events if e["event"] == "counters" and e["phase"] == "field"]
        given = journal.parts[0].visits
        rest = [p for p in journal.parts[1].programs if p.head["field_index"] == 0]
        planned = [p for p in journal.parts[0].programs if p.head["field_index"] == 0]
        total = sum(int(p.visits["preset_counts"].sum()) for p in planned)
    assert [e.get("limits") is not None for e in begun] == [True, False]
    left = begun[0]["limits"][0]
    wanted = sum(int(p.visits["preset_counts"].sum()) for p in rest)
    assert left == pytest.approx(total * 1.01 + 200 - int(given["counts_1"].sum()), rel=0.002)
    assert wanted < left < wanted * 1.01 + 200 + 0.01 * int(given["counts_1"].sum()) + 30


@pytest.mark.parametrize("seed", range(10))
def test_a_lost_controller_leaves_nothing_forgotten_and_nothing_given_twice(seed: int, tmp_path: Path) -> None:
    """Three controllers of one treatment are thrown away, most of them while beam is on."""
    rng = random.Random(seed)
    moments = [after_visits(rng.randrange(0, 10) + 16 * k, rng.random() * 0.004) for k in range(3)]
    moments[seed % 3] = moments[seed % 3] if seed % 4 else at_second(rng.uniform(0.0, 9.0))
    room = quick_room() if seed % 2 else "carbon-fixed"
    pause_s = rng.choice((0.0, 0.4, 60.0))
    found = lose_and_resume(SMALL, room, tmp_path / "t", moments, seed=seed, pause_s=pause_s)
    resumed_well(found)


def resumed_well(found: Resumed) -> None:
    """Complete, right in every spot, and equal to the count in journal, rings and counters."""
    assert (found.outcome.status, found.outcome.message) == ("completed", "")
    percent, _ = spot_errors(found)
    assert len(percent) == 48
    assert np.abs(percent).max() < SPOT_PERCENT
    counts_agree(found)
    assert found.summary["spots_delivered"] == 48


def quick_room() -> Site:
    """The carbon room with a real room's time-out: a lost controller stops the beam within a layer."""
    room = load_site("carbon-fixed")
    return room.model_copy(update={"permits": room.permits.model_copy(update={"time_out_ms": 10.0})})


def test_a_controller_that_dies_between_arming_and_its_first_permit_is_in_nobodys_way(tmp_path: Path) -> None:
    async def armed_and_open(world: VirtualWorld) -> None:
        state = world.room.plant.state
        while not state["armed"] or state["closed"]:
            await asyncio.sleep(0.00005)

    found = lose_and_resume(SMALL, "carbon-fixed", tmp_path / "t", [armed_and_open])
    resumed_well(found)
    with read_journal(found.directory / "journal.bin") as journal:
        warnings = [str(e["text"]) for e in journal.events if e["event"] == "warning"]
    assert "the safety chain was still armed by an earlier run: opened" in warnings


def more_counts(number: int, counts: int) -> Moment:
    """The retained counter shows counts that nobody latched, or lacks some."""

    async def change(world: VirtualWorld) -> None:
        state = world.room.plant.state
        state["eng_command"] = CMD_ABORT  # the visit that ran is over before, and latched
        state["eng_commands"] += 1
        await asyncio.sleep(0.01)
        state[f"retained_{number}"] += counts

    return change


DISPUTES = {
    "counts in no ring": (more_counts(1, 5000), "5000 counts are in its retained counter|in no ring"),
    "electrometer 2 alone": (more_counts(2, 9000), "electrometer 2: .* in no ring"),
    "counter went back": (more_counts(1, -500_000), "went back"),
}


@pytest.mark.parametrize("name", DISPUTES)
def test_a_dispute_delivers_nothing_until_a_physicist_decides(name: str, tmp_path: Path) -> None:
    change, said = DISPUTES[name]
    found = lose_and_resume(SMALL, "carbon-fixed", tmp_path / "t", [after_visits(15, 0.001)], meanwhile=change)
    assert (found.outcome.status, found.outcome.exit_status) == ("refused", 3)
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(found.outcome.message)
    assert "--accept-dispute" in found.outcome.message
    assert found.verdicts == ["dispute"]
    assert found.summary["outcome"] == "refused"
    numbers = found.summary["parts"][-1]["reconciliation"]
    assert numbers["electrometer_1"]["now"] - numbers["electrometer_1"]["then"] != 0
    with read_journal(found.directory / "journal.bin") as journal:
        assert not [e for e in journal.parts[1].events if e["event"] == "permit"]


def test_a_physicist_may_let_the_hardware_counter_count(tmp_path: Path) -> None:
    decision = Decision("simulated", "pulse of the test")
    found = lose_and_resume(
        SMALL,
        quick_room(),
        tmp_path / "t",
        [after_visits(15, 0.001)],
        meanwhile=more_counts(1, 5000),
        decision=decision,
    )
    assert found.outcome.status == "completed"
    assert found.verdicts == ["accepted"]
    with read_journal(found.directory / "journal.bin") as journal:
        (event,) = [e for e in journal.events if e["event"] == "reconciliation"]
        extra = journal.visits[(journal.visits["quality"] & QUALITY_FROM_COUNTER) != 0]
    assert (event["operator"], event["reason"], event["trust"]) == ("simulated", "pulse of the test", "hardware")
    unexplained = event["electrometer_1"]["unexplained"]
    assert unexplained == pytest.approx(5000, abs=60)
    # what the counter counted and no ring has is taken for given: it is not given again
    _, particles = spot_errors(found)
    per_particle = journal_counts_per_particle(found)
    assert -particles.sum() * per_particle == pytest.approx(5000, rel=0.1)
    assert len(extra) >= 1
    assert found.summary["outcome"] == "completed"


def journal_counts_per_particle(found: Resumed) -> float:
    """Of electrometer 1, in the layers of the first field."""
    return float(found.run.planned[0][1].counts_per_particle)


def test_a_physicist_may_let_the_journal_count(tmp_path: Path) -> None:
    decision = Decision("simulated", "the counter was exchanged", "journal")
    found = lose_and_resume(
        SMALL,
        quick_room(),
        tmp_path / "t",
        [after_visits(15, 0.001)],
        meanwhile=more_counts(1, 5000),
        decision=decision,
    )
    assert found.outcome.status == "completed"
    percent, _ = spot_errors(found)
    assert np.abs(percent).max() < SPOT_PERCENT


def test_what_the_rings_held_is_booked_to_the_part_that_gave_it(tmp_path: Path) -> None:
    found = lose_and_resume(SMALL, "carbon-fixed", tmp_path / "t", [after_visits(15, 0.001)])
    resumed_well(found)
    with read_journal(found.directory / "journal.bin") as journal:
        tail = journal.visits[(journal.visits["quality"] & QUALITY_FROM_RINGS) != 0]
        assert len(tail) >= 3
        assert set(tail["part"]) == {1}
        assert len(journal.parts[0].visits) >= 15
        assert journal.parts[0].settled
    assert "unclosed" not in found.summary
    records = [pydicom.dcmread(found.directory / name) for name in ("record.dcm", "record-2.dcm")]
    given = sum(float(b.DeliveredPrimaryMeterset) for r in records for b in r.TreatmentSessionIonBeamSequence)
    assert given == pytest.approx(found.summary["mu_primary"], abs=1e-6)


def test_a_dispute_needs_a_name_and_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = interrupted(tmp_path)
    assert main(["resume", str(out), "--accept-dispute", "--operator", "simulated"]) == 3
    assert "--reason" in capsys.readouterr().err


def test_other_plans_sites_people_and_directories_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.dcm"
    shutil.copy(SMALL, plan)
    stop = scenario(tmp_path, fault("plant.emergency_stop", at="after_visits = 20", value=1))
    out = tmp_path / "t"
    assert deliver(out, "--fault", stop, plan=plan) == 4

    def refused(status: int, words: str, *more: str) -> None:
        capsys.readouterr()
        assert main(["resume", str(out), *more]) == status
        assert words in capsys.readouterr().err

    refused(3, "it is not the one that this treatment began with", "--site", "carbon-gantry")
    changed = plan.read_bytes()
    plan.write_bytes(changed[:-1] + b"\1")
    refused(3, "the plan was changed since")
    plan.write_bytes(changed)
    identity = (out / "identity.dcm").read_bytes()
    (out / "identity.dcm").unlink()
    refused(3, "missing or another patient's")
    (out / "identity.dcm").write_bytes(identity)
    (out / "identity.dcm").chmod(0o600)
    state = (out / "room-state.npz").read_bytes()
    (out / "room-state.npz").unlink()
    refused(3, "died with it")
    (out / "room-state.npz").write_bytes(state)
    journal = (out / "journal.bin").read_bytes()
    middle = len(journal) // 2
    (out / "journal.bin").write_bytes(journal[:middle] + bytes([journal[middle] ^ 1]) + journal[middle + 1 :])
    refused(2, "journal.bin")
    (out / "journal.bin").write_bytes(journal)
    assert main(["resume", str(tmp_path / "nowhere")]) == 2
    plan.rename(tmp_path / "away")
    refused(3, "the guard reads the plan file itself")
    (tmp_path / "away").rename(plan)
    assert main(["resume", str(out)]) == 0
    whole(out)
