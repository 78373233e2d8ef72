"""The integrator once more in plain Python: slow, short, built another way, to hold the compiled one to its word.

It decodes datagrams into `Frame`s, keeps the frames of a visit, and computes the visit's row in one go when it is over.
Counts and strip sums are Python integers; what is computed from them is the same float64 arithmetic in the same order,
so the rows must agree to the bit. The judgements are in `controller.dose.reference_judge`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Protocol

from controller.dose.memory import MAX_VISITS, PLAN_FIELDS, Monitor
from drivers.flags import FLAG_BEAM, FLAG_REQUEST, FLAG_SATURATED
from drivers.wires.frames import FRAME_NS, STRIPS, Frame, decode

QUALITY_NO_POSITION = 1
QUALITY_SATURATED = 2
QUALITY_FRAMES_LOST = 4
QUIET_NS = 10_000_000
QUALITY_STRIP_BAD = 32
QUALITY_STRIP_FOUND = 64
OFFSET_CREEP_NS = 10

Numbers = Mapping[str, Any]
UNPLANNED: Numbers = {name: 0 for name, _, _ in PLAN_FIELDS}


@dataclass(slots=True)
class Channel:
    """One stream: what was accepted last, and what got lost."""

    newest: Frame | None = None
    arrival_ns: int = 0
    offset_ns: int = 0
    anchor_ns: int | None = None
    """The offset when it had settled; None: it has not."""
    lowest: tuple[int, int] = (0, 0)
    """While it settles: the offset, and the arrival since which it has not fallen below."""
    window_start: int = 0
    window_lost: int = 0
    start_counts: int = -1
    start_ns: int = 0
    deltas: list[int] = field(default_factory=lambda: [0, 0, 0])
    quiet_ns: int = 0
    quiet_counts: int = 0
    idle_blocks: list[int] = field(default_factory=list)
    """Counts of each ms without request that ended before one, in this field."""
    idle: list[int] = field(default_factory=list)
    """Counts of each frame since the present time without request began."""

    def rate(self) -> float:
        """Counts per ns over the last three frames."""
        return float(sum(self.deltas)) / (3.0 * FRAME_NS)

    def pedestal(self) -> float:
        """Counts per ns without beam."""
        return float(self.quiet_counts) / float(self.quiet_ns) if self.quiet_ns > 0 else 0.0


class Kept(NamedTuple):
    """A frame of electrometer 1, with what was known then."""

    frame: Frame
    pedestals: tuple[int, ...]
    bad: frozenset[int]
    delta: int


@dataclass(slots=True)
class Visit:
    """A visit as its frames tell it."""

    id: int
    t_start_ns: int
    counts_1: int
    counts_2: int | None = None
    late_1: float = 0.0
    late_2: float = 0.0
    frames: list[Kept] = field(default_factory=list)
    """Frames of electrometer 1 after the one that showed the change."""
    used: int = 0
    """Of these, frames whose strips count."""
    part: list[Kept] = field(default_factory=list)
    """Of these, since the beam's place was last judged."""
    lost: int = 0
    saturated: bool = False
    waited: dict[int, list[int]] = field(default_factory=lambda: {1: [], 2: []})
    """Counts of both monitors in each of its frames without beam."""

    def pedestal(self, stream: int, rate: float, span_ns: int) -> float:
        """Counts without beam: those while it waited, and at this rate (per ns) in the rest of the span."""
        waited = self.waited[stream]
        return float(sum(waited)) + rate * float(span_ns - FRAME_NS * len(waited))


@dataclass(slots=True)
class Row:
    """One measured visit: the fields of `controller.dose.memory.MEASURED_FIELDS`, in their order."""

    visit: int
    t_start_ns: int
    t_end_ns: int
    start_1: int
    start_2: int
    counts_1: int
    counts_2: int
    delta_1: float
    delta_2: float
    pedestal_1: float
    pedestal_2: float
    late_1: float
    late_2: float
    x_mm: float
    y_mm: float
    sigma_x_mm: float
    sigma_y_mm: float
    strip_counts: int
    strips_x: int
    strips_y: int
    strip_bias_mm: float
    quality: int

    def values(self) -> tuple[int | float, ...]:
        """All values, in order."""
        return tuple(getattr(self, item.name) for item in fields(self))


