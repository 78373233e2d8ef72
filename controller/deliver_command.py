"""`spotwise deliver` and `spotwise resume`: from the command line to the last line that says how it ended.

What delivers takes seconds to import, and a plan that is refused does not need it: it is imported where it is used.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller.cli_text import print_json, say, summary_text
from controller.delivery.roles import demand_reset_role
from controller.fault_places import why_never
from controller.plan.check import CheckReport
from controller.plan.table import format_report
from drivers.errors import BadInput, Refused, SpotwiseError, Stopped
from interlocks.conditions import matrix
from interlocks.roles import SIMULATED, is_operator, is_physicist, stranger
from sites.loader import load_site, shipped_sites
from sites.schema import Site

if TYPE_CHECKING:
    from controller.plan.model import Plan
    from controller.resume import Interrupted
    from controller.session import Order


def deliver(options: argparse.Namespace, check: Callable[[Site], CheckReport]) -> int:
    """The main job. `check`: checks the plan of the command line against a site."""
    site = load_site(options.site)
    _nothing_is_simulated_but_devices(options, site, options.clock)
    operator, reason = _authority(options, site)
    report = check(site)
    if report.outcome != "deliverable":
        return _not_deliverable(options, report)
    from controller.ledger.room_latch import demand_resets, read_room_latch, room_latch_path  # noqa: PLC0415
    from controller.ledger.use import candidate, fraction_due, ledger_path  # noqa: PLC0415
    from controller.session import Order, make_directory  # noqa: PLC0415

    assert report.loaded is not None
    scenario = _scenario(options, site, options.clock, report.loaded.plan)
    out = options.out or Path(f"treatment-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    ledger = ledger_path(site, out, options.ledger)
    fraction = fraction_due(ledger, candidate(site, report.loaded, options.fraction))
    latch = room_latch_path(site)
    demand_resets(site, operator, (), read_room_latch(latch))  # and again once no other controller can run
    make_directory(out)
    order = Order(
        options.plan,
        site,
        out,
        options.seed,
        options.clock,
        operator,
        reason,
        site_name=_site_name(options.site),
        scenario=scenario,
        frames_bytes=round(options.frames_gib * 2**30) if options.record_frames else 0,
        fraction=fraction,
        ledger=ledger,
        latch=latch,
    )
    return _run(options, order, report)


def resume(options: argparse.Namespace) -> int:
    """The rest of an interrupted treatment, as a new part; a completed one is reported."""
    from controller.ledger.room_latch import room_latch_path  # noqa: PLC0415
    from controller.ledger.use import ledger_named, ledger_path  # noqa: PLC0415
    from controller.resume import VIRTUAL_PAUSE, open_interrupted  # noqa: PLC0415
    from controller.session import Order  # noqa: PLC0415

    treatment = open_interrupted(options.directory, options.site, accept_version=options.accept_version)
    ledger = options.ledger or ledger_named(options.directory)
    ledger = ledger_path(treatment.site, options.directory, ledger)
    if treatment.finished:
        return _report_finished(options, treatment)
    site = treatment.site
    _nothing_is_simulated_but_devices(options, site, treatment.clock)
    operator, reason = _authority(options, site)
    demand_reset_role(site, operator, treatment.carried.trips)
    report = treatment.check()
    if report.outcome != "deliverable":
        return _not_deliverable(options, report)
    scenario = _scenario(options, site, treatment.clock, treatment.loaded.plan)
    if options.later is not None and treatment.clock != "virtual":
        raise Refused("--later is for the virtual clock: on the real one a part begins when it begins")
    pause = VIRTUAL_PAUSE if options.later is None else timedelta(hours=options.later)
    order = Order(
        treatment.plan_path,
        site,
        options.directory,
        treatment.seed,
        treatment.clock,
        operator,
        reason,
        site_name=_site_name(treatment.site_source or site.name),
        scenario=scenario,
        carried=treatment.carried,
        decision=_decision(options, site),
        epoch=treatment.carried.ended + pause if treatment.clock == "virtual" else None,
        fraction=treatment.fraction,
        ledger=ledger,
        latch=room_latch_path(site),
    )
    return _run(options, order, report)


def _decision(options: argparse.Namespace, site: Site) -> Any:
    """A physicist's decision of a dispute. Raises `Refused` without a name and a reason, and for anybody else's."""
    from controller.delivery.decision import Decision  # noqa: PLC0415

    if not options.accept_dispute:
        return None
    operator, reason = (options.operator or "").strip(), (options.reason or "").strip()
    if not operator or not reason:
        raise Refused("--accept-dispute is a physicist's decision: it needs --operator NAME and --reason TEXT")
    if not is_physicist(site, operator):
        raise Refused(f"--accept-dispute is a physicist's decision, and operator {operator!r} is none of this room's")
    return Decision(operator, reason, options.trust)


def _nothing_is_simulated_but_devices(options: argparse.Namespace, site: Site, clock: str) -> None:
    """Raise `Refused` where time or faults shall be played in a room with a real device."""
    if not site.all_simulated and (options.fault is not None or clock == "virtual"):
        real = [name for name, device in site.devices.items() if device.kind == "real"]
        raise Refused(
            "--fault and --clock virtual are for rooms in which every device is simulated; real here: "
            + ", ".join(real)
        )


def _scenario(options: argparse.Namespace, site: Site, clock: str, plan: Plan) -> Mapping[str, str] | None:
    """The fault scenario, for the record. Raises `BadInput` for one that this clock or this plan cannot have."""
    if options.fault is None:
        return None
    from controller.compose import load_scenario  # noqa: PLC0415

    # a scenario that cannot be played must not leave a directory (or a part) behind
    faults = load_scenario(options.fault)
    faults.check_clock(clock, options.fault)
    for at, fault in enumerate(faults, 1):
        if why := why_never(fault.place, plan):
            raise BadInput(f"{options.fault}: fault {at}: {fault.name} at {fault.place.words()} never happens: {why}")
    return faults.as_record()


def _run(options: argparse.Namespace, order: Order, report: CheckReport) -> int:
    """Deliver a part, make the files, say how it ended."""
    from controller.ledger.use import settle  # noqa: PLC0415
    from controller.record.faults_played import read_played, sentences  # noqa: PLC0415
    from controller.record.rebuild import rebuild  # noqa: PLC0415
    from controller.session import write_run  # noqa: PLC0415

    order = _entered(order, report)
    if order.clock == "virtual":
        from controller.run_virtual import deliver_virtual as run  # noqa: PLC0415
    else:
        from controller.run_real import deliver_real as run  # noqa: PLC0415
    write_run(order)
    out = order.out
    with _terminable():
        try:
            outcome = run(order, report, options.fault)
        except (SpotwiseError, KeyboardInterrupt):
            _forget_unbegun(order, report)
            raise
        try:
            if order.ledger is not None:
                settle(order.ledger, out, refused=outcome.status == "refused")
            summary = rebuild(out)
        except (SpotwiseError, KeyboardInterrupt) as error:
            # the delivery is over, and the journal holds it; how it ended must not be lost with the files about it
            print(f"spotwise: {outcome.status}: {outcome.message or 'delivered'}", file=sys.stderr)
            why = str(error) or "interrupted"
            print(f"spotwise: files not finished: {why}; then run spotwise report {out}", file=sys.stderr)
            return outcome.exit_status or Stopped.exit_status
    for text in sentences(read_played(out) or ()) if options.fault is not None else ():
        print(f"spotwise: {options.fault}: {text}", file=sys.stderr)
    how = _go_on(order) if outcome.status == "interrupted" else ""
    if options.json:
        print_json(summary)
    elif outcome.status != "refused":
        say("\n".join(filter(None, (summary_text(summary, out, outcome.message), how))))
        return outcome.exit_status
    for line in filter(None, (outcome.message, how)):
        print(f"spotwise: {line}", file=sys.stderr)
    return outcome.exit_status


def _go_on(order: Order) -> str:
    """The command that goes on, and first of all who may give it."""
    from controller.record.carried import latched_at_the_end  # noqa: PLC0415
    from controller.record.journal_reader import read_journal  # noqa: PLC0415

    with read_journal(order.out / "journal.bin") as journal:
        latched = latched_at_the_end(journal.parts[-1].events)
    reserved = [name for name in latched if matrix()[name].reset == "physicist"]
    command = f"spotwise resume {order.out}"
    if reserved:
        return (
            f"not to be resumed before a physicist understands {', '.join(reserved)}, who then goes on with\n"
            f"  {command} --operator NAME --reason TEXT"
        )
    more = "" if order.site.all_simulated else " --operator NAME --reason TEXT"
    return f"go on with        {command}{more}"


def _entered(order: Order, report: CheckReport) -> Order:
    """Enter the treatment in its ledger. Its name there is its first header's hash, so the epoch is fixed now."""
    from controller.ledger.use import candidate, enter  # noqa: PLC0415
    from controller.session import header  # noqa: PLC0415

    loaded, ledger = report.loaded, order.ledger
    if ledger is None or loaded is None:
        return order
    if order.clock == "real" and order.epoch is None:
        # the loop's clock is the monotonic one: the same moment is its 0 ns
        now = timedelta(microseconds=time.monotonic_ns() // 1000)
        order = dataclasses.replace(order, epoch=datetime.now(UTC) - now)
    first = header(order, loaded) if order.carried is None else order.carried.header
    enter(ledger, order.out, candidate(order.site, loaded, order.fraction), first)
    return order


def _forget_unbegun(order: Order, report: CheckReport) -> None:
    """A first part that ended in an error before any field was begun leaves its fraction due."""
    from controller.ledger.use import withdraw_unbegun  # noqa: PLC0415
    from controller.session import header  # noqa: PLC0415

    if order.ledger is None or order.carried is not None or report.loaded is None:
        return
    try:
        withdraw_unbegun(order.ledger, order.out, header(order, report.loaded))
    except SpotwiseError as error:  # the error that is on its way says more
        print(f"spotwise: {error}", file=sys.stderr)


def _report_finished(options: argparse.Namespace, treatment: Interrupted) -> int:
    """Nothing is left to deliver; the ledger hears of it, if it has not."""
    from controller.record.rebuild import SUMMARY, rebuild  # noqa: PLC0415
    from controller.report_command import book  # noqa: PLC0415

    renewed = book(treatment.directory)
    try:
        if renewed:
            rebuild(treatment.directory, renewed)
        summary = json.loads((treatment.directory / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        summary = rebuild(treatment.directory)
    if options.json:
        print_json(summary)
    else:
        say(summary_text(summary, treatment.directory, "nothing is left to deliver"))
    return 0


def _site_name(site: str) -> str:
    """A site's name, or the absolute path of its file: what finds it again from anywhere."""
    return site if site in shipped_sites() else str(Path(site).absolute())


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
    """Who arms and resets, and why; in a room without a real device `simulated`, unless a name is given."""
    if site.all_simulated:
        operator = (options.operator or "").strip() or SIMULATED
        if not is_operator(site, operator):
            raise Refused(stranger(site, operator))
        return operator, (options.reason or "").strip() or "simulated delivery"
    if not sys.stdin.isatty() or not options.operator or not options.reason:
        raise Refused(
            f"site {site.name} has real devices: this needs a terminal, --operator and --reason (got operator "
            f"{options.operator!r}, reason {options.reason!r})"
        )
    if not is_operator(site, options.operator):
        raise Refused(stranger(site, options.operator))
    return options.operator, options.reason


def _not_deliverable(options: argparse.Namespace, report: CheckReport) -> int:
    if options.json:
        print_json({"outcome": report.outcome, "findings": report.to_json()["findings"], "files": {}})
    print(format_report(report), file=sys.stderr)
    return report.exit_status
