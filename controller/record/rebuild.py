"""Makes everything that follows from a journal: log, DICOM records, summary, events and report; and checks it.

The end of a delivery and `spotwise report DIR` run the same code, so a treatment that crashed gets the same files as
one that ended well. From `journal.bin` alone, with the names of `identity.dcm` and, for simulated runs, the plant's
true figures that the caller left in `truth.json`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from controller.record.faults_played import FAULTS, read_played
from controller.record.identity import encoded, read_identity
from controller.record.journal_format import canonical_json
from controller.record.journal_reader import Journal, read_journal
from controller.record.log import write_log
from controller.record.origin import statements
from controller.record.read_back import read_back
from controller.record.report import write_report
from controller.record.seal import SEAL, broken, file_sha256, write_seal
from controller.record.summary import summarise
from controller.record.treatment_record import build_records, record_name, write_records
from controller.record.unclosed import sentence, unclosed
from drivers.errors import BadInput

JOURNAL = "journal.bin"
IDENTITY = "identity.dcm"
TRUTH = "truth.json"
SUMMARY = "summary.json"
EVENTS = "events.jsonl"
LOG = "log.h5"
REPORT = "report.html"


def rebuild(directory: Path, renewed: Collection[str] = ()) -> dict[str, Any]:
    """Write all files of a treatment directory from its journal, and seal it; returns the summary.

    `renewed`: files left by the run that were rightly changed since the last seal of this journal.

    Raises `BadInput`: no journal, a damaged one, or a disk that refuses. Files are replaced whole, so a
    crash in here leaves old files or new ones, and the journal untouched.
    """
    with read_journal(directory / JOURNAL) as journal:
        summary = summarise(journal, _truth(directory), read_played(directory))
        _replace(directory / EVENTS, b"".join(events_lines(journal)))
        with _Fresh(directory / LOG) as path:
            write_log(journal, path)
        for old in _records(directory):
            old.unlink()
        written = write_records(journal, read_identity(directory / IDENTITY), directory)
        with _Fresh(directory / REPORT) as path:
            write_report(journal, summary, path)
        chain = journal.last_hash.hex()
    names = [JOURNAL, LOG, EVENTS, REPORT, *(path.name for path in written)]
    names += [name for name in (TRUTH, FAULTS) if (directory / name).exists()]
    summary["files"] = {name: file_sha256(directory / name) for name in names}
    _replace(directory / SUMMARY, _summary_bytes(summary))
    try:
        seal = write_seal(directory, chain, renewed)
    except OSError as error:
        raise BadInput(f"{directory}: cannot be sealed: {error}") from error
    _replace(directory / SEAL, seal)
    return summary


def wants_treatment(directory: Path) -> None:
    """Raise `BadInput` unless this is, or once was, a treatment directory."""
    if not directory.is_dir():
        raise BadInput(f"{directory}: no such directory")
    if not any((directory / name).exists() for name in (JOURNAL, SEAL, SUMMARY)):
        raise BadInput(f"{directory}: no treatment directory: it has no {JOURNAL}")


def verify_directory(directory: Path) -> list[str]:
    """Prove a treatment directory whole and untouched; returns what is wrong, in sentences. Empty: nothing."""
    return prove(directory)[0]


def prove(directory: Path) -> tuple[list[str], list[str]]:
    """What is wrong with a treatment directory, and what is worth knowing or cannot be told here.

    The journal's CRCs, sequence and chain; a closed last part; every file's hash; summary, events and records made anew
    from the journal and compared (log and report by hash alone); plan, site, patient and ledger entry against what
    the journal says of them. Raises `BadInput`: not a treatment directory.
    """
    wants_treatment(directory)
    try:
        journal = read_journal(directory / JOURNAL)
    except BadInput as error:
        return [str(error), *broken(directory, None)], []
    with journal:
        wrong = [] if journal.torn is None else [journal.torn]
        wrong += broken(directory, journal.last_hash.hex())
        if not journal.parts:
            return [*wrong, f"{directory / JOURNAL}: holds no HEADER: nothing was recorded"], []
        wrong += [f"{directory / JOURNAL}: {sentence(part)}" for part in unclosed(journal)]
        try:
            wrong += _compare_summary(directory, journal)
            wrong += _compare_records(directory, journal)
        except BadInput as error:
            wrong.append(str(error))
        if (directory / EVENTS).exists() and (directory / EVENTS).read_bytes() != b"".join(events_lines(journal)):
            wrong.append(f"{directory / EVENTS}: differs from the events of the journal")
        again = read_back(journal, sorted(_records(directory), key=_number), directory / LOG)
        wrong += [*again.problems, *again.echoes]
        problems, notes = statements(directory, journal)
    return [*wrong, *problems], notes


def _compare_summary(directory: Path, journal: Journal) -> list[str]:
    """summary.json against the one that the journal gives, to the byte."""
    path = directory / SUMMARY
    try:
        content = path.read_bytes()
        summary = json.loads(content)
        listed = {str(name): str(digest) for name, digest in summary.pop("files").items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{path}: cannot be used: {error!r}; run report"]
    expected = summarise(journal, _truth(directory), read_played(directory))
    del expected["files"]
    wrong = [
        f"{path}: {key} says {summary.get(key)!r}, the journal says {expected.get(key)!r}"
        for key in sorted(expected.keys() | summary.keys())
        if summary.get(key) != expected.get(key)
    ]
    if not wrong and content != _summary_bytes({**expected, "files": listed}):
        wrong.append(f"{path}: says what the journal says, in other bytes: it was changed")
    return [*wrong, *_files(directory, listed)]


def _summary_bytes(summary: dict[str, Any]) -> bytes:
    return (json.dumps(summary, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def events_lines(journal: Journal) -> Iterator[bytes]:
    """events.jsonl: every event with its part, one canonical JSON object a line."""
    for part in journal.parts:
        for event in part.events:
            yield canonical_json({**event, "part": part.number}) + b"\n"


class _Fresh:
    """A new file under another name, which takes the place of the old one when it is whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._new = path.with_name(path.name + ".new")

    def __enter__(self) -> Path:
        return self._new

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._new.replace(self._path)
        else:
            self._new.unlink(missing_ok=True)


