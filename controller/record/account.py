"""Adds up what the journal says was delivered, spot by spot, for the record, the summary and the report.

One place decides what counts as delivered and where: metersets are sums of the visits of all paintings and parts; a
spot is complete when every visit that was programmed for it has ended at its preset; its position is the
mean of its visits' strip centroids weighted with counts, or, where the charge was too small for one, of the
engine's measured currents. Planned positions never stand in for measured ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.machine.program import VISIT_PLAN_DTYPE
from controller.record.journal_reader import Part, Program
from controller.record.schema import QUALITY_NO_POSITION, VISIT_PARTIAL
from drivers.errors import BadInput

Floats = NDArray[np.float64]

SOURCE_NONE = 0
"""Nothing was delivered at the spot."""
SOURCE_STRIPS = 1
"""Position by the strip planes."""
SOURCE_CURRENTS = 2
"""Position by the engine's measured currents."""
SOURCE_UNKNOWN = 3
"""Delivered, but nothing measured its position."""


@dataclass(frozen=True, slots=True, eq=False)
class LayerAccount:
    """What was planned and delivered in one layer; arrays have one entry a spot of the plan, zero-weight ones too."""

    field: int
    layer: int
    plan: dict[str, Any]
    """The layer of the plan, as in the header."""
    particles_per_mu: float
    planned: Floats
    """Meterset, all paintings, in the field's unit."""
    x_planned_mm: Floats
    y_planned_mm: Floats
    meterset_1: Floats
    meterset_2: Floats
    particles_1: Floats
    counts_1: NDArray[np.int64]
    x_mm: Floats
    """Measured; NaN where `source` is SOURCE_NONE or SOURCE_UNKNOWN."""
    y_mm: Floats
    source: NDArray[np.uint8]
    complete: NDArray[np.bool_]
    """Every programmed visit ended at its preset; False for zero-weight spots."""
    t_first_ns: NDArray[np.int64]
    """Start of the spot's first visit; -1: none."""
    beam_on_ns: int
    t_start_ns: int
    """Start of the first visit of the layer; -1: none."""
    t_end_ns: int
    energy_readback_mev_u: float | None

    @property
    def wanted(self) -> NDArray[np.bool_]:
        """Spots with a weight."""
        return self.planned > 0


@dataclass(frozen=True, slots=True, eq=False)
class FieldAccount:
    """One field of the plan."""

    index: int
    plan: dict[str, Any]
    layers: list[LayerAccount]

    @property
    def started(self) -> bool:
        """Anything delivered."""
        return any(layer.t_start_ns >= 0 for layer in self.layers)

    @property
    def complete(self) -> bool:
        """Every spot with a weight is complete."""
        return all(bool((layer.complete | ~layer.wanted).all()) for layer in self.layers)


