"""Which code this is: one hash over every file that ships, so that a version number need not be believed."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("controller", "drivers", "interlocks", "simulators", "sites")
KINDS = frozenset({".py", ".toml", ".css", ".dcm"})


@cache
def code_sha256() -> str:
    """SHA-256 over names and contents of all files that ship."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*")):
            if path.suffix in KINDS and path.is_file():
                digest.update(f"{path.relative_to(ROOT)}\0".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
