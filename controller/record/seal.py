"""seal.json: the SHA-256 of every file of a treatment's record, so that one changed byte in any of them is found.

summary.json is made from the journal alone and can be made again; what cannot (run.json, frames, the room's state, the
guard's events, the plant's truth, the ledger's entry) is only here. Whoever makes the files again vouches for what he
made: hashes of the others stay as they were, as long as the journal is the one that they were sealed with.

A seal finds damage and carelessness. Whoever may write the directory can also write a new seal: keep its own hash
somewhere else where that matters.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from controller.record.journal_format import canonical_json

SEAL = "seal.json"
FORMAT = 1

MADE = ("summary.json", "log.h5", "events.jsonl", "report.html", "record.dcm", "record-[0-9]*.dcm")
"""Made from the journal, as often as one likes."""
LEFT = (
    "journal.bin",
    "identity.dcm",
    "run.json",
    "run-[0-9]*.json",
    "truth.json",
    "faults.json",
    "ledger.sqlite",
    "room-state.npz",
    "guard-site.json",
    "guard-state.json",
    "guard-events.jsonl",
    "guard.log",
    "frames/part-[0-9]*.frames",
)
"""Left by the run and its processes: there once."""
ROOM = (
    "simulators-faults.json",
    "simulators-site.json",
    "simulators-state.live",
    "simulators-state.npz",
    "simulators.log",
    "truth.npz",
    ".simulators-state.*.new",
    ".truth.npz.*.new",
)
"""Of the simulated room: may lie there, may change and may go; no part of the record."""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_in(directory: Path) -> list[str]:
    """Every file below a directory but the seal and the simulated room's; anything that is no directory counts."""
    found = (p for p in directory.rglob("*") if not p.is_dir() or p.is_symlink())
    return sorted(n for p in found if (n := str(p.relative_to(directory))) != SEAL and not _like(n, ROOM))


def belongs(name: str) -> bool:
    """A treatment's record has files of this name: they are sealed."""
    return _like(name, (*MADE, *LEFT))


def write_seal(directory: Path, chain: str, renewed: Collection[str] = ()) -> bytes:
    """Content of the seal of a directory as it is now; `chain`: the journal's last hash.

    Of what was left by the run, hashes that were sealed with this very journal are kept, but for `renewed`.
    """
    old = read_seal(directory)
    kept = {}
    if old is not None and old["journal_chain_sha256"] == chain:
        kept = {n: h for n, h in old["files"].items() if belongs(n) and not _like(n, MADE) and n not in renewed}
    now = {name: file_sha256(directory / name) for name in files_in(directory) if belongs(name) and name not in kept}
    return _encoded({"format": FORMAT, "journal_chain_sha256": chain, "files": {**now, **kept}})


def read_seal(directory: Path) -> dict[str, Any] | None:
    """The seal; None where there is none, or it was changed."""
    try:
        content = (directory / SEAL).read_bytes()
        found: dict[str, Any] = json.loads(content)
        whole = content == _encoded({key: found[key] for key in ("format", "journal_chain_sha256", "files")})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if whole else None


def broken(directory: Path, chain: str | None) -> list[str]:
    """What is not as it was sealed, in sentences. `chain`: the journal's last hash; None: it cannot be read."""
    path = directory / SEAL
    if not path.exists():
        return [f"{path}: is missing: nothing proves the files; spotwise report makes one of what is there now"]
    seal = read_seal(directory)
    there = files_in(directory)
    wrong = [f"{directory / n}: does not belong to a treatment directory" for n in there if not belongs(n)]
    if seal is None:
        return [*wrong, f"{path}: was changed, or is no seal: nothing proves the other files"]
    if chain is not None and seal["journal_chain_sha256"] != chain:
        wrong.append(f"{path}: was made for another journal, or before it went on: run spotwise report")
    sealed = {n: h for n, h in seal["files"].items() if not _like(n, ROOM)}  # older seals have the room's
    wrong += [f"{directory / n}: came after the directory was sealed" for n in there if belongs(n) and n not in sealed]
    for name, digest in sorted(sealed.items()):
        file = directory / name
        if not file.is_file():
            wrong.append(f"{file}: is missing")
        elif (found := file_sha256(file)) != digest:
            wrong.append(f"{file}: SHA-256 {found[:16]}..., {SEAL} says {digest[:16]}...: changed since it was sealed")
    return wrong


def _like(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _encoded(content: dict[str, Any]) -> bytes:
    """With its own hash over all the rest, so that a changed seal is told from a changed file."""
    own = hashlib.sha256(canonical_json(content)).hexdigest()
    return (json.dumps({**content, "seal_sha256": own}, indent=1, sort_keys=True) + "\n").encode()
