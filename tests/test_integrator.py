"""The compiled integrator against the plain one: same rows, same first condition, on good and on hostile streams."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.dose.frame_clock import SETTLE_NS
from controller.dose.integrator import ACTION_PERMIT
from controller.dose.memory import MEASURED_FIELDS
from controller.dose.path import MonitorPath
from controller.dose.reference import Row
from controller.dose.reference_judge import Judge
from controller.machine.program import LayerProgram
from controller.record.schema import QUALITY_STRIP_BAD, QUALITY_STRIP_FOUND
from drivers.flags import FLAG_BEAM, FLAG_HV_OK, FLAG_REQUEST, FLAG_SATURATED, FLAG_TRIPPED
from drivers.wires.frames import decode, encode
from interlocks import numbers
from simulators.plant.state import CMD_HOLD, CMD_RESUME, ENG_DONE, ION_UNIT
from sites.schema import Site
from tests.plan_models import layer, spots
from tests.plant_rig import CARBON, PROTON, Datagram, Rig, feed, monitor_path, programs_of, record_layer, watch

ALIVE = 10
"""Datagrams after which `watch` switches permits on."""


def judged(path: MonitorPath, datagrams: Sequence[Datagram]) -> Judge:
    """The reference, given the same stream."""
    judge = Judge(path.monitor)
    for k, datagram in enumerate(datagrams):
        judge.permit_on = k >= ALIVE
        judge.integrator.receive(datagram.data, datagram.t_ns)
    return judge


def agree(site: Site, program: LayerProgram, datagrams: Sequence[Datagram]) -> tuple[MonitorPath, Judge]:
    """Both integrate the stream; all fields of all rows must be equal to the bit, and the first condition the same.

    Integers are exact by nature. Floats may be compared for equality as well: both compute the same float64
    operations in the same order, neither with fused multiply-add, and IEEE 754 leaves no choice.
    """
    path = monitor_path(site, [program])
    judge = judged(path, datagrams)
    watch(path, datagrams)
    rows = path.take_measured()
    for measured, row in zip(rows, judge.integrator.rows, strict=True):
        for name, ours, theirs in zip(rows.dtype.names, measured.item(), row.values(), strict=True):
            both_nan = math.isnan(ours) and math.isnan(theirs)
            assert both_nan or ours == theirs, f"visit {row.visit}, {name}: {ours!r}, reference {theirs!r}"
    trip, first = path.trip(), judge.first_out
    if trip is None or first is None:
        assert trip is None
        assert first is None
        return path, judge
    assert (trip.number, trip.visit) == (first.number, first.visit)
    # limits and values of judgements may differ in the last place: x ** 0.5 and hypot are not the same function
    assert (trip.value, trip.limit) == pytest.approx((first.value, first.limit), rel=1e-12)
    return path, judge


def test_the_reference_has_the_fields_of_the_measured_rows() -> None:
    assert [name for name, _, _ in MEASURED_FIELDS] == list(Row.__dataclass_fields__)


def gap_in_mid_visit(rig: Rig) -> None:
    rig.plant.parameters["spill_units"] = 600_000 * ION_UNIT
    rig.plant.parameters["spill_spread"] = 0.0


def gated(rig: Rig) -> None:
    rig.state["gate_source"] = 1
    rig.plant.parameters["gate_period_ns"] = 10_000_000
    rig.plant.parameters["gate_open_ns"] = 4_000_000


def nothing(rig: Rig) -> None:
    assert rig.state["closed"] == 0


RASTER = layer(meterset=(1.2,) * 9)
STREAMS: list[tuple[str, Site, Callable[[Rig], None], bool]] = [
    ("raster", CARBON, nothing, False),
    ("discrete", PROTON, nothing, False),
    ("spill gaps", CARBON, gap_in_mid_visit, False),
    ("gated", CARBON, gated, True),
]


@functools.cache
def recorded(site_name: str) -> tuple[LayerProgram, tuple[Datagram, ...]]:
    """A small layer, recorded once."""
    site = CARBON if site_name == "carbon" else PROTON
    small = spots([(2.0 * k - 4.0, 3.0, 0.5) for k in range(5)])
    program = programs_of(site, small if site is CARBON else layer(energy_mev_u=120.0, tune_id="4.0"))[0]
    return program, tuple(record_layer(site, program, quiet=200)[1])


@pytest.mark.parametrize(("name", "site", "change", "gate"), STREAMS, ids=[name for name, *_ in STREAMS])
def test_a_clean_stream_gives_the_same_rows_and_no_condition(
    name: str, site: Site, change: Callable[[Rig], None], gate: bool
) -> None:
    program = programs_of(site, RASTER if site is CARBON else layer(energy_mev_u=120.0, tune_id="4.0"))[0]
    rig, datagrams = record_layer(site, program, change=change, gated=gate)
    assert rig.state["eng_state"] == ENG_DONE
    path, judge = agree(site, program, datagrams)
    assert path.trip() is None
    rows = judge.integrator.rows
    assert [row.visit for row in rows] == program.visits["visit"].tolist()
    assert all(row.quality == 0 for row in rows)
    split = rig.plant.results[: len(rows)]["flags"] & 2
    assert bool(split.any()) == (name in ("spill gaps", "gated"))
    # what the electrometers latched is what the frames say, to the count
    assert [row.counts_1 for row in rows] == rig.plant.latches_1[: len(rows)]["counts"].tolist()
    assert [row.counts_2 for row in rows] == rig.plant.latches_2[: len(rows)]["counts"].tolist()
    assert [row.t_end_ns for row in rows] == rig.plant.results[: len(rows)]["t_end_ns"].tolist()


@pytest.mark.parametrize("site", [CARBON, PROTON], ids=["carbon", "proton"])
def test_charge_is_booked_to_the_visit_that_it_belongs_to(site: Site) -> None:
    program = programs_of(site, layer() if site is CARBON else layer(energy_mev_u=120.0, tune_id="4.0"))[0]
    rig, datagrams = record_layer(site, program)
    path = monitor_path(site, [program])
    watch(path, datagrams)
    rows = path.take_measured()
    truth = rig.plant.truth[rows["visit"]]
    particles = truth["units"] / ION_UNIT
    # the plant's true gain is known here; what is left is the estimate of late charge and whole counts
    calibration = rows["delta_1"].sum() / particles.sum()
    np.testing.assert_allclose(rows["delta_1"] / calibration, particles, rtol=2e-3)
    assert calibration == pytest.approx(program.counts_per_particle, rel=4e-3)
    # truth has the way from the spot before (raster), which the measurement leaves out: 1.5 % of a visit, 4 mm away
    np.testing.assert_allclose(rows["x_mm"], truth["x"] / truth["units"], atol=0.1)
    np.testing.assert_allclose(rows["y_mm"], truth["y"] / truth["units"], atol=0.1)
    sigma = program.sigma_x_mm * site.simulation.sigma_scale
    np.testing.assert_allclose(rows["sigma_x_mm"], sigma, rtol=0.03)


def test_hold_and_resume_in_mid_visit_keep_rows_and_pedestals_right() -> None:
    program = programs_of(CARBON, layer())[0]
    rig = Rig()
    rig.ready(program)
    datagrams = rig.record(600)
    rig.start()
    for command in (CMD_HOLD, CMD_RESUME):
        datagrams += rig.record(130)
        rig.engine(command)
    datagrams += rig.record(300)  # of which the pause's quiet frames teach pedestals inside a visit
    datagrams += rig.record(30_000, stop=True)
    datagrams += rig.record(60)
    path, judge = agree(CARBON, program, datagrams)
    assert path.trip() is None
    presets = program.visits["preset_counts"]
    assert [row.visit for row in judge.integrator.rows] == program.visits["visit"].tolist()
    assert sum(row.delta_1 for row in judge.integrator.rows) == pytest.approx(float(presets.sum()), rel=2e-3)


def test_how_the_stream_is_cut_into_calls_does_not_matter() -> None:
    program, datagrams = recorded("carbon")
    whole, pieces = (monitor_path(CARBON, [program]) for _ in range(2))
    actions = feed(whole, datagrams)
    sizes = [1, 2, 3, 7, 50, 100_000]
    at, got = 0, []
    for size in sizes:
        got += feed(pieces, datagrams[at : at + size])
        at += size
    assert got == actions
    assert whole.monitor.memory.tobytes() == pieces.monitor.memory.tobytes()


def test_a_corrupted_datagram_changes_nothing_but_its_counter() -> None:
    program, datagrams = recorded("carbon")
    path = monitor_path(CARBON, [program])
    feed(path, datagrams[:100])
    before = path.monitor.memory.copy()
    broken = bytearray(datagrams[100].data)
    broken[50] ^= 4
    for k, name in enumerate(("corrupt", "torn", "foreign")):
        data = (bytes(broken), datagrams[100].data[:-1], b"\0" * 200)[k]
        feed(path, [Datagram(data, datagrams[99].t_ns)])
        assert int(path.monitor.state[name]) == 1
        path.monitor.state[name] = 0
    assert path.monitor.memory.tobytes() == before.tobytes()


def test_visits_that_were_never_planned_trip_and_do_not_stop_the_loop() -> None:
    program, datagrams = recorded("carbon")
    strange = [edited(d, visit=5000) if in_visit(d, 2) else d for d in datagrams]
    path, judge = agree(CARBON, program, strange)
    assert judge.first_out is not None
    assert judge.first_out.number == numbers.VISIT_SEQUENCE
    assert 5000 in path.monitor.measured["visit"]


def in_visit(datagram: Datagram, visit: int) -> bool:
    frame = decode(datagram.data)
    return frame is not None and frame.visit == visit


def edited(datagram: Datagram, **changes: int) -> Datagram:
    """The same frame with other values, sealed anew."""
    frame = decode(datagram.data)
    return datagram if frame is None else replace(datagram, data=encode(frame._replace(**changes)))


Stream = list[Datagram]
Edit = Callable[[Stream, int, int, int], None]
"""Changes a stream from an index on, with a size and a value."""


def _lose(stream: Stream, at: int, size: int, value: int) -> None:
    del stream[at : at + size]


def _lose_one_stream(stream: Stream, at: int, size: int, value: int) -> None:
    gone = [k for k in range(at, len(stream)) if stream[k].data[5:6] == bytes((1 + value % 3,))][:size]
    for k in reversed(gone):
        del stream[k]


def _repeat(stream: Stream, at: int, size: int, value: int) -> None:
    stream[at:at] = stream[max(0, at - size) : at]


def _swap(stream: Stream, at: int, size: int, value: int) -> None:
    other = min(len(stream) - 1, at + size)
    one, two = stream[at], stream[other]
    stream[at], stream[other] = replace(one, data=two.data), replace(two, data=one.data)


def _tear(stream: Stream, at: int, size: int, value: int) -> None:
    stream[at] = replace(stream[at], data=stream[at].data[: value % (len(stream[at].data) + 1)])


def _flip(stream: Stream, at: int, size: int, value: int) -> None:
    data = bytearray(stream[at].data)
    if data:
        data[value // 8 % len(data)] ^= 1 << value % 8
    stream[at] = replace(stream[at], data=bytes(data))


def _foreign(stream: Stream, at: int, size: int, value: int) -> None:
    junk = np.random.Generator(np.random.PCG64(value)).bytes(min(1400, 40 * size))
    stream.insert(at, replace(stream[at], data=junk))


def _flags(stream: Stream, at: int, size: int, value: int) -> None:
    mask = (FLAG_SATURATED, FLAG_BEAM, FLAG_HV_OK, FLAG_REQUEST, FLAG_TRIPPED)[value % 5]
    for k in range(at, min(at + size, len(stream))):
        frame = decode(stream[k].data)
        if frame is not None and frame.stream == 1 + value // 5 % 3:
            stream[k] = edited(stream[k], flags=frame.flags ^ mask)


def _visit(stream: Stream, at: int, size: int, value: int) -> None:
    visit = (0, 1, 3, 6, 7000, 1 << 17, 0xFFFFFFFF)[value % 7]
    for k in range(at, min(at + size, len(stream))):
        stream[k] = edited(stream[k], visit=visit)


def _counts(stream: Stream, at: int, size: int, value: int) -> None:
    """Counts freeze, jump, or run backwards from here on (`size` > 20: to the end)."""
    frozen: int | None = None
    end = len(stream) if size > 20 else at + size
    for k in range(at, min(end, len(stream))):
        frame = decode(stream[k].data)
        if frame is None or frame.stream != 1 + value % 2:
            continue
        frozen = frame.counts if frozen is None else frozen
        counts = (frozen, frame.counts + value, max(0, 2 * frozen - frame.counts), frame.counts - 4)[value // 2 % 4]
        stream[k] = edited(stream[k], counts=max(0, counts))


def _time(stream: Stream, at: int, size: int, value: int) -> None:
    """Device time jumps, of one frame or of a stream from here on."""
    end = len(stream) if size > 20 else at + 1
    for k in range(at, min(end, len(stream))):
        frame = decode(stream[k].data)
        if frame is not None and frame.stream == 1 + value % 3:
            stream[k] = edited(stream[k], t_ns=frame.t_ns + (value - 5000) * 1000)


def _late(stream: Stream, at: int, size: int, value: int) -> None:
    for k in range(at, len(stream)):
        stream[k] = replace(stream[k], t_ns=stream[k].t_ns + value * 30_000)


def _restart(stream: Stream, at: int, size: int, value: int) -> None:
    for k in range(at, len(stream)):
        frame = decode(stream[k].data)
        if frame is not None and frame.stream == 1 + value % 3:
            stream[k] = edited(stream[k], boot_nonce=frame.boot_nonce ^ 1, sequence=frame.sequence // 2)


def _change(stream: Stream, at: int, size: int, value: int) -> None:
    """The change of visit is said to have happened at another time, with other counts."""
    for k in range(at, min(at + size, len(stream))):
        frame = decode(stream[k].data)
        if frame is not None:
            counts = max(0, frame.counts_at_change + value % 200 - 100)
            stream[k] = edited(stream[k], t_change_ns=frame.t_change_ns + value, counts_at_change=counts)


def _strips(stream: Stream, at: int, size: int, value: int) -> None:
    rng = np.random.Generator(np.random.PCG64(value))
    for k in range(at, min(at + size, len(stream))):
        frame = decode(stream[k].data)
        if frame is not None and frame.words:
            words = rng.integers(-(2**31), 2**31, len(frame.words))
            data = encode(frame._replace(words=tuple(int(word) for word in words)))
            stream[k] = replace(stream[k], data=data)


def _bad_strips(stream: Stream, at: int, size: int, value: int) -> None:
    """Strips in the beam's middle go dead, or leak, from here on."""
    first = 60 + value % 8 + 128 * (value // 8 % 2)
    for k in range(at, len(stream)):
        frame = decode(stream[k].data)
        if frame is not None and frame.words and frame.stream == 1:
            words = list(frame.words)
            for i in range(first, first + 1 + size % 4):
                words[i] = 0 if value // 16 % 2 else words[i] + 40 * (value // 32)
            stream[k] = replace(stream[k], data=encode(frame._replace(words=tuple(words))))


EDITS: list[Edit] = [
    _bad_strips,
    _lose,
    _lose_one_stream,
    _repeat,
    _swap,
    _tear,
    _flip,
    _foreign,
    _flags,
    _visit,
    _counts,
    _time,
    _late,
    _restart,
    _change,
    _strips,
]


DAMAGE = st.lists(
    st.tuples(st.sampled_from(EDITS), st.floats(0, 1, exclude_max=True), st.integers(1, 40), st.integers(0, 9999)),
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["carbon", "proton"]), DAMAGE)
def test_hostile_streams_give_the_same_rows_and_the_same_first_condition(
    site_name: str, edits: list[tuple[Edit, float, int, int]]
) -> None:
    """150 streams of about 900 frames: more than 1e5."""
    assert 150 * min(len(recorded(name)[1]) for name in ("carbon", "proton")) > 100_000
    hostile(site_name, edits)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None)