@dataclass(frozen=True, slots=True)
class Moments:
    """Charge in the window, its first and second moment about the middle strip's edge."""

    s0: int = 0
    s1: int = 0
    s2: int = 0

    def centre_mm(self, pitch_mm: float) -> float:
        return (float(self.s1) / float(self.s0) + 0.5) * pitch_mm

    def sigma_mm(self, pitch_mm: float) -> float:
        mean = float(self.s1) / float(self.s0)
        variance = float(self.s2) / float(self.s0) - mean * mean - 1.0 / 12.0
        return math.sqrt(variance) * pitch_mm if variance > 0.0 else math.nan


def plain(record: Any) -> dict[str, Any]:
    """A numpy record as plain Python numbers."""
    return dict(zip(record.dtype.names, record.item(), strict=True))


def window(expected_mm: float, sigma_mm: float, pitch_mm: float) -> range:
    """Indices of the strips whose charge counts: six sigma, at least four strips, to each side."""
    centre = expected_mm / pitch_mm + STRIPS // 2
    half = max(4.0, 6.0 * sigma_mm / pitch_mm)
    low, high = (min(max(int(edge), 0), STRIPS - 1) for edge in (centre - half, centre + half))
    return range(low, high + 1)


def strip_charges(frames: Sequence[Kept], first: int, strips: range) -> dict[int, int]:
    """Charge of each strip over the frames in which it was good; `first` is the plane's first word."""
    exact = {
        i: sum(
            (kept.frame.words[first + i] << 16) - kept.pedestals[first + i]
            for kept in frames
            if first + i not in kept.bad
        )
        for i in strips
    }
    return {i: (q + (1 << 15)) >> 16 for i, q in exact.items()}


def newly_bad(charge: Mapping[int, int], bad: set[int], clear: int, fill: float) -> set[int]:
    """Strips, dead ones first, that a visit's charges show to be bad; no neighbour of a bad one is judged."""
    order = sorted(charge)
    dead: set[int] = set()
    for left in order:
        for right in range(left + 2, min(left + 4, order[-1]) + 1):
            between = range(left + 1, right)
            if (bad | dead) & {left, *between} or 10 * charge[right - 1] >= charge[left]:
                break
            least = min(charge[left], charge[right])
            if right not in bad | dead and least >= clear and all(10 * charge[i] < least for i in between):
                dead |= set(between)
                break
    bad = bad | dead
    hot: set[int] = set()
    for i in order[1:-1]:
        if charge[i] >= clear and not {i - 1, i, i + 1} & (bad | hot):
            most = float(max(charge[i - 1], charge[i + 1], 0))
            if float(charge[i]) > 3.0 * max(fill, 1.0) * most:
                hot.add(i)
    return dead | hot


