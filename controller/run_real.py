"""`spotwise deliver` on the real clock: sockets, ptys, datagrams; simulators and broker in processes of their own."""

from __future__ import annotations

import asyncio
import fcntl
import json
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from controller.attach import room_simulators
from controller.bench.figures import steal_ticks
from controller.clock import now_ns
from controller.commands import Commands
from controller.compose import broker_process, read_truths, site_key
from controller.delivery.run import Run
from controller.display import Display
from controller.doctor.limits import realtime_wishes
from controller.dose.acquisition import RealtimeThread, warm_up
from controller.dose.memory import Monitor
from controller.dose.path import MonitorPath
from controller.heap import Heap
from controller.plan.check import CheckReport
from controller.record.frame_recorder import FrameRecorder
from controller.record.journal_reader import read_journal
from controller.record.truth import truth_figures
from controller.session import Order, Outcome, deliver
from controller.telemetry import Telemetry
from controller.telemetry_sinks import LatestSink, TelemetrySink
from drivers.errors import BadInput, Refused, Stopped
from sites.schema import Site


@contextmanager
def only_controller(site: Site) -> Iterator[None]:
    """One controller a site. Raises `Refused` while another one runs."""
    path = Path(tempfile.gettempdir()) / f"spotwise-{site.name}.lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Refused(f"site {site.name}: another controller runs (lock {path}); end it first") from error
        yield


@asynccontextmanager
async def telemetry_sink(site: Site) -> AsyncIterator[TelemetrySink]:
    """Telemetry as the site wants it, with the bundled broker where it says so and none answers."""
    settings = site.telemetry
    if not settings.enabled:
        yield LatestSink()
        return
    telemetry = Telemetry(settings, site.name, software=version("spotwise"), now_ns=now_ns)
    address = urlsplit(settings.url)
    async with AsyncExitStack() as stack:
        if settings.embedded_broker:
            await stack.enter_async_context(_broker_beside(address.hostname or "127.0.0.1", address.port or 1883))
        await stack.enter_async_context(telemetry.running())
        yield telemetry


@asynccontextmanager
async def _broker_beside(host: str, port: int) -> AsyncIterator[None]:
    """The bundled broker while the block runs; nobody waits for it, and one that does not come up stops nothing."""
    up, end = asyncio.Event(), asyncio.Event()

    async def serve() -> None:
        try:
            async with broker_process(host, port):
                up.set()
                await end.wait()
        except BadInput as error:
            print(f"spotwise: no telemetry: {error}", file=sys.stderr)

    task = asyncio.create_task(serve(), name="broker")
    try:
        yield
    finally:
        end.set()
        if not up.is_set():
            task.cancel()
        await asyncio.wait((task,))
        if not task.cancelled():
            task.result()


class StopSignals:
    """SIGINT and SIGTERM while the block runs: they end the start, abort a treatment, and cannot hurry its end."""

    def __init__(self) -> None:
        self.cause = ""
        """The first one that came before there was a treatment."""
        self._then: Callable[[str], None] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.getsignal(number)
            loop.add_signal_handler(number, self._came, f"signal {signal.Signals(number).name}")
        return self

    def __exit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for number, handler in self._before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)

    def call(self, then: Callable[[str], None]) -> None:
        """From now on, call this with the signal's name."""
        self._then = then

    def _came(self, cause: str) -> None:
        if self._then is not None:
            self._then(cause)
        elif not self.cause:
            self.cause = cause
            assert self._task is not None
            self._task.cancel(cause)


def deliver_real(order: Order, report: CheckReport, faults: Path | None) -> Outcome:
    """Deliver; writes journal.bin and, where the simulators were ours, truth.json.

    SIGINT and SIGTERM stop it in order; raises `Stopped` where they came before there was anything to stop.
    """
    with only_controller(order.site):
        outcome, run, truth_path = asyncio.run(_deliver(order, report, faults))
    if truth_path is not None and truth_path.exists() and order.site.all_simulated:
        _write_truth(order, run, truth_path)
    return outcome


async def _deliver(order: Order, report: CheckReport, faults: Path | None) -> tuple[Outcome, Run, Path | None]:
    with StopSignals() as signals:
        try:
            return await _deliver_until(signals, order, report, faults)
        except asyncio.CancelledError:
            if not signals.cause:
                raise
            raise Stopped(f"{signals.cause} before the room was prepared: nothing was delivered") from None


async def _deliver_until(
    signals: StopSignals, order: Order, report: CheckReport, faults: Path | None
) -> tuple[Outcome, Run, Path | None]:
    monitor = Monitor()
    path = MonitorPath(order.site, monitor)
    heap = Heap()
    stolen = steal_ticks()
    recorder: FrameRecorder | None = None
    displays: list[Display] = []
    refreshing: list[asyncio.Task[None]] = []

    def watch(run: Run, commands: Commands) -> None:
        displays.append(Display(run, sys.stderr, report.time_s))
        refreshing.append(asyncio.create_task(displays[-1].refresh(), name="display"))
        signals.call(lambda cause: commands.abort(order.operator, cause))
        run.layer_runs = heap.layer

    # both compile, the first time on a PC: side by side
    warming = asyncio.create_task(asyncio.to_thread(warm_up), name="compile")
    try:
        async with (
            room_simulators(order.site, order.seed, order.out, faults) as room,
            telemetry_sink(order.site) as sink,
        ):
            await warming
            try:
                with ExitStack() as stack:
                    if order.frames_bytes:
                        recorder = stack.enter_context(
                            FrameRecorder(order.out, monitor, limit_bytes=order.frames_bytes, threaded=True)
                        )
                        recorder.attach(path)
                    tape = None if recorder is None else recorder.tape
                    thread = stack.enter_context(
                        RealtimeThread(order.site, monitor, path.notify, realtime_wishes(order.site), tape)
                    )
                    stack.enter_context(heap)
                    try:
                        outcome, run = await deliver(order, report, path, site_key(order.site), sink, watch=watch)
                    finally:
                        _note_conditions(order.out, _conditions(thread, heap, steal_ticks() - stolen))
            finally:
                signals.call(lambda _cause: None)  # the end is on its way, and bounded
                for display in displays:
                    display.close()
    finally:
        for task in (warming, *refreshing):
            task.cancel()
        await asyncio.wait((warming, *refreshing))
    return outcome, run, room.truth_path


def _conditions(thread: RealtimeThread, heap: Heap, stolen: int) -> dict[str, object]:
    return {
        "granted": thread.granted,
        "kernel_drops": thread.drops(),
        "collections": heap.figures(),
        "steal_ticks": stolen,
    }


def _note_conditions(out: Path, conditions: dict[str, object]) -> None:
    """Under which conditions the run's times were reached: into run.json, which is there already."""
    path = out / "run.json"
    fresh = path.with_suffix(".tmp")
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        fresh.write_text(json.dumps(run | {"real_time": conditions}, indent=1) + "\n", encoding="utf-8")
        fresh.replace(path)
    except (OSError, ValueError) as error:  # no treatment fails for its footnotes
        print(f"spotwise: {path} not completed: {error}", file=sys.stderr)


def _write_truth(order: Order, run: Run, truth_path: Path) -> None:
    with read_journal(order.out / "journal.bin") as journal:
        truth = truth_figures(read_truths(truth_path), 1 << 20, run.planned, journal.visits)
    if truth is not None:
        (order.out / "truth.json").write_text(json.dumps(truth, indent=1, sort_keys=True) + "\n", encoding="utf-8")
