"""How much too much comes while a beam that has run away is being stopped, and the highest rate at which that is safe.

Three things can go wrong that no preset ends, because beam comes faster than any decision, after it, or elsewhere:

    spike    the intensity rises to ten times what was asked for. Electrometer 2 judges each frame by itself and opens
             the chain without the PC: until then there may be the part of a frame that its limit does not see, a whole
             frame, the chamber's lag and a turn of the chain; then the chopper's delay.
    stuck    the chopper does not close. The PC sees beam after the request's end for longer than the proof allows, and
             commands the accelerator to stop: the proof, three frames, and the command with the end of extraction.
    beside   the beam leaves its place. Its place is judged in parts of 1.5 ms; one that misses half of its charge or
             is off by its limit trips. So at worst there are half a part, a rest at the visit's end, the blind time
             after the move, and a part of the next visit; a frame, a turn of the chain, lag and chopper.

All of it is counted at one spot's centre with the worst kernel (`controller.machine.overdose`), nothing of it as
planned: an upper bound. A layer's rate must keep both below the limit.
"""

from __future__ import annotations

from dataclasses import dataclass

from sites.schema import Site

EXCESS_LIMIT_GY = 0.25
"""Excess at the worst point (IEC 60601-2-64 asks for a limit of that size)."""
SPIKE = 10.0
"""True over asked intensity."""
FRAME_S = 1e-4
PART_S = 1.5e-3
"""`interlocks.realtime.PART_FRAMES`."""
STOP_COMMAND_S = 2.5e-3
"""A command over Modbus TCP and the end of extraction; plausible only; simulated rooms took less."""


@dataclass(frozen=True, slots=True)
class Runaway:
    """One way in which beam runs away."""

    what: str
    excess_s: float
    """Excess particles per particle per second of the asked rate."""

    def excess_gy(self, rate_per_s: float, peak_gy: float) -> float:
        """Upper bound at the worst point. `peak_gy`: of one particle at its spot's centre."""
        return self.excess_s * rate_per_s * peak_gy

    def highest_rate_per_s(self, peak_gy: float) -> float:
        """Above it, the excess may reach the limit."""
        return EXCESS_LIMIT_GY / (self.excess_s * peak_gy)


def runaways(site: Site) -> tuple[Runaway, Runaway, Runaway]:
    """The spike, the stuck chopper and the beam beside its place, with this site's delays."""
    off_s = site.accelerator.beam_off_delay_us * 1e-6
    unseen = (site.tolerances.rate_factor - 1.0) / (SPIKE - 1.0)
    spike_s = (1.0 + unseen) * FRAME_S + site.dosimetry.secondary.lag_us * 1e-6 + FRAME_S + off_s
    stuck_s = site.tolerances.beam_off_proof_ms * 1e-3 + 3.0 * FRAME_S + STOP_COMMAND_S
    lag_s = site.dosimetry.primary.lag_us * 1e-6
    blind_s = max(site.scanning.x.settle_us, site.scanning.y.settle_us) * 1e-6 + 2.0 * lag_s
    beside_s = 2.5 * PART_S - FRAME_S + blind_s + 2.0 * FRAME_S + lag_s + off_s
    return (
        Runaway(f"a spike of {SPIKE:g} times the intensity until electrometer 2 has cut it", SPIKE * spike_s),
        Runaway("a chopper that stays open until the accelerator has stopped", stuck_s),
        Runaway("a beam beside its place until its place has been judged", beside_s),
    )
