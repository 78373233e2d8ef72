"""summary.json: the treatment in a few numbers, all measured, all from the journal.

Definitions (docs/record.md has them for readers):

* a spot counts in `spots_delivered` when every visit that was programmed for it has ended at its preset; zero-weight
  spots count nowhere;
* `spot_dose_error_pct`: per delivered spot, all paintings and parts together, 100 x (measured / planned - 1) by
  electrometer 1; none is left out or weighted; spots cut short by an interruption are not in it (they are in
  `spots_planned` minus `spots_delivered`, and in the metersets);
* `spot_position_error_mm`: per delivered spot with a measured position; `mean` and `sd` over the signed x and y errors
  together, `p95` and `max` of the radial error;
* metersets are sums over everything delivered, cut-short spots included; fields in NP are converted to MU by the
  site's calibration at each layer's energy.

Where nothing was delivered a figure is null.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.record.account import SOURCE_CURRENTS, SOURCE_STRIPS, FieldAccount, LayerAccount, account, utc
from controller.record.journal_reader import Journal, Part
from controller.record.schema import QUALITY_FORGONE
from controller.record.timing import Timing, timing
from controller.record.unclosed import unclosed

Floats = NDArray[np.float64]


def summarise(
    journal: Journal, truth: dict[str, Any] | None, played: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """The content of summary.json; `files` is left empty for `rebuild` to fill.

    `truth`: the same error figures against the simulated plant's true values, given by the caller, or None.
    `played`: what became of the faults of a scenario (`faults_played`), None: not known.
    Raises `BadInput` where the journal has no header.
    """
    header = journal.header
    fields = account(journal.parts)
    times = [timing(journal.parts, field.index) for field in fields]
    whole = sum(times, Timing())
    layers = [layer for field in fields for layer in field.layers]
    summary: dict[str, Any] = {
        "outcome": outcome(journal, fields),
        "plan_sha256": header["plan_sha256"],
        "fields": len(fields),
        "layers": len(layers),
        **_figures(fields),
        "per_field": [_field(field, t) for field, t in zip(fields, times, strict=True)],
        "time_s": whole.as_dict(),
        "controller_share": whole.controller_share,
        "trips": trips(journal),
        "files": {},
    }
    if len(journal.parts) > 1:
        summary["parts"] = [part_summary(part) for part in journal.parts]
    if truth is not None:
        summary["truth"] = truth
    if gates := [e for part in journal.parts for e in part.events if e["event"] == "step_gate"]:
        summary["step_gate"] = {k: v for k, v in gates[-1].items() if k not in {"t_ns", "event"}}
    if "fault_scenario" in header:
        summary["faults"] = {"sha256": header["fault_scenario"]["sha256"], "played": played}
    if missing := unclosed(journal):
        summary["unclosed"] = missing
    return summary


def part_summary(part: Part) -> dict[str, Any]:
    """One part of a resumed treatment: when, what it delivered, how it ended, and what it found before it began."""
    visits = part.visits
    found = [event for event in part.events if event["event"] == "reconciliation"]
    return {
        "part": part.number,
        "begun": utc(part.header, part.records[0].t_ns).isoformat(timespec="seconds"),
        "outcome": str((part.end or {}).get("outcome", "not closed")),
        "visits": int(np.count_nonzero((visits["quality"] & QUALITY_FORGONE) == 0)),
        "counts_1": int(visits["counts_1"].sum()),
        "counts_2": int(visits["counts_2"].sum()),
        "forgone": int(np.count_nonzero(visits["quality"] & QUALITY_FORGONE)),
        "trips": [event["id"] for event in part.events if event["event"] == "trip"],
        "reconciliation": {k: v for k, v in found[-1].items() if k not in ("event", "t_ns")} if found else None,
    }


def outcome(journal: Journal, fields: list[FieldAccount]) -> str:
    """`completed` when every spot was delivered; else what END says, or `interrupted` (also after a crash)."""
    if all(field.complete for field in fields):
        return "completed"
    said = str((journal.end or {}).get("outcome", "interrupted"))
    return "interrupted" if said == "completed" else said


def trips(journal: Journal) -> list[dict[str, Any]]:
    """Every trip of every part; `at_s` counts from the HEADER of its part."""
    return [
        {
            "id": event["id"],
            "at_s": round((event["t_ns"] - part.records[0].t_ns) / 1e9, 6),
            "value": event.get("value"),
            "limit": event.get("limit"),
            "first_out": event.get("first_out", False),
        }
        for part in journal.parts
        for event in part.events
        if event["event"] == "trip"
    ]


def _figures(fields: Sequence[FieldAccount]) -> dict[str, Any]:
    layers = [(field, layer) for field in fields for layer in field.layers]
    return {
        "spots_planned": sum(int(layer.wanted.sum()) for _, layer in layers),
        "spots_delivered": sum(int(layer.complete.sum()) for _, layer in layers),
        "mu_planned": _number(sum(_mu(f, layer, layer.planned) for f, layer in layers)),
        "mu_primary": _number(sum(_mu(f, layer, layer.meterset_1) for f, layer in layers)),
        "mu_secondary": _number(sum(_mu(f, layer, layer.meterset_2) for f, layer in layers)),
        "spot_dose_error_pct": _statistics([dose_errors_pct(layer) for _, layer in layers]),
        "spot_position_error_mm": _position_statistics([position_errors_mm(layer) for _, layer in layers]),
    }


def _field(field: FieldAccount, time: Timing) -> dict[str, Any]:
    return {
        "number": field.plan["number"],
        "name": field.plan["name"],
        "ion": field.plan["ion"],
        "unit": field.plan["unit"],
        "layers": len(field.layers),
        "complete": field.complete,
        **_figures([field]),
        "time_s": time.as_dict(),
    }


def dose_errors_pct(layer: LayerAccount) -> Floats:
    """Errors of the layer's delivered spots, percent of planned."""
    done = layer.complete
    return 100.0 * (layer.meterset_1[done] / layer.planned[done] - 1.0)


