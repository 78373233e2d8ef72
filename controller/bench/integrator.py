"""`bench integrator`: the full job per frame, against the same job in C and against numpy.

All three judge the same recorded frames on memories that begin alike, and must end alike: one layer's frames,
counts, strip sums, visits, every judgement, log rows. The stream is cut into chunks, and each chunk goes to one after
the other, so that a stall of the host or another process hits all. A chunk's frames are copied into warm memory
first, as a socket's receive leaves them there; the copy is not counted, nor is the frames' checksum: the virtual room
has none, and on the wire it is the same function whoever receives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.bench.feed_loop import judge
from controller.bench.figures import BenchResult, Surroundings, percentiles, ratio, rounded
from controller.bench.recorded import Recording, record_layer
from controller.bench.yardstick_c import OPTIONS, CIntegrator, NoCompilerError, build
from controller.bench.yardstick_numpy import NumpyIntegrator
from drivers.errors import SpotwiseError
from drivers.wires.frames import FRAME_NS, STREAM_ELECTROMETER_1

RUNS = 5
CHUNK_PERIODS = 256
"""Their frames fit into a core's own cache; a reading of the clock costs nothing beside them."""
NUMPY_CHUNKS = 8
"""numpy takes a hundred times longer: it judges the first chunks only, and is compared on these."""
QUICK_SPOTS = 20

Job = Callable[[NDArray[np.uint8], NDArray[np.int64]], int]


class DifferentResultsError(SpotwiseError):
    """Two implementations did not compute the same: their times mean nothing."""


def chunks(recording: Recording) -> list[slice]:
    """The stream in pieces of whole frame periods."""
    starts = np.flatnonzero(recording.data[:, 5] == STREAM_ELECTROMETER_1)[::CHUNK_PERIODS].tolist()
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(recording.data)], strict=True)]


def compiled_job(memory: NDArray[Any]) -> Job:
    """Our integrator on a memory."""

    def run(data: NDArray[np.uint8], times_ns: NDArray[np.int64]) -> int:
        return int(judge(memory, data.ctypes.data, data.strides[0], len(data), times_ns))

    return run


def c_job(c: CIntegrator, memory: NDArray[Any]) -> Job:
    """The C integrator on a memory."""

    def run(data: NDArray[np.uint8], times_ns: NDArray[np.int64]) -> int:
        return c(memory, data, times_ns)

    return run


def _race(recording: Recording, jobs: Mapping[str, tuple[Job, int]]) -> dict[str, NDArray[np.float64]]:
    """Let all jobs judge the stream chunk by chunk in turn; ns per frame period of each chunk."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    pieces = chunks(recording)
    warm = np.zeros((max(p.stop - p.start for p in pieces), recording.data.shape[1]), np.uint8)
    for number, piece in enumerate(pieces):
        data = warm[: piece.stop - piece.start]
        times_ns = recording.times_ns[piece]
        periods = int(np.count_nonzero(recording.data[piece, 5] == STREAM_ELECTROMETER_1))
        actions = set()
        names = [name for name, (_, limit) in jobs.items() if number < limit]
        for name in names if number % 2 == 0 else reversed(names):  # nobody always goes first
            job = jobs[name][0]
            data[:] = recording.data[piece]
            begun = time.perf_counter_ns()
            actions.add(job(data, times_ns))
            times[name].append((time.perf_counter_ns() - begun) / periods)
        if len(actions) > 1:
            raise DifferentResultsError(f"chunk {number}: different decisions: {sorted(actions)}")
    return {name: np.array(values) for name, values in times.items()}


def bench_integrator(*, quick: bool = False) -> BenchResult:
    """Run it. Without a C compiler the comparison with C is left out, and `details` says so."""
    recording = record_layer(spots=QUICK_SPOTS) if quick else record_layer()
    details: dict[str, Any] = {}
    c: CIntegrator | None = None
    try:
        c = build()
        details["compiler"] = f"{c.compiler}, {' '.join(OPTIONS)}"
    except NoCompilerError as error:
        details["compiler"] = str(error)
    around = Surroundings()
    runs: list[dict[str, NDArray[np.float64]]] = []
    for _ in range(1 + (1 if quick else RUNS)):
        memory = recording.before.copy()
        jobs: dict[str, tuple[Job, int]] = {"ours": (compiled_job(memory), 1 << 30)}
        memory_c = recording.before.copy()
        if c is not None:
            jobs["c"] = (c_job(c, memory_c), 1 << 30)
        times = _race(recording, jobs)
        # apart, and on the first chunks only: it would leave the others cold caches
        slow = {"numpy": (NumpyIntegrator(recording.before), NUMPY_CHUNKS)}
        runs.append(times | _race(recording, slow))
        if c is not None and memory.tobytes() != memory_c.tobytes():
            raise DifferentResultsError("the memories of numba's and of C's integrator differ after the same frames")
    del runs[0]  # compiled or loaded then, and memory touched for the first time
    ours = _median([percentiles(run["ours"]) for run in runs])
    yardsticks, ratios = {}, {}
    for name in runs[0]:
        if name == "ours":
            continue
        yardsticks[name] = _median([percentiles(run[name]) for run in runs])
        ratios[name] = _median(
            [ratio(percentiles(run["ours"][: len(run[name])]), percentiles(run[name])) for run in runs]
        )
    mean_ns = float(np.median([run["ours"].mean() for run in runs]))
    details |= {
        "periods": recording.periods,
        "visits": recording.visits,
        "rate_per_s": recording.rate_per_s,
        "runs": len(runs),
        "mean_ns": {name: rounded(float(np.median([run[name].mean() for run in runs]))) for name in runs[0]},
    }
    return BenchResult(
        name="integrator",
        unit="ns per frame period of 100 us (2.5 frames)",
        ours=ours,
        yardsticks=yardsticks,
        ratios=ratios,
        real_time_factor=rounded(FRAME_NS / mean_ns),
        details=details,
        context=around.context(),
    )


def _median(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: rounded(float(np.median([row[name] for row in rows]))) for name in rows[0]}
