"""Removes each protective mechanism in turn and sees whether a test notices.

    python -m tests.mutants run realtime slow       (groups of tests/mutants/modules.py; all where none is named)
    python -m tests.mutants list                    (how many changes there are, and how many have no result)
    python -m tests.mutants page > docs/safety/mutants.md

Results go to tests/mutants/results.json as they come, so that a run may be ended and begun again. What has a result for
the code and tests as they are is not run again, unless --again is given.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from typing import Any

import pytest

from tests.mutants.changes import Change, changes_of
from tests.mutants.loop import MutantLoop, quicken
from tests.mutants.modules import GROUPS
from tests.mutants.page import page
from tests.mutants.results import NOTICED, ROOT, Result, holds, load_results, result, save_results
from tests.mutants.rows import matrix_changes

OPTIONS = ("-q", "-p", "no:cacheprovider", "-W", "ignore:overflow:RuntimeWarning", "--timeout", "0", "--capture", "no")


def all_changes(group: str) -> list[tuple[Any, Change]]:
    """Everything that can be done to a group's files."""
    found = []
    for file in GROUPS[group].files:
        tree, changes = (matrix_changes if file.endswith(".toml") else changes_of)(ROOT / file, ROOT)
        wanted = GROUPS[group].functions
        found += [(tree, c) for c in changes if not wanted or c.function in wanted]
    return found


def attack(
    group: str,
    *,
    workers: int,
    again: bool,
    sample: int | None,
    seed: int,
    cpu_s: float,
    without: str,
    keep: bool = True,
) -> dict[str, Result]:
    """Run one group in this process; results by id."""
    if GROUPS[group].interpreted:
        quicken()
    known = load_results().get(group, {}) if keep else {}
    everything = all_changes(group)
    for gone in set(known) - {change.id for _, change in everything}:
        del known[gone]
    chosen = [(tree, c) for tree, c in everything if again or not holds(group, c, known.get(c.id))]
    if sample is not None:
        chosen = random.Random(seed).sample(chosen, min(sample, len(chosen)))
    if not chosen:
        return known

    def done(change: Change, verdict: str, test: str, *, all_asked: bool) -> None:
        if verdict in NOTICED or (all_asked and not without):
            known[change.id] = result(group, change, verdict, test)
            if keep:
                save_results(group, known)
        print(f"{verdict:9} {change.id}:{change.line}  {test[-80:]}", file=sys.stderr, flush=True)

    noticed_by = {name: one["test"] for name, one in known.items() if one["verdict"] in NOTICED}
    loop = MutantLoop(ROOT, lambda: chosen, done, workers, noticed_by, cpu_s)
    tests = [str(ROOT / t) for t in GROUPS[group].tests]
    fewer = ("-k", f"not ({without})") if without else ()
    pytest.main([*OPTIONS, "--rootdir", str(ROOT), *fewer, *tests], plugins=[loop])
    for name in sorted(loop.failed):
        print(f"fails as it is, not used: {name}", file=sys.stderr)
    return known


def main() -> int:
    """The command line; see the module's text."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("what", choices=("run", "page", "list"))
    parser.add_argument("groups", nargs="*", default=[])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="also what has a result that holds")
    parser.add_argument(
        "--cpu-s",
        type=float,
        default=60.0,
        help="most of it for one change; what then has not been noticed is not kept",
    )
    parser.add_argument(
        "--without", default="", help="tests left out (as pytest -k); then only what is noticed is kept"
    )
    parser.add_argument("--sample", type=int, help="only so many, chosen by --seed, and nothing written")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.what == "page":
        print(page(load_results(), {group: [c for _, c in all_changes(group)] for group in GROUPS}), end="")
        return 0
    groups = options.groups or list(GROUPS)
    if options.what == "list":
        results = load_results()
        for group in groups:
            changes = [change for _, change in all_changes(group)]
            missing = sum(not holds(group, c, results.get(group, {}).get(c.id)) for c in changes)
            print(f"{group}: {len(changes)} changes, {missing} without a result")
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
    results = attack(
        groups[0],
        workers=options.workers,
        again=options.again,
        sample=options.sample,
        seed=options.seed,
        cpu_s=options.cpu_s,
        without=options.without,
        keep=keep,
    )
    if not keep:
        print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
