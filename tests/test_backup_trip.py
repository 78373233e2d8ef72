"""Electrometer 2 has cut the beam by itself: which of its limits, and where, is said as its registers have it."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.delivery.backup_trip import limit_in_words
from drivers.contracts import TRIP_BACKUP, TRIP_RATE
from sites.loader import load_site
from tests.delivery_rig import EXAMPLES, fault, run_delivery

PLAN = EXAMPLES / "small_carbon.dcm"
SPIKE = '[[fault]]\nname = "spill_spike"\nfactor = 10\nat = { field = 1, visit = 6 }\nfor_s = 0.02\n'
LOW = fault("plant.gain_1", scale=0.5, at="after_visits = 4")


@pytest.mark.parametrize(("scenario", "trip", "visit"), [(SPIKE, TRIP_RATE, 6), (LOW, TRIP_BACKUP, 5)])
def test_the_limit_that_cut_is_said_with_its_number(scenario: str, trip: int, visit: int, tmp_path: Path) -> None:
    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path / "t", faults=scenario)
    assert delivery.first_out == "BACKUP_TRIPPED"
    (event,) = delivery.named("trip", id="BACKUP_TRIPPED")
    assert (event["value"], event["limit"]) == (None, None)  # a flag has no numbers
    program = delivery.run.programs[0][0]
    # the device takes whole counts a frame; its limit is what a frame may have at the site's factor, and ten counts
    rate_per_s = delivery.run.site.tolerances.rate_factor * program.rate_per_s * program.counts_per_particle_2 + 1e5
    (row,) = program.visits[program.visits["visit"] == visit]
    which = {
        TRIP_RATE: f"on rate, {rate_per_s:.0f} counts per s",
        TRIP_BACKUP: f"of the visit, {row['backup_counts']} counts",
    }[trip]
    said = f"electrometer_2: its limit {which}, was reached in visit {visit}"
    assert delivery.outcome.message.endswith(said)
    assert "value" not in delivery.outcome.message
    assert len(delivery.named("warning", text=said)) == 1
    (trip_of_summary,) = [t for t in delivery.summary["trips"] if t["first_out"]]
    assert trip_of_summary["value"] is None


def test_a_device_that_has_not_tripped_or_names_a_visit_of_another_layer_gets_no_numbers() -> None:
    site = load_site("carbon-fixed")
    assert limit_in_words(0, 0, site, ()) == ""
    assert limit_in_words(7, 3, site, ()) == ""
    assert limit_in_words(TRIP_RATE, 999, site, ()) == "electrometer_2: its limit on rate was reached in visit 999"
