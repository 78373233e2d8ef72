"""The monitors' streams as a process of their own: what a room has measured goes out through it, and only through it.

    python -m simulators.stream_process

prints `{"ready": true, "port": N}`, takes the room's frames at that port on loopback, and sends each on to where its
stream goes. The room tells it that on standard input, a JSON list a line: stream, slot, host, port, enabled; it ends
when that ends. Killed or stopped alone, it is what a monitor's data line is that has gone.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading

import numpy as np

from drivers.wires.frames import new_buffer
from drivers.wires.realtime import RECEIVE_BUFFER_BYTES, RealtimeWishes, ask_realtime
from simulators.stream_loop import STATUS_WORDS, STOP, pass_on

STREAMS, SLOTS = 4, 2
LOOK_S = 0.2


def main() -> int:
    """Pass frames on until standard input ends; 0."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as came:
        came.bind(("127.0.0.1", 0))
        came.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)  # it may stall, and lose nothing
        # a blocking receive that looks now and then whether it shall end
        came.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, round(LOOK_S * 1e6)))
        senders = [[socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(SLOTS)] for _ in range(STREAMS)]
        fds = np.array([[sender.fileno() for sender in row] for row in senders], np.int32)
        enabled = np.zeros((STREAMS, SLOTS), np.int32)
        status = np.zeros(STATUS_WORDS, np.int64)
        status[STOP] = 1
        buffer = new_buffer()
        pass_on(buffer, came.fileno(), fds, enabled, status)  # compiled before anybody waits for a frame
        status[STOP] = 0

        def run() -> None:
            ask_realtime(RealtimeWishes())
            pass_on(buffer, came.fileno(), fds, enabled, status)

        thread = threading.Thread(target=run, name="streams", daemon=True)
        thread.start()
        print(json.dumps({"ready": True, "port": came.getsockname()[1], "pid": os.getpid()}), flush=True)
        for line in sys.stdin:
            stream, slot, host, port, wanted = json.loads(line)
            enabled[stream, slot] = 0
            if wanted:
                senders[stream][slot].connect((host, port))
                enabled[stream, slot] = 1
        status[STOP] = 1
        thread.join()
        for row in senders:
            for sender in row:
                sender.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