def epoch(header: dict[str, Any]) -> datetime:
    """UTC of 0 ns. Raises `BadInput`."""
    try:
        moment = datetime.fromisoformat(str(header["epoch"]))
    except (KeyError, ValueError) as error:
        raise BadInput(f"journal: HEADER: epoch: wanted ISO 8601 text, got {header.get('epoch')!r}") from error
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def utc(header: dict[str, Any], t_ns: int) -> datetime:
    """UTC of a time of the run, to the microsecond below."""
    return epoch(header) + timedelta(microseconds=t_ns // 1000)


def particles_per_mu(site: dict[str, Any], field: dict[str, Any], energy_mev_u: float) -> float:
    """Particles per MU of the field's treatment machine: coefficient x (E / reference)^exponent."""
    name = field["machine_name"] or site["trip98_machine"].get(field["ion"], "")
    try:
        mu = site["treatment_machines"][name]["mu"]
    except KeyError as error:
        raise BadInput(
            f"journal: HEADER: the site has no treatment machine {name!r} (field {field['name']!r})"
        ) from error
    return float(mu["particles_per_mu"] * (energy_mev_u / mu["reference_mev_u"]) ** mu["exponent"])


def account(parts: Sequence[Part], *, programs_of: Sequence[Part] | None = None) -> list[FieldAccount]:
    """All fields of the plan with what the visits of `parts` delivered.

    `programs_of`: the parts whose programs say which visits a spot needs (default: `parts`); a part of a
    resumed treatment is judged with the programs of those before it.
    """
    header = parts[-1].header
    site = header["site"]
    programs = _programs(parts if programs_of is None else programs_of)
    visits = np.concatenate([part.visits for part in parts])
    order = np.lexsort((visits["t_start_ns"], visits["layer"], visits["field"]))
    visits = _without_offsets(visits[order], parts)
    keys = visits["field"].astype(np.int64) << 16 | visits["layer"]
    energies = {
        (event["field"], event["layer"]): float(event["energy_readback_mev_u"])
        for part in parts
        for event in part.events
        if event["event"] == "layer" and event.get("energy_readback_mev_u") is not None
    }
    found = []
    for f, field in enumerate(header["plan"]["fields"]):
        field_slopes = _slopes([p for (pf, _), group in programs.items() if pf == f for p in group])
        layers = []
        for i, layer in enumerate(field["layers"]):
            own = programs.get((f, i), [])
            own_x, own_y = _slopes(own)
            slopes = (
                own_x if np.isfinite(own_x) else field_slopes[0],
                own_y if np.isfinite(own_y) else field_slopes[1],
            )
            first, last = np.searchsorted(keys, [f << 16 | i, (f << 16 | i) + 1])
            layers.append(
                _layer(
                    (f, i),
                    layer,
                    visits[first:last],
                    own,
                    (particles_per_mu(site, field, layer["energy_mev_u"]), energies.get((f, i)), slopes),
                )
            )
        found.append(FieldAccount(f, field, layers))
    return found


def _without_offsets(visits: NDArray[np.void], parts: Sequence[Part]) -> NDArray[np.void]:
    """Visits with the currents that they would have had without position feedback.

    Its offset cancels a measured shift of the beam: what is left is what the current says about the beam's place.
    """
    for part in parts:
        for event in part.events:
            if event["event"] == "layer" and (event.get("x_offset_a") or event.get("y_offset_a")):
                of_layer = (visits["field"] == event["field"]) & (visits["layer"] == event["layer"])
                here = of_layer & (visits["part"] == part.number)
                for axis in "xy":
                    visits[f"{axis}_current_a"][here] -= event[f"{axis}_offset_a"]
    return visits


def _programs(parts: Sequence[Part]) -> dict[tuple[int, int], list[Program]]:
    found: dict[tuple[int, int], list[Program]] = {}
    for part in parts:
        for program in part.programs:
            found.setdefault((program.head["field_index"], program.head["layer_index"]), []).append(program)
    return found


def _layer(
    key: tuple[int, int],
    plan: dict[str, Any],
    visits: NDArray[np.void],
    programs: list[Program],
    context: tuple[float, float | None, tuple[float, float]],
) -> LayerAccount:
    spots = len(plan["meterset"])
    spot = visits["spot"].astype(np.int64)
    if len(spot) and spot.max() >= spots:
        raise BadInput(f"journal: field {key[0]}, layer {key[1]}: a visit of spot {spot.max()}, the plan has {spots}")

    def total(values: NDArray[Any]) -> Floats:
        return np.bincount(spot, weights=values, minlength=spots).astype(np.float64)

    planned = np.array(plan["meterset"], np.float64)
    counts = np.zeros(spots, np.int64)
    np.add.at(counts, spot, visits["counts_1"])
    first = np.full(spots, -1, np.int64)
    first[spot[::-1]] = visits["t_start_ns"][::-1]  # visits are in order of time: the earliest is written last
    x_mm, y_mm, source = _positions(spots, spot, visits, programs, context[2])
    return LayerAccount(
        field=key[0],
        layer=key[1],
        plan=plan,
        particles_per_mu=context[0],
        planned=planned,
        x_planned_mm=np.array(plan["x_mm"], np.float64),
        y_planned_mm=np.array(plan["y_mm"], np.float64),
        meterset_1=total(visits["meterset_1"]),
        meterset_2=total(visits["meterset_2"]),
        particles_1=total(visits["particles_1"]),
        counts_1=counts,
        x_mm=x_mm,
        y_mm=y_mm,
        source=source,
        complete=_complete(planned, visits, programs),
        t_first_ns=first,
        beam_on_ns=int(visits["beam_on_ns"].sum()),
        t_start_ns=int(visits["t_start_ns"].min()) if len(visits) else -1,
        t_end_ns=int(visits["t_end_ns"].max()) if len(visits) else -1,
        energy_readback_mev_u=context[1],
    )


def _complete(planned: Floats, visits: NDArray[np.void], programs: list[Program]) -> NDArray[np.bool_]:
    wanted = np.concatenate([p.visits[["visit", "spot"]] for p in programs]) if programs else None
    if wanted is None:
        return np.zeros(len(planned), np.bool_)
    done = np.isin(wanted["visit"], visits["visit"][(visits["flags"] & VISIT_PARTIAL) == 0])
    complete = np.zeros(len(planned), np.bool_)
    complete[wanted["spot"]] = True
    complete[wanted["spot"][~done]] = False
    return complete & (planned > 0)


def _positions(
    spots: int,
    spot: NDArray[np.int64],
    visits: NDArray[np.void],
    programs: list[Program],
    slopes: tuple[float, float],
) -> tuple[Floats, Floats, NDArray[np.uint8]]:
    """Measured positions of a layer's spots and where they come from."""
    source = np.zeros(spots, np.uint8)
    source[spot] = SOURCE_UNKNOWN
    x_mm, y_mm = np.full(spots, np.nan), np.full(spots, np.nan)
    good = ((visits["quality"] & QUALITY_NO_POSITION) == 0) & np.isfinite(visits["x_mm"]) & np.isfinite(visits["y_mm"])
    by_current_x, by_current_y = _from_currents(visits, programs, slopes)
    usable = np.isfinite(by_current_x) & np.isfinite(by_current_y)
    for kind, mask, xs, ys in (
        (SOURCE_CURRENTS, usable, by_current_x, by_current_y),
        (SOURCE_STRIPS, good, visits["x_mm"], visits["y_mm"]),
    ):
        weight = np.maximum(visits["counts_1"][mask], 1).astype(np.float64)
        sums = np.bincount(spot[mask], weights=weight, minlength=spots)
        has = sums > 0
        for target, values in ((x_mm, xs), (y_mm, ys)):
            target[has] = np.bincount(spot[mask], weights=weight * values[mask], minlength=spots)[has] / sums[has]
        source[has] = kind
    return x_mm, y_mm, source


def _from_currents(
    visits: NDArray[np.void], programs: list[Program], slopes: tuple[float, float]
) -> tuple[Floats, Floats]:
    """Positions at isocentre by the engine's measured currents.

    The layer's own program is the calibration: planned position + slope x (measured - set current).
    """
    table = np.concatenate([np.zeros(0, VISIT_PLAN_DTYPE), *(p.visits for p in programs)])
    order = np.argsort(table["visit"], kind="stable")
    table = table[order]
    at = np.searchsorted(table["visit"], visits["visit"])
    known = at < len(table)
    if len(table):
        known &= table["visit"][np.minimum(at, len(table) - 1)] == visits["visit"]
    results = []
    for axis, slope in zip("xy", slopes, strict=True):
        out = np.full(len(visits), np.nan)
        rows = table[at[known]]
        out[known] = rows[f"{axis}_mm"] + slope * (visits[f"{axis}_current_a"][known] - rows[f"{axis}_current_a"])
        results.append(out)
    return results[0], results[1]


def _slopes(programs: list[Program]) -> tuple[float, float]:
    """Mean mm per ampere at isocentre of some programs, per axis; NaN where no current differs from another.

    Taken over the layer where it can be, else over the field: a measured current is within the magnet window (an
    ampere) of its set-point, so that even a slope of another energy moves a position by 0.3 mm at most.
    """
    slopes = []
    for axis in "xy":
        product = square = 0.0
        for program in programs:
            current = program.visits[f"{axis}_current_a"]
            if len(current) > 1:
                away = current - current.mean()
                product += float((away * program.visits[f"{axis}_mm"]).sum())
                square += float((away * away).sum())
        slopes.append(product / square if square > 1e-6 else float("nan"))
    return slopes[0], slopes[1]
