"""The command line: `spotwise COMMAND`. Results on stdout (one JSON object with --json), everything else on stderr."""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from controller.cli_text import print_json, say, summary_text
from controller.plan.check import CheckReport, check_plan, with_findings
from controller.plan.table import format_report
from drivers.errors import BadInput, Refused, SpotwiseError
from sites.loader import load_site, shipped_sites
from sites.schema import Site

BENCHES = ("integrator", "reaction", "download", "step", "layers", "simulation")
DEFECT = 5
MOST_GIB = 1 << 20
LEDGER_HELP = "course ledger, where any device is simulated (default: DIR/ledger.sqlite); a real room has its own"
OUTCOMES = {2: "unreadable", 3: "refused", 4: "interrupted"}
"""What --json says of an error, by exit status; 5 is a defect."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status: 0 done, 2 bad input, 3 refused, 4 stopped, 5 defect."""
    options = parser().parse_args(arguments)
    # libraries may not write on the terminal by themselves; what matters reaches the operator through our own words
    logging.basicConfig(level=logging.CRITICAL, stream=sys.stderr)
    # the DICOM library prints values that it finds odd: a patient's birth date, for one
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"pydicom(\..*)?")
    command: Callable[[argparse.Namespace], int] = options.run
    try:
        return command(options)
    except SpotwiseError as error:
        print(f"spotwise: {error}", file=sys.stderr)
        if options.json:
            print_json({"outcome": OUTCOMES.get(error.exit_status, "defect"), "message": str(error)})
        return error.exit_status
    except KeyboardInterrupt:
        print("spotwise: interrupted before anything was delivered", file=sys.stderr)
        if options.json:
            print_json({"outcome": "interrupted", "message": "interrupted before anything was delivered"})
        return 4
    except Exception:
        # the boundary: whatever gets here is a defect of Spotwise, and says so
        traceback.print_exc()
        if options.json:
            print_json({"outcome": "defect", "message": "a defect of Spotwise; see stderr"})
        print("spotwise: this is a defect; please report it with the lines above", file=sys.stderr)
        return DEFECT


