"""Trips in the treatment record: the standard's InterlockSequence (PS3.3 C.8.8.21, 2021 and later), type 3.

Codes are Spotwise's own condition names under the private scheme 99SPOTWISE; there is no public list that fits.
"""

from __future__ import annotations

from typing import Any

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence

from controller.record.account import utc
from controller.record.journal_reader import Part

SCHEME = "99SPOTWISE"


def trips_by_field(part: Part) -> dict[int, list[dict[str, Any]]]:
    """Trips of a part under the index of the field that was last set up before them (-1: none yet)."""
    found: dict[int, list[dict[str, Any]]] = {}
    field = -1
    for event in part.events:
        if event["event"] in {"setup", "layer"}:
            field = int(event["field"])
        elif event["event"] == "trip":
            found.setdefault(field, []).append(event)
    return found


def interlock_items(part: Part, trips: list[dict[str, Any]]) -> list[Dataset]:
    """Items of InterlockSequence for these trips."""
    resets = [event for event in part.events if event["event"] == "reset"]
    return [_item(part, trip, _reset_of(trip, resets)) for trip in trips]


def describe(trip: dict[str, Any]) -> str:
    """One line: what latched, its value and its limit."""
    value, limit, unit = trip.get("value"), trip.get("limit"), trip.get("unit", "")
    first = ", first out" if trip.get("first_out") else ""
    if value is None:
        return f"{trip['id']}{first}"
    return f"{trip['id']}: {value} {unit}, limit {limit} {unit}{first}"


def _reset_of(trip: dict[str, Any], resets: list[dict[str, Any]]) -> dict[str, Any] | None:
    later = (r for r in resets if r["t_ns"] >= trip["t_ns"] and trip["id"] in r.get("ids", [trip["id"]]))
    return next(later, None)


def _item(part: Part, trip: dict[str, Any], reset: dict[str, Any] | None) -> Dataset:
    item = Dataset()
    item.InterlockDateTime = utc(part.header, int(trip.get("t_cause_ns", trip["t_ns"]))).strftime("%Y%m%d%H%M%S.%f")
    item.InterlockCodeSequence = DicomSequence([_code(str(trip["id"]), str(trip["id"]).replace("_", " ").lower())])
    item.InterlockDescription = describe(trip)
    item.InterlockOriginDescription = "Spotwise interlock matrix"
    item.InterlockResolutionUserSequence = DicomSequence([])
    if reset is None:
        item.InterlockResolutionCodeSequence = DicomSequence([_code("NOT_RESET", "not reset in this part")])
        return item
    item.InterlockResolutionCodeSequence = DicomSequence([_code("RESET", "reset by a named operator")])
    if reset.get("operator"):
        user = Dataset()
        user.PersonIdentificationCodeSequence = DicomSequence([_code(str(reset["operator"]), str(reset["operator"]))])
        user.InstitutionName = "not stated"
        item.InterlockResolutionUserSequence = DicomSequence([user])
    return item


def _code(value: str, meaning: str) -> Dataset:
    code = Dataset()
    if len(value) <= 16:
        code.CodeValue = value
    else:
        code.LongCodeValue = value
    code.CodingSchemeDesignator = SCHEME
    code.CodeMeaning = meaning[:64]
    return code
