"""How strongly a fault is tried: its example, the ends of its ranges, and values between, all from the catalogue."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

from controller.compose import CatalogueFault, CatalogueParameter

Values = dict[str, float | str]
PLACING = ("at", "for_s")
MANY = 100.0
"""A range over more than this factor is drawn from by ratio."""


def example_values(kind: CatalogueFault) -> Values:
    """All parameters as the catalogue's example has them."""
    return {name: kind.example.get(name, p.default) for name, p in kind.parameters.items()}


def draw_values(kind: CatalogueFault, count: int, numbers: random.Random) -> list[Values]:
    """`count` sets of parameters: every word of a choice equally often; numbers at the example, at an end, between."""
    columns = {name: _column(p, example_values(kind)[name], count, numbers) for name, p in kind.parameters.items()}
    return [{name: column[at] for name, column in columns.items()} for at in range(count)]


def _column(p: CatalogueParameter, example: float | str, count: int, numbers: random.Random) -> list[float | str]:
    values: list[float | str] = []
    if p.choices:
        while len(values) < count:
            words = list(p.choices)
            numbers.shuffle(words)
            values += words
        return values[:count]
    assert not isinstance(example, str)
    while len(values) < count:
        some: list[float | str] = [example, example, p.most, p.least, _between(p, example, numbers)]
        numbers.shuffle(some)
        values += some
    return values[:count]


def _between(p: CatalogueParameter, example: float, numbers: random.Random) -> float:
    """Between the example and the stronger end of the range."""
    low, high = sorted((example, p.most if p.most > example else p.least))
    if low > 0 and high / low > MANY:
        value = math.exp(numbers.uniform(math.log(low), math.log(high)))
    else:
        value = numbers.uniform(low, high)
    whole = all(float(v).is_integer() for v in (example, p.least, p.most))
    return float(round(value)) if whole else float(f"{value:.4g}")


def is_weaker(kind: CatalogueFault, values: Mapping[str, float | str]) -> bool:
    """Whether a number of the fault is nearer to doing nothing than in the catalogue's example, which must be found."""
    example = example_values(kind)
    for deed in kind.deeds:
        name = deed.amount
        if deed.how == "kind" or not isinstance(name, str):
            continue
        value, shown = float(values[name]), float(example[name])
        if _strength(deed.how, value) < _strength(deed.how, shown) * (1 - 1e-9) or (
            deed.how != "scale" and value * shown < 0
        ):
            return True
        if deed.how == "scale" and (value - 1.0) * (shown - 1.0) < 0:
            return True
    return any(_lesser(kind, name, values, example) for name in ("ms", "delay_s", "delay_ms", "every", "count", "nth"))


def _strength(how: str, value: float) -> float:
    if how == "scale":
        return abs(math.log(value)) if value > 0 else math.inf
    return abs(value)


def _lesser(kind: CatalogueFault, name: str, values: Mapping[str, float | str], example: Values) -> bool:
    """Of a wire, stream or host: shorter, or fewer."""
    if name not in kind.parameters or not any(deed.how == "kind" for deed in kind.deeds):
        return False
    value, shown = float(values[name]), float(example[name])
    if name in ("every", "nth"):
        return value > shown  # only each so many-th, only one
    if name == "count":
        return value > 0 and (shown == 0 or value < shown)
    return value < shown


def scenario_text(kind: CatalogueFault, values: Mapping[str, float | str], at: Mapping[str, Any]) -> str:
    """One fault as a scenario file."""
    entry: dict[str, Any] = {"name": kind.name, **values, "at": dict(at)}
    if "for_s" in kind.example:
        entry["for_s"] = kind.example["for_s"]
    return fault_text(entry)


def fault_text(entry: Mapping[str, Any]) -> str:
    """A `[[fault]]` table of TOML."""
    return "[[fault]]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in entry.items())


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)
