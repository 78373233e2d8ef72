"""What physics forbids: how much a runaway beam gives before anything can stop it, and the rate that `check` allows.

For each shipped clinical-like site, some energies: the peak dose of an ion at its spot's centre, and for each way in
which beam runs away (`controller.machine.runaway`) the bound at the highest intensity that is used, and the highest
safe rate. The same numbers choose the intensity of every layer, and refuse what no level serves (`RATE_UNSAFE`).
Then what a monitor can be wrong by before anything can know: a share of the dose, whatever the rate.
"""

from __future__ import annotations

from collections.abc import Iterator

from controller.machine.optics import spot_sigma_mm
from controller.machine.overdose import peak_dose_gy_per_particle
from controller.machine.runaway import EXCESS_LIMIT_GY, runaways
from sites.loader import load_site

SITES = ("carbon-fixed", "proton-gantry")
SHARES = (0.0, 0.25, 0.5, 1.0)
"""Of a site's range of energies."""


def limits_section() -> list[str]:
    """Lines of Markdown."""
    return [
        "## What physics forbids",
        "",
        "No preset and no interlock ends these before some of it has come. Bounds at the worst point for one spot's "
        f"centre, of beam that stays there; a layer's intensity is the highest level at which all are below "
        f"{EXCESS_LIMIT_GY:g} Gy, and `check` refuses a layer that none serves ([`RATE_UNSAFE`](../rules.md)). "
        "Derived in `controller/machine/runaway.py`; made by `python -m controller.campaign.pages`, from no treatment.",
        "",
        "| site | energy, MeV/u | Gy of 1e6 ions | level used, ions/s | what runs away | for | bound there, Gy | "
        "highest safe rate, ions/s |",
        "| --- | ---: | ---: | ---: | --- | ---: | ---: | ---: |",
        *(row for name in SITES for row in _rows(name)),
        "",
        "Nor does any rate help where monitor 1 reads low by less than the two monitors may be apart:",
        "",
        "| site | what ends it | wrong by | dose above which it may exceed "
        f"{EXCESS_LIMIT_GY:g} Gy | what `check` does |",
        "| --- | --- | ---: | --- | --- |",
        *(row for name in SITES for row in _monitor_rows(name)),
        "",
        "A third, independent measure of dose would lower both; the second monitor's own gain is the limit here. Daily "
        "output checks (`output_qa` of the site) keep the gains within what the site says of them.",
        "",
    ]


def _rows(name: str) -> Iterator[str]:
    site = load_site(name)
    machine = next(iter(site.treatment_machines.values()))
    low, high = machine.energy_min_mev_u, machine.energy_max_mev_u
    for share in SHARES:
        energy_mev_u = low + share * (high - low)
        peak_gy = peak_dose_gy_per_particle(machine.ion, energy_mev_u, *spot_sigma_mm(machine, energy_mev_u))
        ways = runaways(site)
        safe = min(way.highest_rate_per_s(peak_gy) for way in ways)
        level = max((rate for rate in site.accelerator.intensities_per_s if rate <= safe), default=0.0)
        for way in ways:
            bound_gy, highest = way.excess_gy(level, peak_gy), way.highest_rate_per_s(peak_gy)
            yield (
                f"| {name} | {energy_mev_u:.0f} | {peak_gy * 1e6:.3g} | {level:.3g} | {way.what} | "
                f"{way.excess_s * 1e3:.3g} ms | {bound_gy:.3g} | {highest:.3g} |"
            )


def _monitor_rows(name: str) -> Iterator[str]:
    site = load_site(name)
    apart = site.dosimetry.primary.gain_uncertainty + site.dosimetry.secondary.gain_uncertainty
    known = apart + site.dosimetry.secondary.gain_uncertainty
    differ = site.tolerances.monitor_disagreement
    yield (
        f"| {name} | electrometer 2, within a visit | {100 * known:.2g} % | {EXCESS_LIMIT_GY / known:.3g} Gy in one "
        "visit | warns ([`SPOT_DOSE_UNCERTAIN`](../rules.md)) |"
    )
    yield (
        f"| {name} | `MONITORS_DISAGREE`, after each visit, over the field | {100 * differ:.2g} % | "
        f"{EXCESS_LIMIT_GY / differ:.3g} Gy at a point in one field | nothing: a tolerance of the site |"
    )
