"""`spotwise registers`: where every register of a site's devices is, what it means and what limits it."""

from __future__ import annotations

from typing import Any

from drivers.registers import describe, load_map
from sites.schema import Site


def registers(site: Site) -> dict[str, Any]:
    """All devices with address and registers, as `--json` prints them."""
    devices = {}
    for name, device in site.devices.items():
        register_map = load_map(device.map)
        devices[name] = {
            "kind": device.kind,
            "address": device.address.model_dump(),
            "map": device.map,
            "map_sha256": register_map.map_sha256,
            "registers": describe(register_map),
        }
    return {"site": site.name, "devices": devices}


def format_registers(site: Site) -> str:
    """The same as text."""
    lines = []
    for name, device in registers(site)["devices"].items():
        address = " ".join(f"{key}={value}" for key, value in device["address"].items())
        lines.append(f"{name} ({device['kind']}; {address}; map {device['map']} {device['map_sha256']})")
        for row in device["registers"]:
            where = row.get("address")
            lines.append(
                f"  {'' if where is None else where:>6} {row.get('type', ''):<10} {row.get('access', ''):<3}"
                f" {row['name']:<28} {row.get('unit', '') or '':<8} {row.get('limits', '') or ''}"
                f" {row.get('description', '')}".rstrip()
            )
        lines.append("")
    return "\n".join(lines)
