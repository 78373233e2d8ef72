"""Numbers of the conditions that the real-time path judges; `matrix.toml` gives each its meaning (a test compares)."""

from __future__ import annotations

NONE = 0
FRAME_LOSS_1 = 1
FRAME_LOSS_2 = 2
FRAME_LOSS_3 = 3
STREAM_SILENT_1 = 4
STREAM_SILENT_2 = 5
STREAM_SILENT_3 = 6
DEVICE_RESTARTED = 7
SPOT_DOSE_PRIMARY = 8
SPOT_DOSE_SECONDARY = 9
FIELD_DOSE_PRIMARY = 10
FIELD_DOSE_SECONDARY = 11
MONITORS_DISAGREE = 12
SPOT_POSITION = 13
POSITION_MEAN = 14
SPOT_WIDTH = 15
RATE_HIGH = 16
BEAM_WITHOUT_REQUEST = 17
SPOT_TIME = 18
HIGH_VOLTAGE_1 = 19
HIGH_VOLTAGE_2 = 20
SATURATED = 21
MAGNET_READBACK = 22
VISIT_SEQUENCE = 23
ENGINE_TRIPPED = 24
BACKUP_TRIPPED = 25
CHAIN_OPENED = 26
LEASE_EXPIRED = 27
COMMANDED = 28
"""The interlock task, or an operator, told the real-time path to drop; the matrix has the condition that it dropped for."""
COUNTS_BACKWARDS = 29
SPOT_NOT_SEEN = 30