def filled(charge: Mapping[int, int], bad: set[int], fill: float) -> dict[int, tuple[int, float]]:
    """For each bad strip of the window the charge that it is given, and how far off that may be."""
    given = {}
    for i in sorted(bad & charge.keys()):
        left = max((k for k in charge if k < i and k not in bad), default=None)
        right = min((k for k in charge if k > i and k not in bad), default=None)
        sides = [float(max(charge[k], 0)) for k in (left, right) if k is not None]
        first = min(charge) - 1 if left is None else left
        last = max(charge) + 1 if right is None else right
        missing = last - first - 1
        if missing == 1 and len(sides) == 2:
            q = math.sqrt(sides[0] * sides[1]) * fill
            given[i] = (int(q), 0.25 * q)
            continue
        doubt = max(sides, default=0.0)
        if doubt > 0.0:
            for _ in range((missing + 1) ** 2 // 4):
                doubt *= fill
        given[i] = (0, doubt)
    return given


def moments(charge: Mapping[int, int]) -> Moments:
    """Sums over strips."""
    return Moments(
        sum(charge.values()),
        sum(q * (i - STRIPS // 2) for i, q in charge.items()),
        sum(q * (i - STRIPS // 2) ** 2 for i, q in charge.items()),
    )


class Listener(Protocol):
    """Who is told what happens, in the order in which it happens."""

    def lost(self, stream: int, lost: int, in_second: int) -> None: ...
    def restarted(self, stream: int) -> None: ...
    def visit_changes(self, before: Visit, visit: int) -> None: ...
    def part_complete(self, visit: Visit, counts: int, x: Moments, y: Moments, rest: bool) -> None: ...
    def row_complete(self, row: Row) -> None: ...
    def frame_integrated(self, frame: Frame, delta: int, before: Frame | None) -> None: ...
    def turn(self, now_ns: int) -> None: ...
    def quiet(self, counts: int, span_ns: int) -> None: ...
    def idle(self, stream: int, counts: int) -> None: ...
    def strips_bad(self, bad: set[int]) -> None: ...
    def clock_moved(self, moved_ns: int) -> None: ...


class Integrator:
    """Frames in, rows out."""

    def __init__(self, limits: Numbers, plan: Sequence[Numbers], listener: Listener | None = None) -> None:
        """`limits` and the rows of `plan` have the fields of `controller.dose.memory`; see `plain`, `plain_plan`."""
        self.limits = limits
        self._plan = plan
        self._listener = listener
        self.channels = {1: Channel(), 2: Channel(), 3: Channel()}
        self.pedestals: tuple[int, ...] = (0,) * (2 * STRIPS)
        """Of the strips, 2^-16 units."""
        self.pedestal_frames = 0
        self.bad: set[int] = {
            first + bit
            for axis, first in (("x", 0), ("y", STRIPS))
            for bit in range(STRIPS)
            if int(limits[f"known_{axis}_{bit // 64}"]) >> bit % 64 & 1
        }
        """Bad strips of both planes, by word."""
        self.visit = Visit(0, 0, 0)
        self.open_row: Row | None = None
        """Of a visit whose end electrometer 2 has not shown yet."""
        self.rows: list[Row] = []
        self.particles_1 = 0.0
        self.particles_2 = 0.0
        self.request_off_ns = -(10**12)

    def planned(self, visit: int) -> Numbers:
        """The plan of a visit; zeros for one that was never planned."""
        return self._plan[visit] if visit < len(self._plan) else UNPLANNED

    def flags(self, stream: int) -> int:
        """Flags of a stream's newest frame."""
        newest = self.channels[stream].newest
        return 0 if newest is None else newest.flags

    def receive(self, data: bytes, now_ns: int) -> None:
        """One datagram, whatever it is."""
        frame = decode(data)
        if frame is not None:
            frame = frame._replace(sequence=_signed(frame.sequence), counts=_signed(frame.counts))
            frame = frame._replace(counts_at_change=_signed(frame.counts_at_change))
            before = self.channels[frame.stream].newest
            if self._accept(frame, now_ns):
                self._integrate(frame, before)
        if self._listener is not None:
            self._listener.turn(now_ns)

    def _accept(self, frame: Frame, now_ns: int) -> bool:
        c = self.channels[frame.stream]
        known = c.newest is not None and c.newest.boot_nonce == frame.boot_nonce
        if c.newest is not None and not known and self._listener is not None:
            self._listener.restarted(frame.stream)
        previous, previous_ns = frame.sequence - 1, frame.t_ns - 1
        if known and c.newest is not None:
            previous, previous_ns = c.newest.sequence, c.newest.t_ns
        else:
            c.offset_ns = now_ns - frame.t_ns
            c.anchor_ns, c.lowest = None, (c.offset_ns, now_ns)
            c.window_start, c.window_lost = frame.sequence, 0
        if frame.sequence <= previous or frame.t_ns <= previous_ns:
            return False
        lost = frame.sequence - previous - 1
        if frame.sequence - c.window_start >= 10_000:
            c.window_start, c.window_lost = frame.sequence, 0
        if lost > 0:
            c.window_lost += lost
            self.visit.lost += lost
            if self._listener is not None:
                self._listener.lost(frame.stream, lost, c.window_lost)
        c.newest = frame
        c.arrival_ns = now_ns
        c.offset_ns = min(c.offset_ns + OFFSET_CREEP_NS, now_ns - frame.t_ns)
        self._follow_clock(c, now_ns)
        return True

    def _follow_clock(self, c: Channel, now_ns: int) -> None:
        if c.anchor_ns is not None:
            if self._listener is not None and abs(c.offset_ns - c.anchor_ns) > self.limits["clock_drift_ns"]:
                self._listener.clock_moved(c.offset_ns - c.anchor_ns)
        elif c.offset_ns < c.lowest[0] - 20_000:
            c.lowest = (c.offset_ns, now_ns)
        elif now_ns - c.lowest[1] >= 10_000_000:
            c.anchor_ns = c.offset_ns

    def _integrate(self, frame: Frame, before: Frame | None) -> None:
        c = self.channels[frame.stream]
        delta = 0
        if frame.stream != 3:
            delta = 0 if before is None else frame.counts - before.counts
            c.deltas = [*c.deltas[1:], delta]
            if c.start_counts < 0:
                c.start_counts = frame.counts
                c.start_ns = frame.t_ns
            idle = not self.flags(3) & FLAG_REQUEST and frame.t_ns - self.request_off_ns > QUIET_NS
            if not idle or before is None:
                c.idle = []
            else:
                c.idle.append(delta)
                if len(c.idle) % 10 == 0 and len(c.idle) > 10:
                    c.idle_blocks.append(sum(c.idle[-20:-10]))
                    if self._listener is not None:
                        self._listener.idle(frame.stream, sum(c.idle_blocks))
            if idle and before is not None and not frame.flags & FLAG_BEAM:
                c.quiet_ns += FRAME_NS
                c.quiet_counts += delta
                self.visit.waited[frame.stream].append(delta)
                if c.quiet_ns >= 4_000_000_000:
                    c.quiet_ns //= 2
                    c.quiet_counts //= 2
                if self._listener is not None:
                    self._listener.quiet(c.quiet_counts, c.quiet_ns)
                if frame.stream == 1 and frame.sequence % 8 == 0:
                    shift = 6 if self.pedestal_frames < 512 else 9
                    self.pedestal_frames += 1
                    self.pedestals = tuple(
                        p + (((word << 16) - p) >> shift) for p, word in zip(self.pedestals, frame.words, strict=True)
                    )
                    self._find_hot()
        if frame.stream == 1:
            self._follow_visits(frame, delta)
        elif frame.stream == 2:
            self._pair(frame)
        elif before is not None and before.flags & FLAG_REQUEST and not frame.flags & FLAG_REQUEST:
            self.request_off_ns = frame.t_ns
        if frame.stream != 3 and frame.flags & FLAG_SATURATED:
            self.visit.saturated = True
        if self._listener is not None:
            self._listener.frame_integrated(frame, delta, before)

    def _find_hot(self) -> None:
        hot = {i for i, p in enumerate(self.pedestals) if abs(p) > self.limits["hot_pedestal"]}
        if hot:
            self.bad |= hot
            if self._listener is not None:
                self._listener.strips_bad(self.bad)

    def _follow_visits(self, frame: Frame, delta: int) -> None:
        visit = self.visit
        if frame.visit == visit.id:
            if visit.id > 0:
                kept = Kept(frame, self.pedestals, frozenset(self.bad), delta)
                visit.frames.append(kept)
                if self._counts(visit, kept):
                    visit.used += 1
                    visit.part.append(kept)
                    if len(visit.part) >= 15:
                        self._close_part(visit)
            return
        if self._listener is not None:
            self._listener.visit_changes(visit, frame.visit)
        if self.open_row is not None:
            self._publish(None)
        known = frame.visit if frame.visit < MAX_VISITS else 0
        following = Visit(known, frame.t_change_ns, frame.counts_at_change)
        if visit.id > 0:
            beam_goes_on = frame.visit > 0 and frame.flags & FLAG_BEAM and self.flags(3) & FLAG_REQUEST
            if beam_goes_on:
                following.late_1 = self.channels[1].rate() * self.limits["lag_1_ns"]
                following.late_2 = self.channels[2].rate() * self.limits["lag_2_ns"]
            # until stream 2 shows the change, its counts are from the start of the visit before
            following.counts_2 = visit.counts_2
            self._close(visit, following, frame)
        self.visit = following

    def _counts(self, visit: Visit, kept: Kept) -> bool:
        """Whether the strips of a frame belong to the visit: beam, and no more on its way there."""
        since_ns = kept.frame.t_ns - FRAME_NS - visit.t_start_ns
        return bool(kept.frame.flags & FLAG_BEAM) and bool(since_ns >= self.limits["blind_ns"])

    def _close_part(self, visit: Visit, *, rest: bool = False) -> None:
        """Have the place of a part of a visit judged, where it has the charge for that."""
        counts = sum(kept.delta for kept in visit.part)
        if counts < 2.0 * self.limits["minimum_counts"]:
            return
        plan = self.planned(visit.id)
        planes = []
        for axis, first in (("x", 0), ("y", STRIPS)):
            strips = window(plan[f"{axis}_strip_mm"], plan[f"sigma_{axis}_strip_mm"], self.limits[f"pitch_{axis}_mm"])
            of_frames = [moments(strip_charges([kept], first, strips)) for kept in visit.part]
            planes.append(Moments(sum(p.s0 for p in of_frames), sum(p.s1 for p in of_frames)))
        visit.part = []
        if self._listener is not None:
            self._listener.part_complete(visit, counts, planes[0], planes[1], rest)

    def _close(self, visit: Visit, following: Visit, frame: Frame) -> None:
        limits, plan = self.limits, self.planned(visit.id)
        if len(visit.part) < visit.used:
            self._close_part(visit, rest=True)
        used = [item for item in visit.frames if self._counts(visit, item)]
        planes, biases, quality = [], [], 0
        for axis, first in (("x", 0), ("y", STRIPS)):
            plane, bias_mm, bits = self._plane(used, axis, first, plan)
            planes.append(plane)
            biases.append(bias_mm / limits[f"strip_scale_{axis}"])
            quality |= bits
        minimum = max(1.0, limits["minimum_counts"] * limits["strip_units_per_count"])
        seen = all(plane.s0 >= minimum for plane in planes)
        centres, sigmas = [math.nan, math.nan], [math.nan, math.nan]
        if seen:
            for k, axis in enumerate("xy"):
                pitch_mm, scale = limits[f"pitch_{axis}_mm"], limits[f"strip_scale_{axis}"]
                centres[k] = planes[k].centre_mm(pitch_mm) / scale
                sigmas[k] = planes[k].sigma_mm(pitch_mm) / scale
        span_ns = frame.t_change_ns - visit.t_start_ns
        pedestal_1 = visit.pedestal(1, self.channels[1].pedestal(), span_ns)
        late_1 = following.late_1 - visit.late_1
        row = Row(
            visit=visit.id,
            t_start_ns=visit.t_start_ns,
            t_end_ns=frame.t_change_ns,
            start_1=visit.counts_1,
            start_2=-1 if visit.counts_2 is None else visit.counts_2,
            counts_1=frame.counts_at_change,
            counts_2=-1,
            delta_1=float(frame.counts_at_change - visit.counts_1) - pedestal_1 + late_1,
            delta_2=math.nan,
            pedestal_1=pedestal_1,
            pedestal_2=visit.pedestal(2, self.channels[2].pedestal(), span_ns),
            late_1=late_1,
            late_2=following.late_2 - visit.late_2,
            x_mm=centres[0],
            y_mm=centres[1],
            sigma_x_mm=sigmas[0],
            sigma_y_mm=sigmas[1],
            strip_counts=sum(kept.delta for kept in used),
            strips_x=planes[0].s0,
            strips_y=planes[1].s0,
            strip_bias_mm=math.sqrt(biases[0] * biases[0] + biases[1] * biases[1]) if seen else math.nan,
            quality=quality
            | (0 if seen else QUALITY_NO_POSITION)
            | (QUALITY_SATURATED if visit.saturated else 0)
            | (QUALITY_FRAMES_LOST if visit.lost > 0 else 0),
        )
        if plan["per_particle_1"] > 0.0:
            self.particles_1 += row.delta_1 / plan["per_particle_1"]
        self.open_row = row

    def _plane(self, used: Sequence[Kept], axis: str, first: int, plan: Numbers) -> tuple[Moments, float, int]:
        """Moments of a visit in one plane with bad strips filled, the bias (mm) that these may leave, quality bits."""
        limits = self.limits
        pitch_mm, fill = limits[f"pitch_{axis}_mm"], plan[f"fill_{axis}"]
        strips = window(plan[f"{axis}_strip_mm"], plan[f"sigma_{axis}_strip_mm"], pitch_mm)
        charge = strip_charges(used, first, strips)
        bad = {i - first for i in self.bad if 0 <= i - first < STRIPS}
        found = newly_bad(charge, bad, max(limits["clear_units"], 4 * len(used)), fill)
        self.bad |= {first + i for i in found}
        given = filled(charge, bad | found, fill)
        plane = moments({**charge, **{i: q for i, (q, _) in given.items()}})
        bias_mm = 0.0
        for i, (_, doubt) in given.items():
            if plane.s0 > 0:
                mean = float(plane.s1) / float(plane.s0)
                bias_mm += doubt * abs(float(i - STRIPS // 2) - mean) / float(plane.s0) * pitch_mm
        return plane, bias_mm, (QUALITY_STRIP_FOUND if found else 0) | (QUALITY_STRIP_BAD if given else 0)

    def _pair(self, frame: Frame) -> None:
        """Electrometer 2 may show the change of visit that electrometer 1 has shown."""
        if frame.t_change_ns != self.visit.t_start_ns or frame.visit != self.visit.id:
            return
        if self.open_row is not None:
            self._publish(frame.counts_at_change)
        elif self.visit.counts_2 is None or self.visit.counts_2 < 0:
            self.visit.counts_2 = frame.counts_at_change

    def _publish(self, counts_2: int | None) -> None:
        row = self.open_row
        assert row is not None
        plan = self.planned(row.visit)
        if counts_2 is not None and counts_2 >= 0 and row.start_2 >= 0:
            row.counts_2 = counts_2
            row.delta_2 = float(counts_2 - row.start_2) - row.pedestal_2 + row.late_2
            if plan["per_particle_2"] > 0.0:
                self.particles_2 += row.delta_2 / plan["per_particle_2"]
        else:
            row.pedestal_2 = 0.0
            row.quality |= QUALITY_FRAMES_LOST
        if self._listener is not None:
            self._listener.row_complete(row)
        self.open_row = None
        self.visit.counts_2 = counts_2
        self.rows.append(row)


def _signed(value: int) -> int:
    """A u64 as the compiled path reads it: its topmost values are negative."""
    return value - (1 << 64) if value >= 1 << 63 else value


def plain_plan(monitor: Monitor) -> list[dict[str, Any]]:
    """The visit plan as plain numbers, up to its last planned visit; all others are zero."""
    used = monitor.plan["preset"].nonzero()[0]
    return [plain(row) for row in monitor.plan[: int(used[-1]) + 1 if len(used) else 1]]
