"""Frames written by hand, tick by tick, for a real-time path that judges them: each test says only what is unusual."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from controller.dose.path import MonitorPath, PathTrip
from controller.machine.program import LayerProgram
from drivers.flags import FLAG_ARMED, FLAG_BEAM, FLAG_CHAIN, FLAG_HV_OK, FLAG_REQUEST, FLAG_SPILL
from drivers.wires.frames import FRAME_NS, SCAN_WORDS, STRIP_UNITS_PER_COUNT, STRIPS, Frame, encode
from tests.plant_rig import LATENCY_NS, Datagram, feed

SETTLE_TICKS = 104
"""Ticks after which the clocks of all streams are trusted."""


def spot(centre_mm: float, sigma_mm: float, pitch_mm: float, charge: float) -> list[int]:
    """Charge of a Gaussian on the 128 strips of one plane."""

    def below(edge: int) -> float:
        z = ((edge - STRIPS // 2) * pitch_mm - centre_mm) / sigma_mm
        return charge * (0.5 + 0.5 * math.erf(z / math.sqrt(2)))

    return [round(below(i + 1)) - round(below(i)) for i in range(STRIPS)]


@dataclass
class Script:
    """Three devices that do what the script says; every tick is 100 us, stream 3 has a frame every second one."""

    path: MonitorPath
    program: LayerProgram
    t_ns: int = 50_000_000
    visit: int = 0
    counts: dict[int, int] = field(default_factory=lambda: {1: 1_000_000, 2: 2_000_000})
    change: dict[int, int] = field(default_factory=lambda: {1: 1_000_000, 2: 2_000_000})
    change_ns: int = 0
    sequence: dict[int, int] = field(default_factory=lambda: {1: 100, 2: 100, 3: 100})
    nonce: dict[int, int] = field(default_factory=lambda: {1: 11, 2: 22, 3: 33})
    flags: dict[int, int] = field(
        default_factory=lambda: {1: FLAG_HV_OK, 2: FLAG_HV_OK, 3: FLAG_ARMED | FLAG_CHAIN | FLAG_SPILL}
    )
    scan: dict[int, int] = field(default_factory=dict)
    shift_mm: float = 0.0
    widen: float = 1.0
    seen: float = 1.0
    """Share of the strip charge that lies in the window."""
    dead: frozenset[int] = frozenset()
    """Strips (0 to 255, y plane behind x) that show nothing."""
    hot: dict[int, int] = field(default_factory=dict)
    """What strips show above the truth in each frame."""
    late_ns: int = 0
    actions: list[int] = field(default_factory=list)

    def rates(self) -> tuple[int, int]:
        """Counts a tick of both monitors at the layer's nominal intensity."""
        p = self.program
        return (
            round(p.rate_per_s * p.counts_per_particle * 1e-4),
            round(p.rate_per_s * p.counts_per_particle_2 * 1e-4),
        )

    def begin(self, visit: int) -> None:
        """The trigger shows a visit from now on (0: none); beam and request go with it."""
        self.visit, self.change_ns, self.change = visit, self.t_ns, dict(self.counts)
        self.beam(visit > 0)

    def beam(self, on: bool) -> None:
        """Beam and request together."""
        for stream, flag in ((1, FLAG_BEAM), (2, FLAG_BEAM), (3, FLAG_REQUEST)):
            self.flags[stream] = self.flags[stream] | flag if on else self.flags[stream] & ~flag

    def tick(
        self, count: int = 1, *, add_1: int = 0, add_2: int = 0, without: Iterable[int] = (), lost: Iterable[int] = ()
    ) -> PathTrip | None:
        """Let `count` ticks pass with these counts in each; `without`: no frame, `lost`: sent and lost on the way."""
        datagrams: list[Datagram] = []
        for _ in range(count):
            self.t_ns += FRAME_NS
            self.counts[1] += add_1
            self.counts[2] += add_2
            for stream in (1, 2, 3):
                if stream in without or (stream == 3 and (self.t_ns // FRAME_NS) % 2):
                    continue
                self.sequence[stream] += 1
                if stream not in lost:
                    data = encode(self._frame(stream, add_1))
                    datagrams.append(Datagram(data, self.t_ns + LATENCY_NS + self.late_ns))
        if datagrams:
            self.actions += feed(self.path, datagrams)
        return self.path.trip()

    def deliver(self, visit: int, ticks: int, *, more_2: float = 1.0) -> PathTrip | None:
        """A visit of this many ticks at the nominal rate, the next one following at once."""
        rate_1, rate_2 = self.rates()
        self.begin(visit)
        return self.tick(ticks, add_1=rate_1, add_2=round(rate_2 * more_2))

    def _frame(self, stream: int, add_1: int) -> Frame:
        words: tuple[int, ...] = ()
        counted = 1 if stream == 3 else stream
        if stream == 1:
            words = self._strips(add_1)
        elif stream == 3:
            words = tuple(self.scan.get(k, 0) for k in range(SCAN_WORDS))
        return Frame(
            stream,
            self.nonce[stream],
            self.sequence[stream],
            self.t_ns,
            self.visit,
            self.flags[stream],
            self.counts[counted],
            self.change[counted],
            self.change_ns,
            words,
        )

    def _strips(self, add_1: int) -> tuple[int, ...]:
        words = self._charges(add_1)
        return tuple(0 if i in self.dead else word + self.hot.get(i, 0) for i, word in enumerate(words))

    def strip_at(self, visit: int, offset: int = 0) -> int:
        """The strip of the x plane on which a visit's beam is centred, or one beside it."""
        mm = float(self.path.monitor.plan[visit]["x_strip_mm"])
        return math.floor(mm / float(self.path.monitor.limits["pitch_x_mm"])) + STRIPS // 2 + offset

    def _charges(self, add_1: int) -> tuple[int, ...]:
        if self.visit == 0 or add_1 == 0:
            return (0,) * (2 * STRIPS)
        plan: Any = self.path.monitor.plan[self.visit]
        limits: Any = self.path.monitor.limits
        charge = add_1 * STRIP_UNITS_PER_COUNT * self.seen
        words: list[int] = []
        for axis, shift_mm in (("x", self.shift_mm), ("y", 0.0)):
            centre_mm = float(plan[f"{axis}_strip_mm"]) + shift_mm * float(limits[f"strip_scale_{axis}"])
            sigma_mm = float(plan[f"sigma_{axis}_strip_mm"]) * self.widen
            words += spot(centre_mm, sigma_mm, float(limits[f"pitch_{axis}_mm"]), charge)
        return tuple(words)