@given(st.sampled_from(["carbon", "proton"]), DAMAGE)
def test_millions_of_hostile_frames_give_the_same_rows_too(
    site_name: str, edits: list[tuple[Edit, float, int, int]]
) -> None:
    hostile(site_name, edits)


def hostile(site_name: str, edits: list[tuple[Edit, float, int, int]]) -> None:
    """A recorded stream, damaged, given to both."""
    program, datagrams = recorded(site_name)
    stream = list(datagrams)
    for edit, where, size, value in edits:
        if stream:
            edit(stream, int(where * len(stream)), size, value)
    agree(CARBON if site_name == "carbon" else PROTON, program, stream)


@pytest.mark.parametrize("edit", EDITS, ids=[edit.__name__.strip("_") for edit in EDITS])
@pytest.mark.parametrize("value", [0, 1, 3, 7, 100, 7003])
def test_each_kind_of_damage_in_the_middle_of_a_visit(edit: Edit, value: int) -> None:
    program, datagrams = recorded("carbon")
    stream = list(datagrams)
    middle = next(k for k, d in enumerate(stream) if in_visit(d, 2)) + 15
    edit(stream, middle, 25, value)
    agree(CARBON, program, stream)


@pytest.mark.parametrize("strips", [(64,), (63, 65), (63, 64), (62, 63, 64), (193,)])
def test_dead_and_hot_strips_of_the_electrometer_are_found_and_said_in_the_rows(strips: tuple[int, ...]) -> None:
    program = programs_of(CARBON, spots([(2.0 * k - 4.0, 3.0, 4.0) for k in range(5)]))[0]
    clean = rows_of(program, nothing)

    def dead(rig: Rig) -> None:
        p = rig.plant.parameters
        p["dead_strip"], p["dead_strips"] = strips[0], len(strips)
        p["dead_step"] = strips[1] - strips[0] if len(strips) > 1 else 1

    rows = rows_of(program, dead)
    found = np.flatnonzero(rows["quality"] & QUALITY_STRIP_FOUND)
    assert found[0] <= 1  # the first beam is at the side of some
    rows, clean = rows[found[-1] :], clean[found[-1] :]
    assert all(row["quality"] & QUALITY_STRIP_BAD for row in rows)
    off_mm = np.hypot(rows["x_mm"] - clean["x_mm"], rows["y_mm"] - clean["y_mm"])
    # what was filled is right to a tenth of a millimetre; what was not is within the stated bias
    alone = len(strips) == 1 or strips[1] - strips[0] > 1
    assert (off_mm < (0.1 if alone else rows["strip_bias_mm"])).all()
    assert (rows["strip_bias_mm"] > 0).all()
    assert (clean["strip_bias_mm"] == 0).all()