def parser() -> argparse.ArgumentParser:
    """All commands and options."""
    top = argparse.ArgumentParser(
        prog="spotwise", description="Beam delivery for spot-scanned ion therapy. Research software, no medical device."
    )
    top.add_argument("--version", action="version", version=f"spotwise {version('spotwise')}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    check = _command(commands, "check", _check, "is this plan sound, and can this room deliver it?")
    _plan_options(check)

    deliver = _command(commands, "deliver", _deliver, "deliver a plan")
    _plan_options(deliver)
    deliver.add_argument("--clock", choices=("real", "virtual"), default="real", help="default: real")
    deliver.add_argument("--seed", type=_seed, default=0, help="of everything random in the simulated room (default 0)")
    deliver.add_argument("--fault", type=_path, metavar="FILE", help="fault scenario for the simulated room")
    deliver.add_argument("--out", type=_path, metavar="DIR", help="treatment directory (default: treatment-<UTC time>)")
    deliver.add_argument("--record-frames", action="store_true", help="keep all raw frames in DIR/frames, for replay")
    deliver.add_argument(
        "--frames-gib", type=_gib, default=8.0, metavar="GIB", help="its size, at most (default 8: 45 minutes)"
    )
    deliver.add_argument("--fraction", type=_fraction, metavar="N", help="of the course (default: the one that is due)")
    deliver.add_argument("--ledger", type=_path, metavar="FILE", help=LEDGER_HELP)
    deliver.add_argument("--operator", help="who arms and resets; needed where any device is real")
    deliver.add_argument("--reason", help="why; needed where any device is real")

    resume = _command(commands, "resume", _resume, "go on with an interrupted treatment; nothing is given twice")
    resume.add_argument("directory", type=_path, metavar="DIR")
    resume.add_argument("--site", metavar="NAME|FILE", help="where the directory's own is no longer to be found")
    resume.add_argument("--fault", type=_path, metavar="FILE", help="fault scenario for the simulated room")
    resume.add_argument("--operator", help="who arms and resets, or decides a dispute; needed where any device is real")
    resume.add_argument("--reason", help="why; needed where any device is real")
    resume.add_argument(
        "--accept-dispute",
        action="store_true",
        help="a physicist's decision: go on although journal and hardware differ",
    )
    resume.add_argument(
        "--trust",
        choices=("hardware", "journal"),
        default="hardware",
        help="what counts then: the devices' retained counters (default), or the journal",
    )
    resume.add_argument("--ledger", type=_path, metavar="FILE", help="where the one of the first part is elsewhere now")
    resume.add_argument(
        "--later", type=_hours, metavar="H", help="virtual clock: so many hours after the part before (default 1 min)"
    )
    resume.add_argument("--accept-version", action="store_true", help="begun by another version of Spotwise")

    guard = _command(commands, "guard", _guard, "supervise a delivery of this plan independently, by links of its own")
    guard.add_argument("--site", required=True, metavar="NAME|FILE")
    guard.add_argument("plan", type=_path, metavar="PLAN", help="the plan that the controller will deliver")
    guard.add_argument("--fraction-group", type=int, metavar="N", help="default: the lowest")
    guard.add_argument("--gantry-deg", type=float, metavar="DEG", help="beam port of a TRiP98 file")
    guard.add_argument("--state", type=_path, metavar="FILE", help="its memory (default: under $XDG_STATE_HOME)")
    guard.add_argument("--events", type=_path, metavar="FILE", help="append what happens, a JSON object a line")
    guard.add_argument("--while-stdin", action="store_true", help="end when standard input does")

    simulate = _command(commands, "simulate", _simulate, "serve a site's simulated devices on their addresses")
    simulate.add_argument("--site", required=True, metavar="NAME|FILE")
    simulate.add_argument("--seed", type=_seed, default=0)
    simulate.add_argument("--fault", type=_path, metavar="FILE")
    state = "keep counters and rings here, and begin with what is there; without it they end with the simulators"
    simulate.add_argument("--state", type=_path, metavar="FILE", help=state)
    apart = "frames leave through a process of their own, which can be killed or stopped alone"
    simulate.add_argument("--streams-apart", action="store_true", help=apart)
    simulate.add_argument("--truth", type=_path, metavar="FILE", help="at the end, write what really happened (npz)")

    report = _command(
        commands, "report", _report, "rebuild record and report of a treatment directory from its journal"
    )
    report.add_argument("directory", type=_path, metavar="DIR")

    export = _command(commands, "export", _export, "the log of a treatment as CSV or Parquet")
    export.add_argument("directory", type=_path, metavar="DIR")
    export.add_argument("--csv", type=_path, metavar="DIR", help="write visits.csv, rows.csv and columns.csv there")
    export.add_argument("--parquet", type=_path, metavar="FILE", help="visits; the 200-us rows go beside it (pyarrow)")

    ledger = _command(commands, "ledger", _ledger, "which fractions of which courses were given, and how much")
    ledger.add_argument("file", type=_path, metavar="FILE")
    ledger.add_argument("--csv", type=_path, metavar="DIR", help="write fractions.csv, beams.csv and spots.csv there")
    ledger.add_argument(
        "--dicom", type=_path, metavar="DIR", help="copy all DICOM treatment records there, with manifest.json"
    )
    ledger.add_argument("--close", metavar="TREATMENT", help="end an open fraction that will not be completed")
    ledger.add_argument("--operator", help="who closes it")
    ledger.add_argument("--reason", help="why")

    verify = _command(commands, "verify", _verify, "prove a treatment directory whole and untouched")
    verify.add_argument("directory", type=_path, metavar="DIR")

    replay = _command(
        commands,
        "replay",
        _replay,
        "rerun the integrator on recorded frames; it must agree with the journal to the bit",
    )
    replay.add_argument("directory", type=_path, metavar="DIR")

    registers = _command(commands, "registers", _registers, "every device's address, registers, units and limits")
    registers.add_argument("--site", required=True, metavar="NAME|FILE")

    bench = _command(commands, "bench", _bench, "measure Spotwise on this PC against yardsticks")
    bench.add_argument("name", choices=BENCHES, metavar="NAME", help=", ".join(BENCHES))
    bench.add_argument("--quick", action="store_true", help="a small run that shows that the bench works; no figures")
    bench.add_argument("--seconds", type=float, metavar="S", help="reaction: how long (default 20; 60 for a full one)")

    doctor = _command(commands, "doctor", _doctor, "is this host, and are these links, fit to deliver today?")
    doctor.add_argument("--site", required=True, metavar="NAME|FILE")
    doctor.add_argument("--output-qa", type=float, metavar="FACTOR", help="enter today's measured output factor")
    doctor.add_argument("--operator", metavar="NAME", help="who measured it")
    doctor.add_argument(
        "--out", type=_path, metavar="FILE", help="keep the qualification here (default: where READY looks)"
    )
    doctor.add_argument(
        "--directory", type=_path, default=Path(), metavar="DIR", help="where treatments go (default: .)"
    )

    campaign = _command(
        commands, "campaign", _campaign, "many simulated treatments with faults, judged by what happened"
    )
    campaign.add_argument("--slice", action="store_true", help="every fault in every room, a few places each: minutes")
    campaign.add_argument("--seed", type=_seed, default=0, help="of places, strengths and rooms (default 0)")
    campaign.add_argument(
        "--out", type=_path, metavar="DIR", help="results; a campaign that is there goes on (default: campaign-...)"
    )
    campaign.add_argument("--workers", type=_seed, metavar="N", help="processes on this PC (default: one a core)")
    campaign.add_argument("--scheduler", metavar="ADDRESS", help="a Dask scheduler, such as tcp://host:8786, instead")
    campaign.add_argument("--only", metavar="TEXT", help="only jobs with this in their name, such as spill_spike")
    campaign.add_argument("--shrink", action="store_true", help="make unsafe cases small: DIR/unsafe/*.toml")

    interlocks = _command(commands, "interlocks", _interlocks, "every interlock condition: cause, place, budget, hint")
    del interlocks
    return top


def _path(text: str) -> Path:
    """A path that the system can look at, whether it exists or not."""
    try:
        os.lstat(text or ".")
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"no usable path: {error}") from error
    return Path(text)


