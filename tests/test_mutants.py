"""The harness that removes protective mechanisms: a seeded handful of them, each noticed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.mutants.changes import changed_code, changes_of
from tests.mutants.rows import matrix_changes

ROOT = Path(__file__).parents[1]


def test_a_handful_of_missing_mechanisms_is_noticed() -> None:
    command = [sys.executable, "-m", "tests.mutants", "run", "invariant", "--sample", "8", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=True)
    verdicts = json.loads(done.stdout.splitlines()[-1])
    assert len(verdicts) == 8
    assert {one["verdict"] for one in verdicts.values()} == {"killed"}, done.stderr
    assert all(one["test"].startswith("tests/test_invariant.py::") for one in verdicts.values())


def test_every_change_changes_the_code_and_leaves_the_tree_as_it_was() -> None:
    path = ROOT / "interlocks" / "invariant.py"
    tree, changes = changes_of(path, ROOT)
    before = compile(tree, "x", "exec")
    assert len({change.id for change in changes}) == len(changes) > 20
    for change in changes:
        assert changed_code(tree, change, "x") != before, change.id
    assert compile(tree, "x", "exec") == before


def test_each_condition_of_the_matrix_is_removed_once() -> None:
    path = ROOT / "interlocks" / "matrix.toml"
    _, changes = matrix_changes(path, ROOT)
    rows = path.read_text(encoding="utf-8").count("[[condition]]")
    removed = [change for change in changes if change.what.endswith(": removed")]
    assert len(removed) == rows
    assert all(change.node.count("[[condition]]") == rows - 1 for change in removed)
