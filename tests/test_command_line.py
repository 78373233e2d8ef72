"""The command as a user meets it: exit statuses, one JSON object or readable text, and never a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from controller import cli
from sites.loader import load_site
from tests.delivery_rig import EXAMPLES, fault
from tests.make_plan import BeamSpec, LayerSpec, grid, make_plan, write_plan

ROOT = Path(__file__).parents[1]
PLAN = str(EXAMPLES / "small_carbon.dcm")
SITE = ["--site", "carbon-fixed"]
VIRTUAL = [*SITE, "--clock", "virtual"]
SUMMARY_KEYS = {
    "outcome",
    "plan_sha256",
    "fields",
    "layers",
    "spots_planned",
    "spots_delivered",
    "mu_planned",
    "mu_primary",
    "mu_secondary",
    "spot_dose_error_pct",
    "spot_position_error_mm",
    "per_field",
    "time_s",
    "controller_share",
    "trips",
    "files",
}
ERROR_KEYS = {"mean", "sd", "rms", "p95", "p99", "max"}


def spotwise(*arguments: object) -> tuple[int, str, str]:
    """Run the command in this process; returns exit status, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main([str(a) for a in arguments])
        except SystemExit as end:  # argparse ends so, for --help and wrong usage
            status = int(end.code or 0)
    assert "Traceback" not in err.getvalue(), err.getvalue()
    return status, out.getvalue(), err.getvalue()


def one_object(text: str) -> dict[str, Any]:
    """Stdout of --json: exactly one JSON object, on one line."""
    assert text.count("\n") == 1
    value = json.loads(text)
    assert isinstance(value, dict)
    return value


def refused_plan(folder: Path) -> Path:
    """A sound plan of an energy that no room here has."""
    plan = make_plan([BeamSpec(layers=[LayerSpec(600.0, grid(4))])])
    return write_plan(folder / "refused.dcm", plan)


def garbage(folder: Path) -> Path:
    path = folder / "garbage.dcm"
    path.write_bytes(b"\x00\xff no plan" * 100)
    return path


