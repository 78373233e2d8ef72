"""docs/safety/kills.md, made of the results that are kept in tests/kills/results.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tests.kills.room import ENERGIES, FIELDS, SPOTS
from tests.kills.stops import KINDS

HEAD = """\
# Processes killed in real time

Made by `python -m tests.kills page > docs/safety/kills.md` from `tests/kills/results.json`; a test holds them together.
The room is `carbon-fixed` on addresses of its own, all devices simulated. Accelerator with chain and registers, the
monitors' streams, the guard and the controller are processes of their own (`spotwise simulate --streams-apart`); the
plan is two fields of two layers of a hundred spots. What the plant did is read from its mapped memory, beside all of
them: beam and chain have the plant's own monotonic times. Everything ran on a shared PC of two cores; its load is said,
since it decides how late processes are.
"""
STOPS = """
## Beam off

    python -m tests.kills stops --times {times} --seed {seed} --out DIR

One process is stopped (`SIGSTOP`) or killed (`SIGKILL`), or asyncio alone is blocked for two seconds in a controller
that is otherwise as it is, at a moment uniform from the first arming (self-tests included) to the last beam: within
spills, in their gaps, at energy changes, between fields. Verified each time: the chain is open with a cause, no valid
permit and no particle comes any more, the treatment ends as interrupted (in its self-tests as refused) and its
journal names a cause, unless its process is the one that was killed. With the chain open, or in self-tests, what only
stood still may go on afterwards. Milliseconds from the stop to the last beam, by the plant; 0 where no beam came.

The limit is lease ({lease_ms:g} ms) + permits' time-out ({time_out_ms:g} ms) + chopper and frames: {limit_ms:g} ms.

"""
RESUMES = """
## Killed controllers, resumed

    python -m tests.kills resumes --times 100 --out DIR

A treatment whose controller is killed one to three times (`SIGKILL`), each time followed by `spotwise resume` within
3 s, until it is complete. A fifth of the moments is in a part's preparation, reconciliation included; the others are
from its arming to its last beam. Every treatment is then held against the plant: each of the {spots} spots' true
particles against the plan; each row of the three result rings against the journal, to the count; both monitors'
retained counters against the journal and their known pedestal; each visit completed once; `spotwise verify`. Spots
that were forgone as too small for any beam are counted. Beside it, treatments of the same plan that nobody disturbed.

