"""Output QA of the day: a physicist's or operator's measured output factor, kept in a file, demanded before arming.

Only where the site says `qualification.output_qa = true`. The rule is one pure function.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from controller.doctor.qualification import qualification_path, read_qualification, write_qualification
from drivers.errors import Refused
from interlocks.roles import is_operator, stranger
from sites.schema import Site

FORMAT = 1


def output_qa_path(site: Site) -> Path:
    """Beside the qualification of the PC."""
    path = qualification_path(site)
    return path.with_name(f"output-qa-{site.name}.json")


def today() -> str:
    """Calendar day of the PC's local time, YYYY-MM-DD."""
    return datetime.now().astimezone().date().isoformat()


def why_no_output(stored: Mapping[str, Any] | None, *, site: str, date: str, limit: float) -> str:
    """Why arming must be refused; '' where the record holds. `limit`: of |output factor - 1|."""
    if stored is None:
        return "there is none"
    for name, wanted in (("format", FORMAT), ("site", site), ("date", date)):
        if stored.get(name) != wanted:
            return f"its {name} is {stored.get(name)!r}, wanted {wanted!r}"
    if not stored.get("operator"):
        return "nobody has put a name to it"
    factor = stored.get("output_factor")
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not abs(factor - 1.0) <= limit:
        return f"output factor {factor}, wanted 1 within {limit:g}"
    return ""


def demand_output_qa(site: Site) -> None:
    """Raises `Refused` where the site wants today's output QA and there is none."""
    if not site.qualification.output_qa:
        return
    path = output_qa_path(site)
    why = why_no_output(
        read_qualification(path), site=site.name, date=today(), limit=site.qualification.output_qa_limit
    )
    if why:
        raise Refused(
            f"no output QA of today ({path}): {why}; measure it, then spotwise doctor --site {site.name} --output-qa "
            "FACTOR --operator NAME"
        )


def enter_output_qa(site: Site, factor: float, operator: str) -> str:
    """Write today's record, good or bad; returns why it does not allow arming, '' where it does. Raises `Refused`."""
    if not is_operator(site, operator):
        raise Refused(stranger(site, operator))
    record = {
        "format": FORMAT, "site": site.name, "date": today(), "operator": operator, "output_factor": factor,
    }  # fmt: skip
    write_qualification(output_qa_path(site), record)
    return why_no_output(record, site=site.name, date=record["date"], limit=site.qualification.output_qa_limit)  # type: ignore[arg-type]
