"""What one visit can get too much where monitor 1 reads low: then nothing but electrometer 2's backup ends it.

The backup stands at 0.25 Gy too much or below, unless the visit's own dose is so large that the two chambers' gains
may be further apart than that: a backup below would stop good beam (`controller.machine.layer_program`). There the
bound follows from the uncertainty of the gains and no interlock can lower it; `check` names it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from controller.machine.overdose import peak_gy
from controller.machine.program import LayerProgram
from controller.machine.runaway import FRAME_S
from sites.schema import Site

Floats = NDArray[np.float64]


def late_s(site: Site) -> float:
    """Beam time that electrometer 2 has still to see when it decides: its lag and the beam-off delay."""
    return (site.dosimetry.secondary.lag_us + site.accelerator.beam_off_delay_us) * 1e-6


def wrong_monitor_excess_gy(site: Site, program: LayerProgram) -> Floats:
    """Upper bound, per visit, of the excess (Gy) at the spot's centre: to the backup, its error, what is late."""
    visits = program.visits
    wrong = site.dosimetry.secondary.gain_uncertainty * visits["expected_counts_2"]
    late = program.rate_per_s * (late_s(site) + FRAME_S) * program.counts_per_particle_2
    excess: Floats = visits["backup_counts"] - visits["expected_counts_2"] + wrong + late
    return excess / program.counts_per_particle_2 * peak_gy(program)


def visit_dose_gy(program: LayerProgram) -> Floats:
    """Upper bound of each visit's planned dose (Gy) at its spot's centre, at the worst depth."""
    dose: Floats = program.visits["particles"] * peak_gy(program)
    return dose
