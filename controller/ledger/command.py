"""`spotwise ledger FILE`: what the ledger says, for people and programs, and what can be taken out of it."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from controller.cli_text import print_json, say
from controller.ledger.copies import copy_records, write_csv
from controller.ledger.course import CourseLedger
from drivers.errors import Refused


def ledger(options: argparse.Namespace) -> int:
    """List, export, or close a fraction. 3 where a record that belongs to it is missing or was changed."""
    with CourseLedger(options.file, make=False) as book:
        if options.close is not None:
            book.close_fraction(options.close, options.operator or "", options.reason or "")
        elif options.operator or options.reason:
            raise Refused("--operator and --reason say who closes a fraction, and why: they go with --close TREATMENT")
        courses = courses_of(book)
        if options.csv is not None:
            write_csv(book, options.csv)
        missing = [] if options.dicom is None else copy_records(book, options.dicom)
    if options.json:
        print_json({"ledger": str(options.file), "courses": courses, "missing": missing})
    else:
        say(format_courses(courses))
        for text in missing:
            print(f"spotwise: {text}", file=sys.stderr)
    return Refused.exit_status if missing else 0


def courses_of(book: CourseLedger) -> list[dict[str, Any]]:
    """Every course with its fractions and beams; patients by their pseudonyms."""
    found: dict[int, dict[str, Any]] = {}
    of_course = ("pseudonym", "label", "fraction_group", "fractions_planned")
    for row in book.fractions():
        entry = found.setdefault(
            row["course"], {"course": row["course"], **{k: row[k] for k in of_course}, "fractions": [], "beams": []}
        )
        entry["fractions"].append({k: v for k, v in row.items() if k not in of_course and k != "course"})
    for row in book.beams():
        if row["course"] in found:
            said = {k: v for k, v in row.items() if k not in of_course and k != "course"}
            found[row["course"]]["beams"].append(said)
    return list(found.values())


def format_courses(courses: list[dict[str, Any]]) -> str:
    """The same for people."""
    lines = []
    for course in courses:
        planned = course["fractions_planned"]
        lines.append(
            f"{course['pseudonym']}  plan {course['label']!r}, group {course['fraction_group']}, "
            f"{planned if planned is not None else 'any number of'} fractions planned"
        )
        for fraction in course["fractions"]:
            closed = f" by {fraction['closed_by']}: {fraction['closed_why']}" if fraction["closed_by"] else ""
            lines.append(
                f"  fraction {fraction['fraction']:<3} {fraction['outcome']}{closed}, {fraction['begun'][:16]}, "
                f"parts: {fraction['parts']}{', simulated' if fraction['simulated'] else ''}, "
                f"treatment {fraction['treatment']}, {fraction['directory']}"
            )
        for beam in course["beams"]:
            lines.append(
                f"  beam {beam['number']} {beam['name']}: {beam['meterset_delivered']:.2f} {beam['unit']} of "
                f"{beam['meterset_planned']:.2f} a fraction, {beam['fractions']} fractions completed"
            )
    return "\n".join(lines) if lines else "no fraction was entered yet"
