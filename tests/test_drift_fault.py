"""A fault that comes slowly: the plant's quantity grows to its amount over the time given, and can be refused."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from drivers.errors import BadInput
from simulators.faults import load_faults
from tests.delivery_rig import EXAMPLES, Delivery, fault, run_delivery


def test_a_drift_grows_evenly_to_its_amount(tmp_path: Path) -> None:
    drift = fault("plant.offset_x_mm", at="at_s = 0", add=0.4, ramp_s=2.0)
    told: list[float] = []

    async def watch(delivery: Delivery) -> None:
        plant = delivery.world.room.plant
        start = float(plant.parameters["offset_x_mm"])
        await delivery.until(lambda: plant.parameters["offset_x_mm"] > start)
        for _ in range(4):
            told.append(float(plant.parameters["offset_x_mm"]) - start)
            await asyncio.sleep(0.9)

    run_delivery(EXAMPLES / "small_carbon.dcm", "carbon-fixed", tmp_path / "out", faults=drift, script=watch)
    assert told == pytest.approx([0.01, 0.19, 0.37, 0.4], abs=0.011)


@pytest.mark.parametrize(
    "wrong",
    [
        fault("plant.offset_x_mm", value=1.0, ramp_s=1.0),
        fault("plant.offset_x_mm", add=1.0, ramp_s=0),
        fault("gantry.creep_deg_per_s", add=1.0, ramp_s=1.0),
    ],
)
def test_a_drift_of_something_else_is_refused(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "faults.toml"
    path.write_text(wrong, encoding="utf-8")
    with pytest.raises(BadInput, match="ramp_s belongs to `add`"):
        load_faults(path)
