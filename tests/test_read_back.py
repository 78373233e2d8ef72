"""The treatment record read back: it says what the journal says, in parts and whole; an echo of the plan is known."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from controller.record.identity import write_identity
from controller.record.journal_reader import read_journal
from controller.record.read_back import ReadBack, dcmtk_metersets, read_back
from controller.record.rebuild import rebuild, verify_directory
from controller.record.treatment_record import write_records
from tests.journal_builder import IDENTITY, Builder, complete, interrupted, make_plan
from tests.test_treatment_record import KNOWN_FALSE


def in_parts(path: Path, stops: tuple[int, ...], *, later_days: int = 0) -> Path:
    """Stopped after so many visits, resumed, and so on; the parts `later_days` days apart."""
    build = Builder(path)
    for stop in (*stops, None):
        build.begin()
        whole = build.deliver(stop)
        assert whole == (stop is None)
        build.end("completed" if whole else "interrupted")
        build.t_ns += later_days * 86_400_000_000_000
    build.journal.close()
    return path


KINDS: dict[str, Callable[[Path], Path]] = {
    "whole": complete,
    "interrupted": interrupted,
    "two parts": lambda path: in_parts(path, (20,)),
    "five parts": lambda path: in_parts(path, (5, 13, 27, 41)),
    "next day": lambda path: in_parts(path, (20,), later_days=1),
    "two units": lambda path: complete(path, plan=make_plan(("MU", "NP"))),
}


def records_of(path: Path) -> list[Path]:
    with read_journal(path) as journal:
        return write_records(journal, IDENTITY, path.parent)


def checked(path: Path, records: list[Path]) -> ReadBack:
    with read_journal(path) as journal:
        return read_back(journal, records)


@pytest.mark.parametrize("kind", KINDS)
def test_records_say_what_the_journal_says_and_their_sums_are_the_whole(kind: str, tmp_path: Path) -> None:
    path = KINDS[kind](tmp_path / "journal.bin")
    records = records_of(path)
    found = checked(path, records)
    assert (found.problems, found.echoes) == ([], [])
    with read_journal(path) as journal:
        whole = sum(float(layer.sum()) for layer in found.delivered.values())
        assert whole == pytest.approx(journal.visits["meterset_1"].sum(), rel=1e-7)
        if kind not in ("whole", "interrupted", "two units"):
            assert len(records) == len(journal.parts) > 1
            for f, field in enumerate(make_plan().fields):
                got = sum(float(found.delivered[f, i].sum()) for i in range(len(field.layers)))
                assert got == pytest.approx(field.meterset, rel=0.05)  # half a visit more at each stop


@pytest.mark.parametrize("kind", KINDS)
def test_another_library_reads_the_same_metersets(kind: str, tmp_path: Path, program: Callable[[str], str]) -> None:
    program("dcmdump")
    sums: dict[int, float] = {}
    path = KINDS[kind](tmp_path / "journal.bin")
    for number, record in enumerate(records_of(path)):
        theirs = dcmtk_metersets(record)
        assert theirs is not None
        beams = pydicom.dcmread(record).TreatmentSessionIonBeamSequence
        ours = [
            np.atleast_1d(np.array(point.ScanSpotMetersetsDelivered, float))
            for beam in beams
            for point in beam.IonControlPointDeliverySequence
        ]
        assert len(theirs) == len(ours) > 0
        for a, b in zip(theirs, ours, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)
        sums[number] = sum(float(values.sum()) for values in theirs)
    with read_journal(path) as journal:
        assert sum(sums.values()) == pytest.approx(journal.visits["meterset_1"].sum(), rel=1e-5)


@pytest.mark.parametrize("kind", ["two parts", "five parts", "next day"])
def test_records_of_parts_are_valid(kind: str, tmp_path: Path, program: Callable[[str], str]) -> None:
    for record in records_of(KINDS[kind](tmp_path / "journal.bin")):
        done = subprocess.run([program("dciodvfy"), str(record)], capture_output=True, text=True, check=False)
        errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
        assert [e for e in errors if not any(known in e for known in KNOWN_FALSE)] == []


def changed(record: Path, change: Callable[[Any], None]) -> None:
    dataset = pydicom.dcmread(record)
    change(dataset)
    dataset.save_as(record)


def one_spot(dataset: Any) -> None:
    point = dataset.TreatmentSessionIonBeamSequence[0].IonControlPointDeliverySequence[0]
    values = list(point.ScanSpotMetersetsDelivered)
    values[2] = float(np.nextafter(np.float32(values[2]), np.float32(np.inf), dtype=np.float32)) * (1 + 2e-7)
    point.ScanSpotMetersetsDelivered = values


def total(dataset: Any) -> None:
    beam = dataset.TreatmentSessionIonBeamSequence[1]
    beam.DeliveredPrimaryMeterset = str(round(float(beam.DeliveredPrimaryMeterset) * 1.00001, 6))


def running(dataset: Any) -> None:
    dataset.TreatmentSessionIonBeamSequence[0].IonControlPointDeliverySequence[2].DeliveredMeterset = "1.0"


def other_beam(dataset: Any) -> None:
    dataset.TreatmentSessionIonBeamSequence[0].ReferencedBeamNumber = 77


def other_plan(dataset: Any) -> None:
    dataset.ReferencedRTPlanSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def other_time(dataset: Any) -> None:
    dataset.TreatmentTime = "000000"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (one_spot, "layer 1, spot 3: .* delivered, the journal says .* .1 spots differ"),
        (total, "beam 4: delivered meterset"),
        (running, "meterset delivered up to layer 2"),
        (other_beam, "beam 77: the plan has none of this number"),
        (other_plan, "refers to plan .'1.2.3'."),
        (other_time, "no part of the journal began then"),
    ],
)
def test_whatever_differs_is_named(change: Callable[[Any], None], message: str, tmp_path: Path) -> None:
    path = complete(tmp_path / "journal.bin")
    records = records_of(path)
    changed(records[0], change)
    found = checked(path, records)
    assert any(re.search(message, problem) for problem in found.problems), found.problems


def test_a_record_that_only_repeats_the_plan_is_a_finding(tmp_path: Path) -> None:
    path = complete(tmp_path / "journal.bin")
    records = records_of(path)

    def echo(dataset: Any) -> None:
        for beam, field in zip(dataset.TreatmentSessionIonBeamSequence, make_plan().fields, strict=True):
            for layer in field.layers:
                point = beam.IonControlPointDeliverySequence[layer.control_point]
                point.ScanSpotMetersetsDelivered = list(layer.meterset)

    changed(records[0], echo)
    found = checked(path, records)
    assert len(found.echoes) == 2
    assert "every one of 24 delivered spots has its planned meterset to the last bit" in found.echoes[0]
    assert found.problems


def test_a_journal_that_only_repeats_the_plan_is_a_finding_of_verify(tmp_path: Path) -> None:
    class Echo(Builder):
        def visit(self, f: int, i: int, plan: np.void, partial: bool) -> None:
            write = self.journal.visits

            def exact(visit: Any) -> None:
                visit["meterset_1"], visit["particles_1"] = visit["planned_meterset"], visit["planned_particles"]
                write(visit)

            self.journal.visits = exact  # type: ignore[method-assign]
            try:
                super().visit(f, i, plan, partial)
            finally:
                self.journal.visits = write  # type: ignore[method-assign]

    build = Echo(tmp_path / "journal.bin")
    build.begin()
    assert build.deliver()
    build.end("completed")
    build.journal.close()
    write_identity(tmp_path / "identity.dcm", IDENTITY)
    rebuild(tmp_path)
    found = verify_directory(tmp_path)
    assert any("journal: all" in text and "nothing was measured" in text for text in found)
    assert any("this repeats the plan, and measures nothing" in text for text in found)


def test_a_log_that_is_another_treatments_is_named(tmp_path: Path) -> None:
    for name, make in (("a", complete), ("b", interrupted)):
        (tmp_path / name).mkdir()
        make(tmp_path / name / "journal.bin")
        write_identity(tmp_path / name / "identity.dcm", IDENTITY)
        rebuild(tmp_path / name)
    shutil.copy(tmp_path / "b" / "log.h5", tmp_path / "a" / "log.h5")
    assert any("log.h5: visits: column" in text for text in verify_directory(tmp_path / "a"))
