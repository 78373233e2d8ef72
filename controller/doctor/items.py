"""One thing that was looked at: what was measured, what the limit is, and what that means."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["ok", "warn", "fail"]
ORDER: tuple[Verdict, ...] = ("ok", "warn", "fail")
WARN_SHARE = 0.5
"""Above this share of a limit a value is near it."""
DIGITS = 4


@dataclass(frozen=True, slots=True)
class Item:
    """One line of a qualification."""

    name: str
    verdict: Verdict
    measured: float | None = None
    """What is held against the limit; None where it could not be measured."""
    limit: float | None = None
    """None: for information."""
    unit: str = ""
    detail: str = ""
    """What else was found, in words."""
    advice: str = ""
    """What to do; empty where all is well."""

    def to_json(self) -> dict[str, Any]:
        """All of it, by name."""
        return asdict(self)


def rounded(value: float) -> float:
    """Four significant digits: more would be noise."""
    return float(f"{value:.{DIGITS}g}")


def at_most(name: str, measured: float, limit: float, unit: str, advice: str, detail: str = "") -> Item:
    """Fails above the limit, warns above half of it. NaN is no reading, and fails."""
    verdict: Verdict = "ok" if measured <= WARN_SHARE * limit else "warn" if measured <= limit else "fail"
    shown = None if measured != measured else rounded(measured)
    return Item(name, verdict, shown, rounded(limit), unit, detail, "" if verdict == "ok" else advice)


def stated(name: str, holds: bool, detail: str, advice: str, otherwise: Verdict = "fail") -> Item:
    """Something that is so, or is not."""
    return Item(name, "ok" if holds else otherwise, detail=detail, advice="" if holds else advice)


def worst(items: Iterable[Item]) -> Verdict:
    """The worst verdict; of nothing: fail, since nothing was shown."""
    return max((item.verdict for item in items), key=ORDER.index, default="fail")