def _seed(text: str) -> int:
    """A whole number, not negative."""
    if not (text.isascii() and text.isdigit() and len(text) <= 40):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


def _hours(text: str) -> float:
    """From none to a year."""
    try:
        hours = float(text)
    except ValueError:
        hours = math.nan
    if not 0 <= hours <= 8784:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of hours from 0 to 8784")
    return hours


def _fraction(text: str) -> int:
    """A whole number from 1 to what any course has."""
    if not (text.isascii() and text.isdigit() and int(text[:9]) >= 1 and len(text) <= 4):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of a fraction")
    return int(text)


def _gib(text: str) -> float:
    """A size above zero."""
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not 0 < size <= MOST_GIB:
        raise argparse.ArgumentTypeError(f"{text!r} is no size between 0 and {MOST_GIB} GiB")
    return size


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], summary: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary)
    command.set_defaults(run=run)
    command.add_argument("--json", action="store_true", help="one JSON object on stdout, nothing else")
    return command


def _plan_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("plan", type=_path, metavar="PLAN", help="DICOM RT Ion Plan or TRiP98 .rst file")
    command.add_argument(
        "--site", required=True, metavar="NAME|FILE", help=f"a site file, or one of: {', '.join(shipped_sites())}"
    )
    command.add_argument("--fraction-group", type=int, metavar="N", help="default: the lowest, with a warning")
    command.add_argument("--allow-unapproved", action="store_true", help="research sites only")
    command.add_argument("--gantry-deg", type=float, metavar="DEG", help="beam port of a TRiP98 file")
    command.add_argument("--couch-deg", type=float, metavar="DEG", help="couch rotation for a TRiP98 file")


def _checked(options: argparse.Namespace, site: Site) -> CheckReport:
    return check_plan(
        options.plan,
        site,
        fraction_group=options.fraction_group,
        allow_unapproved=options.allow_unapproved,
        gantry_deg=options.gantry_deg,
        couch_deg=options.couch_deg,
    )


def _check(options: argparse.Namespace) -> int:
    site = load_site(options.site)
    report = _checked(options, site)
    if report.outcome == "deliverable" and (site.qualification.output_qa or not site.all_simulated):
        from controller.preconditions import room_wants  # noqa: PLC0415

        report = with_findings(report, room_wants(site, report.loaded))
    if options.json:
        print_json(report.to_json())
    else:
        say(format_report(report))
    return report.exit_status


def _deliver(options: argparse.Namespace) -> int:
    from controller.deliver_command import deliver  # noqa: PLC0415

    return deliver(options, lambda site: _checked(options, site))


