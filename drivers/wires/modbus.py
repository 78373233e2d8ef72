"""Holding registers over Modbus: `ModbusTcpPort` and `ModbusRtuPort`.

Both wait no longer than the caller's deadline, never retry by themselves, and let cancellation pass. There is no
second timeout below the deadline. What protects a question from the answers to others is in each module's text.
"""

from __future__ import annotations

from drivers.wires.modbus_rtu import ModbusRtuPort
from drivers.wires.modbus_tcp import ModbusTcpPort

__all__ = ["ModbusRtuPort", "ModbusTcpPort"]
