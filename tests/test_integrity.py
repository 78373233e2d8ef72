"""Plan file, site file and register maps are compared with what was checked at every arm: an edit between is a trip."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import drivers
import sites
from controller.delivery.integrity import Sources, what_changed
from drivers.registers import load_map
from sites.loader import load_site
from tests.delivery_rig import EXAMPLES, Delivery, run_delivery

PLAN = EXAMPLES / "demo_carbon_2field.dcm"


@pytest.fixture
def copies(tmp_path: Path) -> dict[str, Path]:
    """A plan, a site and the accelerator's register map that a test may edit."""
    plan, site, accelerator = tmp_path / "plan.dcm", tmp_path / "room.toml", tmp_path / "accelerator.toml"
    shutil.copy(PLAN, plan)
    shutil.copy(Path(drivers.__file__).parent / "maps" / "accelerator.toml", accelerator)
    text = (Path(sites.__file__).parent / "carbon-fixed.toml").read_text(encoding="utf-8")
    assert 'map = "accelerator"' in text
    site.write_text(text.replace('map = "accelerator"', f'map = "{accelerator}"'), encoding="utf-8")
    return {"plan": plan, "site": site, "map": accelerator}


def append_a_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after, 1), encoding="utf-8")


def deliver_with_an_edit(copies: dict[str, Path], tmp_path: Path, change: Callable[[], None]) -> Delivery:
    """Deliver; the edit happens while the first of two fields has beam."""

    async def operator(delivery: Delivery) -> None:
        await delivery.until(lambda: delivery.run.tally.visits_done > 10)
        change()

    site = load_site(str(copies["site"]))
    return run_delivery(copies["plan"], site, tmp_path / "out", script=operator, site_name=str(copies["site"]))


EDITS: dict[str, tuple[Callable[[dict[str, Path]], None], str]] = {
    "plan edited": (lambda c: append_a_byte(c["plan"]), "plan file plan.dcm"),
    "plan gone": (lambda c: c["plan"].unlink(), "plan: "),
    "site edited": (lambda c: edit(c["site"], "position_mm = 1.0", "position_mm = 1.1"), "site file "),
    "site broken": (lambda c: edit(c["site"], "position_mm = 1.0", "position_mm = one"), "site: "),
    "register map swapped": (lambda c: edit(c["map"], "address = 32,", "address = 33,"), "register map"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_after_the_check_is_a_trip_at_the_next_arm(name: str, copies: dict[str, Path], tmp_path: Path) -> None:
    change, named = EDITS[name]
    delivery = deliver_with_an_edit(copies, tmp_path, lambda: change(copies))
    assert delivery.outcome.exit_status == 4
    assert delivery.first_out == "PLAN_CHANGED"
    assert named in delivery.run.latch.history[0].detail
    # the first field was complete, nothing of the second was given, and the room was never set up for it
    assert set(delivery.visits["field"]) == {0}
    assert not delivery.named("setup", field=1)


def test_everything_that_changed_is_named_and_once(copies: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "gantry.toml"
    shutil.copy(Path(drivers.__file__).parent / "maps" / "gantry.toml", other)
    sources = Sources(
        copies["plan"],
        hashlib.sha256(copies["plan"].read_bytes()).hexdigest(),
        load_site(str(copies["site"])),
        str(copies["site"]),
        (load_map(str(copies["map"])), load_map(str(other))),
    )
    assert what_changed(sources) == ()
    append_a_byte(copies["plan"])
    edit(copies["site"], "position_mm = 1.0", "position_mm = 1.1")
    copies["map"].write_text("[[", encoding="utf-8")
    edit(other, "max = 365.0", "max = 366.0")
    found = what_changed(sources)
    assert [words.split(":")[0] for words in found[:3]] == [
        "plan file plan.dcm",
        f"site file {copies['site']}",
        "register map",
    ]
    assert found[3:] == (f"register map {other}",)
    other.unlink()
    assert what_changed(sources)[3].startswith("register map: ")
    nothing_known = replace(sources, plan=None, site_name=None, maps=())
    assert what_changed(nothing_known) == ()


def test_words_for_people_in_a_register_map_may_be_corrected(copies: dict[str, Path], tmp_path: Path) -> None:
    delivery = deliver_with_an_edit(copies, tmp_path, lambda: edit(copies["map"], 'title = "', 'title = "The '))
    assert delivery.outcome.status == "completed"


def test_a_run_that_does_not_know_its_sources_arms_nothing(tmp_path: Path) -> None:
    async def operator(delivery: Delivery) -> None:
        delivery.run.sources = None

    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "out", script=operator)
    assert delivery.first_out == "PLAN_CHANGED"
    assert len(delivery.visits) == 0