def _resume(options: argparse.Namespace) -> int:
    from controller.deliver_command import resume  # noqa: PLC0415

    return resume(options)


def _guard(options: argparse.Namespace) -> int:
    from interlocks.guard_process import run  # noqa: PLC0415

    return run(load_site(options.site), options)


def _simulate(options: argparse.Namespace) -> int:
    from controller.compose import load_scenario, serve_room  # noqa: PLC0415

    site = load_site(options.site)
    faults = () if options.fault is None else load_scenario(options.fault)
    if options.state is None:
        print(
            "spotwise: without --state FILE counters and rings end with these simulators: an interrupted treatment can "
            "only be resumed while they run (afterwards that is a dispute)",
            file=sys.stderr,
        )
    asyncio.run(
        serve_room(
            site,
            options.seed,
            faults=faults,
            truth_path=options.truth,
            state_path=options.state,
            streams_apart=options.streams_apart,
        )
    )
    return 0


def _export(options: argparse.Namespace) -> int:
    from controller.export_command import export  # noqa: PLC0415

    return export(options)


def _ledger(options: argparse.Namespace) -> int:
    from controller.ledger.command import ledger  # noqa: PLC0415

    return ledger(options)


def _report(options: argparse.Namespace) -> int:
    from controller.record.rebuild import rebuild, wants_treatment  # noqa: PLC0415
    from controller.report_command import book  # noqa: PLC0415

    wants_treatment(options.directory)
    summary = rebuild(options.directory, book(options.directory))
    if options.json:
        print_json(summary)
    else:
        say(summary_text(summary, options.directory, ""))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from controller.record.rebuild import prove  # noqa: PLC0415

    problems, notes = prove(options.directory)
    if options.json:
        print_json({"whole": not problems, "problems": problems, "notes": notes})
    else:
        whole = f"{options.directory}: whole and untouched: every file is as it was sealed, and what the journal says"
        say("\n".join([*(problems or [whole]), *(f"note: {text}" for text in notes)]))
    return 3 if problems else 0


def _replay(options: argparse.Namespace) -> int:
    from controller.replay import format_replay, replay  # noqa: PLC0415

    result = replay(options.directory)
    if options.json:
        print_json(result)
    else:
        say(format_replay(result))
    return 0 if result["agrees"] else 3


def _registers(options: argparse.Namespace) -> int:
    from controller.registers_command import format_registers, registers  # noqa: PLC0415

    site = load_site(options.site)
    if options.json:
        print_json(registers(site))
    else:
        say(format_registers(site))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    if options.output_qa is not None:
        from controller.doctor.output_qa import enter_output_qa  # noqa: PLC0415

        if not options.operator:
            raise BadInput("--output-qa: needs --operator NAME, who measured it")
        why = enter_output_qa(load_site(options.site), options.output_qa, options.operator)
        say(f"output QA of today: {why or 'within its limit'}")
        return Refused.exit_status if why else 0
    from controller.doctor.command import doctor, exit_status, format_doctor  # noqa: PLC0415

    result = doctor(load_site(options.site), options.out, options.directory)
    if options.json:
        print_json(result)
    else:
        say(format_doctor(result))
    return exit_status(result)


def _bench(options: argparse.Namespace) -> int:
    from controller.bench.command import run  # noqa: PLC0415

    result = run(options.name, quick=options.quick, seconds=options.seconds)
    if options.json:
        print_json(result.to_json())
    else:
        print(result.to_text())
    return 0


def _campaign(options: argparse.Namespace) -> int:
    from controller.campaign.command import campaign, exit_status, to_text  # noqa: PLC0415

    summary = campaign(options)
    if options.json:
        print_json({key: value for key, value in summary.items() if key != "bad"} | {"bad": len(summary["bad"])})
    else:
        say(to_text(summary))
    return exit_status(summary)


def _interlocks(options: argparse.Namespace) -> int:
    from dataclasses import asdict  # noqa: PLC0415

    from interlocks.conditions import matrix  # noqa: PLC0415

    if options.json:
        print_json({"conditions": [asdict(c) for c in matrix().values()]})
    else:
        for c in matrix().values():
            say(f"{c.id:<22} {c.where:<14} {c.action:<7} {c.budget_ms:>7g} ms  {c.cause}")
            say(f"{'':<22} limit: {c.limit}; reset by {c.reset}; {c.hint}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