def test_a_strip_known_to_be_bad_is_never_read() -> None:
    program = programs_of(CARBON, spots([(2.0 * k - 4.0, 3.0, 4.0) for k in range(5)]))[0]
    strips = CARBON.dosimetry.strips.model_copy(update={"bad_x": (65,)})
    site = CARBON.model_copy(update={"dosimetry": CARBON.dosimetry.model_copy(update={"strips": strips})})

    def leaks(rig: Rig) -> None:
        rig.plant.parameters["hot_strip"], rig.plant.parameters["hot_units"] = 65, 30_000

    quiet, leaking = (rows_of(program, change, site) for change in (nothing, leaks))
    assert quiet.tobytes() == leaking.tobytes()
    assert all(row["quality"] == QUALITY_STRIP_BAD for row in quiet)


def rows_of(program: LayerProgram, change: Callable[[Rig], None], site: Site = CARBON) -> np.ndarray:
    """Rows of a recorded layer, the reference's too, or else there is none."""
    _, datagrams = record_layer(site, program, change=change)
    path, _ = agree(site, program, datagrams)
    rows: np.ndarray = path.monitor.measured[: int(path.monitor.state["measured"])].copy()
    return rows


def test_every_frame_of_electrometer_1_in_a_clean_layer_is_permitted() -> None:
    program, datagrams = recorded("carbon")
    path = monitor_path(CARBON, [program])
    actions = watch(path, datagrams)
    # stream 3 is the last to be heard of, and its clock the last to be trusted
    trusted_ns = next(d.t_ns for d in datagrams if d.data[5] == 3) + SETTLE_NS
    assert actions.count(ACTION_PERMIT) == sum(d.data[5] == 1 and d.t_ns > trusted_ns for d in datagrams)
    assert int(path.monitor.state["permits"]) == actions.count(ACTION_PERMIT)
