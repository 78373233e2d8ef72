"""Removes each protective mechanism in turn and sees whether a test notices.

    python -m tests.mutants run guard slow        (groups of tests/mutants/modules.py; all where none is named)
    python -m tests.mutants page > docs/safety/mutants.md

Results go to tests/mutants/results.json. What was noticed is not run again, unless --again is given.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.mutants.changes import Change, changes_of
from tests.mutants.loop import MutantLoop, quicken
from tests.mutants.modules import GROUPS
from tests.mutants.page import page
from tests.mutants.rows import matrix_changes

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("results.json")


def load_results() -> dict[str, Any]:
    """Group: file: id: verdict."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def all_changes(group: str) -> list[tuple[Any, Change]]:
    """Everything that can be done to a group's files."""
    found = []
    for file in GROUPS[group].files:
        tree, changes = (matrix_changes if file.endswith(".toml") else changes_of)(ROOT / file, ROOT)
        wanted = GROUPS[group].functions
        found += [(tree, c) for c in changes if not wanted or c.function in wanted]
    return found


def attack(
    group: str, *, workers: int, again: bool, sample: int | None, seed: int, keep: bool = True
) -> dict[str, Any]:
    """Run one group in this process; verdicts by id."""
    if GROUPS[group].interpreted:
        quicken()
    results = load_results()
    known: dict[str, Any] = {} if not keep else results.setdefault(group, {})
    everything = all_changes(group)
    for gone in set(known) - {change.id for _, change in everything}:
        del known[gone]
    chosen = [
        (tree, c) for tree, c in everything if again or known.get(c.id, {}).get("verdict") not in ("killed", "timeout")
    ]
    if sample is not None:
        chosen = random.Random(seed).sample(chosen, min(sample, len(chosen)))

    def done(change: Change, verdict: str, test: str) -> None:
        known[change.id] = {"line": change.line, "verdict": verdict, "test": test}
        if keep:
            beside = RESULTS.with_suffix(f".{os.getpid()}")
            latest = {**load_results(), group: known}
            beside.write_text(json.dumps(latest, indent=0, sort_keys=True) + "\n", encoding="utf-8")
            beside.replace(RESULTS)
        print(f"{verdict:9} {change.file}:{change.line} {change.id.split(': ', 1)[1]}  {test[-60:]}", file=sys.stderr)

    loop = MutantLoop(ROOT, lambda: chosen, done, workers)
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-W",
        "ignore:overflow:RuntimeWarning",
        "--timeout",
        "0",
        "--capture",
        "no",
    ]
    tests = [str(ROOT / t) for t in GROUPS[group].tests if (ROOT / t).exists()]
    pytest.main([*options, "--rootdir", str(ROOT), *tests], plugins=[loop])
    for name in sorted(loop.failed):
        print(f"fails as it is, not used: {name}", file=sys.stderr)
    return known


def main() -> int:
    """The command line; see the module's text."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("what", choices=("run", "page", "list"))
    parser.add_argument("groups", nargs="*", default=[])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="also what was noticed before")
    parser.add_argument("--sample", type=int, help="only so many, chosen by --seed, and nothing written")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.what == "page":
        possible = Counter(change.file for group in GROUPS for _, change in all_changes(group))
        print(page(load_results(), possible), end="")
        return 0
    groups = options.groups or list(GROUPS)
    if options.what == "list":
        for group in groups:
            print(group, len(all_changes(group)))
        return 0
    if len(groups) > 1 or (GROUPS[groups[0]].interpreted and os.environ.get("NUMBA_DISABLE_JIT") != "1"):
        for group in groups:  # each in a process of its own: interpreted or not is settled at import
            arguments = [a for a in sys.argv[2:] if a not in groups]
            environment = {**os.environ, "NUMBA_DISABLE_JIT": "1" if GROUPS[group].interpreted else "0"}
            subprocess.run(
                [sys.executable, "-m", "tests.mutants", "run", group, *arguments], check=True, env=environment
            )
        return 0
    keep = options.sample is None
    if keep:
        os.nice(10)
    verdicts = attack(
        groups[0], workers=options.workers, again=options.again, sample=options.sample, seed=options.seed, keep=keep
    )
    if not keep:
        print(json.dumps(verdicts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
