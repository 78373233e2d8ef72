"""Runs the tests once as they are, then once for every change, each in a process of its own, forked with all loaded.

The change is made by exchanging a function's code, so that whoever has imported the function runs the changed one. Of
the tests those run that execute the changed function, first those that noticed a change of the same function before.
"""

from __future__ import annotations

import ast
import copy
import gc
import os
import select
import signal
import sys
import tempfile
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import pytest

from drivers.wires import frames
from interlocks import conditions
from tests.mutants.changes import Change, changed_code

FACTOR, LEAST_S = 8.0, 600.0
"""A changed run may take so many times what the tests took as they are, and so long at least: it may wait for ever."""
CPU_FACTOR, CPU_LEAST_S = 6.0, 4.0
"""The same for a single test, of the processor's time: it may turn for ever."""


class MutantLoop:
    """The plugin.

    `done(change, verdict, test, all_asked=...)` is told each result: killed, timeout, survived, untested or broken;
    `all_asked` is False where tests were left out for the time that they take.
    """

    def __init__(
        self,
        root: Path,
        choose: Callable[[], list[tuple[Any, Change]]],
        done: Callable[..., None],
        workers: int,
        noticed_by: dict[str, str],
        most_cpu_s: float,
    ) -> None:
        """`noticed_by`: the test that noticed a change (by its id) in a former run, to be asked first.

        `most_cpu_s`: tests that take longer altogether are left out, the slowest first.
        """
        self.root = root
        self.choose = choose
        self.done = done
        self.workers = workers
        self.noticed_by = noticed_by
        self.most_cpu_s = most_cpu_s
        self.failed: set[str] = set()
        self._now = ""
        self._child: int | None = None
        self._ran: defaultdict[tuple[str, int], set[str]] = defaultdict(set)
        self._starts: dict[tuple[str, str], int] = {}
        self._seconds: dict[str, float] = {}
        self._cpu_s: dict[str, float] = {}
        self._cut: set[str] = set()
        self._noticed: defaultdict[str, list[str]] = defaultdict(list)

    def pytest_configure(self) -> None:
        """A counter-example is enough: the smallest one is not looked for."""
        from hypothesis import Phase, settings  # noqa: PLC0415 - not before pytest has loaded its plugin

        settings.register_profile("mutants", phases=(Phase.explicit, Phase.generate), deadline=None, derandomize=True)
        settings.load_profile("mutants")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A failure of a child is what was hoped for, and its end."""
        if not report.failed:
            return
        self.failed.add(report.nodeid)
        if self._child is not None:
            os.write(self._child, report.nodeid.encode())
            os._exit(1)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Instead of pytest's own loop."""
        chosen = self.choose()
        restore = self._listen(chosen)
        for item in session.items:
            started, started_cpu = time.perf_counter(), time.process_time()
            self._now = item.nodeid
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            self._seconds[item.nodeid] = time.perf_counter() - started
            self._cpu_s[item.nodeid] = time.process_time() - started_cpu
        for function, code in restore:
            function.__code__ = code
        items = {item.nodeid: item for item in session.items if item.nodeid not in self.failed}
        gc.collect()
        gc.freeze()  # what every child shares stays shared
        self._attack(items, chosen)
        return True

    def _listen(self, chosen: list[tuple[Any, Change]]) -> list[tuple[FunctionType, CodeType]]:
        """Have every function say when it runs; what puts them back as they were."""
        restore = []
        for tree, file in {id(tree): (tree, change.file) for tree, change in chosen if change.function}.values():
            path = str(self.root / file)
            module = next(m for m in list(sys.modules.values()) if getattr(m, "__file__", None) == path)
            names = sorted({change.function for _, change in chosen if change.file == file and change.function})
            listening = copy.deepcopy(tree)
            for node in ast.walk(listening):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    said = ast.parse(f"_mutant_runs({node.lineno})").body[0]
                    node.body.insert(0, ast.copy_location(said, node))
            code = compile(ast.fix_missing_locations(listening), path, "exec")
            vars(module)["_mutant_runs"] = partial(self._runs, path)
            for name in names:
                function = _find(module, name)
                restore.append((function, function.__code__))
                function.__code__ = _inner(code, name)
                self._starts[path, name] = _line_of(tree, name)
        return restore

    def _runs(self, path: str, line: int) -> None:
        self._ran[path, line].add(self._now)

    def _tests(self, items: dict[str, pytest.Item], change: Change) -> list[str]:
        file = str(self.root / change.file)
        names = set(items)
        if change.function:
            names &= self._ran[file, self._starts[file, change.function]]
        before = self._noticed[change.file + change.function]
        first = self.noticed_by.get(change.id)
        ordered = sorted(names, key=lambda n: (n != first, -before.count(n), self._cpu_s[n], n))
        so_far = accumulate(self._cpu_s[n] for n in ordered)
        asked = [n for n, cpu_s in zip(ordered, so_far, strict=True) if cpu_s <= self.most_cpu_s or n == ordered[0]]
        if len(asked) < len(ordered):
            self._cut.add(change.id)
        return asked

    def _attack(self, items: dict[str, pytest.Item], chosen: list[tuple[Any, Change]]) -> None:
        running: dict[int, tuple[int, Change, float]] = {}
        waiting: Iterator[tuple[Any, Change]] = iter(chosen)
        more = True
        while more or running:
            while more and len(running) < self.workers:
                try:
                    tree, change = next(waiting)
                except StopIteration:
                    more = False
                    break
                names = self._tests(items, change)
                if not names:
                    self.done(change, "untested", "", all_asked=True)
                    continue
                limit_s = max(LEAST_S, FACTOR * sum(self._seconds[n] for n in names))
                read, write = os.pipe()
                pid = os.fork()
                if pid == 0:
                    os.close(read)
                    self._be_wrong(tree, change, [items[n] for n in names], write)
                os.close(write)
                running[read] = (pid, change, time.monotonic() + limit_s)
            ready, _, _ = select.select(list(running), [], [], 0.5)
            for read, (pid, change, deadline) in list(running.items()):
                late = time.monotonic() > deadline
                if read not in ready and not late:
                    continue
                if late and read not in ready:
                    os.kill(pid, signal.SIGKILL)
                self._take(read, pid, change, late and read not in ready)
                del running[read]

    def _take(self, read: int, pid: int, change: Change, late: bool) -> None:
        test = os.read(read, 4096).decode()
        os.close(read)
        _, status = os.waitpid(pid, 0)
        if test and not test.startswith("!"):
            self._noticed[change.file + change.function].append(test)
        code = os.waitstatus_to_exitcode(status)
        endless = late or code == -signal.SIGPROF
        verdict = "timeout" if endless else {0: "survived", 1: "killed"}.get(code, "broken")
        self.done(change, verdict, test, all_asked=change.id not in self._cut)

    def _be_wrong(self, tree: Any, change: Change, items: list[pytest.Item], write: int) -> None:
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            exchange(tree, change, self.root)
        except Exception as error:  # of a child that must never come back
            os.write(write, f"! {error!r}".encode())
            os._exit(3)
        self._child = write
        try:
            for item in items:
                limit_s = max(CPU_LEAST_S, CPU_FACTOR * self._cpu_s[item.nodeid])
                signal.setitimer(signal.ITIMER_PROF, limit_s)  # ends this process
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        except BaseException as error:  # a change may raise anything, SystemExit included
            os.write(write, f"{items[0].nodeid.split('::')[0]}: {type(error).__name__}".encode())
            os._exit(1)
        os._exit(0)