def _replace(path: Path, content: bytes) -> None:
    try:
        with _Fresh(path) as new:
            new.write_bytes(content)
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror}") from error


def _records(directory: Path) -> list[Path]:
    return [p for p in directory.iterdir() if p.name == record_name(1) or p.match("record-[0-9]*.dcm")]


def _number(record: Path) -> int:
    """1 of record.dcm, n of record-n.dcm."""
    return int(record.stem.partition("-")[2] or 1)


def _truth(directory: Path) -> dict[str, Any] | None:
    path = directory / TRUTH
    if not path.exists():
        return None
    try:
        truth = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(truth, dict):
        raise BadInput(f"{path}: wanted a JSON object")
    return truth


def _files(directory: Path, listed: dict[str, str]) -> list[str]:
    wrong = []
    for name, digest in sorted(listed.items()):
        path = directory / name
        if not path.is_file():
            wrong.append(f"{path}: is missing")
        elif (found := file_sha256(path)) != digest:
            wrong.append(
                f"{path}: SHA-256 {found[:16]}..., summary.json says {digest[:16]}...: changed since it was made"
            )
    return wrong


def _compare_records(directory: Path, journal: Journal) -> list[str]:
    wrong = []
    wanted = build_records(journal, read_identity(directory / IDENTITY))
    for number, record in enumerate(wanted, start=1):
        path = directory / record_name(number)
        if not path.is_file():
            wrong.append(f"{path}: is missing")
        elif path.read_bytes() != encoded(record):
            wrong.append(f"{path}: differs from the record that the journal gives")
    if len(_records(directory)) > len(wanted):
        wrong.append(f"{directory}: more records than the journal gives ({len(wanted)})")
    return wrong
