"""The guards of the test-suite themselves: each is shown to bite."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ports

ROOT = Path(__file__).parents[1]


def run(folder: Path, source: str, *options: str, **environment: str) -> str:
    """Output of pytest on one file of its own, under this suite's conftest and settings."""
    tests = folder / "tests"
    tests.mkdir()
    for part in ("conftest.py", "ports.py"):
        shutil.copy(ROOT / "tests" / part, tests)
    shutil.copy(ROOT / "pyproject.toml", folder)
    (tests / "test_one.py").write_text(source, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rs", *options],
        cwd=folder,
        env={**{k: v for k, v in os.environ.items() if k not in ("CI", "SPOTWISE_SHARED")}, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


LEAK = """
import asyncio

async def test_leaks():
    global task
    task = asyncio.create_task(asyncio.sleep(60), name="forgotten")

async def test_is_tidy():
    await asyncio.create_task(asyncio.sleep(0))
"""


def test_a_task_left_running_fails_the_test_that_left_it(tmp_path: Path) -> None:
    output = run(tmp_path, LEAK)
    assert "2 passed, 1 error" in output
    assert "tasks left running: forgotten" in output


MISSING = """
def test_wants(program):
    program("no-such-program-anywhere")
"""


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["one process", "two processes"])
def test_a_missing_program_skips_loudly(tmp_path: Path, options: tuple[str, ...]) -> None:
    output = run(tmp_path, MISSING, *options)
    assert "1 skipped" in output
    assert "NOT TESTED, programs missing: no-such-program-anywhere" in output


def test_a_missing_program_fails_in_ci(tmp_path: Path) -> None:
    assert "1 failed" in run(tmp_path, MISSING, CI="true")


def test_missing_reference_data_skip_with_the_reason(tmp_path: Path) -> None:
    output = run(tmp_path, "def test_wants(shared):\n    assert shared.is_dir()\n", SPOTWISE_SHARED="/nowhere")
    assert "1 skipped" in output
    assert "no reference data at /nowhere" in output


def test_a_warning_is_an_error(tmp_path: Path) -> None:
    assert "1 failed" in run(tmp_path, "import warnings\ndef test_warns():\n    warnings.warn('old')\n")


def test_no_port_is_given_twice_here_or_to_another_process_that_runs_now() -> None:
    mine = [ports.free_port() for _ in range(500)]
    program = "from tests.ports import free_port; print([free_port() for _ in range(5000)])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    theirs = json.loads(done.stdout)
    assert len(set(mine)) == 500
    assert len(set(theirs)) == 5000
    assert not set(mine) & set(theirs)
    sites = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "sites").glob("*.toml"))
    assert not set(mine + theirs) & {int(port) for port in re.findall(r"port = (\d+)", sites)}
