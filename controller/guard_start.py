"""The guard of a delivery: none where the site wants none, in the room in virtual time, else a process of its own.

One that runs already is used; else one is started, and ended with the delivery. It ends with a killed controller,
too, and writes down what was delivered: what it must remember for a later part is in its file.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from controller.delivery.guard import GuardLink
from controller.dose.path import MonitorPath
from controller.helper_process import Helper, running
from controller.plan.model import Plan
from drivers.errors import Refused
from drivers.wires.addresses import same_host
from drivers.wires.guard_link import MAX_BYTES, Status
from interlocks.guard import Guard
from interlocks.guard_process import default_state
from sites.loader import effective_config
from sites.schema import Site, UdpEndpoint

STATE = "guard-state.json"
GUARD = Helper("guard", "interlocks.guard_process", ready_s=60.0, stop_s=10.0, bound=True)
ANSWER_S = 0.3


class UdpEnd:
    """The controller's socket towards the guard."""

    def __init__(self, guard: UdpEndpoint) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect((same_host(guard.host), guard.port))
        self._socket.setblocking(False)

    def send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # nobody there: its silence is judged
            self._socket.send(data)

    def receive(self) -> list[bytes]:
        came = []
        while True:
            try:
                came.append(self._socket.recv(MAX_BYTES))
            except ConnectionError:
                continue  # an error of something sent before; it is told once
            except OSError:
                return came

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


@asynccontextmanager
async def guard_of(
    site: Site, key: bytes, path: MonitorPath, plan_path: Path, plan: Plan, out: Path, *, epoch_ns: int = 0
) -> AsyncIterator[GuardLink]:
    """The link to the guard while the block runs. Raises `Refused` where the site requires one and none can be had.

    `epoch_ns`: 0 ns of a virtual loop in ns since 1970, for what a guard remembers of parts before.
    """
    if "guard" not in site.permits.required:
        yield GuardLink(site)
        return
    assert site.guard is not None
    async with AsyncExitStack() as stack:
        if path.guard_wires is not None:
            wires = path.guard_wires
            await stack.enter_async_context(_in_this_room(site, key, wires, plan_path, plan, out, epoch_ns))
            yield GuardLink(site, key, wires)
            return
        end = UdpEnd(site.guard.link)
        stack.callback(end.close)
        status = await GuardLink(site, key, end).ask(ANSWER_S)
        if status is None:
            await stack.enter_async_context(_process(site, plan_path, plan, out))
        else:
            _usable(status, plan)
        yield GuardLink(site, key, end)


def _usable(status: Status, plan: Plan) -> None:
    if (status.plan_sha256.hex(), status.fraction_group) != (plan.file_sha256, plan.fraction_group):
        raise Refused(
            f"the guard that runs (process {status.pid}) supervises another plan, {status.plan_sha256.hex()[:16]} "
            f"group {status.fraction_group}; end it, or start it with this one"
        )


def _gantry_deg(plan: Plan) -> float:
    return plan.fields[0].gantry_deg


@asynccontextmanager
async def _in_this_room(
    site: Site, key: bytes, wires: object, plan_path: Path, plan: Plan, out: Path, epoch_ns: int
) -> AsyncIterator[None]:
    """The same guard on the virtual clock, among the other coroutines."""
    loop = asyncio.get_running_loop()
    guard = Guard(
        site,
        key,
        plan_path,
        wires,  # type: ignore[arg-type]
        lambda name, **values: None,
        fraction_group=plan.fraction_group,
        gantry_deg=_gantry_deg(plan) if plan.format == "trip98" else None,
        state=out / STATE,
        wall_ns=lambda: epoch_ns + round(loop.time() * 1e9),
    )
    up = asyncio.Event()
    task = asyncio.create_task(guard.run(up.set), name="guard")
    started = asyncio.create_task(up.wait(), name="guard starts")
    try:
        await asyncio.wait((task, started), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()  # why it did not come up
        yield
    finally:
        for one in (task, started):
            one.cancel()
        await asyncio.wait((task, started))
        if not task.cancelled():
            task.result()  # a guard that failed by itself is a defect, never silence


@asynccontextmanager
async def _process(site: Site, plan_path: Path, plan: Plan, out_dir: Path) -> AsyncIterator[None]:
    out = _absolute(out_dir)
    config = out / "guard-site.json"
    config.write_text(effective_config(site), encoding="utf-8")
    given = {
        "site-config": config,
        "fraction-group": plan.fraction_group,
        "gantry-deg": _gantry_deg(plan) if plan.format == "trip98" else None,
        # simulators keep what they retain in this folder too; real devices keep it for themselves
        "state": out / STATE if site.all_simulated else default_state(site),
        "events": out / "guard-events.jsonl",
    }
    arguments = [f"--{key}={value}" for key, value in given.items() if value is not None]
    file = str(_absolute(plan_path))
    async with running(GUARD, [*arguments, "--while-stdin", "--", file], out / "guard.log"):
        yield


def _absolute(path: Path) -> Path:
    return path.resolve()
