"""The site's devices: whether they answer, who they are, and how long a status takes."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from controller.delivery.devices import RoomDevices, open_devices
from controller.doctor.host import percentile_words
from controller.doctor.items import Item, at_most, rounded, stated, worst
from controller.doctor.limits import round_trip_limits_ms
from drivers.contracts import Identity
from drivers.deadline import Deadline
from drivers.errors import DeviceError
from sites.schema import Device, Site

CONNECT_S = 5.0
UNUSABLE_S = 10.0
"""Longest that one status is waited for, whatever the site allows."""
KEY_BYTES = 16


async def link_items(site: Site) -> tuple[list[Item], dict[str, Any]]:
    """Every device in turn; returns the items, and who answered, by device."""
    devices = open_devices(site)
    items: list[Item] = []
    found: dict[str, Any] = {}
    for name, device in site.devices.items():
        got, identity = await _device_items(devices, name, device, site)
        items += got
        found[name] = {"kind": device.kind, "place": device.address.place} | (
            {} if identity is None else _words(identity)
        )
    return items, found


def _words(identity: Identity) -> dict[str, Any]:
    return {
        "device_id": identity.device_id,
        "simulated": identity.simulated,
        "map_sha256": identity.map_sha256,
        "boot_nonce": str(identity.boot_nonce),
    }


async def _device_items(
    devices: RoomDevices, name: str, device: Device, site: Site
) -> tuple[list[Item], Identity | None]:
    driver = getattr(devices, name)
    identity: Identity | None = None
    times_ms: list[float] = []
    timeout_s = min(UNUSABLE_S, max(device.request_timeout_ms, device.max_age_ms) * 1e-3)
    try:
        deadline = Deadline.after(CONNECT_S, f"{name}: connecting")
        await driver.connect(deadline)
        identity = await driver.identify(deadline)
        for _ in range(site.qualification.reads):
            begun = time.perf_counter()
            await driver.status(Deadline.after(timeout_s, f"status of {name}"))
            times_ms.append((time.perf_counter() - begun) * 1e3)
    except (DeviceError, TimeoutError) as error:
        advice = f"check the device, its cable and its address ({device.address.place})"
        detail = f"after {len(times_ms)} reads: {str(error) or 'deadline missed'}"
        return [stated(f"{name}: link", False, detail, advice)], identity
    finally:
        await driver.close()
    return [_identity_item(name, device, identity, driver.map), _times_item(name, device, site, times_ms)], identity


def _identity_item(name: str, device: Device, identity: Identity, wanted_map: Any) -> Item:
    wrong = []
    if identity.device_id != device.device_id:
        wrong.append(f"device_id: wanted {device.device_id!r}, got {identity.device_id!r}")
    if identity.simulated != (device.kind == "simulated"):
        wrong.append(f"the site says {device.kind}, the device says {'simulated' if identity.simulated else 'real'}")
    if identity.map_sha256 != wanted_map.map_sha256:
        wrong.append(
            f"register map: the site's {wanted_map.source} has hash {wanted_map.map_sha256}, the device was built "
            f"with {identity.map_sha256}"
        )
    known = f"{identity.device_id}, {device.kind}, map {identity.map_sha256}, boot {identity.boot_nonce}"
    return stated(f"{name}: identity", not wrong, "; ".join(wrong) or known, "correct the site file, or the device")


def _times_item(name: str, device: Device, site: Site, times_ms: list[float]) -> Item:
    """One line for two limits: what is shown is the 99 %, and the longest one's own limit is in words."""
    usual_ms, longest_ms = round_trip_limits_ms(site, device)
    values = np.array(times_ms)
    advice = "a quieter network or line, a shorter cable, or a lower poll_hz"
    usual = at_most(name, float(np.percentile(values, 99)), usual_ms, "ms", advice)
    longest = at_most(name, float(values.max()), longest_ms, "ms", advice)
    verdict = worst((usual, longest))
    return Item(
        f"{name}: status, p99",
        verdict,
        usual.measured,
        usual.limit,
        "ms",
        f"{len(values)} reads: {percentile_words(values)}; longest allowed {rounded(longest_ms):g}",
        "" if verdict == "ok" else advice,
    )


def key_item(site: Site) -> Item:
    """The permits' key can be read, and only by its owner."""
    if site.permits.key_file is None:
        return Item("permit key", "ok", detail="in the site file: simulated devices only")
    advice = f"{site.permits.key_file}: {KEY_BYTES} secret bytes, readable by the controller's user alone"
    try:
        with open(site.permits.key_file, "rb") as file:
            length = len(file.read(KEY_BYTES))
            mode = os.fstat(file.fileno()).st_mode & 0o777
    except OSError as error:
        return stated("permit key", False, f"{site.permits.key_file}: {error.strerror}", advice)
    if length < KEY_BYTES:
        return stated("permit key", False, f"{site.permits.key_file}: {length} bytes of {KEY_BYTES}", advice)
    return stated("permit key", mode & 0o077 == 0, f"{site.permits.key_file}: mode {mode:o}", advice, "warn")
