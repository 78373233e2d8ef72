"""The command line: `spotwise COMMAND`. Results on stdout (one JSON object with --json), everything else on stderr."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from controller.plan.check import CheckReport, check_plan
from controller.plan.table import format_report
from drivers.errors import BadInput, Refused, SpotwiseError, Stopped
from sites.loader import load_site, shipped_sites
from sites.schema import Site

BENCHES = ("integrator", "reaction", "download", "layers", "simulation")
DEFECT = 5
MOST_GIB = 1 << 20
OUTCOMES = {2: "unreadable", 3: "refused", 4: "interrupted"}
"""What --json says of an error, by exit status; 5 is a defect."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status: 0 done, 2 bad input, 3 refused, 4 stopped, 5 defect."""
    options = parser().parse_args(arguments)
    # libraries may not write on the terminal by themselves; what matters reaches the operator through our own words
    logging.basicConfig(level=logging.CRITICAL, stream=sys.stderr)
    command: Callable[[argparse.Namespace], int] = options.run
    try:
        return command(options)
    except SpotwiseError as error:
        print(f"spotwise: {error}", file=sys.stderr)
        if options.json:
            _print_json({"outcome": OUTCOMES.get(error.exit_status, "defect"), "message": str(error)})
        return error.exit_status
    except KeyboardInterrupt:
        print("spotwise: interrupted before anything was delivered", file=sys.stderr)
        if options.json:
            _print_json({"outcome": "interrupted", "message": "interrupted before anything was delivered"})
        return 4
    except Exception:
        # the boundary: whatever gets here is a defect of Spotwise, and says so
        traceback.print_exc()
        if options.json:
            _print_json({"outcome": "defect", "message": "a defect of Spotwise; see stderr"})
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
    deliver.add_argument("--operator", help="who arms and resets; needed where any device is real")
    deliver.add_argument("--reason", help="why; needed where any device is real")

    simulate = _command(commands, "simulate", _simulate, "serve a site's simulated devices on their addresses")
    simulate.add_argument("--site", required=True, metavar="NAME|FILE")
    simulate.add_argument("--seed", type=_seed, default=0)
    simulate.add_argument("--fault", type=_path, metavar="FILE")
    simulate.add_argument("--state", type=_path, metavar="FILE", help="keep retained counters here")
    simulate.add_argument("--truth", type=_path, metavar="FILE", help="at the end, write what really happened (npz)")

    report = _command(
        commands, "report", _report, "rebuild record and report of a treatment directory from its journal"
    )
    report.add_argument("directory", type=_path, metavar="DIR")

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
    doctor.add_argument(
        "--out", type=_path, metavar="FILE", help="keep the qualification here (default: where READY looks)"
    )
    doctor.add_argument(
        "--directory", type=_path, default=Path(), metavar="DIR", help="where treatments go (default: .)"
    )

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


