"""The part of the report that says which faults were played on the simulated room."""

from __future__ import annotations

import html
from typing import Any


def faults_section(header: dict[str, Any], summary: dict[str, Any]) -> str:
    """The scenario, with its hash and what became of each fault; empty where there was none."""
    if "faults" not in summary:
        return ""
    played = summary["faults"]["played"]
    lines = "".join(f"<li>{_line(fault)}</li>" for fault in played or ())
    unknown = "" if played is not None else "<p>What became of its faults was not left behind.</p>"
    text = html.escape(str(header["fault_scenario"]["text"]))
    return (
        "<h2>Faults played</h2>"
        f"<p>This treatment was played with a fault scenario, SHA-256 {summary['faults']['sha256']}.</p>"
        f"{unknown}<ol>{lines}</ol><details><summary>The scenario</summary><pre>{text}</pre></details>"
    )


def _line(fault: dict[str, Any]) -> str:
    given = ", ".join(f"{key} {value}" for key, value in fault["parameters"].items())
    words = f"{fault['name']}{f' ({given})' if given else ''}, at {fault['at']}"
    if fault["fired_s"] is None:
        return html.escape(words) + ": <b>never fired</b>"
    ended = "" if fault["ended_s"] is None else f", ended at {fault['ended_s']:.4f} s"
    return html.escape(f"{words}: began at {fault['fired_s']:.4f} s of the plant's clock{ended}")
