"""The page of what was noticed and what was not, made of the results and of the explanations."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.mutants.changes import Change
from tests.mutants.results import NOTICED, Result, holds

EXPLAINED = Path(__file__).with_name("explained.toml")
HEAD = """# Protective mechanisms removed, one at a time

`python -m tests.mutants run [GROUP...]` changes the protection code and the interlock matrix in one place, runs the
tests that guard that place (`tests/mutants/modules.py`) until one fails, and keeps the result in
`tests/mutants/results.json`. This page is `python -m tests.mutants page`. Compiled code runs as plain Python for this.

A change is *noticed* when a test fails, or when the tests do not end any more. What was not noticed is either explained
here, or owes a test: *open*. *Not run*: no result, or one of other code or other tests than today's, or tests left out
for their time without one noticing.

"""
OPERATORS = """
## What is done

One place at a time:

* a condition never holds; one whose only consequence is to leave, with nothing found, always holds
* one part of an `and` or `or` is gone
* a statement is gone: a call, an assignment to what is kept (an attribute, an entry), a `raise` in a handler
* a function does nothing, or finds nothing, or always or never says yes
* a comparison's edge: `<` for `<=`, `>` for `>=`, and the other way round
* a limit doubled: the right side of a comparison, or the constant of a module
* one entry of a table or list is missing: a device, an axis, a message; a loop ends one early
* `min` for `max`, `any` for `all`, a sum for a difference, the other branch of a choice, without `abs` or `not`
* of the matrix: a row removed, inhibit instead of drop and the other way round, no latch, an operator instead of a
  physicist, another place, another number, twice the time, the stopper left open

Not done: arguments swapped, single numbers off by one inside arithmetic, both edges of one comparison, factors of
units, the values and words that a condition tells of itself, what is only written down. Of the matrix, `where`,
`number` and `reset` steer the program; `action`, `latch`, `escalate` and `budget_ms` are what was decided, and tests
hold the decision. Not attacked: the guard's sockets and its process (`interlocks/guard_process.py`), whose tests run it
as a process of its own, where a change made in this one has no effect; the integrator's strips and visits, the plan's
checks, drivers.
"""


def page(results: Mapping[str, Mapping[str, Result]], possible: Mapping[str, list[Change]]) -> str:
    """`results`: group, id: result. `possible`: the changes there are, by group."""
    explained: dict[str, str] = tomllib.loads(EXPLAINED.read_text(encoding="utf-8"))
    kinds = {
        change.id: (change, _kind(change, results.get(group, {}).get(change.id), group, explained))
        for group, changes in possible.items()
        for change in changes
    }
    return HEAD + "".join(_table(kinds)) + OPERATORS + "".join(_survivors(kinds, explained))


def _kind(change: Change, one: Result | None, group: str, explained: Mapping[str, str]) -> str:
    if one is None or not holds(group, change, one):
        return "not run"
    if one["verdict"] in NOTICED:
        return "noticed"
    return "explained" if change.id in explained else "open"


def _table(kinds: Mapping[str, tuple[Change, str]]) -> Iterator[str]:
    columns = ("noticed", "explained", "open", "not run")
    yield f"| file | changes | {' | '.join(columns)} |\n|{' --- |' * (2 + len(columns))}\n"
    files = {change.file: Counter[str]() for change, _ in kinds.values()}
    for change, kind in kinds.values():
        files[change.file][kind] += 1
    everything = sum(files.values(), Counter[str]())
    for file, counts in [*files.items(), ("all", everything)]:
        yield f"| {file} | {' | '.join(str(n) for n in (counts.total(), *(counts[c] for c in columns)))} |\n"


def _survivors(kinds: Mapping[str, tuple[Change, str]], explained: Mapping[str, str]) -> Iterator[str]:
    yield "\n## Survivors\n\n"
    for change, kind in sorted(kinds.values(), key=lambda pair: (pair[0].file, pair[0].line, pair[0].id)):
        if kind in ("explained", "open"):
            what = change.id.split(": ", 1)[1].replace("`", "'")
            yield f"* {change.file} `{what}`: {explained.get(change.id, 'open')}\n"
