"""S10 after a stop where no monitor sends frames any more: silence proves nothing, so the chain's sensor is asked."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from controller.delivery.proof import _frame_ns
from interlocks.conditions import matrix
from tests.delivery_rig import EXAMPLES, Delivery, fault, run_delivery

PLAN = EXAMPLES / "small_carbon.dcm"
SILENT = {number: fault(f"plant.silent_{number}", value=1) for number in (1, 2)}
STUCK = fault("plant.chopper_stuck", value=1) + fault("wire.accelerator", kind="cut")
"""And no spill is ended by a command, which would hide it."""
NO_CHAIN = fault("wire.safety_chain", kind="cut")


def proved(delivery: Delivery) -> tuple[list[tuple[str, str]], list[str]]:
    """What the proof latched, and the warnings that speak of it."""
    latched = [(t.id, t.detail) for t in delivery.run.latch.history if "after the stop" in t.detail]
    return latched, [e["text"] for e in delivery.named("warning") if "after the stop" in e["text"]]


def test_where_no_monitor_sends_frames_the_chains_sensor_is_asked(
    tmp_path: Path,
) -> None:
    both = SILENT[1] + SILENT[2]
    stuck = run_delivery(PLAN, "carbon-fixed", tmp_path / "stuck", faults=both + STUCK, whole=False)
    ((name, detail),), warned = proved(stuck)
    assert name == "BEAM_WITHOUT_REQUEST"
    assert "by the chain's sensor" in detail
    assert not any("sensor alone" in text for text in warned)
    closed = run_delivery(PLAN, "carbon-fixed", tmp_path / "closed", faults=both, whole=False)
    latched, (text,) = proved(closed)
    assert latched == []
    assert "by the chain's sensor alone" in text


def test_beam_that_nobody_sees_go_off_is_named_and_a_physicists_to_reset(tmp_path: Path) -> None:
    scenario = SILENT[1] + SILENT[2] + NO_CHAIN
    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", faults=scenario, whole=False)
    ((name, detail),), _ = proved(delivery)
    assert name == "BEAM_OFF_UNPROVED"
    assert "safety_chain" in detail
    assert matrix()["BEAM_OFF_UNPROVED"].reset == "physicist"


def test_a_frames_time_is_taken_to_our_clock() -> None:
    streams = np.zeros(4, [("t_ns", "i8"), ("offset_ns", "i8")])
    streams[1] = (7_000, -2_000)
    run: Any = SimpleNamespace(path=SimpleNamespace(monitor=SimpleNamespace(streams=streams)))
    assert _frame_ns(run, 1) == 5_000
