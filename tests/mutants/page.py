"""The page of what was noticed and what was not, made of the results and of the explanations."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EXPLAINED = Path(__file__).with_name("explained.toml")
HEAD = """# Protective mechanisms removed, one at a time

`python -m tests.mutants run` changes the protection code and the interlock matrix in one place (a comparison, a limit,
a condition, a statement), runs the tests that guard that place, and asks whether one fails. This page is
`python -m tests.mutants page`; results are in `tests/mutants/results.json`. A change that a test noticed, or that never
ended, counts as noticed. What survived is either explained here, or owes a test: *open*. "Not run": listed by
`python -m tests.mutants list`, and without a result yet.

| file | changes | noticed | survived, explained | survived, open | not run by any test | not run |
| --- | --- | --- | --- | --- | --- | --- |
"""


def page(results: dict[str, Any], possible: dict[str, int]) -> str:
    """`results`: group, id: line, verdict, test. `possible`: changes there are, by file."""
    explained: dict[str, str] = tomllib.loads(EXPLAINED.read_text(encoding="utf-8"))
    verdicts = {name: one for group in results.values() for name, one in group.items()}
    return HEAD + "".join(_rows(verdicts, explained, possible)) + "".join(_survivors(verdicts, explained))


def _kind(name: str, one: dict[str, Any], explained: dict[str, str]) -> str:
    if one["verdict"] in ("killed", "timeout"):
        return "noticed"
    if one["verdict"] == "survived":
        return "explained" if name in explained else "open"
    return "untested"


def _rows(verdicts: dict[str, Any], explained: dict[str, str], possible: dict[str, int]) -> Iterator[str]:
    for file, total in possible.items():
        kinds = Counter(_kind(n, one, explained) for n, one in verdicts.items() if n.startswith(f"{file}: "))
        counts = [kinds[kind] for kind in ("noticed", "explained", "open", "untested")]
        cells = " | ".join(str(n) for n in [total, *counts, total - sum(counts)])
        yield f"| {file} | {cells} |\n"


def _survivors(verdicts: dict[str, Any], explained: dict[str, str]) -> Iterator[str]:
    yield "\n## Survivors\n\n"
    for name, one in sorted(verdicts.items(), key=lambda pair: (pair[0].split(": ")[0], pair[1]["line"], pair[0])):
        if _kind(name, one, explained) in ("explained", "open", "untested"):
            file, change = name.split(": ", 1)
            what = change.replace("`", "'")
            why = explained.get(name, "open" if one["verdict"] == "survived" else "open: no test runs it")
            yield f"* {file}:{one['line']} `{what}`: {why}\n"