def position_errors_mm(layer: LayerAccount) -> Floats:
    """Errors (n, 2) of the layer's delivered spots whose position was measured."""
    done = layer.complete & ((layer.source == SOURCE_STRIPS) | (layer.source == SOURCE_CURRENTS))
    return np.column_stack([layer.x_mm[done] - layer.x_planned_mm[done], layer.y_mm[done] - layer.y_planned_mm[done]])


def _mu(field: FieldAccount, layer: LayerAccount, metersets: Floats) -> float:
    total = float(metersets.sum())
    return total if field.plan["unit"] == "MU" else total / layer.particles_per_mu


def _statistics(values: list[Floats]) -> dict[str, float | None]:
    errors = np.concatenate([np.zeros(0), *values])
    if len(errors) == 0:
        return dict.fromkeys(("mean", "sd", "rms", "p95", "p99", "max"))
    size = np.abs(errors)
    rms, p99 = np.sqrt(np.mean(errors**2)), np.percentile(size, 99)
    four = _four(errors.mean(), errors.std(), np.percentile(size, 95), size.max())
    return four | {"rms": _number(rms), "p99": _number(p99)}


def _position_statistics(values: list[Floats]) -> dict[str, float | None]:
    errors = np.concatenate([np.zeros((0, 2)), *values])
    if len(errors) == 0:
        return dict.fromkeys(("mean", "sd", "rms", "p95", "p99", "max"))
    radial = np.hypot(errors[:, 0], errors[:, 1])
    four = _four(errors.mean(), errors.std(), np.percentile(radial, 95), radial.max())
    return four | {"rms": _number(np.sqrt(np.mean(radial**2))), "p99": _number(np.percentile(radial, 99))}


def _four(
    mean: np.floating[Any], sd: np.floating[Any], p95: np.floating[Any], peak: np.floating[Any]
) -> dict[str, float | None]:
    return {"mean": _number(mean), "sd": _number(sd), "p95": _number(p95), "max": _number(peak)}


def _number(value: float | np.floating[Any]) -> float:
    """Nine digits: more than any monitor has, and the same on every CPU."""
    return float(f"{float(value):.9g}")
