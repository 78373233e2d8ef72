"""Time in the plant: any cut gives the same bytes, the same seed the same room, another seed another one."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.plant.build import build_plant
from simulators.plant.state import CMD_HOLD, CMD_RESUME
from simulators.plant.step import advance_frame
from tests.plan_models import layer
from tests.plant_rig import CARBON, Rig, programs_of

FRAMES = 900
"""Of which beam, holds and idle times are part."""
PROGRAM = programs_of(CARBON, layer(meterset=(0.8,) * 9))[0]


def started(seed: int = 1) -> Rig:
    rig = Rig(seed=seed)
    rig.ready(PROGRAM)
    rig.start()
    return rig


def whole() -> bytes:
    rig = started()
    rig.run(FRAMES)
    return rig.plant.memory.tobytes()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, FRAMES - 1), max_size=12))
def test_cutting_the_time_axis_changes_no_byte(cuts: list[int]) -> None:
    rig = started()
    at = 0
    for cut in [*sorted(set(cuts)), FRAMES]:
        rig.run(cut - at)
        at = cut
    assert rig.plant.memory.tobytes() == whole()


def test_frames_do_not_depend_on_whether_anyone_looks() -> None:
    watched = started()
    datagrams = watched.record(FRAMES)
    assert len(datagrams) == FRAMES * 5 // 2
    assert watched.plant.memory.tobytes() == whole()


def test_the_same_seed_gives_the_same_frames_and_another_seed_others() -> None:
    one, two, other = (started(seed).record(300) for seed in (1, 1, 2))
    assert one == two
    assert one != other
    assert {d.data[8:16] for d in one}.isdisjoint({d.data[8:16] for d in other}), "boot nonces"


def test_a_power_cycle_changes_the_nonces_and_nothing_else() -> None:
    before, after = build_plant(CARBON, 1), build_plant(CARBON, 1, boot="again")
    for stream in (1, 2, 3):
        assert before.state[f"nonce_{stream}"] != after.state[f"nonce_{stream}"]
        after.state[f"nonce_{stream}"] = before.state[f"nonce_{stream}"]
    assert before.memory.tobytes() == after.memory.tobytes()


def test_an_idle_stroke_is_ten_steps_in_which_nothing_happens() -> None:
    """The short way through a frame without beam must leave what the long way leaves."""
    short, long = build_plant(CARBON, 1), build_plant(CARBON, 1)
    for plant in (short, long):
        plant.state["arrived_ns"] = 0
    long.parameters["leak"] = 1e-30  # no ion in a billion years, but no longer idle
    for _ in range(50):
        for plant in (short, long):
            advance_frame(plant.memory[0], plant.frame_1, plant.frame_2, plant.frame_3)
    long.parameters["leak"] = 0.0
    assert bytes(short.frame_1.u8) == bytes(long.frame_1.u8)
    for name in ("counts_1", "counts_2", "t_ns", "frame", "particles", "field_x_ma", "current_x_ma"):
        assert short.state[name] == long.state[name], name


def test_a_hold_does_not_change_the_noise_of_later_frames() -> None:
    """Noise is a function of seed and frame number, not of what was drawn before."""
    free, held = started(), started()
    held.run(10)
    held.engine(CMD_HOLD)
    held.run(40)
    held.engine(CMD_RESUME)
    held.run(50)
    free.run(100)
    assert free.state["rate_units_ns"] == held.state["rate_units_ns"] > 0
    assert free.state["wander_x_mm"] == held.state["wander_x_mm"]
