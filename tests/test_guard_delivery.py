"""The guard in a room in virtual time: it lets good deliveries pass and stops what contradicts the plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from controller.delivery.guard import GuardLink
from drivers.wires.guard_link import LayerLimits, Message, Session, Wish
from simulators.plant.state import CAUSE_GUARD_DROP, CAUSE_GUARD_SILENCE
from sites.loader import load_site
from sites.schema import Site
from tests.delivery_rig import EXAMPLES, fault, run_delivery

PLAN = EXAMPLES / "small_carbon.dcm"


def guarded(name: str = "carbon-fixed") -> Site:
    """A shipped site that requires the guard."""
    site = load_site(name)
    return site.model_copy(update={"permits": site.permits.model_copy(update={"required": ("controller", "guard")})})


Lie = Callable[[Message], Message | None]


def lying(monkeypatch: pytest.MonkeyPatch, lie: Lie) -> None:
    """The controller says to the guard what `lie` makes of the truth; None: nothing."""
    honest = GuardLink._send

    def send(link: GuardLink, message: Message) -> None:
        said = lie(message)
        if said is not None:
            honest(link, said)

    monkeypatch.setattr(GuardLink, "_send", send)


@pytest.mark.parametrize(
    ("name", "plan"), [("carbon-fixed", PLAN), ("proton-gantry", EXAMPLES / "demo_proton_1field.dcm")]
)
def test_a_sound_delivery_passes(tmp_path: Path, name: str, plan: Path) -> None:
    done = run_delivery(plan, guarded(name), tmp_path / "out")
    assert done.outcome.status == "completed"
    assert done.summary["trips"] == []
    assert done.named("guard", phase="agreed")
    assert int(done.plant["sequence_2"]) > 10  # it was the guard's permits too that kept the chain closed


@pytest.mark.parametrize(
    ("what", "lie"),
    [
        ("particles", lambda m: m._replace(particles=m.particles * 1.002)),
        ("counts on electrometer 2", lambda m: m._replace(counts_2=m.counts_2 * 1.002)),
        ("visits", lambda m: m._replace(visits=m.visits + 1)),
        ("energy", lambda m: m._replace(energy_mev_u=m.energy_mev_u + 0.02)),
        ("no such intensity", lambda m: m._replace(rate_per_s=m.rate_per_s * 1.01)),
    ],
)
def test_limits_that_differ_by_two_per_mille_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, lie: Callable[[LayerLimits], LayerLimits]
) -> None:
    lying(monkeypatch, lambda m: lie(m) if isinstance(m, LayerLimits) and m.layer == 1 else m)
    done = run_delivery(PLAN, guarded(), tmp_path / "out")
    assert done.outcome.status == "refused"
    assert "GUARD_LIMITS" in done.outcome.message
    assert what in done.outcome.message
    assert int(done.plant["particles"]) == 0


def test_limits_that_differ_by_half_a_per_mille_are_agreed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lying(monkeypatch, lambda m: m._replace(particles=m.particles * 1.0005) if isinstance(m, LayerLimits) else m)
    assert run_delivery(PLAN, guarded(), tmp_path / "out").outcome.status == "completed"


@pytest.mark.parametrize(
    ("condition", "lie"),
    [
        ("GUARD_PLAN", lambda m: m._replace(plan_sha256=bytes(32))),
        ("GUARD_LIMITS", lambda m: m._replace(fields=m.fields + 1)),
        ("GUARD_LIMITS", lambda m: m._replace(fraction_group=7)),
        ("GUARD_CORRECTIONS", lambda m: m._replace(ktp=m.ktp * 1.004)),
        ("GUARD_RETAINED", lambda m: m._replace(part=2)),
    ],
)
def test_a_session_that_contradicts_the_guard_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, condition: str, lie: Callable[[Session], Session]
) -> None:
    lying(monkeypatch, lambda m: lie(m) if isinstance(m, Session) else m)
    done = run_delivery(PLAN, guarded(), tmp_path / "out")
    assert done.outcome.status == "refused"
    assert condition in done.outcome.message


@pytest.mark.parametrize(
    ("condition", "lie"),
    [
        # the controller names a later layer than the one that it starts: its visits are not that layer's
        ("GUARD_CONTROLLER", lambda m: m._replace(layer=m.layer + 1) if m.layer == 0 else m),
        ("GUARD_CONTROLLER", lambda m: m._replace(last_visit=m.last_visit + 1) if m.layer == 0 else m),
        ("GUARD_VISIT", lambda m: m._replace(last_visit=m.last_visit - 3) if m.layer == 0 else m),
        ("GUARD_VISIT", lambda m: m._replace(layer=0, first_visit=1, last_visit=12) if m.layer == 1 else m),
        ("GUARD_VISIT", lambda m: m._replace(layer=-1, first_visit=0, last_visit=0)),
    ],
)
def test_a_controller_that_lies_of_what_runs_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, condition: str, lie: Callable[[Wish], Wish]
) -> None:
    lying(monkeypatch, lambda m: lie(m) if isinstance(m, Wish) and m.permit else m)
    done = run_delivery(PLAN, guarded(), tmp_path / "out")
    assert done.outcome.status == "interrupted"
    assert done.first_out == condition
    assert int(done.plant["cause"]) == CAUSE_GUARD_DROP
    assert not int(done.plant["closed"])


def test_a_controller_that_falls_silent_loses_the_guards_permit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lying(monkeypatch, lambda m: None if isinstance(m, Wish) and m.layer >= 0 and m.permit else m)
    done = run_delivery(PLAN, guarded(), tmp_path / "out")
    assert done.outcome.status == "interrupted"
    assert int(done.plant["cause"]) in (CAUSE_GUARD_SILENCE, CAUSE_GUARD_DROP)


def dead(_: object) -> None:
    """Nobody judges."""


FAULTS = {
    "GUARD_COUNTS": fault("plant.gain_2", at="after_visits = 3", scale=1.2),
}


@pytest.mark.parametrize("condition", sorted(FAULTS))
def test_what_the_guard_sees_it_names(tmp_path: Path, condition: str) -> None:
    done = run_delivery(PLAN, guarded(), tmp_path / "out", faults=FAULTS[condition])
    assert done.outcome.status == "interrupted"
