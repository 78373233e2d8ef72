"""Which energy of the machine answers an energy of the plan."""

from __future__ import annotations

import math

from sites.schema import Site, TreatmentMachine


def match_energy(site: Site, machine: TreatmentMachine, energy_mev_u: float) -> float | None:
    """Available energy (MeV/u) nearest to the plan's, or None where none is within the site's tolerance.

    Available are the energies of the accelerator's library, or, without a library, all steps of its grid counted
    from its lowest energy; of these only those inside the treatment machine's own range.
    """
    accelerator = site.accelerator
    lowest = max(accelerator.energy_min_mev_u, machine.energy_min_mev_u)
    highest = min(accelerator.energy_max_mev_u, machine.energy_max_mev_u)
    if not math.isfinite(energy_mev_u) or lowest > highest:
        return None
    if accelerator.energy_library_mev_u:
        inside = [energy for energy in accelerator.energy_library_mev_u if lowest <= energy <= highest]
        nearest = min(inside, key=lambda energy: abs(energy - energy_mev_u), default=math.inf)
    else:
        grid, start = accelerator.energy_grid_mev_u, accelerator.energy_min_mev_u
        # a millionth of a step keeps a bound that lies on the grid from being rounded out of it
        first = math.ceil((lowest - start) / grid - 1e-6)
        last = math.floor((highest - start) / grid + 1e-6)
        if first > last:
            return None
        step = min(max(round((energy_mev_u - start) / grid), first), last)
        nearest = round(start + step * grid, 9)
    return nearest if abs(nearest - energy_mev_u) <= accelerator.energy_tolerance_mev_u + 1e-9 else None


def describe_missing_energy(site: Site, machine: TreatmentMachine, energy_mev_u: float) -> str:
    """Say why `match_energy` finds none."""
    lowest = max(site.accelerator.energy_min_mev_u, machine.energy_min_mev_u)
    highest = min(site.accelerator.energy_max_mev_u, machine.energy_max_mev_u)
    if not lowest <= energy_mev_u <= highest:
        return f"energy {energy_mev_u:g} MeV/u is outside the machine's range, {lowest:g} to {highest:g} MeV/u"
    tolerance = site.accelerator.energy_tolerance_mev_u
    return f"energy {energy_mev_u:g} MeV/u is not in the machine's table (tolerance {tolerance:g} MeV/u)"
