"""What all tables of a site file have in common, and the kinds of number that they hold."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
IonName = Literal["1H", "12C"]


class Table(BaseModel):
    """Base of all tables: immutable, no unknown keys, no silent type conversion."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def rising(values: Iterable[float]) -> bool:
    """Whether each value is above the one before."""
    return all(b > a for a, b in itertools.pairwise(values))
