"""Simulators of a run on the real clock: used if all of the site's answer, started if none does, else refused.

A room that is half there is somebody else's work in progress, and half a room is no room. The simulators are started
as a process of their own, in their own session: a killed controller leaves them running, and with them what their
counters and rings hold, for ten minutes. This file knows them by their module's name only.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from controller.helper_process import Helper, running
from controller.record.faults_played import FAULTS
from drivers.errors import Refused
from drivers.wires.addresses import same_host
from sites.loader import effective_config
from sites.schema import Device, Site, TcpAddress

ORPHAN_S = 600.0
"""How long simulators that a run started outlive it."""
PROBE_S = 1.0
PLAYED = "simulators-faults.json"
"""What became of a scenario, as the simulators tell it at their end; a run that sees it copies it to the record."""
SIMULATORS = Helper("simulators", "simulators.serve", ready_s=180.0, stop_s=20.0)
"""The first start on a PC compiles for tens of seconds."""


@dataclass(frozen=True, slots=True)
class Simulators:
    """The simulators that a run uses."""

    started: bool
    """This run started them, and ends them."""
    truth_path: Path | None
    """Where the plant's truth is after they have ended; None unless this run started them."""
    granted: dict[str, object]
    """What Linux granted to their real-time thread; empty unless this run started them."""


@asynccontextmanager
async def room_simulators(
    site: Site,
    seed: int,
    out_dir: Path,
    faults: Path | None = None,
    *,
    state_path: Path | None = None,
    fifo_priority: int | None = None,
    cpu: int | None = None,
) -> AsyncIterator[Simulators]:
    """Have the site's simulated devices answering while the block runs.

    Logs, the site as they got it, and their truth go to `out_dir`. `faults`: a scenario, which only simulators that
    this run starts can play. Raises `Refused` where some answer and some do not, where running simulators were asked
    to play faults, or where they do not come up; nothing is ever started on a real device's address.
    """
    simulated = {name: device for name, device in site.devices.items() if device.kind == "simulated"}
    answers = {name: await answering(device) for name, device in simulated.items()}
    there = [name for name, answered in answers.items() if answered]
    if there and len(there) < len(simulated):
        missing = [f"{name} ({simulated[name].address.place})" for name in simulated if name not in there]
        raise Refused(
            f"site {site.name}: some simulated devices answer ({', '.join(there)}), others do not "
            f"({', '.join(missing)}); stop the ones that run, or start the others"
        )
    if there or not simulated:
        if faults is not None:
            raise Refused(
                f"{faults}: the simulators of {site.name} run already and cannot be given faults; "
                "stop them, or start them with the scenario"
            )
        yield Simulators(False, None, {})
        return
    out = _absolute(out_dir)
    config_path = out / "simulators-site.json"
    config_path.write_text(effective_config(site), encoding="utf-8")
    truth_path = out / "truth.npz"
    given = {
        "site-config": config_path,
        "seed": seed,
        "truth": truth_path,
        "state": _absolute(state_path or out / "simulators-state.npz"),
        "orphan-s": ORPHAN_S,
        "faults": None if faults is None else _absolute(faults),
        "played": None if faults is None else out / PLAYED,
        "fifo-priority": fifo_priority,
        "cpu": cpu,
    }
    arguments = [f"--{key}={value}" for key, value in given.items() if value is not None]
    try:
        async with running(SIMULATORS, arguments, out / "simulators.log") as said:
            yield Simulators(True, truth_path, said["granted"])
    finally:
        if faults is not None and (out / PLAYED).exists():
            shutil.copyfile(out / PLAYED, out / FAULTS)


def _absolute(path: Path) -> Path:
    return path.resolve()


async def answering(device: Device) -> bool:
    """Somebody serves this device's address: a TCP port accepts, or a simulated line's lock is held."""
    address = device.address
    if isinstance(address, TcpAddress):
        try:
            async with asyncio.timeout(PROBE_S):
                _, writer = await asyncio.open_connection(same_host(address.host), address.port)
        except (OSError, TimeoutError):
            return False
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return True
    return _line_is_served(Path(address.path))


def _line_is_served(path: Path) -> bool:
    """Whoever serves a simulated line holds the lock beside its link; a link without it was left by a killed one."""
    try:
        fd = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return path.exists()
    finally:
        os.close(fd)
    return False
