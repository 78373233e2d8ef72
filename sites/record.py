"""The table that says where a room keeps its record of courses, and under which secret patients are known there."""

from __future__ import annotations

from sites.table import Table


class RecordRules(Table):
    """Course ledger and pseudonyms. Paths are relative to the working directory, or absolute."""

    ledger_file: str | None = None
    """The room's course ledger: for runs in which every device is real, and for them alone."""
    labels_unique: bool = True
    """A plan label means one patient: the same label in another patient's plan is refused."""
    pseudonym_key_file: str | None = None
    """At least 16 secret bytes, readable by their owner alone; made with the first use. Needed with any real device."""
