"""What the two chambers' unequal gaps say about recombination at a field's end: recorded, held against the site."""

from __future__ import annotations

from controller.delivery.run import Run
from controller.machine.recombination import TwoGap

COVERAGE = 3.0
"""Standard uncertainties that a disagreement must exceed beside its limit."""


def judge_two_gap(run: Run, field_index: int, two_gap: TwoGap) -> None:
    """Journal a1 - a2 of the field; warn above half the site's limit, latch RECOMBINATION above it.

    The disagreement is relative dose at the site's highest intensity. A field at one rate says nothing.
    """
    result = two_gap.result()
    if result is None:
        return
    measured_s, u_s = result
    dosimetry = run.site.dosimetry
    expected_s = dosimetry.primary.ks_per_particle_s - dosimetry.secondary.ks_per_particle_s
    run.event(
        "recombination",
        field=field_index,
        difference_s=measured_s,
        u_s=u_s,
        expected_s=expected_s,
        rate_min_per_s=two_gap.rate_min_per_s,
        rate_max_per_s=two_gap.rate_max_per_s,
        visits=two_gap.visits,
    )
    top_per_s = run.site.accelerator.intensities_per_s[-1]
    off = max(0.0, abs(measured_s - expected_s) - COVERAGE * u_s) * top_per_s
    limit = dosimetry.two_gap_limit
    if off > limit:
        run.trip("RECOMBINATION", value=off, limit=limit, detail=f"field {field_index + 1}")
    elif off > limit / 2:
        run.event(
            "warning",
            text=f"field {field_index + 1}: the chambers disagree on recombination by {100 * off:.3f} % of dose at "
            f"{top_per_s:.3g} particles/s (warning from {50 * limit:.3f} %): check both high voltages",
        )
