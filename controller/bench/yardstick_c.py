"""The integrator in C, built here and now with the system's compiler: `integrator.c` as a shared library.

The real-time memory's layout and all constants are generated into a header from the Python that defines them, so that
both work on the very same bytes and cannot drift apart.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.dose import frame_clock, integrator, log_row, memory, strips, visits
from drivers import flags
from drivers.errors import SpotwiseError
from interlocks import numbers, realtime

SOURCE = Path(__file__).with_name("integrator.c")
OPTIONS = ("-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-std=c11", "-shared", "-fPIC")
C_TYPES = {
    "int64": "int64_t",
    "uint64": "uint64_t",
    "float64": "double",
    "int32": "int32_t",
    "uint32": "uint32_t",
    "uint8": "uint8_t",
}
TYPE_NAMES = {"running": "visit", "streams": "stream"}
OTHER_CONSTANTS = (
    (
        strips,
        ("PAYLOAD", "STRIPS", "WINDOW_SIGMA", "STRIP_KNOWN", "STRIP_DEAD", "STRIP_HOT", "DEAD_SHARE", "HOT_FACTOR"),
    ),
    (strips, ("NOISE_UNITS", "FILL_UNCERTAINTY", "DEAD_RUN", "QUALITY_STRIP_BAD", "QUALITY_STRIP_FOUND")),
    (strips, ("FRACTION_BITS", "HALF", "PEDESTAL_SHIFT", "FIRST_SHIFT", "FIRST_FRAMES")),
    (frame_clock, ("FRAME_NS", "ROW_NS", "OFFSET_CREEP_NS", "SETTLE_NS", "SETTLE_FALL_NS")),
    (visits, ("QUALITY_NO_POSITION", "QUALITY_SATURATED", "QUALITY_FRAMES_LOST")),
    (log_row, ("NO_VALUE",)),
    (integrator, ("QUIET_NS", "QUIET_KEPT_NS", "IDLE_BLOCK", "ACTION_NONE", "ACTION_PERMIT", "ACTION_DROP")),
    (
        realtime,
        (
            "OFF_WINDOW_FRAMES",
            "MOVING_FRAMES",
            "VISIT_APART_FRAMES",
            "FRESH_NS",
            "SEEN_SHARE",
            "PART_FRAMES",
            "PEDESTAL_SPAN_NS",
        ),
    ),
    (memory, ("MAX_VISITS", "MEASURED_RING", "ROW_RING", "MEAN_VISITS")),
)


class NoCompilerError(SpotwiseError):
    """There is no C compiler on this PC."""


def _structure(name: str, layout: np.dtype[Any]) -> str:
    lines = []
    for field in layout.names or ():
        kind = layout[field]
        base, shape = kind.subdtype if kind.subdtype is not None else (kind, ())
        inner = f"{TYPE_NAMES.get(field, field)}_t" if base.names else C_TYPES[base.name]
        lines.append(f"    {inner} {field}{''.join(f'[{n}]' for n in shape)};")
    body = "\n".join(lines)
    return f"typedef struct {{\n{body}\n}} {name}_t;\n"


def _constants(module: ModuleType) -> list[str]:
    return [name for name in vars(module) if name.isupper() and isinstance(vars(module)[name], int)]


def header() -> str:
    """memory.h: the real-time memory and every constant that the judgements use."""
    layout = memory.MEMORY
    parts = []
    for field in layout.names or ():
        kind = layout[field]
        base = kind.subdtype[0] if kind.subdtype is not None else kind
        if base.names:
            parts.append(_structure(TYPE_NAMES.get(field, field), base))
    parts.append(_structure("memory", layout))
    groups = [(flags, _constants(flags)), (numbers, _constants(numbers)), *OTHER_CONSTANTS]
    defines = [f"#define {name} ({getattr(module, name)})" for module, names in groups for name in names]
    return "\n".join([*defines, "", *parts])


class CIntegrator:
    """The built library."""

    def __init__(self, run: Callable[..., int], compiler: str) -> None:
        self._run = run
        self.compiler = compiler

    def __call__(self, m: NDArray[Any], data: NDArray[np.uint8], times_ns: NDArray[np.int64]) -> int:
        """Judge all datagrams (one a row); returns the sum of the actions decided."""
        return self._run(m.ctypes.data, data.ctypes.data, data.strides[0], len(data), times_ns.ctypes.data)


def build() -> CIntegrator:
    """Compile and load. Raises `NoCompilerError`; `SpotwiseError` where the source no longer fits the memory."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise NoCompilerError("no C compiler 'cc' on this PC: the comparison with C is left out; install one for it")
    with tempfile.TemporaryDirectory(prefix="spotwise-bench-c-") as folder:
        (Path(folder) / "memory.h").write_text(header(), encoding="utf-8")
        target = Path(folder) / "integrator.so"
        command = [compiler, *OPTIONS, f"-I{folder}", str(SOURCE), "-o", str(target), "-lm"]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode:
            raise SpotwiseError(f"{' '.join(command)}: {built.stderr.strip()[-500:]}")
        library = ctypes.CDLL(str(target))  # stays loaded when the file is gone
    library.memory_bytes.restype = ctypes.c_size_t
    size = library.memory_bytes()
    if size != memory.MEMORY.itemsize:
        raise SpotwiseError(f"the memory has {size} bytes in C and {memory.MEMORY.itemsize} in numpy")
    library.run.restype = ctypes.c_int64
    library.run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    shown = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return CIntegrator(library.run, shown.stdout.partition("\n")[0])
