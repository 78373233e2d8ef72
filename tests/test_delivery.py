"""Whole treatments in virtual time: every spot delivered where and as much as planned, every count accounted for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from controller.record.schema import QUALITY_FRAMES_LOST
from tests.delivery_rig import EXAMPLES, Delivery, counts_accounted, run_delivery
from tests.make_plan import BeamSpec, LayerSpec, SetupSpec, grid, make_plan, write_plan

ROOT = Path(__file__).parents[1]
DELIVER = [sys.executable, "-m", "controller.cli", "deliver", "--site", "carbon-fixed", "--clock", "virtual"]
NAME, IDENTITY = "Quixotebrink^Zenobia", "ZX-4711-PLANTED"


def completed(delivery: Delivery) -> None:
    """What is true of every treatment that went well."""
    outcome, summary, truth, visits = delivery.outcome, delivery.summary, delivery.truth, delivery.visits
    assert (outcome.status, outcome.exit_status, outcome.message) == ("completed", 0, "")
    assert summary["outcome"] == "completed"
    assert summary["trips"] == []
    fields = delivery.run.plan.fields
    spots = sum(sum(w > 0 for w in layer.meterset) for field in fields for layer in field.layers)
    assert summary["spots_planned"] == summary["spots_delivered"] == spots
    for monitor in ("mu_primary", "mu_secondary"):
        assert summary[monitor] == pytest.approx(summary["mu_planned"], rel=0.005)
        for field in summary["per_field"]:
            assert field[monitor] == pytest.approx(field["mu_planned"], rel=0.005)
    for field in truth["per_field"]:
        assert abs(field["particles_error_pct"]) < 0.5
    if truth["spot_dose_error_pct"]["mean"] is not None:
        assert abs(truth["spot_dose_error_pct"]["mean"]) < 1.0
        assert truth["spot_dose_error_pct"]["sd"] < 1.0
    assert truth["spot_position_error_mm"]["p95"] < 0.5
    visits_planned = sum(len(p.visits) for programs in delivery.run.programs for p in programs)
    assert len(visits) == visits_planned == len(np.unique(visits[["field", "visit"]]))
    counts_accounted(delivery, range(len(fields)))
    whole = visits[visits["quality"] & QUALITY_FRAMES_LOST == 0]
    assert len(whole) == len(visits)
    # had the frames shown another count at a visit's end than the electrometer latched, COUNTS_DISPUTED had tripped
    assert not delivery.named("trip")
    for number in (1, 2):
        # the PC's own integral is without the pedestal, which is 40 counts a second at most
        pedestal = visits[f"counts_{number}"] - visits[f"frame_counts_{number}"]
        lasted_s = (visits["t_end_ns"] - visits["t_start_ns"]) * 1e-9
        assert (pedestal > -0.5).all()
        assert (pedestal < 0.5 + 100 * lasted_s).all()
    assert delivery.named("state")[-1]["state"] == "COMPLETED"
    plant = delivery.plant
    assert (plant["beam_present"], plant["closed"]) == (0, 0)
    for field in range(len(fields)):
        order = [e["phase"] for e in delivery.named("layer", field=field, layer=0)]
        assert order in (["request", "armed", "ready", "start", "end"], ["request", "ready", "armed", "start", "end"])


@pytest.mark.parametrize(
    ("plan", "site"),
    [
        ("small_carbon", "carbon-fixed"),
        ("small_carbon", "carbon-gantry"),
        ("demo_carbon_2field", "carbon-fixed"),
        ("demo_proton_1field", "proton-gantry"),
    ],
)
def test_an_example_plan_completes_at_its_site(plan: str, site: str, tmp_path: Path) -> None:
    delivery = run_delivery(EXAMPLES / f"{plan}.dcm", site, tmp_path / "t")
    completed(delivery)
    interlocks = [body for topic, body in delivery.sink.messages if topic == "interlocks"]
    assert [body["clear"] for body in interlocks] == [True]  # said once, at the start: a reader is never in doubt
    assert {topic for topic, _ in delivery.sink.messages} >= {"state", "layer", "spots", "devices/gantry"}


def test_a_gated_plan_with_paintings_holds_and_goes_on(tmp_path: Path) -> None:
    beam = BeamSpec(
        layers=[LayerSpec(250.0, grid(16, 40.0), paintings=4), LayerSpec(240.0, grid(16, 40.0), paintings=4)]
    )
    plan = make_plan([beam], setups=[SetupSpec(motion=("GATING", "EXTERNAL_MARKER"))])
    delivery = run_delivery(write_plan(tmp_path / "gated.dcm", plan), "carbon-fixed", tmp_path / "t")
    completed(delivery)
    holds = delivery.named("hold", phase="begin")
    assert holds
    assert "gate" in {hold["cause"] for hold in holds} <= {"gate", "spill not yet verified"}
    assert len(delivery.named("hold", phase="end")) >= len(holds) - 1
    assert set(delivery.visits["painting"]) == {0, 1, 2, 3}
    assert not delivery.visits["beam_on_ns"].max() > 5_000_000_000


def test_a_plan_in_particles_completes(tmp_path: Path) -> None:
    layers = [LayerSpec(260.0, grid(9, 2.0e6)), LayerSpec(250.0, grid(9, 1.0e6))]
    plan = make_plan([BeamSpec(unit="NP", layers=layers)])
    completed(run_delivery(write_plan(tmp_path / "np.dcm", plan), "carbon-fixed", tmp_path / "t"))


def test_zero_weight_spots_get_nothing_and_a_layer_may_have_one_spot(tmp_path: Path) -> None:
    spots = [(x, y, 0.0 if number % 3 == 0 else w) for number, (x, y, w) in enumerate(grid(12))]
    layers = [LayerSpec(250.0, spots), LayerSpec(245.0, [(5.0, -7.0, 3.0)]), LayerSpec(240.0, grid(4))]
    delivery = run_delivery(
        write_plan(tmp_path / "zero.dcm", make_plan([BeamSpec(layers=layers)])), "carbon-gantry", tmp_path / "t"
    )
    completed(delivery)
    assert set(delivery.visits[delivery.visits["layer"] == 0]["spot"]) == {1, 2, 4, 5, 7, 8, 10, 11}
    assert len(delivery.visits[delivery.visits["layer"] == 1]) == 1


def test_a_layer_of_several_spills_completes(tmp_path: Path) -> None:
    layers = [LayerSpec(250.0, grid(81, 60.0))]
    delivery = run_delivery(
        write_plan(tmp_path / "long.dcm", make_plan([BeamSpec(layers=layers)])), "carbon-fixed", tmp_path / "t"
    )
    completed(delivery)
    assert len(delivery.named("spill", phase="begin")) >= 2
    split = delivery.visits["quality"] & 8
    assert np.count_nonzero(split) < len(delivery.named("spill", phase="begin"))


def test_range_shifter_and_couch_angles_are_set_read_back_and_recorded(tmp_path: Path) -> None:
    beam = BeamSpec(
        ion="1H",
        machine="TR3",
        gantry_deg=225.5,
        couch_deg=15.0,
        vsad_mm=(2000.0, 2560.0),
        layers=[LayerSpec(e, grid(9, 5.0), tune="4.0", fwhm_mm=None) for e in (120.0, 115.0)],
        range_shifter=(0, "RS_3CM", 34.3),
    )
    delivery = run_delivery(write_plan(tmp_path / "rs.dcm", make_plan([beam])), "proton-gantry", tmp_path / "t")
    completed(delivery)
    assert delivery.named("setup", quantity="range_shifter_code")[0]["readback"] == 201
    assert delivery.named("setup", quantity="rotation_deg")[0]["readback"] == pytest.approx(15.0, abs=0.1)
    assert delivery.named("setup", quantity="angle_deg")[0]["readback"] == pytest.approx(225.5, abs=0.1)


def test_a_raster_file_completes(tmp_path: Path) -> None:
    points = [(2 * (i % 5 - 2), 2 * (i // 5 - 2), 400_000.0 + 1000 * i) for i in range(25)]

    def submachine(number: int, energy: float) -> str:
        weights = [w for _, _, w in points]
        lines = [
            f"submachine# {number} {energy} 2 3.7",
            f"#particles {min(weights):g} {max(weights):g} {sum(weights):g}",
        ]
        return "\n".join([*lines, "stepsize 2 2", "#points 25", *(f"{x} {y} {w:g}" for x, y, w in points)])

    total = 2 * sum(w for _, _, w in points)
    head = (
        "rstfile 20030630\nsistable 19981218\npatient_id made\nmachine# 0\nprojectile 12C\ncharge 6\nmass 12\n"
        "gantryangle 0\ncouchangle 0\nstereotacticcoordinates \nbolus 0\nripplefilter 3 mm RIFI\n#submachines 2\n"
        f"#particles {min(w for *_, w in points):g} {max(w for *_, w in points):g} {total:g}\n"
    )
    path = tmp_path / "made.rst"
    path.write_text(head + submachine(91, 229.76) + "\n" + submachine(92, 233.42) + "\n")
    delivery = run_delivery(path, "carbon-fixed", tmp_path / "t")
    completed(delivery)
    assert delivery.named("setup", quantity="ripple_filter_code")[0]["readback"] == 301


@pytest.mark.parametrize(
    ("plan", "site"),
    [
        ("S10_proton_small_1field", "proton-gantry"),
        ("S15_carbon_lung_1fx_gated_pcr8", "carbon-gantry"),
        pytest.param("R01_varian_qa_4field", "proton-gantry", marks=pytest.mark.slow),
        pytest.param("R02_varian_sobp_1Gy_12layer", "proton-gantry", marks=pytest.mark.slow),
        pytest.param("R04_raystation_2field_ramp", "proton-gantry", marks=pytest.mark.slow),
        pytest.param("R05_raystation_range_shifter", "proton-gantry", marks=pytest.mark.slow),
        pytest.param("S11_proton_3field_tg119", "proton-gantry", marks=pytest.mark.slow),
        pytest.param("S12_carbon_2field_fixed_ports", "carbon-fixed", marks=pytest.mark.slow),
        pytest.param("S13_carbon_4angle_couch_np", "carbon-gantry", marks=pytest.mark.slow),
        pytest.param("S14_proton_large_20k", "proton-gantry", marks=pytest.mark.slow),
        pytest.param("S16_carbon_lattice_sfrt", "carbon-fixed", marks=pytest.mark.slow),
        pytest.param("S17_carbon_dose_painting", "carbon-fixed", marks=pytest.mark.slow),
        pytest.param("S18_proton_rescan5", "proton-gantry", marks=pytest.mark.slow),
    ],
)
def test_a_reference_plan_completes(plan: str, site: str, shared: Path, tmp_path: Path) -> None:
    completed(run_delivery(shared / "plans" / "good" / f"{plan}.dcm", site, tmp_path / "t"))


def deliver_in_a_process(out: Path, *, hash_seed: str, seed: int = 0) -> None:
    subprocess.run(
        [*DELIVER, EXAMPLES / "small_carbon.dcm", "--seed", str(seed), "--out", out],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        check=True,
        capture_output=True,
    )


WALL_TIME = {"run.json", "ledger.sqlite", "ledger.sqlite.backup", "seal.json"}
"""Files that know when and where a run was made; `seal.json` holds their hashes."""


def test_the_same_plan_and_seed_give_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    deliver_in_a_process(tmp_path / "one", hash_seed="1")
    deliver_in_a_process(tmp_path / "two", hash_seed="4242")
    deliver_in_a_process(tmp_path / "other", hash_seed="1", seed=1)
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {path.name for path in (tmp_path / "two").iterdir()}
    for name in sorted(names - WALL_TIME):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    for name in ("journal.bin", "log.h5"):
        assert (tmp_path / "one" / name).read_bytes() != (tmp_path / "other" / name).read_bytes()


def spellings(text: str) -> list[bytes]:
    """A text as it might lie in a file: as it is, in capitals, in UTF-16."""
    return [form.encode(code) for form in (text, text.upper(), text.lower()) for code in ("utf-8", "utf-16-le")]


def test_no_patient_identity_leaves_the_dicom_files(tmp_path: Path) -> None:
    plan = make_plan([BeamSpec(layers=[LayerSpec(250.0)])])
    plan.PatientName, plan.PatientID, plan.PatientBirthDate = NAME, IDENTITY, "19310717"
    path = write_plan(tmp_path / "planted.dcm", plan)
    out = tmp_path / "t"
    done = subprocess.run(
        [*DELIVER, path, "--out", out],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    delivery = run_delivery(path, "carbon-fixed", tmp_path / "again")
    said = [done.stdout, done.stderr, repr(delivery.sink.messages).encode()]
    said += [
        file.read_bytes()
        for file in out.rglob("*")
        if file.is_file() and file.suffix != ".dcm" and not file.name.startswith("ledger.")
    ]
    for text in (*NAME.split("^"), IDENTITY, "19310717"):
        for spelling in spellings(text):
            assert not [blob for blob in said if spelling in blob]
    assert IDENTITY.encode() in (out / "record.dcm").read_bytes()
