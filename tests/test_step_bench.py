"""The yardstick of `bench step` does the same work as ours: the same transactions, the same spots."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from controller.bench.bluesky_scan import bluesky_version
from controller.bench.step import Transaction, Turn, run_turns
from drivers.registers import load_map

pytestmark = pytest.mark.real_clock

SPOTS = 5
STEP = load_map("preset_electrometer").register("step_visit").address
SETS = load_map("magnet_supply").register("x_set_a").address


@pytest.fixture(scope="module")
def turns(tmp_path_factory: pytest.TempPathFactory) -> tuple[Turn, Turn]:
    if bluesky_version() is None:
        pytest.skip("bluesky is not installed (extra `bench`)")
    ours, theirs = run_turns(tmp_path_factory.mktemp("bench"), SPOTS, 1)
    return ours[0], theirs[0]


def written(turn: Turn, address: int) -> list[Transaction]:
    return [asked for asked in turn.asked if asked[1] == address and asked[0] == "FC23"]


def test_both_write_the_same_steps_in_the_same_order(turns: tuple[Turn, Turn]) -> None:
    steps = [[(words[:-1], count) for _, _, words, count in written(turn, STEP)] for turn in turns]  # last: a counter
    assert steps[0] == steps[1]
    assert len(steps[0]) == SPOTS


def test_both_write_the_same_set_points(turns: tuple[Turn, Turn]) -> None:
    ours, theirs = (written(turn, SETS) for turn in turns)
    assert theirs[1:] == ours  # our first place was set at the arm, before the clock
    assert len(theirs) == SPOTS


def test_both_look_at_the_same_registers(turns: tuple[Turn, Turn]) -> None:
    looks = [{asked for asked in turn.asked if asked[0] == "FC03"} for turn in turns]
    assert looks[0] - looks[1] <= {t for t in looks[0] if t[3] == 1}  # the request's counter, asked once
    assert looks[1] <= looks[0]


def test_both_deliver_the_same_spots(turns: tuple[Turn, Turn]) -> None:
    ours, theirs = turns
    assert ours.visits == theirs.visits == tuple(range(1, SPOTS + 1))
    assert np.abs(ours.counts - theirs.counts).max() < 0.1 * ours.counts.mean()


def test_without_bluesky_ours_alone_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.bench.step.bluesky_version", lambda: None)
    ours, theirs = run_turns(tmp_path, SPOTS, 1)
    assert theirs == []
    assert len(ours[0].host_us) == SPOTS - 1
