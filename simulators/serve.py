"""A room of simulated devices as a process of its own, in real time, on the site's real addresses.

    python -m simulators.serve --site carbon-fixed --seed 1

prints one JSON line `{"ready": true, ...}` once every device answers, and ends in order on SIGTERM or SIGINT. It
survives a controller that is killed; where a controller started it, it ends by itself when none has come back for
`orphan_s`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from drivers.errors import BadInput, Refused, SpotwiseError
from drivers.wires.realtime import RealtimeWishes
from simulators.faults import Fault, load_faults
from simulators.live import live_path, new_live, read_live
from simulators.realtime import RoomThread
from simulators.room import Room
from simulators.streams_apart import StreamsApart
from simulators.truth_file import write_truths
from sites.loader import load_site, site_from_config
from sites.schema import Site

log = logging.getLogger("spotwise.simulators.serve")

LOOK_S = 1.0


async def serve_room(
    site: Site,
    seed: int,
    *,
    faults: Iterable[Fault] = (),
    truth_path: Path | None = None,
    played_path: Path | None = None,
    state_path: Path | None = None,
    orphan_s: float | None = None,
    wishes: RealtimeWishes | None = None,
    streams_apart: bool = False,
) -> None:
    """Serve the site's simulated devices until SIGTERM, SIGINT, or nobody has asked for `orphan_s`.

    `truth_path`: where to write what was really delivered, at the end (see `simulators.truth_file`).
    `played_path`: where to write what became of the faults, at the end. `state_path`: where retained registers live.
    `streams_apart`: frames leave through a process of their own.
    Raises `Refused` where an address is taken or nothing is simulated, `BadInput` for a state file that cannot be used.
    """
    devices = [name for name, device in site.devices.items() if device.kind == "simulated"]
    if not devices:
        raise Refused(f"site {site.name}: every device is real; there is nothing to simulate")
    logging.getLogger("pymodbus").setLevel(logging.CRITICAL)  # what it finds, our own errors say
    room = _room(site, seed, state_path)
    end = asyncio.Event()
    try:
        with _signals(end), RoomThread(room, wishes) as thread:
            async with _streams(room, thread, streams_apart), room.serve():
                ready = {"ready": True, "site": site.name, "pid": os.getpid(), "devices": devices}
                print(json.dumps({**ready, "granted": thread.granted}), flush=True)
                await _until(end, room, faults, orphan_s)
            log.info("ends: %s", thread.figures())
    finally:
        # the plant stands still now: the last state and the truth are exact
        if state_path is not None and _save(room, state_path):
            live_path(state_path).unlink(missing_ok=True)
        if truth_path is not None:
            write_truths(truth_path, room.truths())
        if played_path is not None:
            _write_played(room, played_path)


@asynccontextmanager
async def _streams(room: Room, thread: RoomThread, apart: bool) -> AsyncIterator[None]:
    if not apart:
        yield
        return
    streams = StreamsApart(thread)
    room.streams_changed = streams.streams_changed
    async with streams.running():
        yield


def _write_played(room: Room, path: Path) -> None:
    """What became of the faults, as a controller's own room in virtual time writes it."""
    played = {"faults": [fault.as_record() for fault in room.player.played]}
    path.write_text(json.dumps(played, indent=1, sort_keys=True) + "\n", encoding="utf-8")


async def _until(end: asyncio.Event, room: Room, faults: Iterable[Fault], orphan_s: float | None) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(room.play(faults), name="faults")]
        if orphan_s is not None:
            tasks.append(group.create_task(_watch_orphan(end, room, orphan_s), name="orphan watch"))
        await end.wait()
        for task in tasks:
            task.cancel()


def _save(room: Room, path: Path) -> bool:
    try:
        room.save(path)
    except OSError as error:
        log.warning("%s: retained registers not written: %s", path, error)
        return False
    return True


def _room(site: Site, seed: int, state_path: Path | None) -> Room:
    """A room with what the last one retained; its memory lives beside `state_path` from now on."""
    boot = secrets.token_hex(8)
    if state_path is None:
        return Room(site, seed, boot=boot)
    path = live_path(state_path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        killed = read_live(path, site.name)
        room = Room(site, seed, boot=boot, plant=new_live(beside, site.name))
        room.restore(state_path, killed)
        beside.replace(path)
    except OSError as error:
        raise BadInput(f"{path}: the room's memory cannot be kept there: {error.strerror}") from error
    finally:
        beside.unlink(missing_ok=True)
    room.field_begins = partial(_save, room, state_path)
    return room


async def _watch_orphan(end: asyncio.Event, room: Room, orphan_s: float) -> None:
    loop = asyncio.get_running_loop()
    known = (-1, -1)
    since = loop.time()
    while loop.time() - since <= orphan_s:
        latest = (sum(wire.requests for wire in room.wires), int(room.plant.state["permits"]))
        if latest != known:
            known, since = latest, loop.time()
        await asyncio.sleep(min(LOOK_S, orphan_s))
    log.warning("no controller for %g s: the simulators end", orphan_s)
    end.set()


@contextlib.contextmanager
def _signals(end: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, end.set)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _read_site(name: str | None, config: Path | None) -> Site:
    if config is None:
        return load_site(str(name))
    try:
        return site_from_config(config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{config}: effective site cannot be read: {error}") from error


def main(arguments: list[str] | None = None) -> int:
    """Serve a room; 0, or the error's exit status with one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m simulators.serve", description="simulated devices, in real time")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--site", help="name of a shipped site, or path of a site file")
    which.add_argument("--site-config", type=Path, help="effective site as JSON, as a controller writes it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=Path, help="fault scenario")
    parser.add_argument("--truth", type=Path, help="write what was really delivered here, at the end")
    parser.add_argument("--played", type=Path, help="write what became of the faults here, at the end")
    parser.add_argument("--state", type=Path, help="keep retained registers here")
    parser.add_argument("--orphan-s", type=float, help="end when no controller has asked for so long")
    parser.add_argument("--streams-apart", action="store_true", help="frames leave through a process of their own")
    parser.add_argument("--fifo-priority", type=int, help="ask for SCHED_FIFO at this priority")
    parser.add_argument("--cpu", type=int, help="ask to run the plant on this CPU only")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s: %(message)s")
    try:
        site = _read_site(given.site, given.site_config)
        faults = () if given.faults is None else load_faults(given.faults)
        asyncio.run(
            serve_room(
                site,
                given.seed,
                faults=faults,
                truth_path=given.truth,
                played_path=given.played,
                state_path=given.state,
                orphan_s=given.orphan_s,
                wishes=RealtimeWishes(fifo_priority=given.fifo_priority, cpu=given.cpu),
                streams_apart=given.streams_apart,
            )
        )
    except SpotwiseError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
