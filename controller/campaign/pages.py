"""Writes docs/safety/campaign.md, campaign.json and reactions.md from a campaign's figures.

`python -m controller.campaign.pages DIR docs/safety`, after `spotwise campaign --out DIR`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from controller.campaign.command import SUMMARY
from controller.campaign.definition import shipped
from controller.campaign.physics_limits import limits_section
from controller.campaign.truth_dose import LIMIT_GY
from interlocks.conditions import matrix
from interlocks.hazards import analysis

Summary = Mapping[str, Any]
MOST_BAD = 40


def campaign_page(s: Summary) -> str:
    """What came out, for people."""
    return "\n".join(
        [
            "# Campaign of simulated treatments",
            "",
            f"Made by `spotwise campaign --seed {s['seed']} --out DIR` and `python -m controller.campaign.pages DIR "
            "docs/safety`; the figures are in [campaign.json](campaign.json). Treatments run in virtual time; every "
            "verdict is made from what really happened in the simulated plant, which the controller never sees. How a "
            "campaign is put together and judged: [how it is judged](../campaign.md).",
            "",
            f"{s['jobs_done']} of {s['jobs']} jobs done, Spotwise {s['version']}, definition `{s['definition'][:12]}`.",
            "",
            "| | |",
            "| --- | ---: |",
            f"| treatments | {s['cases']} |",
            f"| safe, cause named | {s['safe_named']} |",
            f"| safe, not named | {s['safe_unnamed']} |",
            f"| unsafe | {s['unsafe']} |",
            f"| without any fault | {s['fault_free']} |",
            f"| false trips among these | {s['false_trips']} |",
            f"| too much at the worst point, at most (limit {LIMIT_GY:g} Gy) | {s['worst_overdose_gy']:.3g} Gy |",
            f"| of ions beyond the position limit alone | {s['worst_misplaced_gy']:.3g} Gy |",
            "| of beam in no visit of the journal (controller killed, disk dead, chopper stuck), "
            "which the devices' counters have | "
            f"{s['worst_unaccounted_gy']:.3g} Gy |",
            "",
            "## By fault",
            "",
            "`worst`: most that one treatment gave too much at the worst point, ions beyond the position limit "
            "included; a treatment without fault gives some of it, too: gains are known to 0.3 %. `completed`: the "
            "fault did no harm beyond tolerance.",
            "",
            "| fault | cases | named | not named | unsafe | completed | worst, mGy | where | ended with |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |",
            *(_fault(name, found) for name, found in s["by_fault"].items()),
            "",
            "## Faults that passed",
            "",
            "A treatment that completed is compared with the plant's truth: every spot within its tolerance, or it is "
            "unsafe. Why the fault may pass ([how](../campaign.md)): " + _passed(s) + ".",
            "",
            *_coverage(s),
            *limits_section(),
            "## Cases that were not safe and named",
            "",
            *_bad(s),
        ]
    )


def _passed(s: Summary) -> str:
    return ", ".join(f"{why} {count}" for why, count in s["passed"].items()) or "none did"


def _coverage(s: Summary) -> list[str]:
    """Every condition of the matrix: what the campaign raised, and which tests raise what it did not."""
    raised = {name: c for name, c in s["coverage"].items() if c["latched"] or c["refused"]}
    missing = [name for name in s["coverage"] if name not in raised]
    return [
        "## Every interlock",
        "",
        f"Of {len(s['coverage'])} conditions of the [matrix](../interlocks.md), {len(raised)} were raised by the "
        "campaign: as first-out, behind another one, or as the reason of a refusal.",
        "",
        "| condition | first-out | latched | refused | by |",
        "| --- | ---: | ---: | ---: | --- |",
        *(
            f"| `{name}` | {c['first_out']} | {c['latched']} | {c['refused']} | {_some(c['faults'])} |"
            for name, c in raised.items()
        ),
        "",
        *(_not_raised(missing) if missing else []),
    ]


def _not_raised(missing: Sequence[str]) -> list[str]:
    return [
        "The others, and the tests that raise them:",
        "",
        "| condition | raised by | why not here |",
        "| --- | --- | --- |",
        *(f"| `{name}` | {', '.join(_tests(name))} | {_why(name)} |" for name in missing),
        "",
    ]


def _some(faults: Sequence[str]) -> str:
    shown = ", ".join(faults[:6])
    return shown + (f" and {len(faults) - 6} more" if len(faults) > 6 else "")


def _tests(condition: str) -> list[str]:
    """Tests that the analysis of hazards names for a condition."""
    scenarios = [scenario for unsafe in analysis().unsafe for scenario in unsafe.scenarios]
    found = [test for scenario in scenarios if condition in scenario.conditions for test in scenario.tests]
    return [f"`{test}`" for test in dict.fromkeys(found)]


def _why(condition: str) -> str:
    return shipped().unreachable.get(condition, "another condition was faster each time").split(";")[0]


def _fault(name: str, found: Mapping[str, Any]) -> str:
    worst = found["worst_scenario"]
    ended = ", ".join(f"{end} {count}" for end, count in found["ended"].items())
    place = f"{worst['room']}: {worst['place']}"
    return (
        f"| {name} | {found['cases']} | {found['safe_named']} | {found['safe_unnamed']} | {found['unsafe']} | "
        f"{found['completed']} | {found['worst_overdose_gy'] * 1e3:.3g} | {place} | {ended} |"
    )


def _bad(s: Summary) -> list[str]:
    if not s["bad"]:
        return ["None.", ""]
    lines = ["| verdict | room | seed | scenario | why |", "| --- | --- | ---: | --- | --- |"]
    for case in s["bad"][:MOST_BAD]:
        scenario = " ".join(line for line in case["scenario"].splitlines() if line and line != "[[fault]]")
        why = "; ".join(case["why"]).splitlines()[0][:220].replace("|", "/")
        lines.append(f"| {case['verdict']} | {case['room']} | {case['seed']} | `{scenario}` | {why} |")
    if len(s["bad"]) > MOST_BAD:
        lines.append("")
        lines.append(f"The first {MOST_BAD} of {len(s['bad'])}; all are in campaign.json.")
    return [*lines, ""]


def reactions_page(s: Summary) -> str:
    """Times of the stops, by condition."""
    lines = [
        "# Reaction times",
        "",
        "From the campaign of [campaign.md](campaign.md), by the same commands: all stops with this condition as "
        "first-out, ms.",
        "",
        "* `reaction`: from the judgement (of the real-time path: from the time of the frame that showed the cause) to "
        "the plant's open chain, against the `budget` of the [matrix](../interlocks.md), cause visible at the PC to "
        "the drop leaving it; `within` counts stops. The plant's chain turns once in 0.1 ms: 0 is less than that, or "
        "a chain that opened first, as by electrometer 2's own limit. Microseconds on the real clock: "
        "`spotwise bench reaction`.",
        "* `beam off`: from the same moment to the plant's last beam; 0 where there was none any more.",
        "* `fault to trip`: from the fault's beginning at the plant to the judgement. What a fault needs to become "
        "visible is in it (a drift must grow, a stuck chopper shows when beam should go off); `least` is near the "
        "condition's own.",
        "",
        "| condition | where | stops | budget | within | reaction: p50 | max | beam off: p50 | max | "
        "fault to trip: least | p50 | max |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in matrix():
        found = s["by_condition"].get(name)
        if found is None:
            continue
        trip, opened, off = (found[k] for k in ("fault_to_trip_ms", "trip_to_open_ms", "trip_to_beam_off_ms"))
        numbers = [opened["p50"], opened["max"], off["p50"], off["max"], trip["least"], trip["p50"], trip["max"]]
        cells = " | ".join("" if n is None else f"{n:.4g}" for n in numbers)
        condition = matrix()[name]
        first = f"| `{name}` | {condition.where} | {found['cases']} | {condition.budget_ms:g} | {found['within']} | "
        lines.append(f"{first}{cells} |")
    lines += ["", *_beyond(s)]
    others = [name for name in matrix() if name not in s["by_condition"]]
    lines += [
        "",
        "## Never the first-out here",
        "",
        "Conditions that another one was faster than each time, or that no fault in virtual time reaches: their limits "
        "and judgements are held by these tests, frame by frame or with a status made by hand; what follows a trip "
        "is the same for all. On the real clock, `spotwise bench reaction` measures frame in to drop out, and "
        "`spotwise doctor` the chain's own reaction.",
        "",
        "| condition | where | budget, ms | tests |",
        "| --- | --- | ---: | --- |",
        *(
            f"| `{name}` | {matrix()[name].where} | {matrix()[name].budget_ms:g} | {', '.join(_tests(name))} |"
            for name in others
        ),
    ]
    return "\n".join([*lines, ""])


def _beyond(s: Summary) -> list[str]:
    """Stops that took longer than the budget: each fault that caused one, and why its time is not the controller's."""
    rows = [(name, fault, count) for name, c in s["by_condition"].items() for fault, count in c["beyond"].items()]
    if not rows:
        return ["Every stop was within its budget.", ""]
    return [
        "Stops beyond the budget. The clock starts with the time of the frame, or the end of the visit, that showed "
        "the cause; where the fault itself keeps that back (late frames, a stream that has ended and whose half of a "
        "visit is waited for, a controller that is dead and leaves the chain to its time-out), it is in the time:",
        "",
        "| condition | fault | stops beyond | longest, ms |",
        "| --- | --- | ---: | ---: |",
        *(
            f"| `{name}` | {fault} | {count} | {s['by_condition'][name]['trip_to_open_ms']['max']:.4g} |"
            for name, fault, count in rows
        ),
        "",
    ]


def write_pages(summary: Summary, folder: Path) -> None:
    """Write all three."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "campaign.md").write_text(campaign_page(summary), encoding="utf-8")
    (folder / "reactions.md").write_text(reactions_page(summary), encoding="utf-8")
    kept = {key: value for key, value in summary.items() if key != "report"}
    (folder / "campaign.json").write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_pages(json.loads((Path(sys.argv[1]) / SUMMARY).read_text(encoding="utf-8")), Path(sys.argv[2]))
