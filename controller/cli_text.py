"""What the command line says: one JSON object, or words for people; the same of `deliver`, `resume` and `report`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def say(text: str) -> None:
    """Print a result; a reader that has gone (`| head`) changes nothing about the exit status."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # what the interpreter flushes at exit must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    say(json.dumps(value, allow_nan=False))


def summary_text(summary: dict[str, Any], out: Path, message: str) -> str:
    """A treatment in a few lines."""
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
