"""`spotwise export DIR`: what is written where, and what is missing for it."""

from __future__ import annotations

import argparse

from controller.cli_text import print_json, say
from controller.record.export import write_csv, write_parquet
from controller.record.log_reader import open_log
from drivers.errors import BadInput


def export(options: argparse.Namespace) -> int:
    """Export a treatment's log."""
    if options.csv is None and options.parquet is None:
        raise BadInput("export: say where to: --csv DIR, --parquet FILE, or both")
    with open_log(options.directory) as log:
        written = [] if options.parquet is None else write_parquet(log, options.parquet)
        written += [] if options.csv is None else write_csv(log, options.csv)
        counts = {"visits": len(log.visits["visit"]), "rows": log.row_count}
    if options.json:
        print_json({"files": [str(path) for path in written], **counts})
    else:
        say("\n".join([f"{counts['visits']} visits, {counts['rows']} rows", *(str(path) for path in written)]))
    return 0
