"""Makes the driver of a device from plain values: its wire's address and its register map."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from drivers.accelerator import Accelerator
from drivers.couch import Couch
from drivers.dose_monitor import Electrometer
from drivers.errors import BadInput
from drivers.gantry import Gantry
from drivers.gating import Gating
from drivers.magnet_supply import MagnetSupply
from drivers.nozzle import Nozzle
from drivers.preset_electrometer import PresetElectrometer
from drivers.registers import RegisterMap, load_map, shipped_maps
from drivers.safety_chain import SafetyChain
from drivers.scan_controller import ScanController
from drivers.step_engine import StepEngine
from drivers.wires.modbus import ModbusRtuPort, ModbusTcpPort
from drivers.wires.ports import ModbusPort
from drivers.wires.serial_line import AsciiLinePort

if TYPE_CHECKING:
    from drivers import contracts

    # The type checker proves here that each driver keeps its contract.
    _accelerator: type[contracts.Accelerator] = Accelerator
    _scan_controller: type[contracts.ScanController] = ScanController
    _step_engine: type[contracts.ScanController] = StepEngine
    _magnet_supply: type[contracts.MagnetSupply] = MagnetSupply
    _electrometer: type[contracts.Electrometer] = Electrometer
    _gantry: type[contracts.Gantry] = Gantry
    _couch: type[contracts.Couch] = Couch
    _nozzle: type[contracts.Nozzle] = Nozzle
    _gating: type[contracts.Gating] = Gating
    _safety_chain: type[contracts.SafetyChain] = SafetyChain

Driver: TypeAlias = (
    Accelerator | ScanController | MagnetSupply | Electrometer | Gantry | Couch | Nozzle | Gating | SafetyChain
)


class _ModbusDriver(Protocol):
    def __call__(self, name: str, port: ModbusPort, register_map: RegisterMap) -> Driver: ...


MODBUS_DRIVERS: dict[str, _ModbusDriver] = {
    "accelerator": Accelerator,
    "scan_controller": ScanController,
    "magnet_supply": MagnetSupply,
    "electrometer": Electrometer,
    "preset_electrometer": PresetElectrometer,
    "gantry": Gantry,
    "nozzle": Nozzle,
    "gating": Gating,
    "safety_chain": SafetyChain,
}


def open_device(
    name: str,
    *,
    wire: str,
    map: str | Path | RegisterMap,
    host: str | None = None,
    port: int | None = None,
    path: str | None = None,
    baud: int | None = None,
    unit: int = 1,
    in_flight: int = 1,
) -> Driver:
    """The driver for the map's device class, not yet connected.

    `wire` is modbus_tcp (host, port, in_flight), modbus_rtu (path, baud, unit) or ascii (path, baud); the keywords are
    those of a site's address table. Raises `BadInput` for an address or map that does not fit.
    """
    register_map = map if isinstance(map, RegisterMap) else load_map(map)
    _check_complete(name, register_map)
    if wire == "ascii":
        if register_map.wire != "ascii" or register_map.device != "couch":
            raise BadInput(f"{name}: {register_map.source} is a {register_map.wire} map for a {register_map.device}, "
                           f"wanted an ascii map for a couch")  # fmt: skip
        line_path, line_baud = _serial(name, wire, path, baud)
        return Couch(name, AsciiLinePort(name, line_path, line_baud), register_map)
    driver = MODBUS_DRIVERS.get(register_map.device)
    if driver is None or register_map.wire != "modbus":
        raise BadInput(
            f"{name}: no driver for device {register_map.device!r} ({register_map.source}) on wire {wire}; "
            f"known: {', '.join(MODBUS_DRIVERS)}"
        )
    if wire == "modbus_tcp":
        if host is None or port is None:
            raise BadInput(f"{name}: wire modbus_tcp needs host and port")
        return driver(name, ModbusTcpPort(name, host, port, unit=unit, in_flight=in_flight), register_map)
    if wire == "modbus_rtu":
        line_path, line_baud = _serial(name, wire, path, baud)
        return driver(name, ModbusRtuPort(name, line_path, line_baud, unit), register_map)
    raise BadInput(f"{name}: wire {wire!r} is none of modbus_tcp, modbus_rtu, ascii")


def _names(register_map: RegisterMap) -> set[str]:
    """Everything that a driver may call by name."""
    names = {r.name for r in register_map.registers}
    names |= {f"request {q.name}: {field}" for q in register_map.requests for field in q.fields}
    names |= {f"table {t.name}: {column.name}" for t in register_map.tables for column in t.columns}
    for command in register_map.commands:
        names |= {f"command {command.name}: {f.name}" for f in (*command.arguments, *command.answer)}
    return names


def _check_complete(name: str, register_map: RegisterMap) -> None:
    """A replaced map must have all that the shipped one of its class has; addresses and scales are its own."""
    if register_map.device not in shipped_maps():
        return
    missing = sorted(_names(load_map(register_map.device)) - _names(register_map))
    if missing:
        raise BadInput(
            f"{name}: register map {register_map.source} lacks what a {register_map.device} needs: "
            f"{', '.join(missing)}; compare with the shipped map {register_map.device}"
        )


def _serial(name: str, wire: str, path: str | None, baud: int | None) -> tuple[str, int]:
    if path is None or baud is None:
        raise BadInput(f"{name}: wire {wire} needs path and baud")
    return path, baud