def _say(text: str) -> None:
    """Print a result; a reader that has gone (`| head`) changes nothing about the exit status."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # what the interpreter flushes at exit must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_json(value: dict[str, Any]) -> None:
    _say(json.dumps(value, allow_nan=False))


def _check(options: argparse.Namespace) -> int:
    report = _checked(options, load_site(options.site))
    if options.json:
        _print_json(report.to_json())
    else:
        _say(format_report(report))
    return report.exit_status


def _deliver(options: argparse.Namespace) -> int:
    site = load_site(options.site)
    operator, reason = _authority(options, site)
    report = _checked(options, site)
    if report.outcome != "deliverable":
        return _not_deliverable(options, report)
    # what delivers is not needed to check: import it only now
    from controller.record.faults_played import read_played, sentences  # noqa: PLC0415
    from controller.record.rebuild import rebuild  # noqa: PLC0415
    from controller.session import Order, make_directory, write_run  # noqa: PLC0415

    if not site.all_simulated and (options.fault is not None or options.clock == "virtual"):
        raise Refused("--fault and --clock virtual are for rooms in which every device is simulated")
    scenario = None
    if options.fault is not None:
        from controller.compose import load_scenario  # noqa: PLC0415

        # a scenario that cannot be played must not leave a directory behind
        faults = load_scenario(options.fault)
        faults.check_clock(options.clock, options.fault)
        scenario = faults.as_record()
    out = options.out or Path(f"treatment-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    make_directory(out)
    frames_bytes = round(options.frames_gib * 2**30) if options.record_frames else 0
    order = Order(
        options.plan,
        site,
        out,
        options.seed,
        options.clock,
        operator,
        reason,
        options.site,
        scenario,
        frames_bytes,
    )
    write_run(order)
    if options.clock == "virtual":
        from controller.run_virtual import deliver_virtual as run  # noqa: PLC0415
    else:
        from controller.run_real import deliver_real as run  # noqa: PLC0415
    with _terminable():
        outcome = run(order, report, options.fault)
        try:
            summary = rebuild(out)
        except (SpotwiseError, KeyboardInterrupt) as error:
            # the delivery is over, and the journal holds it; how it ended must not be lost with the files about it
            print(f"spotwise: {outcome.status}: {outcome.message or 'delivered'}", file=sys.stderr)
            why = str(error) or "interrupted"
            print(f"spotwise: files not finished: {why}; then run spotwise report {out}", file=sys.stderr)
            return outcome.exit_status or Stopped.exit_status
    for text in sentences(read_played(out) or ()):
        print(f"spotwise: {options.fault}: {text}", file=sys.stderr)
    if options.json:
        _print_json(summary)
        if outcome.message:
            print(f"spotwise: {outcome.message}", file=sys.stderr)
    elif outcome.status == "refused":
        print(f"spotwise: {outcome.message}", file=sys.stderr)
    else:
        _say(_summary_text(summary, out, outcome.message))
    return outcome.exit_status


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM means what SIGINT means; whoever knows better what to do with them takes over meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _authority(options: argparse.Namespace, site: Site) -> tuple[str, str]:
    if site.all_simulated:
        return "simulated", "simulated delivery"
    if not sys.stdin.isatty() or not options.operator or not options.reason:
        raise Refused(
            f"site {site.name} has real devices: deliver needs a terminal, --operator and --reason (got operator "
            f"{options.operator!r}, reason {options.reason!r})"
        )
    if options.operator not in site.operators.names:
        raise Refused(f"operator {options.operator!r} is not one of this room's: {', '.join(site.operators.names)}")
    return options.operator, options.reason


def _not_deliverable(options: argparse.Namespace, report: CheckReport) -> int:
    if options.json:
        _print_json({"outcome": report.outcome, "findings": report.to_json()["findings"], "files": {}})
    print(format_report(report), file=sys.stderr)
    return report.exit_status


def _summary_text(summary: dict[str, Any], out: Path, message: str) -> str:
    from controller.record.unclosed import sentence  # noqa: PLC0415

    dose, position = summary["spot_dose_error_pct"], summary["spot_position_error_mm"]
    times = summary["time_s"]
    lines = [
        f"{summary['outcome']}: {summary['spots_delivered']} of {summary['spots_planned']} spots, "
        f"{_figure(summary['mu_primary'], '.2f')} of {_figure(summary['mu_planned'], '.2f')} MU "
        f"(second monitor {_figure(summary['mu_secondary'], '.2f')})",
        f"spot dose error   mean {_figure(dose['mean'], '+.3f')} %, sd {_figure(dose['sd'], '.3f')} %, "
        f"p95 {_figure(dose['p95'], '.3f')} %",
        f"spot position     p95 {_figure(position['p95'], '.3f')} mm, max {_figure(position['max'], '.3f')} mm",
        f"time              {times['total']:.1f} s, beam on {times['beam_on']:.1f} s",
    ]
    if "truth" in summary and summary["truth"]["spot_dose_error_pct"]["mean"] is not None:
        truth = summary["truth"]
        lines.append(
            f"against the plant mean {truth['spot_dose_error_pct']['mean']:+.3f} %, sd "
            f"{truth['spot_dose_error_pct']['sd']:.3f} %; position p95 {truth['spot_position_error_mm']['p95']:.3f} mm"
        )
    lines += [f"trip              {trip['id']} at {trip['at_s']:.3f} s" for trip in summary["trips"]]
    lines += [sentence(part) for part in summary.get("unclosed", [])]
    if message:
        lines.append(message)
    lines.append(f"record            {out}")
    return "\n".join(lines)


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _simulate(options: argparse.Namespace) -> int:
    from controller.compose import load_scenario, serve_room  # noqa: PLC0415

    site = load_site(options.site)
    faults = () if options.fault is None else load_scenario(options.fault)
    asyncio.run(
        serve_room(site, options.seed, faults=faults, truth_path=options.truth, state_path=options.state, orphan_s=None)
    )
    return 0


def _report(options: argparse.Namespace) -> int:
    from controller.record.rebuild import rebuild  # noqa: PLC0415

    summary = rebuild(options.directory)
    if options.json:
        _print_json(summary)
    else:
        _say(_summary_text(summary, options.directory, ""))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from controller.record.rebuild import verify_directory  # noqa: PLC0415

    if not options.directory.is_dir():
        raise BadInput(f"{options.directory}: no such directory")
    problems = verify_directory(options.directory)
    if options.json:
        _print_json({"whole": not problems, "problems": problems})
    else:
        whole = (
            f"{options.directory}: journal, log, record and report are whole and untouched (run.json is not covered)"
        )
        _say("\n".join(problems) if problems else whole)
    return 3 if problems else 0


def _replay(options: argparse.Namespace) -> int:
    from controller.replay import format_replay, replay  # noqa: PLC0415

    result = replay(options.directory)
    if options.json:
        _print_json(result)
    else:
        _say(format_replay(result))
    return 0 if result["agrees"] else 3


def _registers(options: argparse.Namespace) -> int:
    from controller.registers_command import format_registers, registers  # noqa: PLC0415

    site = load_site(options.site)
    if options.json:
        _print_json(registers(site))
    else:
        _say(format_registers(site))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from controller.doctor.command import doctor, exit_status, format_doctor  # noqa: PLC0415

    result = doctor(load_site(options.site), options.out, options.directory)
    if options.json:
        _print_json(result)
    else:
        _say(format_doctor(result))
    return exit_status(result)


def _bench(options: argparse.Namespace) -> int:
    from controller.bench.command import run  # noqa: PLC0415

    result = run(options.name, quick=options.quick, seconds=options.seconds)
    if options.json:
        _print_json(result.to_json())
    else:
        print(result.to_text())
    return 0


def _interlocks(options: argparse.Namespace) -> int:
    from dataclasses import asdict  # noqa: PLC0415

    from interlocks.conditions import matrix  # noqa: PLC0415

    if options.json:
        _print_json({"conditions": [asdict(c) for c in matrix().values()]})
    else:
        for c in matrix().values():
            _say(f"{c.id:<22} {c.where:<14} {c.action:<7} {c.budget_ms:>7g} ms  {c.cause}")
            _say(f"{'':<22} limit: {c.limit}; reset by {c.reset}; {c.hint}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
