"""Flags of the frames that the monitors and the scan controller stream (see `drivers.wires.frames`)."""

from __future__ import annotations

FLAG_BEAM = 1
"""The chamber sees beam (streams 1 and 2)."""
FLAG_REQUEST = 2
"""The spot engine requests beam (stream 3, as all below unless said)."""
FLAG_SPILL = 4
"""Flat-top, or continuous beam, available."""
FLAG_HOLD = 8
FLAG_ARMED = 16
FLAG_CHAIN = 32
"""Safety chain closed."""
FLAG_HV_OK = 64
"""Streams 1 and 2: high voltage inside its window."""
FLAG_SATURATED = 128
"""Streams 1 and 2."""
FLAG_LAYER_DONE = 256
FLAG_TRIPPED = 512
"""The engine (stream 3) or electrometer 2's backup (stream 2) has tripped."""
FLAG_GATE_OPEN = 1024
FLAG_MOVING = 2048
"""Magnets on their way."""