def exchange(tree: Any, change: Change, root: Path) -> None:
    """Make the change in this process. Raises `LookupError` where the function is not loaded."""
    conditions.matrix.cache_clear()
    conditions.by_number.cache_clear()
    if change.file.endswith(".toml"):
        changed = Path(tempfile.mkdtemp(prefix="mutant-")) / "matrix.toml"
        changed.write_text(change.node, encoding="utf-8")
        conditions.MATRIX = changed
        return
    file = str(root / change.file)
    code = changed_code(tree, change, file)
    module = next(m for m in list(sys.modules.values()) if getattr(m, "__file__", None) == file)
    if change.function:
        function = _find(module, change.function)
        function.__code__ = _inner(code, change.function)
        return
    name = change.what.split(":", 1)[0]
    old = getattr(module, name)
    fresh: dict[str, Any] = {"__name__": module.__name__, "__file__": file}
    exec(code, fresh)
    for other in list(sys.modules.values()):
        if getattr(other, "__dict__", {}).get(name) is old:
            setattr(other, name, fresh[name])


def _find(module: Any, name: str) -> FunctionType:
    found: Any = module
    for part in name.split("."):
        found = vars(found)[part]
    found = getattr(found, "fget", None) or getattr(found, "__func__", None) or found
    found = getattr(found, "__wrapped__", found)
    if not isinstance(found, FunctionType):
        raise LookupError(f"{name} is {type(found).__name__}, no plain function")
    return found


def _line_of(tree: ast.Module, name: str) -> int:
    nodes: Any = tree.body
    for part in name.split("."):
        node = next(n for n in nodes if getattr(n, "name", None) == part)
        nodes = node.body
    return int(node.lineno)


def _inner(code: CodeType, name: str) -> CodeType:
    for part in name.split("."):
        code = next(c for c in code.co_consts if isinstance(c, CodeType) and c.co_name == part)
    return code


def quicken() -> None:
    """Frames' checksums by zlib: the interpreted ones take most of the time (test_codecs has proved them equal)."""

    def crc32(words: Any, count: int) -> Any:
        return np.uint32(zlib.crc32(words[:count].tobytes()))

    frames.crc32_words = crc32
