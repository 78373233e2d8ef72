"""What beam rests on (S1), as a run under way really stands: each part is asked of it, and what is found trips."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from controller.clock import now_ns
from controller.delivery.identities import oldest_identity_ns
from controller.delivery.run import Run
from controller.delivery.standing import AlreadyTripped, require_arming, require_beam, standing
from interlocks.invariant import before_arming, before_beam
from interlocks.slow import Violation
from tests.delivery_rig import EXAMPLES, Delivery, run_delivery

PLAN = EXAMPLES / "small_carbon.dcm"
NAME = "simulated"
ROOM = Violation("COUCH_MOVED", 2.0, 0.5, "lateral_mm")


async def armed(delivery: Delivery) -> None:
    await delivery.commands.prepare()
    await delivery.commands.arm(NAME, "the first field")


def test_an_armed_field_may_have_beam_once_its_spill_is_verified(tmp_path: Path) -> None:
    async def operator(delivery: Delivery) -> None:
        run = delivery.run
        await delivery.commands.prepare()
        assert standing(run).field is None
        assert not standing(run).confirmed
        await delivery.commands.arm(NAME, "the first field")
        stands = standing(run)
        assert before_arming(stands) == []
        assert (stands.field, stands.confirmed, stands.permits_fresh, stands.room) == (0, True, True, ())
        assert not stands.spill_verified, "no energy was asked for yet"
        good = run.expected
        run.expected = replace(good, energy_mev_u=250.0)
        assert standing(run).spill_verified
        run.spill_verified.clear()
        assert not standing(run).spill_verified, "between two spills of a layer"
        run.spill_verified.set()
        run.expected = good
        run.field_confirmed = 1
        assert not standing(run).confirmed, "another field was confirmed"
        run.field_confirmed = 0

    run_delivery(PLAN, "carbon-fixed", tmp_path / "t", script=operator, alone=True, whole=False)


def test_the_room_is_judged_where_nobody_judged_it_just_before(tmp_path: Path) -> None:
    async def operator(delivery: Delivery) -> None:
        run = delivery.run
        await armed(delivery)
        assert run.expected.gantry_deg is not None
        good = run.expected
        run.expected = replace(good, gantry_deg=run.expected.gantry_deg + 3.0)
        assert [v.id for v in standing(run).room or ()] == ["GANTRY_MOVED"]
        assert standing(run, [ROOM]).room == (ROOM,)
        run.expected = good
        assert standing(run).room == ()

    run_delivery(PLAN, "carbon-fixed", tmp_path / "t", script=operator, alone=True, whole=False)


def test_a_stream_is_silent_once_it_is_older_than_the_site_allows(tmp_path: Path) -> None:
    async def operator(delivery: Delivery) -> None:
        run = delivery.run
        await armed(delivery)
        assert standing(run).silent_streams == ()
        run.path.monitor.streams[2]["arrival_ns"] -= round(run.site.permits.stale_ms * 1e6) + 1_000_000
        assert standing(run).silent_streams == (2,)

    run_delivery(PLAN, "carbon-fixed", tmp_path / "t", script=operator, alone=True, whole=False)


def test_who_said_long_ago_who_it_is_is_unknown_from_the_limit_on(tmp_path: Path) -> None:
    async def operator(delivery: Delivery) -> None:
        run = delivery.run
        await armed(delivery)
        asked_ns = dict(run.identified_ns)
        oldest_ns = now_ns() - oldest_identity_ns(run.site)
        run.identified_ns.update(gantry=oldest_ns, couch=oldest_ns - 1)
        del run.identified_ns["nozzle"]
        nonces = standing(run).boot_nonces
        assert "gantry" in nonces, "just in time"
        assert "couch" not in nonces
        assert "nozzle" not in nonces, "it never said"
        run.identified_ns.update(asked_ns)

    run_delivery(PLAN, "carbon-fixed", tmp_path / "t", script=operator, alone=True, whole=False)


@pytest.mark.parametrize("asked", [require_arming, require_beam])
def test_what_stands_against_it_is_latched_with_all_its_words_and_raised(
    asked: Callable[[Run], None], tmp_path: Path
) -> None:
    async def operator(delivery: Delivery) -> None:
        run = delivery.run
        await armed(delivery)
        run.expected = replace(run.expected, energy_mev_u=None)
        require_arming(run)
        assert not run.latch.tripped
        assert [v.id for v in before_beam(standing(run))] == ["NOT_READY"]
        if asked is require_arming:
            run.field_set_up = None
        with pytest.raises(AlreadyTripped, match="NOT_READY"):
            asked(run)
        said = "the set-up of this field was not read back" if asked is require_arming else "energy, ion and port"
        assert [trip.id for trip in run.latch.latched] == ["NOT_READY"]
        assert run.latch.latched[0].detail.startswith(said)
        await asyncio.sleep(0.005)
        assert delivery.plant["closed"] == 0

    run_delivery(PLAN, "carbon-fixed", tmp_path / "t", script=operator, alone=True, whole=False)
