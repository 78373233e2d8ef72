"""How much charge a field may count while no beam is asked for: a leak too weak for one frame adds up all the same.

Between spills, in a hold, in an operator's pause: the chain is closed and the stopper open, and the beam, if there is
any, stands still. What a monitor counts then above the pedestal that the field began with is taken for ions, all at one
point, with the kernel of the layer that gives most per count.
"""

from __future__ import annotations

from collections.abc import Sequence

from controller.machine.overdose import peak_gy
from controller.machine.program import LayerProgram
from controller.machine.runaway import EXCESS_LIMIT_GY

IDLE_LIMIT_GY = EXCESS_LIMIT_GY / 2.0
"""The other half is for what else a single fault gives until it is stopped."""


def idle_limits(programs: Sequence[LayerProgram]) -> tuple[float, float]:
    """Counts of both monitors over a whole field; none for a field without visits."""
    with_beam = [program for program in programs if len(program.visits)]
    if not with_beam:
        return 0.0, 0.0
    gy_1 = max(peak_gy(program) / program.counts_per_particle for program in with_beam)
    gy_2 = max(peak_gy(program) / program.counts_per_particle_2 for program in with_beam)
    return IDLE_LIMIT_GY / gy_1, IDLE_LIMIT_GY / gy_2
