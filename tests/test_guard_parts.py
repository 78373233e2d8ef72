"""What the guard remembers over the parts of a treatment, by the program's own commands in virtual time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from controller.cli import main
from controller.delivery.guard import GuardLink
from controller.record.journal_reader import read_journal
from tests.delivery_rig import EXAMPLES, fault

PLAN = EXAMPLES / "small_carbon.dcm"


def memory(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((out / "guard-state.json").read_text(encoding="utf-8"))
    return loaded


def deliver(out: Path, *more: str) -> int:
    return main(["deliver", str(PLAN), "--site", "carbon-fixed", "--clock", "virtual", "--out", str(out), *more])


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """A treatment that an emergency stop of half a second has interrupted in its first field."""
    faults = tmp_path / "faults.toml"
    faults.write_text(fault("plant.emergency_stop", at="after_visits = 20", value=1, for_s=0.5), encoding="utf-8")
    assert deliver(tmp_path / "out", "--fault", str(faults)) == 4
    return tmp_path / "out"


def test_counts_of_a_field_add_up_over_its_parts(tmp_path: Path, interrupted: Path) -> None:
    first = memory(interrupted)
    assert (first["part"], list(first["fields"])) == (1, ["0"])
    assert main(["resume", str(interrupted)]) == 0
    both = memory(interrupted)
    assert deliver(tmp_path / "whole") == 0
    whole = memory(tmp_path / "whole")
    assert both["part"] == 2
    assert first["fields"]["0"]["counts"] < 0.9 * whole["fields"]["0"]["counts"]
    for field in ("0", "1"):
        assert both["fields"][field]["counts"] == pytest.approx(whole["fields"][field]["counts"], rel=2e-3)


@pytest.mark.parametrize(
    ("change", "condition"),
    [
        ({"counter": -5000}, "GUARD_RETAINED"),
        ({"counter": +5000}, "GUARD_RETAINED"),
        ({"account": "another plan:1"}, "GUARD_RETAINED"),
        ({"ktp": 0.95}, "GUARD_CORRECTIONS"),
        ({"counts_per_particle": 0.0560}, "GUARD_CORRECTIONS"),
    ],
)
def test_a_memory_that_does_not_fit_is_refused(
    interrupted: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], condition: str
) -> None:
    stored = memory(interrupted)
    if "counter" in change:
        change = {"counter": stored["counter"] + change["counter"]}
    (interrupted / "guard-state.json").write_text(json.dumps({**stored, **change}), encoding="utf-8")
    capsys.readouterr()
    # at once: over a minute, the site's limit of a pedestal would explain so many counts
    assert main(["resume", str(interrupted), "--later", "0"]) == 3
    assert condition in capsys.readouterr().err


def test_a_controller_that_begins_again_is_refused_what_was_given_already(
    interrupted: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    agree = GuardLink.agree

    async def first_again(self: GuardLink, session: int, plan: str, group: int, part: int, *more: Any) -> None:
        assert part == 2
        await agree(self, session, plan, group, 1, *more)

    monkeypatch.setattr(GuardLink, "agree", first_again)
    capsys.readouterr()
    assert main(["resume", str(interrupted)]) == 3
    assert "part 1 of fraction 1, of which part 1 gave" in capsys.readouterr().err


def test_what_the_guard_has_latched_is_reset_by_the_part_that_resumes(interrupted: Path) -> None:
    stored = memory(interrupted)
    latched = {"id": "GUARD_FRAMES", "wall_ns": 0, "value": 250.0, "limit": None, "detail": "late"}
    (interrupted / "guard-state.json").write_text(json.dumps({**stored, "latched": latched}), encoding="utf-8")
    assert main(["resume", str(interrupted)]) == 0
    assert memory(interrupted)["latched"] is None
    with read_journal(interrupted / "journal.bin") as journal:
        resets = [event for event in journal.parts[1].events if event["event"] == "reset"]
    assert [(event["operator"], event["ids"]) for event in resets[1:]] == [("simulated", ["GUARD_FRAMES"])]


def test_a_treatment_that_the_guard_has_stopped_is_resumed_and_what_it_latched_reset(tmp_path: Path) -> None:
    out = tmp_path / "out"
    faults = tmp_path / "faults.toml"
    foreign = '[[fault]]\nname = "guard_frames_foreign"\ncount = 1.0\nat = { field = 1, visit = 6 }\n'
    faults.write_text(foreign, encoding="utf-8")
    assert deliver(out, "--fault", str(faults)) == 4
    assert memory(out)["latched"]["id"] == "GUARD_MONITOR"
    assert main(["resume", str(out)]) == 0
    assert memory(out)["latched"] is None


def test_what_the_guard_has_latched_is_reset_by_nobody_who_may_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (EXAMPLES.parent / "carbon-fixed.toml").read_text(encoding="utf-8")
    site = tmp_path / "room.toml"
    site.write_text(text.replace('names = ["simulated"]', 'names = ["anna", "berta"]\nphysicists = ["berta"]'))
    faults = tmp_path / "faults.toml"
    faults.write_text(fault("plant.emergency_stop", at="after_visits = 20", value=1, for_s=0.5), encoding="utf-8")
    out = tmp_path / "out"
    assert main(["deliver", str(PLAN), "--site", str(site), "--clock", "virtual", "--out", str(out),
                 "--fault", str(faults)]) == 4  # fmt: skip
    latched = {"id": "GUARD_VISIT", "wall_ns": 0, "value": 5.0, "limit": 12.0, "detail": "again"}
    (out / "guard-state.json").write_text(json.dumps({**memory(out), "latched": latched}), encoding="utf-8")
    capsys.readouterr()
    assert main(["resume", str(out), "--operator", "anna", "--reason", "looks fine"]) == 3
    assert "GUARD_VISIT needs a physicist (berta)" in capsys.readouterr().err
    assert memory(out)["latched"] == latched
    assert main(["resume", str(out), "--operator", "berta", "--reason", "found and cured"]) == 0
    assert memory(out)["latched"] is None


def test_a_field_that_has_had_its_dose_gets_no_more(interrupted: Path) -> None:
    stored = memory(interrupted)
    stored["fields"]["0"]["counts"] *= 1.5  # it says that almost all was given
    (interrupted / "guard-state.json").write_text(json.dumps(stored), encoding="utf-8")
    assert main(["resume", str(interrupted)]) == 4
    trips = json.loads((interrupted / "summary.json").read_text(encoding="utf-8"))["trips"]
    assert "GUARD_COUNTS" in [trip["id"] for trip in trips]
