"""What all tests share: leaked tasks fail, missing programs are loud, and reference data has one address."""

from __future__ import annotations

import asyncio
import inspect
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests import ports

ROOT = Path(__file__).parents[1]

# One cache of compiled code for all runs, in a folder that git ignores; subprocesses inherit it.
os.environ.setdefault("NUMBA_CACHE_DIR", str(ROOT / ".pytest_cache" / "numba"))

_missing: set[str] = set()


@pytest.fixture(autouse=True)
def _no_leaks(request: pytest.FixtureRequest) -> None:
    """Asks for the leak check before any other fixture of an async test, so that it is torn down after them."""
    if inspect.iscoroutinefunction(inspect.unwrap(getattr(request, "function", None) or (lambda: None))):
        request.getfixturevalue("leaked_tasks_fail")


@pytest.fixture
async def leaked_tasks_fail() -> AsyncIterator[None]:
    """Fails an async test that leaves tasks of its loop behind."""
    before = asyncio.all_tasks()
    yield
    for _ in range(5):  # let what has just ended, end
        await asyncio.sleep(0)
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left:
        pytest.fail("tasks left running: " + "; ".join(sorted(f"{t.get_name()} {t.get_coro()!r}" for t in left)))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference plans and records; skips where it is missing."""
    folder = Path(os.environ.get("SPOTWISE_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder}; set SPOTWISE_SHARED to its folder")
    return folder


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """`program("mosquitto")` is its path; a missing one skips loudly, and fails where CI=true."""

    def find(name: str) -> str:
        path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin") or _in_venv(name)
        if path is None:
            _missing.add(name)
            message = f"program {name!r} is not installed; .ci/run says which package it comes from"
            if os.environ.get("CI", "").lower() == "true":
                pytest.fail(message)
            pytest.skip(message)
        return path

    return find


def _in_venv(name: str) -> str | None:
    return shutil.which(name, path=str(ROOT / ".venv" / "bin"))


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Finds free ports on loopback, each given once."""
    return ports.free_port


def pytest_collection_finish(session: pytest.Session) -> None:
    """Compile the virtual world before the first test that needs it, so that no test's timeout pays for it."""
    modules = {item.getparent(pytest.Module) for item in session.items}
    needed = any(
        module is not None and (hasattr(module.obj, "run_delivery") or hasattr(module.obj, "play"))
        for module in modules
    )
    if needed and not session.config.option.collectonly:
        from controller.compose import VirtualWorld  # noqa: PLC0415  (most runs need none)
        from sites.loader import load_site  # noqa: PLC0415

        VirtualWorld(load_site("carbon-fixed"), 0).run_to(1_000_000)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """One of several test processes tells the first one which programs it missed."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["missing"] = sorted(_missing)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """The first process hears what another one missed."""
    _missing.update(getattr(node, "workeroutput", {}).get("missing", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say once more what was not tested for lack of a program."""
    if _missing:
        terminalreporter.write_sep("!", "NOT TESTED, programs missing: " + ", ".join(sorted(_missing)), red=True)