"""
MONITOR_2 = """
A treatment has some six million counts on each monitor. Where a layer's first visit is booked from the rings, it gets
monitor 2's pedestal since the layer before, some ten counts: that is what is left there.
"""
SHARES = (0.0, 0.5, 0.9, 0.99, 1.0)


def page(results: dict[str, Any]) -> str:
    """The whole document. `results`: stops and resumes, as `python -m tests.kills keep` wrote them."""
    return HEAD + "".join(_stops(results["stops"])) + "".join(_resumes(results["resumes"]))


def _stops(stops: list[dict[str, Any]]) -> Iterator[str]:
    first = stops[0]
    yield STOPS.format(
        times=len(stops),
        seed=first["seed"],
        lease_ms=first["limit_ms"] - min(one["bound_ms"] for one in stops),
        time_out_ms=250.0,  # of the shipped site, see `tests.kills.room`
        limit_ms=first["limit_ms"],
    )
    columns = [f"{name}" for name in ("min", "p50", "p90", "p99", "max")]
    yield f"| what | trials | with beam | {' | '.join(columns)} | max of all | chain open, max | over the limit |\n"
    yield "| --- " * (6 + len(columns)) + "|\n"
    for kind in (*KINDS, "all"):
        trials = [one for one in stops if kind in (one["kind"], "all")]
        with_beam = [one["off_ms"] for one in trials if one["beam"]]
        opened = [one["opened_ms"] for one in trials if one["opened_ms"] is not None]
        over = sum(one["off_ms"] > one["limit_ms"] for one in trials)
        numbers = " | ".join(_quantiles(with_beam))
        most = max(one["off_ms"] for one in trials)
        yield f"| {kind} | {len(trials)} | {len(with_beam)} | {numbers} | {most:.1f} | {max(opened):.1f} | {over} |\n"
    yield "\nFirst causes in the journals:\n\n| what | named |\n| --- | --- |\n"
    for kind in KINDS:
        names = Counter(one["first_out"] or "-" for one in stops if one["kind"] == kind)
        yield f"| {kind} | {', '.join(f'{name} {n}' for name, n in names.most_common())} |\n"
    yield "\n`-`: the controller was killed, or it went on with an open chain and completed.\n"
    yield _conditions(stops)
    yield from _remarks(stops)


def _resumes(rows: list[dict[str, Any]]) -> Iterator[str]:
    treatments = [one for one in rows if "kills" in one]
    alone = [one for one in rows if one.get("undisturbed")]
    yield RESUMES.format(spots=FIELDS * len(ENERGIES) * SPOTS)
    kills = [kill for one in treatments for kill in one["kills"]]
    yield "| | undisturbed | killed and resumed |\n| --- | --- | --- |\n"

    def row(name: str, of: Any, digits: int = 2) -> str:
        cells = [f"{of(group):.{digits}f}" if group else "-" for group in (alone, treatments)]
        return f"| {name} | {' | '.join(cells)} |\n"

    done = [one for one in treatments if "spot_percent" in one]
    yield f"| treatments | {len(alone)} | {len(treatments)} |\n"
    yield f"| controllers killed | 0 | {len(kills)} |\n"
    beam = sum(kill["beam_on"] for kill in kills)
    armed = sum(kill["armed"] for kill in kills)
    yield f"| with beam at that moment; with a field armed | | {beam}; {armed} |\n"
    yield f"| complete at the end | {len(alone)} | {len(done)} |\n"
    everything, treatments = treatments, done
    yield row("spot, true against planned, mean %", lambda g: np.mean([one["spot_percent"]["mean"] for one in g]))
    yield row("its scatter, sd %", lambda g: np.mean([one["spot_percent"]["sd"] for one in g]))
    yield row("worst spot of all, %", lambda g: max(one["spot_percent"]["max"] for one in g))
    yield row("most that any spot got too much, %", lambda g: max(one["spot_percent"]["most"] for one in g))
    yield row("field, worst %", lambda g: max(abs(f) for one in g for f in one["field_percent"]), 3)
    yield row("spots forgone", lambda g: sum(one["forgone"] for one in g), 0)
    yield row(
        "counts of monitor 1 unaccounted for, worst treatment",
        lambda g: max(abs(one["unaccounted"][0]) for one in g),
        1,
    )
    yield row("of monitor 2", lambda g: max(abs(one["unaccounted"][1]) for one in g), 1)
    verdicts = Counter(verdict for one in done for verdict in one["verdicts"])
    yield "\nVerdicts of the reconciliations: " + ", ".join(f"{name} {n}" for name, n in verdicts.most_common()) + ".\n"
    yield MONITOR_2
    yield _conditions(rows)
    yield from _remarks(everything)


def _quantiles(values: Sequence[float]) -> list[str]:
    if not values:
        return ["-"] * len(SHARES)
    return [f"{value:.1f}" for value in np.quantile(values, SHARES, method="higher")]


def _conditions(rows: list[dict[str, Any]]) -> str:
    loads = [one["load"] for one in rows]
    lags = [one["lag_ms"] for one in rows if "lag_ms" in one]
    span = f"{min(loads):.1f} to {max(loads):.1f}, half of them above {np.median(loads):.1f}"
    commits = Counter(one["commit"] for one in rows if not one.get("undisturbed"))
    by_commit = ", ".join(f"{name} {n}" for name, n in commits.items())
    return (
        f"\nBy commit: {by_commit}. Load of the PC (last minute): {span}.\n"
        f"The plant was at most {max(lags):.0f} ms behind the clock, and made up for it without leaving a frame out.\n"
    )


def _remarks(rows: list[dict[str, Any]]) -> Iterator[str]:
    remarks = [(one["n"], text) for one in rows for text in (*one.get("notes", ()), *one.get("problems", ()))]
    if remarks:
        yield "\nRemarks:\n\n"
        yield from (f"* trial {n}: {text}\n" for n, text in remarks)
