"""One process stopped in real time, the others as they are; a hundred times each by `python -m tests.kills`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kills.resumes import resume_once, times_of
from tests.kills.room import GUARD, bench
from tests.kills.stops import stop_once

pytestmark = [pytest.mark.real_clock, pytest.mark.timeout(400)]

GUARD_TIME_OUT = 10
"""The chain's cause."""
PHASE_S = 5.0
"""The beam phase of its plan on a quiet PC."""


async def test_a_guard_and_an_asyncio_that_stand_still_end_the_beam_in_time(tmp_path: Path) -> None:
    async with bench(tmp_path / "room") as room:
        for kind in ("guard stopped", "asyncio blocked"):
            result = await stop_once(room, kind, 0.5, PHASE_S, tmp_path / kind.replace(" ", "-"))
            assert result["problems"] == [], result
            assert result["off_ms"] <= result["limit_ms"]
            if kind == "guard stopped" and result["begun"] and result["closed"]:
                assert result["cause"] == GUARD_TIME_OUT
                assert result["first_out"] in ("CHAIN_OPENED", "GUARD_SILENT")
            assert room.pid_of(GUARD) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["controller killed", "controller stopped", "guard killed", "streams killed"])
async def test_whatever_else_stands_still_or_dies_ends_the_beam_in_time(tmp_path: Path, kind: str) -> None:
    async with bench(tmp_path / "room") as room:
        result = await stop_once(room, kind, 0.4, PHASE_S, tmp_path / "out")
        assert result["problems"] == [], result


@pytest.mark.slow
async def test_a_killed_controller_is_resumed_and_every_spot_is_right(tmp_path: Path) -> None:
    async with bench(tmp_path / "room") as room:
        undisturbed = await times_of(room, tmp_path / "undisturbed")
        assert undisturbed["problems"] == []
        result = await resume_once(room, 1, 0, undisturbed, tmp_path / "out")
        assert result["problems"] == [], result
        assert result["kills"]
