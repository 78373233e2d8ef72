"""`spotwise doctor`: whether this host and these links are fit to deliver today.

Everything is measured one after the other on a PC that does nothing else for this site: the doctor takes the lock of
the site's one controller. Where no simulated device answers, the simulated room is started as `deliver` does it.
"""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from controller.attach import room_simulators
from controller.bench.figures import steal_ticks
from controller.doctor.host import asyncio_item, clock_items, collection_items, disk_items, scheduler_items
from controller.doctor.items import Item, worst
from controller.doctor.limits import Limits, limits_of
from controller.doctor.links import key_item, link_items
from controller.doctor.qualification import FORMAT, here_and_now, qualification_path, write_qualification
from controller.doctor.streams import stream_items
from controller.run_real import only_controller
from drivers.errors import SpotwiseError
from sites.schema import Site

EXIT = {"ok": 0, "warn": 0, "fail": 3}
TICK_MS = 10.0


def doctor(site: Site, out: Path | None, directory: Path) -> dict[str, Any]:
    """Measure all, keep the result; returns it. `directory`: where treatments will be written.

    Raises `Refused` where another controller runs for the site or half a room answers, `BadInput` where a file cannot
    be written.
    """
    path = out or qualification_path(site)
    with only_controller(site):
        result = asyncio.run(_examine(site, directory))
    write_qualification(path, result)
    return result | {"file": str(path)}


async def _examine(site: Site, directory: Path) -> dict[str, Any]:
    limits = limits_of(site)
    stolen = steal_ticks()
    here = here_and_now(site)
    items = [*clock_items(site), *disk_items(site, directory), key_item(site)]
    scheduling, granted = await asyncio.to_thread(scheduler_items, site, limits)
    items += [*scheduling, await asyncio_item(site, limits)]
    streams, granted_stream = await stream_items(site, limits)
    items += [*streams, *collection_items(limits)]
    with tempfile.TemporaryDirectory(prefix="spotwise-doctor-") as folder:
        async with room_simulators(site, 0, Path(folder)):
            links, devices = await link_items(site)
    items += [*links, _stolen_item(steal_ticks() - stolen, limits)]
    return {
        "format": FORMAT,
        **asdict(here),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "verdict": worst(items),
        "items": [item.to_json() for item in items],
        "devices": devices,
        "granted": {name: _plain(value) for name, value in (granted | granted_stream).items()},
    }


def _plain(value: object) -> object:
    return value if isinstance(value, bool | int | float) else str(value)


def _stolen_item(ticks: int, limits: Limits) -> Item:
    """Time that the host of a virtual machine gave to others: a cause, whose effect the other items show."""
    bad = ticks > 0 and limits.strict
    advice = "a room with real devices wants a PC of its own, not a virtual one" if bad else ""
    return Item("time stolen by the host", "warn" if bad else "ok", ticks * TICK_MS, None, "ms", advice=advice)


def format_doctor(result: dict[str, Any]) -> str:
    """The same for people, one line an item and one more where there is something to do."""
    lines = [f"{result['site']} on {result['host']}, {result['date']}, spotwise {result['version']}"]
    for item in result["items"]:
        figure = "" if item["measured"] is None else f"{item['measured']:g}"
        limit = "" if item["limit"] is None else f" of {item['limit']:g}"
        unit = f" {item['unit']}" if item["unit"] else ""
        words = f"{figure}{limit}{unit}".strip()
        detail = item["detail"] if not words else f"{words}  ({item['detail']})" if item["detail"] else words
        lines.append(f"{item['verdict']:<5}{item['name']:<33}{detail}".rstrip())
        if item["advice"]:
            lines.append(f"{'':<5}{'':<33}-> {item['advice']}")
    answer = "NOT fit" if result["verdict"] == "fail" else "fit"
    warned = ", with warnings" if result["verdict"] == "warn" else ""
    lines.append(f"{answer} to deliver today{warned}; kept in {result['file']}")
    return "\n".join(lines)


def exit_status(result: dict[str, Any]) -> int:
    """0 fit, 3 not fit."""
    status = EXIT.get(result["verdict"])
    if status is None:
        raise SpotwiseError(f"doctor: verdict {result['verdict']!r} is none")
    return status
