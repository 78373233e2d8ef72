"""The shipped example plans: made by their script to the byte, sound DICOM, and fit for the shipped sites."""

from __future__ import annotations

import itertools
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest

from drivers.errors import BadInput
from sites.plans import example_plan
from sites.plans.make_examples import EXAMPLES, write
from sites.plans.phantom import FWHM_PER_SIGMA

ROOT = Path(__file__).parents[1]
CARBON = ["demo_carbon_2field", "small_carbon", "lattice_carbon"]
FALSE_POSITIVE = "Missing attribute Type 1C Conditional Element=<ModulatedScanModeType>"
"""dciodvfy wants it for every modulated beam; PS3.3 C.8.8.25 for MODULATED_SPEC only, which these are not."""


def test_the_script_makes_the_shipped_files_to_the_byte(tmp_path: Path) -> None:
    made = write(tmp_path)
    assert {path.name for path in made} == {path.name for path in (ROOT / "sites" / "plans").glob("*.dcm")}
    for path in made:
        assert path.read_bytes() == example_plan(path.name).read_bytes(), (
            f"{path.name} differs: run python -m sites.plans.make_examples"
        )


@pytest.mark.parametrize("name", EXAMPLES)
def test_dciodvfy_finds_no_error_of_ours(name: str, program: Callable[[str], str]) -> None:
    done = subprocess.run([program("dciodvfy"), str(example_plan(name))], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    assert lines[0] == "RTIonPlan"
    assert [line for line in lines if line.startswith("Error") and FALSE_POSITIVE not in line] == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_weights_add_up_and_the_end_of_each_layer_repeats_its_spots(name: str) -> None:
    plan = pydicom.dcmread(example_plan(name))
    for beam, reference in zip(plan.IonBeamSequence, plan.FractionGroupSequence[0].ReferencedBeamSequence, strict=True):
        points = beam.IonControlPointSequence
        final = float(beam.FinalCumulativeMetersetWeight)
        assert float(reference.BeamMeterset) == final
        assert beam.NumberOfControlPoints == len(points)
        for first, last in zip(points[::2], points[1::2], strict=True):
            spots = first.NumberOfScanSpotPositions
            step = float(last.CumulativeMetersetWeight) - float(first.CumulativeMetersetWeight)
            assert len(first.ScanSpotPositionMap) == 2 * spots == 2 * len(first.ScanSpotMetersetWeights)
            assert sum(first.ScanSpotMetersetWeights) == pytest.approx(step, abs=1e-7 * final)
            assert last.ScanSpotPositionMap == first.ScanSpotPositionMap
            assert set(last.ScanSpotMetersetWeights) == {0.0}
            assert (last.NominalBeamEnergy, last.ScanSpotTuneID) == (first.NominalBeamEnergy, first.ScanSpotTuneID)
        assert float(points[-1].CumulativeMetersetWeight) == final


@pytest.mark.parametrize("name", EXAMPLES)
def test_spots_run_to_and_fro_in_steps_of_one_spacing(name: str) -> None:
    for beam in pydicom.dcmread(example_plan(name)).IonBeamSequence:
        for point in beam.IonControlPointSequence[::2]:
            xy = np.array(point.ScanSpotPositionMap, dtype=float).reshape(-1, 2)
            rows = [xy[xy[:, 1] == y, 0] for y in dict.fromkeys(xy[:, 1])]
            signs = [np.sign(row[-1] - row[0]) for row in rows if len(row) > 1]
            assert all(a == -b for a, b in itertools.pairwise(signs))
            assert len(np.unique(xy, axis=0)) == len(xy)


@pytest.mark.parametrize("name", CARBON)
def test_carbon_plans_fit_the_fixed_port_room(name: str) -> None:
    site = tomllib.loads((ROOT / "sites" / "carbon-fixed.toml").read_text(encoding="utf-8"))
    machine = site["treatment_machines"]["REF-C"]
    energies = [row["energy_mev_u"] for row in machine["spot_sizes"]]
    for beam in pydicom.dcmread(example_plan(name)).IonBeamSequence:
        points = beam.IonControlPointSequence
        assert beam.TreatmentMachineName == "REF-C"
        assert list(beam.VirtualSourceAxisDistances) == [machine["vsad_x_mm"], machine["vsad_y_mm"]]
        assert float(points[0].GantryAngle) in site["gantry"]["ports_deg"]
        assert machine["snouts"][0]["min_mm"] <= points[0].SnoutPosition <= machine["snouts"][0]["max_mm"]
        for point in points[::2]:
            assert point.ScanSpotTuneID in machine["tune_ids"]
            assert min(point.ScanSpotMetersetWeights) >= 2 * machine["spot_min_mu"] * (1 - 1e-6)
            for axis, key in enumerate(("sigma_x_mm", "sigma_y_mm")):
                sigma = np.interp(float(point.NominalBeamEnergy), energies, [row[key] for row in machine["spot_sizes"]])
                assert point.ScanningSpotSize[axis] == pytest.approx(FWHM_PER_SIGMA * sigma, rel=0.02)


def test_the_demo_gives_about_20_seconds_of_beam() -> None:
    site = tomllib.loads((ROOT / "sites" / "carbon-fixed.toml").read_text(encoding="utf-8"))
    mu = site["treatment_machines"]["REF-C"]["mu"]
    beam_s = 0.0
    for beam in pydicom.dcmread(example_plan("demo_carbon_2field")).IonBeamSequence:
        for point in beam.IonControlPointSequence[::2]:
            per_mu = mu["particles_per_mu"] * (float(point.NominalBeamEnergy) / mu["reference_mev_u"]) ** mu["exponent"]
            particles = np.array(point.ScanSpotMetersetWeights) * per_mu
            # the site's highest level at which the shortest visit lasts 1 ms
            rate = max(level for level in site["accelerator"]["intensities_per_s"] if level * 1e-3 <= particles.min())
            assert particles.sum() < min(
                rate * site["accelerator"]["flat_top_s"], site["accelerator"]["particles_per_spill"]
            )
            beam_s += particles.sum() / rate
    assert 18 < beam_s < 26


def test_an_unknown_example_names_the_known_ones() -> None:
    with pytest.raises(
        BadInput,
        match="demo_carbon_2field, demo_proton_1field, gated_carbon, lattice_carbon, small_carbon, small_proton",
    ):
        example_plan("../../../etc/passwd")