@pytest.fixture(scope="module")
def treatment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A completed treatment, delivered by the command; its summary was printed as JSON."""
    out = tmp_path_factory.mktemp("treatment") / "t"
    status, text, err = spotwise("deliver", PLAN, *VIRTUAL, "--out", out, "--json")
    assert status == 0
    assert "COMPLETED" in err
    (out.parent / "stdout.json").write_text(text)
    return out


def test_check_says_deliverable_with_its_fields() -> None:
    status, text, _err = spotwise("check", PLAN, *SITE, "--json")
    report = one_object(text)
    assert (status, report["outcome"]) == (0, "deliverable")
    assert set(report) == {"outcome", "findings", "fields", "time_s"}
    assert {"name", "ion", "gantry_deg", "couch_deg", "layers", "spots", "mu", "particles", "energy_mev_u"} <= set(
        report["fields"][0]
    )
    assert report["time_s"] > 0


def test_check_without_json_is_for_readers() -> None:
    status, text, _ = spotwise("check", PLAN, *SITE)
    assert status == 0
    assert "A_LATERAL" in text


@pytest.mark.parametrize("command", ["check", "deliver"])
def test_an_unreadable_plan_is_2_and_a_plan_that_does_not_fit_is_3(command: str, tmp_path: Path) -> None:
    more = ["--clock", "virtual", "--out", str(tmp_path / "t")] if command == "deliver" else []
    for plan, wanted, outcome in (
        (garbage(tmp_path), 2, "unreadable"),
        (tmp_path / "missing.dcm", 2, "unreadable"),
        (tmp_path, 2, "unreadable"),
        (refused_plan(tmp_path), 3, "refused"),
    ):
        status, text, err = spotwise(command, plan, *SITE, *more, "--json")
        assert (status, one_object(text)["outcome"]) == (wanted, outcome)
        status, text, err = spotwise(command, plan, *SITE, *more)
        assert status == wanted
        assert text + err
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", PLAN, "--site", "nowhere"],
        ["deliver", PLAN, "--site", "nowhere", "--clock", "virtual"],
        ["registers", "--site", "nowhere"],
        ["check", PLAN, "--site", PLAN],
    ],
)
def test_a_bad_site_is_2_and_named(arguments: list[str]) -> None:
    status, text, err = spotwise(*arguments)
    assert status == 2
    assert arguments[arguments.index("--site") + 1] in err
    assert text == ""
    status, text, _ = spotwise(*arguments, "--json")
    assert status == 2
    assert one_object(text)["outcome"] == "unreadable"


def test_wrong_usage_is_2() -> None:
    for arguments in (
        [],
        ["nonsense"],
        ["check"],
        ["check", PLAN],
        ["check", PLAN, *SITE, "--frobnicate"],
        ["deliver", PLAN, *SITE, "--clock", "lunar"],
        ["deliver", PLAN, *SITE, "--seed", "many"],
        ["deliver", PLAN, *SITE, "--seed", "-1"],
        ["verify", "é" * 300],
        ["check", PLAN, *SITE, "--fraction-group", "x"],
    ):
        assert spotwise(*arguments)[0] == 2


def test_help_and_version_are_0() -> None:
    for arguments in (["--help"], ["--version"], ["deliver", "--help"]):
        status, text, _ = spotwise(*arguments)
        assert status == 0
        assert "spotwise" in text


def test_a_directory_that_is_not_empty_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("keep")
    status, _, err = spotwise("deliver", PLAN, *VIRTUAL, "--out", tmp_path)
    assert status == 2
    assert "not empty" in err
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]
    status, _, err = spotwise("deliver", PLAN, *VIRTUAL, "--out", tmp_path / "precious" / "below")
    assert status == 2
    status, _, err = spotwise("deliver", PLAN, *VIRTUAL, "--out", tmp_path / "precious")
    assert status == 2


def test_a_scenario_that_cannot_be_read_leaves_no_directory(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[[fault]]\ntarget = 'weather.rain'\nvalue = 1\nat_s = 0\n")
    for name in ("bad.toml", "missing.toml"):
        status, _, err = spotwise("deliver", PLAN, *VIRTUAL, "--out", tmp_path / "t", "--fault", tmp_path / name)
        assert status == 2
        assert name in err
        assert not (tmp_path / "t").exists()


def test_a_delivery_prints_its_summary_and_leaves_a_whole_directory(treatment: Path) -> None:
    summary = one_object((treatment.parent / "stdout.json").read_text())
    assert set(summary) >= SUMMARY_KEYS
    assert summary["outcome"] == "completed"
    for key in ("spot_dose_error_pct", "spot_position_error_mm"):
        assert set(summary[key]) == ERROR_KEYS == set(summary["truth"][key])
    assert set(summary["time_s"]) == {"beam_on", "machine", "controller", "total", "ideal"}
    assert summary == json.loads((treatment / "summary.json").read_text())
    assert {p.name for p in treatment.iterdir()} >= {
        "journal.bin",
        "summary.json",
        "run.json",
        "log.h5",
        "record.dcm",
        "events.jsonl",
        "report.html",
    }
    assert spotwise("verify", treatment)[0] == 0
    status, text, _ = spotwise("verify", treatment, "--json")
    assert (status, one_object(text)) == (0, {"whole": True, "problems": [], "notes": []})


def test_report_rebuilds_the_same_files(treatment: Path) -> None:
    before = {p.name: p.read_bytes() for p in treatment.iterdir()}
    (treatment / "record.dcm").unlink()
    (treatment / "report.html").unlink()
    assert spotwise("verify", treatment)[0] == 3
    status, text, _ = spotwise("report", treatment, "--json")
    assert status == 0
    assert one_object(text)["spots_delivered"] == 48
    assert {p.name: p.read_bytes() for p in treatment.iterdir()} == before
    status, text, _ = spotwise("report", treatment)
    assert "48 of 48 spots" in text


def test_a_touched_directory_is_found(treatment: Path, tmp_path: Path) -> None:
    for name in ("journal.bin", "summary.json", "record.dcm", "log.h5"):
        copy = tmp_path / name.replace(".", "-")
        copy.mkdir()
        for path in treatment.iterdir():
            data = bytearray(path.read_bytes())
            if path.name == name:
                data[len(data) // 2] ^= 1
            (copy / path.name).write_bytes(data)
        status, text, _ = spotwise("verify", copy)
        assert status == 3, name
        assert name in text


def test_report_and_verify_of_nothing(tmp_path: Path) -> None:
    assert spotwise("report", tmp_path / "missing")[0] == 2
    assert spotwise("report", tmp_path)[0] == 2
    assert spotwise("verify", tmp_path / "missing")[0] == 2
    assert spotwise("verify", tmp_path)[0] == 2


def test_an_interlock_is_4_with_a_partial_record(tmp_path: Path) -> None:
    scenario = tmp_path / "scenario.toml"
    scenario.write_text(fault("plant.emergency_stop", value=1))
    out = tmp_path / "t"
    status, text, err = spotwise("deliver", PLAN, *VIRTUAL, "--out", out, "--fault", scenario, "--json")
    summary = one_object(text)
    assert (status, summary["outcome"]) == (4, "interrupted")
    assert "CHAIN_OPENED" in err
    first = [trip for trip in summary["trips"] if trip["first_out"]]
    assert [trip["id"] for trip in first] == ["CHAIN_OPENED"]
    assert set(first[0]) == {"id", "at_s", "value", "limit", "first_out"}
    assert spotwise("verify", out)[0] == 0
    assert one_object(spotwise("report", out, "--json")[1]) == summary


def test_a_room_that_is_not_fit_is_3_with_a_summary_and_nothing_delivered(tmp_path: Path) -> None:
    site = tmp_path / "other.toml"
    text = (ROOT / "sites" / "carbon-fixed.toml").read_text()
    # a room whose air is so far from the reference that the corrections cannot be trusted
    site.write_text(re.sub(r"(?m)^pressure_hpa = .*$", "pressure_hpa = 700.0", text))
    out = tmp_path / "t"
    status, printed, err = spotwise("deliver", PLAN, "--site", site, "--clock", "virtual", "--out", out, "--json")
    summary = one_object(printed)
    assert (status, summary["outcome"], summary["spots_delivered"]) == (3, "refused", 0), err
    assert "hPa" in err
    assert spotwise("verify", out)[0] == 0


def test_noise_of_libraries_stays_off_the_terminal(tmp_path: Path) -> None:
    scenario = tmp_path / "scenario.toml"
    scenario.write_text(fault("wire.scan_controller", at="after_visits = 3", kind="corrupt"))
    done = command("deliver", PLAN, *VIRTUAL, "--out", tmp_path / "t", "--fault", scenario, "--json")
    assert done.returncode == 4
    one_object(done.stdout)
    assert "recv:" not in done.stderr
    assert "transaction_id" not in done.stderr
    assert "Traceback" not in done.stderr


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "controller.cli", *(str(a) for a in arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_delivery_in_order(number: signal.Signals, tmp_path: Path) -> None:
    layers = [LayerSpec(300.0 - 2 * i, grid(225, 20.0)) for i in range(15)]
    plan = write_plan(tmp_path / "long.dcm", make_plan([BeamSpec(layers=layers)]))
    out = tmp_path / "t"
    process = subprocess.Popen(
        [sys.executable, "-m", "controller.cli", "deliver", str(plan), *VIRTUAL, "--out", str(out), "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "DELIVERING" in line:
            break
    process.send_signal(number)
    text, err = process.communicate(timeout=60)
    assert process.returncode == 4, err
    assert "Traceback" not in err
    summary = one_object(text)
    assert summary["outcome"] == "interrupted"
    assert [trip["id"] for trip in summary["trips"]] == ["OPERATOR_ABORT"]
    assert summary["spots_delivered"] < summary["spots_planned"]
    assert spotwise("verify", out)[0] == 0
    assert one_object(spotwise("report", out, "--json")[1]) == summary


def site_with_a_real_device(folder: Path) -> Path:
    text = (ROOT / "sites" / "carbon-fixed.toml").read_text()
    key = folder / "permits.key"
    key.write_bytes(bytes(range(16)))
    text = re.sub(r"(?m)^key_hex = .*$", f'key_file = "{key}"', text)
    text = re.sub(r"(?m)^time_out_ms = .*$", "time_out_ms = 10.0", text)
    head, mark, rest = text.partition("[devices.gantry]")
    assert mark
    path = folder / "real.toml"
    path.write_text(head + mark + rest.replace('kind = "simulated"', 'kind = "real"', 1))
    return path


def test_a_real_device_wants_a_terminal_an_operator_and_a_reason(tmp_path: Path) -> None:
    site = site_with_a_real_device(tmp_path)
    status, _, err = spotwise("check", PLAN, "--site", site)
    assert status == 0, err
    terminal = "needs a terminal, --operator and --reason"
    for more, why in (
        ([], terminal),
        (["--operator", "simulated", "--reason", "x"], terminal),
        (["--clock", "virtual"], "for rooms in which every device is simulated; real here: gantry"),
    ):
        done = command("deliver", PLAN, "--site", site, "--out", tmp_path / "t", *more)
        assert done.returncode == 3, done.stderr
        assert why in done.stderr
        assert not (tmp_path / "t").exists()


def test_check_lists_at_once_what_deliver_will_ask_for_in_a_real_room(tmp_path: Path) -> None:
    """ROOM_WANTS: nothing of it is about the plan, so outcome and exit status stay."""
    file = site_with_a_real_device(tmp_path)
    kept = tmp_path / "qualification.json"
    text = file.read_text(encoding="utf-8").replace('names = ["simulated"]', 'names = ["anna"]')
    file.write_text(f'{text}\n[qualification]\noutput_qa = true\nfile = "{kept}"\n', encoding="utf-8")
    (tmp_path / "permits.key").unlink()
    status, out, _ = spotwise("check", PLAN, "--site", file, "--json")
    assert status == 0
    report = one_object(out)
    assert report["outcome"] == "deliverable"
    told = [(f["severity"], f["message"]) for f in report["findings"] if f["rule"] == "ROOM_WANTS"]
    for words in (
        "no qualification of this PC for today",
        "no output QA of today",
        "permits.key_file: ",
        "no record.pseudonym_key_file",
    ):
        assert len([m for severity, m in told if severity == "warn" and words in m]) == 1, (words, told)
    assert [m for severity, m in told if severity == "note"] == [
        "deliver needs a terminal, --operator NAME (one of anna) and --reason TEXT, on the real clock"
    ]
    named = tmp_path / "room.key"
    with file.open("a", encoding="utf-8") as more:
        more.write(f'[record]\npseudonym_key_file = "{named}"\n')
    again = one_object(spotwise("check", PLAN, "--site", file, "--json")[1])["findings"]
    assert not [f for f in again if "pseudonym_key_file" in f["message"]]  # the first delivery makes it
    assert not named.exists()
    simulated = one_object(spotwise("check", PLAN, "--site", "carbon-fixed", "--json")[1])["findings"]
    assert not [f for f in simulated if f["rule"] == "ROOM_WANTS"]


def test_simulators_that_keep_nothing_say_so_at_their_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def serves_nobody(*_: object, **_more: object) -> None: ...

    monkeypatch.setattr("controller.compose.serve_room", serves_nobody)
    assert "can only be resumed while they run" in spotwise("simulate", *SITE)[2]
    assert spotwise("simulate", *SITE, "--state", tmp_path / "state.npz")[2] == ""


def test_registers_and_interlocks_for_readers_and_programs() -> None:
    status, text, _ = spotwise("registers", *SITE)
    assert status == 0
    assert "scan_controller" in text
    status, text, _ = spotwise("registers", *SITE, "--json")
    assert status == 0
    assert set(dict(load_site("carbon-fixed").devices.items())) <= set(json.dumps(one_object(text)).split('"'))
    status, text, _ = spotwise("interlocks", "--json")
    ids = {c["id"] for c in one_object(text)["conditions"]}
    status, text, _ = spotwise("interlocks")
    assert status == 0
    assert all(id_ in text for id_ in ids)


def test_no_combination_of_wrong_things_gives_a_traceback(tmp_path: Path) -> None:
    numbers = random.Random(20)
    bad_site = tmp_path / "bad.toml"
    bad_site.write_text("[[[")
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "journal.bin").write_bytes(b"SPWJRNL\n" + bytes(40))
    files = [str(p) for p in (empty, garbage(tmp_path), tmp_path, bad_site, tmp_path / "missing", "/dev/null")]
    files += ["", "a\x01b", "é" * 300, str(tmp_path / "full"), str(refused_plan(tmp_path))]
    options = ["--site", "--seed", "--out", "--fault", "--fraction-group", "--gantry-deg", "--couch-deg"]
    values = [*files, "-1", "0", "nan", "1e999", "carbon-fixed", "proton-gantry", "999999999999999999999"]
    statuses = set()
    for _ in range(80):
        name = numbers.choice(["check", "deliver", "report", "verify", "registers"])
        arguments = [name, numbers.choice(files)] if name != "registers" else [name]
        if name in ("check", "deliver", "registers"):
            arguments += ["--site", numbers.choice(["carbon-fixed", "proton-gantry", numbers.choice(values)])]
        if name == "deliver":
            arguments += ["--clock", "virtual"]
        if name in ("check", "deliver"):
            for option in numbers.sample(options, numbers.randrange(3)):
                arguments += [option, numbers.choice(values)]
        if numbers.random() < 0.5:
            arguments.append("--json")
        status, text, err = spotwise(*arguments)
        assert status in (0, 2, 3), (arguments, err)
        if "--json" in arguments and text:
            one_object(text)
        statuses.add(status)
    assert statuses >= {2, 3}


@pytest.mark.parametrize("seed", [2**63, 10**30])
def test_any_seed_is_a_seed(seed: int, tmp_path: Path) -> None:
    status, text, _ = spotwise("deliver", PLAN, *VIRTUAL, "--seed", seed, "--out", tmp_path / "t")
    assert status == 0
    assert "completed" in text
