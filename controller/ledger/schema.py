"""The course ledger's file: SQLite, its tables, its checks at opening, and its backup.

Patients are known by their pseudonym everywhere but in the table `patient`, which alone says who that is; views,
exports and messages never read it. Metersets are in the unit of their field; particles are the physical truth.
"""

from __future__ import annotations

import os
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

from drivers.errors import BadInput

VERSION = 1
APPLICATION_ID = 0x5350574C
"""SPWL: so that no other SQLite file is taken for a ledger."""

TABLES = """
CREATE TABLE about (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    simulated INTEGER NOT NULL,
    key_check TEXT NOT NULL
) STRICT;

CREATE TABLE patient (
    pseudonym TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    id TEXT NOT NULL,
    birth_date TEXT NOT NULL
) STRICT;

CREATE TABLE course (
    course INTEGER PRIMARY KEY,
    pseudonym TEXT NOT NULL REFERENCES patient,
    label TEXT NOT NULL,
    sop_instance_uid TEXT NOT NULL,
    fraction_group INTEGER NOT NULL,
    plan_sha256 TEXT NOT NULL,
    fractions_planned INTEGER,
    UNIQUE (pseudonym, plan_sha256)
) STRICT;

CREATE TABLE beam (
    course INTEGER NOT NULL REFERENCES course,
    field INTEGER NOT NULL,
    number INTEGER NOT NULL,
    name TEXT NOT NULL,
    unit TEXT NOT NULL,
    meterset_planned REAL NOT NULL,
    PRIMARY KEY (course, field)
) STRICT;

CREATE TABLE fraction (
    course INTEGER NOT NULL REFERENCES course,
    fraction INTEGER NOT NULL CHECK (fraction > 0),
    treatment TEXT NOT NULL UNIQUE,
    directory TEXT NOT NULL,
    begun TEXT NOT NULL,
    outcome TEXT NOT NULL CHECK (outcome IN ('under way', 'interrupted', 'completed', 'closed')),
    closed_by TEXT NOT NULL DEFAULT '',
    closed_why TEXT NOT NULL DEFAULT '',
    simulated INTEGER NOT NULL,
    PRIMARY KEY (course, fraction)
) STRICT;

CREATE TABLE part (
    treatment TEXT NOT NULL REFERENCES fraction (treatment),
    part INTEGER NOT NULL,
    operator TEXT NOT NULL,
    outcome TEXT NOT NULL,
    spots INTEGER NOT NULL,
    journal_hash TEXT NOT NULL,
    PRIMARY KEY (treatment, part)
) STRICT;

CREATE TABLE spot (
    treatment TEXT NOT NULL,
    part INTEGER NOT NULL,
    field INTEGER NOT NULL,
    layer INTEGER NOT NULL,
    spot INTEGER NOT NULL,
    particles REAL NOT NULL,
    meterset REAL NOT NULL,
    counts_1 INTEGER NOT NULL,
    counts_2 INTEGER NOT NULL,
    PRIMARY KEY (treatment, part, field, layer, spot),
    FOREIGN KEY (treatment, part) REFERENCES part ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
"""


def open_ledger(path: Path, *, make: bool = True) -> sqlite3.Connection:
    """Open a ledger, or make one. Raises `BadInput`: none, damaged, of another version, or not writable."""
    if not make and not path.is_file():
        raise BadInput(f"{path}: no such ledger")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists() or path.stat().st_size == 0
        if new:
            # the file names patients: nobody but its owner reads it
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(path, isolation_level=None, timeout=10.0)
    except (OSError, sqlite3.Error) as error:
        raise BadInput(f"{path}: the ledger cannot be opened: {error}") from error
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")
        if new:
            _make(connection)
        else:
            _check(path, connection)
    except sqlite3.Error as error:
        connection.close()
        raise BadInput(f"{path}: damaged, or no ledger: {error}; take the backup beside it") from error
    except BaseException:
        connection.close()
        raise
    return connection


def _make(connection: sqlite3.Connection) -> None:
    connection.executescript(f"BEGIN; {TABLES} PRAGMA application_id = {APPLICATION_ID}; COMMIT;")
    connection.execute(f"PRAGMA user_version = {VERSION}")


def _check(path: Path, connection: sqlite3.Connection) -> None:
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise BadInput(f"{path}: an SQLite file, but no ledger of Spotwise; give another --ledger")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != VERSION:
        raise BadInput(f"{path}: ledger of version {version}, this Spotwise reads version {VERSION}")
    for pragma in ("integrity_check", "foreign_key_check"):
        said = [str(row[0]) for row in connection.execute(f"PRAGMA {pragma}")]
        if said not in ([], ["ok"]):
            raise BadInput(f"{path}: damaged ({pragma}: {said[0]}); take the backup beside it")


def backup_is_due(path: Path) -> bool:
    """No backup of today is there."""
    try:
        made = datetime.fromtimestamp(_backup_of(path).stat().st_mtime, UTC)
    except OSError:
        return True
    return made.date() != datetime.now(UTC).date()


def _backup_of(path: Path) -> Path:
    return path.with_name(path.name + ".backup")


def back_up(connection: sqlite3.Connection, path: Path) -> Path:
    """Copy the ledger as it is now to `path` + '.backup', whole or not at all. Returns where. Raises `BadInput`."""
    target = _backup_of(path)
    fresh = path.with_name(path.name + ".backup.new")
    try:
        fresh.unlink(missing_ok=True)
        os.close(os.open(fresh, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        copy = sqlite3.connect(fresh)
        try:
            connection.backup(copy)
        finally:
            copy.close()
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        fresh.replace(target)
    except (OSError, sqlite3.Error) as error:
        raise BadInput(f"{target}: the ledger's backup cannot be written: {error}") from error
    return target
