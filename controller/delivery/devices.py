"""The room's devices as the controller holds them: opened by the site's addresses, identified before anything else."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from drivers.accelerator import Accelerator
from drivers.contracts import Identity
from drivers.couch import Couch
from drivers.deadline import Deadline
from drivers.dose_monitor import Electrometer
from drivers.errors import BadInput, DeviceError, Refused
from drivers.gantry import Gantry
from drivers.gating import Gating
from drivers.magnet_supply import MagnetSupply, SupplyLimits
from drivers.nozzle import Nozzle
from drivers.open import Driver, open_device
from drivers.preset_electrometer import PresetElectrometer
from drivers.safety_chain import SafetyChain
from drivers.scan_controller import ScanController
from drivers.step_engine import StepEngine
from sites.schema import DEVICE_NAMES, Site

CONNECT_S = 5.0


@dataclass(frozen=True, slots=True)
class RoomDevices:
    """One driver a device; names as in `sites.schema.DEVICE_NAMES`."""

    accelerator: Accelerator
    scan_controller: ScanController | StepEngine
    electrometer_1: Electrometer
    electrometer_2: Electrometer
    gantry: Gantry
    couch: Couch
    nozzle: Nozzle
    gating: Gating
    safety_chain: SafetyChain


def open_devices(site: Site) -> RoomDevices:
    """Drivers for all devices, not yet connected. Raises `BadInput` for an address or map that does not fit."""
    drivers: dict[str, Driver | StepEngine] = {
        name: open_device(name, map=device.map, **device.address.model_dump()) for name, device in site.devices.items()
    }
    if site.scanning.engine == "step":
        drivers["scan_controller"] = step_engine(site, drivers["scan_controller"], drivers["electrometer_1"])
    return RoomDevices(**drivers)  # type: ignore[arg-type]


def step_engine(site: Site, supply: Driver | StepEngine, electrometer: Driver | StepEngine) -> StepEngine:
    """Step mode: magnet supplies and the presetting electrometer together do what a scan controller does.

    Raises `BadInput` where the site's register maps are of other devices.
    """
    for wanted, name, driver in (
        (MagnetSupply, "scan_controller", supply),
        (PresetElectrometer, "electrometer_1", electrometer),
    ):
        if not isinstance(driver, wanted):
            raise BadInput(
                f"site {site.name}: devices.{name}.map is for a {driver.map.device}; with scanning.engine = step it "
                f"must be for a {'magnet_supply' if wanted is MagnetSupply else 'preset_electrometer'}"
            )
    assert isinstance(supply, MagnetSupply)
    assert isinstance(electrometer, PresetElectrometer)
    x, y = site.scanning.x, site.scanning.y
    limits = SupplyLimits(
        window_a=min(x.window_a, y.window_a),
        settle_us=max(x.settle_us, y.settle_us),
        slew_a_per_s=min(x.slew_a_per_s, y.slew_a_per_s),
    )
    return StepEngine(supply, electrometer, limits)


async def connect_devices(site: Site, devices: RoomDevices) -> dict[str, Identity]:
    """Connect all and compare who answers with what the site says. Raises `Refused` that names every mismatch."""
    deadline = Deadline.after(CONNECT_S, "connecting to the room's devices")
    identities: dict[str, Identity] = {}
    problems: list[str] = []

    async def one(name: str) -> None:
        driver = getattr(devices, name)
        try:
            await driver.connect(deadline)
            identities[name] = await driver.identify(deadline)
        except DeviceError as error:
            problems.append(str(error))

    async with asyncio.TaskGroup() as group:
        for name in DEVICE_NAMES:
            group.create_task(one(name), name=f"connect {name}")
    for name, device in site.devices.items():
        identity = identities.get(name)
        if identity is None:
            continue
        driver = getattr(devices, name)
        if identity.device_id != device.device_id:
            problems.append(f"{name}: device_id: wanted {device.device_id!r}, got {identity.device_id!r}")
        if identity.simulated != (device.kind == "simulated"):
            got = "simulated" if identity.simulated else "real"
            problems.append(f"{name}: the site says {device.kind}, the device says {got}")
        if identity.map_sha256 != driver.map.map_sha256:
            problems.append(
                f"{name}: register map: the site's {driver.map.source} has hash {driver.map.map_sha256}, the device "
                f"was built with {identity.map_sha256}"
            )
    if problems:
        raise Refused("the room is not what the site says:\n  " + "\n  ".join(sorted(problems)))
    return {name: identities[name] for name in DEVICE_NAMES}


async def close_devices(devices: RoomDevices) -> None:
    """Close all links."""
    for name in DEVICE_NAMES:
        await getattr(devices, name).close()
