"""The campaign: verdicts from facts made by hand, the hunt, its folder, shrinking, and a real Dask cluster."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from controller.campaign import command, jobs
from controller.campaign.case import Case, play
from controller.campaign.command import exit_status
from controller.campaign.dask_runner import run_jobs_on
from controller.campaign.definition import read_definition, shipped
from controller.campaign.jobs import Job, jobs_of, run_job
from controller.campaign.misplaced import misplaced
from controller.campaign.pages import write_pages
from controller.campaign.places import coarse_places
from controller.campaign.report import page
from controller.campaign.runner import run_jobs
from controller.campaign.search import golden_section, hunt
from controller.campaign.shrink import file_text, read_case, shrink
from controller.campaign.store import Store
from controller.campaign.strengths import draw_values, is_weaker
from controller.campaign.summary import summarise
from controller.campaign.truth_dose import LIMIT_GY, TruthDose
from controller.campaign.verdict import Facts, Reaction, Verdict, judge
from controller.cli import main
from controller.machine.overdose import peak_dose_gy_per_particle
from controller.machine.program import VISIT_PLAN_DTYPE, LayerProgram
from drivers.errors import BadInput
from interlocks.conditions import matrix
from simulators.fault_kinds import catalogue

ROOT = Path(__file__).parents[1]
SCENARIOS = ROOT / "tests" / "scenarios"
"""Unsafe cases of campaigns, made small, whose cause is mended."""
FIXED = shipped().rooms["fixed"]
STUCK = '[[fault]]\nname = "chopper_stuck"\nat = { field = 1, visit = 3 }\n'

GOOD = Facts(
    room="fixed",
    seed=0,
    scenario=STUCK,
    fault="chopper_stuck",
    place="field 1, visit 3",
    expected=("BEAM_WITHOUT_REQUEST",),
    harmless=False,
    fired=True,
    status="interrupted",
    message="stopped",
    defect="",
    beam_at_end=False,
    particles_after=0,
    first_out="BEAM_WITHOUT_REQUEST",
    settled=True,
    reaction=Reaction(2.1, 0.0, 0.4),
    beam_s_left=5.0,
)


# ---------------------------------------------------------------- verdicts


def test_a_stop_by_a_condition_that_the_fault_may_have_is_safe_and_named() -> None:
    assert (judge(GOOD).verdict, judge(GOOD).ended) == ("safe_named", "BEAM_WITHOUT_REQUEST")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"harm_gy": LIMIT_GY}, "0.25 Gy too much at the worst point"),
        ({"harm_gy": math.nan}, "too much at the worst point"),
        ({"beam_at_end": True}, "beam at the plant"),
        ({"particles_after": 7}, "7 particles after the end"),
        ({"status": "completed", "first_out": "", "outside": ("visit 3",)}, "outside tolerance: visit 3"),
        ({"status": "completed", "first_out": "", "settled": False}, "not settled"),
        ({"miscounted": ("electrometer 1: 5 more",)}, "electrometer 1: 5 more"),
        ({"defect": "ValueError: no"}, "ValueError: no"),
    ],
)
def test_what_is_unsafe_says_why(changes: dict[str, Any], why: str) -> None:
    verdict = judge(replace(GOOD, **changes))
    assert verdict.unsafe
    assert why in "; ".join(verdict.why)


def test_a_spot_outside_tolerance_is_no_lie_where_the_treatment_was_stopped() -> None:
    assert judge(replace(GOOD, outside=("visit 3",))).verdict == "safe_named"


def test_a_stop_under_another_name_is_safe_but_unnamed() -> None:
    verdict = judge(replace(GOOD, first_out="DISK"))
    assert verdict.verdict == "safe_unnamed"
    assert verdict.why == ("stopped by DISK; want one of BEAM_WITHOUT_REQUEST",)


def test_a_fault_that_nobody_noticed_is_unnamed_unless_it_was_weak_late_or_may_pass() -> None:
    passed = replace(GOOD, status="completed", first_out="", reaction=None, harm_gy=0.1)
    assert judge(passed).verdict == "safe_unnamed"
    for change, why in (
        ({"harmless": True}, "weak"),
        ({"beam_s_left": 0.1}, "late"),
        ({"exposed_s": 5e-4}, "brief"),
        ({"harm_gy": 0.01}, "no effect"),
        ({"expected": ("none",)}, "allowed"),
        ({"fired": False}, "not begun"),
    ):
        verdict = judge(replace(passed, **change))
        assert (verdict.verdict, verdict.passed) == ("safe_named", why)


def test_a_refusal_names_its_reason_in_words() -> None:
    refused = replace(GOOD, status="refused", first_out="", reaction=None)
    assert judge(refused).verdict == "safe_named"
    assert judge(replace(refused, message="")).verdict == "safe_unnamed"


def test_a_stop_without_any_fault_is_a_false_trip() -> None:
    calm = replace(GOOD, fault="none", scenario="", expected=("none",))
    assert judge(calm).false_trip
    assert not judge(replace(calm, status="completed", first_out="")).false_trip


# ---------------------------------------------------------------- dose at the wrong place

SIGMA_MM, ENERGY, UNITS = 3.0, 200.0, 1 << 20
PEAK_GY = peak_dose_gy_per_particle("12C", ENERGY, SIGMA_MM, SIGMA_MM)
TRUTH = np.dtype([("units", "<i8"), ("x", "<f8"), ("y", "<f8"), ("rr", "<f8")])


def program_of_one_spot(planned: float = 1e6) -> LayerProgram:
    """At x = 10 mm; 1 mm off is allowed."""
    visits = np.zeros(1, VISIT_PLAN_DTYPE)
    visits["visit"], visits["x_mm"], visits["particles"], visits["position_limit_mm"] = 1, 10.0, planned, 1.0
    return LayerProgram(0, 0, ENERGY, ENERGY, "12C", 0, 1e8, 1.0, 1.0, 1.0, 0, 0, SIGMA_MM, SIGMA_MM, 1.0, 1.0, visits)


ONE_SPOT = program_of_one_spot()


def one_spot_truth(groups: list[tuple[float, float]]) -> NDArray[Any]:
    """What the plant has of a spot that got (x, particles) in groups."""
    truth = np.zeros(3, TRUTH)
    for x, particles in groups:
        units = round(particles * UNITS)
        truth["units"][1] += units
        truth["x"][1] += units * x
        truth["rr"][1] += units * x * x
    return truth


def one_spot(groups: list[tuple[float, float]]) -> tuple[float, float]:
    """Misplaced and all harm of a spot at x = 10 mm that got (x, particles) in groups."""
    return misplaced([one_spot_truth(groups)], UNITS, [[ONE_SPOT]])


def test_a_spot_a_little_off_is_not_misplaced() -> None:
    assert one_spot([(10.6, 1e6)]) == (0.0, 0.0)


def test_a_whole_spot_elsewhere_is() -> None:
    alone, harm = one_spot([(15.0, 1e6)])
    assert alone == pytest.approx(1e6 * PEAK_GY, rel=1e-3)
    assert harm == pytest.approx(alone, rel=1e-3)


def test_a_part_that_jumped_away_is_found_in_mean_and_square() -> None:
    alone, harm = one_spot([(10.0, 9e5), (20.0, 1e5)])  # the mean is 1.0 mm off, within the limit
    assert alone == pytest.approx(1e5 * PEAK_GY, rel=1e-3)
    assert harm == pytest.approx(alone, rel=0.2)


def test_a_beam_that_stands_off_by_less_than_the_limit_is_not_misplaced_on_either_side_of_where_it_usually_stands() -> (
    None
):
    usual = one_spot_truth([(10.2, 1e6)])
    for x, moved in ((11.1, False), (9.3, False), (11.3, True), (9.1, True)):
        alone, _ = misplaced([one_spot_truth([(x, 1e6)])], UNITS, [[ONE_SPOT]], [usual])
        assert (alone > 0.0) == moved, x


# ---------------------------------------------------------------- what is played


def test_the_definition_has_every_fault_in_three_rooms_at_least() -> None:
    hunts = [job for job in jobs_of(shipped(), "full", 0) if job.kind == "hunt"]
    for name, kind in catalogue().items():
        rooms = {job.room for job in hunts if job.what == name}
        assert rooms >= {"fixed", "proton", "lattice"} or "virtual" not in kind.clocks, name


def test_the_definition_has_a_thousand_treatments_without_fault() -> None:
    free = [job for job in jobs_of(shipped(), "full", 0) if job.kind == "free"]
    seeds = [(job.room, seed) for job in free for seed in job.seeds]
    assert len(seeds) == len(set(seeds)) == 1000


def test_every_condition_is_expected_of_a_fault_or_says_who_raises_it() -> None:
    expected = {name for kind in catalogue().values() for name in kind.expected}
    expected |= {name for extra in shipped().extras for name in extra.expected}
    unreachable = shipped().unreachable
    assert set(unreachable) == set(matrix()) - expected
    for why in unreachable.values():
        for path in re.findall(r"tests/\w+\.py", why):
            assert (ROOT / path).is_file(), path


def test_a_definition_of_what_does_not_exist_is_refused(tmp_path: Path) -> None:
    text = (ROOT / "controller" / "campaign" / "definition.toml").read_text(encoding="utf-8")
    path = tmp_path / "definition.toml"
    for broken in (
        text.replace('"gate_chatter"', '"gate_chater"'),
        text.replace('room = "fixed"', 'room = "attic"'),
        "x",
    ):
        path.write_text(broken, encoding="utf-8")
        with pytest.raises(BadInput, match=re.escape(str(path))):
            read_definition(path)


def test_strengths_reach_both_ends_of_a_range_and_every_word() -> None:
    import random  # noqa: PLC0415

    spike, cut = catalogue()["spill_spike"], catalogue()["wire_cut"]
    drawn = [v["factor"] for v in draw_values(spike, 10, random.Random(1))]
    assert {1.0, 4.0, 10.0} <= set(drawn)
    assert all(1.0 <= float(value) <= 10.0 for value in drawn)
    words = [v["device"] for v in draw_values(cut, 9, random.Random(1))]
    assert sorted(map(str, words)) == sorted(cut.parameters["device"].choices)


@pytest.mark.parametrize(
    ("fault", "values", "weaker"),
    [
        ("spill_spike", {"factor": 2.0}, True),
        ("spill_spike", {"factor": 10.0}, False),
        ("chamber_gain", {"monitor": "1", "factor": 0.5}, False),
        ("chamber_gain", {"monitor": "1", "factor": 0.9}, True),
        ("chamber_gain", {"monitor": "1", "factor": 0.0}, False),
        ("beam_offset", {"axis": "x", "mm": 0.0}, True),
        ("wire_late", {"device": "gantry", "delay_s": 0.001}, True),
    ],
)
def test_a_fault_nearer_to_nothing_than_its_example_is_weaker(
    fault: str, values: dict[str, float | str], weaker: bool
) -> None:
    assert is_weaker(catalogue()[fault], values) is weaker


def test_a_golden_section_finds_a_hill_within_its_steps() -> None:
    seen: list[int] = []

    def hill(at: int) -> float:
        seen.append(at)
        return -abs(at - 61)

    golden_section(hill, 0, 200, 9)
    assert len(seen) <= 9
    assert min(abs(at - 61) for at in seen) <= 4


def test_a_hunt_goes_to_every_place_and_then_around_the_worst() -> None:
    played: list[Case] = []

    def player(case: Case) -> Verdict:
        played.append(case)
        (entry,) = tomllib.loads(case.scenario)["fault"]
        at = entry["at"]
        harm = 0.1 - abs(at.get("s", 0.0) - 0.007) if at.get("visit") == 12 else 0.001
        return judge(replace(GOOD, harm_gy=harm, dose=TruthDose(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1)))

    found = hunt(FIXED, "chopper_stuck", 3, coarse=0, refine=6, player=player)
    places = [tomllib.loads(case.scenario)["fault"][0]["at"] for case in played]
    assert len(found) == len(places)
    assert {"field": 1, "visit": 12} in places
    assert {"state": "prepared"} in places
    assert places[-1]["visit"] == 12
    best = max(found, key=lambda verdict: verdict.facts.harm_gy)
    assert best.facts.harm_gy > 0.099


def test_what_must_be_there_before_the_first_layer_is_tried_there_in_every_word_of_it() -> None:
    played: list[Case] = []

    def player(case: Case) -> Verdict:
        played.append(case)
        return judge(GOOD)

    for coarse in (0, 3):
        played.clear()
        hunt(FIXED, "controller_misreads", 3, coarse=coarse, refine=0, player=player)
        faults = [tomllib.loads(case.scenario)["fault"][0] for case in played]
        words = catalogue()["controller_misreads"].parameters["what"].choices
        assert {f["what"] for f in faults if f["at"] == {"state": "start"}} == set(words)


def test_places_before_a_visits_end_come_from_how_long_visits_last() -> None:
    from controller.campaign.case import prepared  # noqa: PLC0415

    site, report = prepared(FIXED)
    assert report.loaded is not None
    without = coarse_places(report.loaded.plan, site, {})
    with_times = coarse_places(report.loaded.plan, site, {(1, 12): 0.004})
    assert [p for p in with_times if p not in without] == [{"field": 1, "visit": 12, "s": 0.0038}]


# ---------------------------------------------------------------- played treatments


def test_a_treatment_without_fault_completes_and_the_same_case_gives_the_same_bytes() -> None:
    once, again = (json.dumps(play(Case(FIXED, 5)).as_json()) for _ in range(2))
    assert once == again
    verdict = json.loads(once)
    assert (verdict["verdict"], verdict["ended"], verdict["false_trip"]) == ("safe_named", "none", False)


def test_times_of_a_stop_are_those_of_the_plant() -> None:
    verdict = play(Case(FIXED, 0, STUCK, catalogue()["chopper_stuck"].expected))
    reaction = verdict.facts.reaction
    assert verdict.verdict == "safe_named"
    assert reaction is not None
    assert reaction.fault_to_trip_ms is not None
    assert reaction.fault_to_trip_ms > 2.0
    assert 0.0 < reaction.trip_to_beam_off_ms < 5.0
    assert 0.0 < verdict.facts.harm_gy < LIMIT_GY


def test_a_treatment_that_dies_is_unsafe_and_says_of_what(monkeypatch: pytest.MonkeyPatch) -> None:
    from controller.delivery.account import Ledger  # noqa: PLC0415

    async def dies(_self: Ledger, *_: object) -> int:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(Ledger, "account", dies)
    verdict = play(Case(FIXED, 0))
    assert verdict.unsafe
    assert "ZeroDivisionError: a defect" in verdict.facts.defect


def test_a_disk_that_takes_nothing_any_more_is_a_stop_with_a_cause_and_the_same_words_on_every_pc() -> None:
    full = '[[fault]]\nname = "disk_fails"\nat = { field = 1, visit = 6 }\n'
    verdict = play(Case(FIXED, 0, full, catalogue()["disk_fails"].expected))
    assert (verdict.verdict, verdict.ended) == ("safe_named", "DISK")
    assert verdict.facts.message.startswith("OUT/journal.bin: the disk did not take the journal: No space left")


def test_an_unsafe_case_is_made_small_and_its_file_plays_the_same_case(tmp_path: Path) -> None:
    tries: list[str] = []

    def fails(case: Case) -> bool:
        """As if any leak of a fifth or more were unsafe, wherever it begins."""
        tries.append(case.scenario)
        faults = tomllib.loads(case.scenario)["fault"]
        return any(f["name"] == "chopper_leaks" and f.get("share", 0.2) >= 0.2 for f in faults)

    scenario = (
        '[[fault]]\nname = "gating_lost"\nat = { field = 1, visit = 4 }\n'
        '[[fault]]\nname = "chopper_leaks"\nshare = 0.9\nat = { field = 2, visit = 7, s = 0.0012 }\nfor_s = 0.5\n'
    )
    small = shrink(Case(FIXED, 4, scenario, ("PEDESTAL_HIGH",)), fails)
    (fault,) = tomllib.loads(small.scenario)["fault"]
    assert fault["name"] == "chopper_leaks"
    assert fault["at"] == {"field": 1, "visit": 1}
    assert "for_s" not in fault
    assert 0.2 <= fault["share"] < 0.25
    path = tmp_path / "leak.toml"
    path.write_text(file_text(small, judge(replace(GOOD, harm_gy=1.0))), encoding="utf-8")
    assert replace(read_case(path), scenario="") == replace(small, scenario="")
    assert tomllib.loads(read_case(path).scenario) == tomllib.loads(small.scenario)
    assert len(tries) < 30


# ---------------------------------------------------------------- the command


def few(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """A campaign of three short jobs."""
    chosen = [
        Job("hunt-fixed-chopper_stuck-7", "hunt", "fixed", "chopper_stuck", (7,), 2, 1),
        Job("hunt-fixed-chain_button-7", "hunt", "fixed", "chain_button", (7,), 2, 0),
        Job("free-fixed-7-0000", "free", "fixed", "none", (7, 8)),
    ]
    monkeypatch.setattr(command, "jobs_of", lambda *_: chosen)
    return chosen


def test_a_campaign_that_was_cut_short_goes_on_and_ends_in_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few(monkeypatch)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = ["campaign", "--seed", "7", "--workers", "1", "--json"]
    assert main([*options, "--out", str(whole)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["cases"] == said["safe_named"] == 7
    assert (said["unsafe"], said["safe_unnamed"], said["false_trips"]) == (0, 0, 0)
    assert 0.0 < said["worst_overdose_gy"] < LIMIT_GY
    assert set(said["by_fault"]) == {"chopper_stuck", "chain_button"}
    assert Path(said["report"]).read_text(encoding="utf-8").count("<h2>") == 3

    played: list[str] = []

    def dying(job: Job) -> dict[str, Any]:
        if played:
            raise KeyboardInterrupt
        played.append(job.name)
        return run_job(job)

    monkeypatch.setattr("controller.campaign.runner.run_job", dying)
    assert main([*options, "--out", str(cut)]) == 4
    monkeypatch.setattr("controller.campaign.runner.run_job", lambda job: played.append(job.name) or run_job(job))
    capsys.readouterr()
    assert main([*options, "--out", str(cut)]) == 0
    assert len(played) == len(set(played)) == 3, "nothing is played twice"
    assert said | {"report": ""} == json.loads(capsys.readouterr().out) | {"report": ""}
    for path in sorted((whole / "jobs").iterdir()):
        assert path.read_bytes() == (cut / "jobs" / path.name).read_bytes()


def test_a_folder_of_another_campaign_is_refused(tmp_path: Path) -> None:
    Store(tmp_path / "a", shipped(), "full", 1)
    with pytest.raises(BadInput, match="holds a campaign of seed 1, not 2"):
        Store(tmp_path / "a", shipped(), "full", 2)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("work of years", encoding="utf-8")
    with pytest.raises(BadInput, match="not empty, and no campaign"):
        Store(tmp_path / "b", shipped(), "full", 1)


def test_unsafe_cases_and_false_trips_fail_a_campaign_and_are_shown() -> None:
    bad = judge(replace(GOOD, harm_gy=0.3)).as_json()
    false = judge(replace(GOOD, fault="none", scenario="", expected=("none",))).as_json()
    results = [
        {"job": "a", "kind": "hunt", "what": "chopper_stuck", "cases": [judge(GOOD).as_json(), bad]},
        {"job": "b", "kind": "free", "what": "none", "cases": [false]},
    ]
    head = {"definition": "d" * 64, "size": "full", "seed": 0, "version": "0"}
    summary = summarise(results, head, 2)
    assert (summary["cases"], summary["unsafe"], summary["false_trips"], summary["worst_overdose_gy"]) == (3, 1, 1, 0.3)
    assert exit_status(summary) == 3
    assert exit_status({**summary, "unsafe": 0, "false_trips": 0}) == 0
    shown = page(summary)
    assert "0.3 Gy too much at the worst point" in shown
    assert 'class="bad">2, 300' in shown


def test_the_pages_show_every_interlock_and_what_physics_forbids(tmp_path: Path) -> None:
    passed = replace(GOOD, status="completed", first_out="", reaction=None, harm_gy=0.01)
    refused = replace(GOOD, status="refused", first_out="", reaction=None, message="the guard refuses: GUARD_LIMITS")
    latched = replace(GOOD, trips=("BEAM_WITHOUT_REQUEST", "CHAIN_OPENED"))
    cases = [judge(facts).as_json() for facts in (passed, refused, latched)]
    head = {"definition": "d" * 64, "size": "full", "seed": 0, "version": "0"}
    summary = summarise([{"job": "a", "kind": "hunt", "what": "chopper_stuck", "cases": cases}], head, 1)
    write_pages(summary, tmp_path)
    shown = (tmp_path / "campaign.md").read_text(encoding="utf-8")
    assert f"Of {len(matrix())} conditions" in shown
    assert "| `BEAM_WITHOUT_REQUEST` | 1 | 1 | 0 | chopper_stuck |" in shown
    assert "| `GUARD_LIMITS` | 0 | 0 | 1 | chopper_stuck |" in shown
    assert "no effect 1" in shown
    assert "| carbon-fixed | 430 |" in shown
    for name in matrix():
        assert f"| `{name}` |" in shown
    reactions = (tmp_path / "reactions.md").read_text(encoding="utf-8")
    assert "| `BEAM_WITHOUT_REQUEST` | realtime | 1 | 1 |" in reactions
    assert json.loads((tmp_path / "campaign.json").read_text(encoding="utf-8"))["passed"] == {"no effect": 1}


@pytest.mark.parametrize("name", sorted(path.name for path in SCENARIOS.glob("*.toml")))
def test_what_was_unsafe_once_is_safe_and_named(name: str) -> None:
    verdict = play(read_case(SCENARIOS / name))
    assert (verdict.verdict, verdict.why) == ("safe_named", ())
    assert verdict.ended in verdict.facts.expected


def test_options_that_mean_nothing_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["campaign", "--only", "no such fault", "--out", str(tmp_path / "c")]) == 2
    assert "no job of the campaign" in capsys.readouterr().err


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@contextmanager
def dask_cluster(folder: Path, port: int) -> Iterator[str]:
    """A scheduler and two workers of one thread, processes of their own; its address."""
    from distributed import Client  # noqa: PLC0415

    address = f"tcp://127.0.0.1:{port}"
    scheduler = ["distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    worker = ["distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = [
        subprocess.Popen([sys.executable, "-m", *words], env=environment(), cwd=folder, **quiet)
        for words in (scheduler, worker, worker)
    ]
    try:
        with Client(address, timeout=60, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
        yield address
    finally:
        for process in reversed(started):  # workers first: one that has lost its scheduler looks for it for a while
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def test_a_dask_cluster_takes_the_jobs_of_a_campaign(tmp_path: Path, free_port: Callable[[], int]) -> None:
    pytest.importorskip("distributed", reason="needs the extra `campaign`")
    nothing = [Job(f"free-fixed-{k}", "free", "fixed", "none", ()) for k in range(5)]
    with dask_cluster(tmp_path, free_port()) as address:
        played = dict(run_jobs_on(address, nothing))
    assert played == {job: run_job(job) for job in nothing}


@pytest.mark.slow
def test_a_dask_cluster_gives_the_same_verdicts_as_processes(
    tmp_path: Path, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("distributed", reason="needs the extra `campaign`")
    chosen = few(monkeypatch)
    with dask_cluster(tmp_path, free_port()) as address:
        options = ["campaign", "--seed", "7", "--json"]
        assert main([*options, "--scheduler", address, "--out", str(tmp_path / "dask")]) == 0
    store = Store(tmp_path / "processes", shipped(), "full", 7)
    for job, result in run_jobs(chosen, 2):
        store.put(job, result)
    paths = sorted((tmp_path / "processes" / "jobs").iterdir())
    assert len(paths) == len(chosen)
    for path in paths:
        assert path.read_bytes() == (tmp_path / "dask" / "jobs" / path.name).read_bytes()
    capsys.readouterr()


def test_no_scheduler_is_an_error_that_names_the_address(
    tmp_path: Path, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("distributed", reason="needs the extra `campaign`")
    few(monkeypatch)
    monkeypatch.setattr("controller.campaign.dask_runner.CONNECT_S", 0.5)
    address = f"tcp://127.0.0.1:{free_port()}"
    assert main(["campaign", "--seed", "7", "--scheduler", address, "--out", str(tmp_path / "c")]) == 2
    assert f"--scheduler {address}: no scheduler answers there" in capsys.readouterr().err


def test_a_job_is_data_that_survives_a_journey() -> None:
    import pickle  # noqa: PLC0415

    job = jobs.jobs_of(shipped(), "slice", 1)[0]
    assert pickle.loads(pickle.dumps(job)) == job
