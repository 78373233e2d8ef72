"""Results of former runs, and how long they hold: until what was changed, or what judged it, is another text.

A change that was noticed stays noticed while its function and the test that noticed it are what they were (with
everything else in that test's file that is no test). One that was not noticed is tried anew whenever a test file of its
group has changed. Modules that tests share, such as `tests/frame_script.py`, do not count.
"""

from __future__ import annotations

import ast
import json
from functools import cache
from pathlib import Path
from typing import Any

from tests.mutants.changes import Change, short_hash
from tests.mutants.modules import GROUPS

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("results.json")
NOTICED = ("killed", "timeout")

Result = dict[str, Any]
"""line, verdict, test, source, tests (the last two: hashes)."""


def load_results() -> dict[str, dict[str, Result]]:
    """Group: id: result."""
    found: dict[str, dict[str, Result]] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    return found


def save_results(group: str, known: dict[str, Result]) -> None:
    """Replace one group's results; one line each."""
    latest = {**load_results(), group: known}
    lines = [
        f'"{name}": {{\n'
        + ",\n".join(f"{json.dumps(i)}: {json.dumps(one, sort_keys=True)}" for i, one in sorted(results.items()))
        + "\n}"
        for name, results in sorted(latest.items())
    ]
    beside = RESULTS.with_suffix(".new")
    beside.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    beside.replace(RESULTS)


def result(group: str, change: Change, verdict: str, test: str) -> Result:
    """What is kept of a run."""
    tests = judged_by(group, test if verdict in NOTICED else "")
    return {"line": change.line, "verdict": verdict, "test": test, "source": change.source, "tests": tests}


def holds(group: str, change: Change, one: Result | None) -> bool:
    """Is it a result of the code and the tests as they are now."""
    if one is None or one.get("source") != change.source:
        return False
    return bool(one["tests"] == judged_by(group, one["test"] if one["verdict"] in NOTICED else ""))


@cache
def judged_by(group: str, test: str) -> str:
    """Hash of the test that noticed a change; of all test files of the group where none did."""
    file, _, name = test.partition("::")
    if name and (ROOT / file).exists():
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        function = name.split("[", 1)[0]
        kept = [s for s in tree.body if not _is_test(s) or getattr(s, "name", "") == function]
        return short_hash("".join(map(ast.dump, kept)))
    files = sorted({ROOT / t.split("::")[0] for t in GROUPS[group].tests})
    return short_hash("".join(f.read_text(encoding="utf-8") for f in files if f.exists()))


def _is_test(statement: ast.stmt) -> bool:
    return getattr(statement, "name", "").startswith("test_")
