"""A campaign's folder: what it is, one file a finished job; a campaign that was cut short goes on where it was.

A job's file appears whole or not at all. A folder of another campaign (other definition, size, seed or version) is
refused: results of two campaigns are not one campaign.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from controller.campaign.definition import Definition
from controller.campaign.jobs import Job
from drivers.errors import BadInput

HEAD = "campaign-of.json"
JOBS = "jobs"


class Store:
    """Results of a campaign on disk."""

    def __init__(self, folder: Path, definition: Definition, size: str, seed: int) -> None:
        """Begin a campaign, or go on with one. Raises `BadInput` where the folder holds anything else."""
        self.folder = folder
        head = {"definition": definition.sha256, "size": size, "seed": seed, "version": version("spotwise")}
        self.head: dict[str, Any] = head
        path = folder / HEAD
        try:
            (folder / JOBS).mkdir(parents=True, exist_ok=True)
            if path.exists():
                self._same(path, head)
            elif any(f.name != JOBS for f in folder.iterdir()) or any((folder / JOBS).iterdir()):
                raise BadInput(f"{folder}: not empty, and no campaign; give another --out")
            else:
                _write(path, head)
        except (OSError, ValueError) as error:
            raise BadInput(f"{folder}: cannot be used: {error}; give another --out") from error

    @staticmethod
    def _same(path: Path, head: dict[str, Any]) -> None:
        before = json.loads(path.read_text(encoding="utf-8"))
        for key, value in head.items():
            if before.get(key) != value:
                raise BadInput(f"{path.parent}: holds a campaign of {key} {before.get(key)!r}, not {value!r}")

    def _path(self, job: Job) -> Path:
        return self.folder / JOBS / f"{job.name}.json"

    def missing(self, jobs: Iterable[Job]) -> list[Job]:
        """Those that are still to be played."""
        return [job for job in jobs if not self._path(job).exists()]

    def put(self, job: Job, result: dict[str, Any]) -> None:
        """Keep a result."""
        _write(self._path(job), result)

    def results(self, jobs: Iterable[Job]) -> Iterator[dict[str, Any]]:
        """What is there, in the jobs' order."""
        for job in jobs:
            path = self._path(job)
            if path.exists():
                result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
                yield result


def _write(path: Path, value: dict[str, Any]) -> None:
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    new.replace(path)
