"""Whether the machine can deliver every spot of a field; one finding a rule and field, with first and worst place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.machine.dosimetry import Corrections
from controller.machine.energies import match_energy
from controller.machine.layer_program import LayerRefused, build_layer
from controller.machine.optics import Optics, fwhm_mm, spot_sigma_mm
from controller.machine.program import LayerProgram
from controller.machine.runaway import EXCESS_LIMIT_GY
from controller.machine.site_rules import site_finding
from controller.machine.wrong_monitor import visit_dose_gy, wrong_monitor_excess_gy
from controller.plan.findings import Finding
from controller.plan.model import Layer, PlanField
from sites.schema import Site, TreatmentMachine

SLACK = 1e-6
"""Relative. Metersets come as float32, so a spot planned at the limit may read a little beyond it."""
SPOT_SIZE_DIFFERENCE = 0.25
BACKUP_SLACK = 1e-2
"""Relative. A backup is a whole number of counts, and may be a count above its cap."""

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(slots=True)
class _Gathered:
    """All that one rule found in one field."""

    where: str
    text: str
    count: int
    worst: float
    worst_text: str


class _Gatherer:
    """Collects what each rule finds, keeping the first place, the number and the worst value."""

    def __init__(self, field: PlanField) -> None:
        self._field = field
        self._found: dict[str, _Gathered] = {}

    def spots(self, rule: str, layer: int, bad: Mask, badness: Floats, texts: _Texts) -> None:
        """Report the spots of a layer where `bad`; the worst one has the greatest `badness`."""
        places = np.flatnonzero(bad)
        if not len(places):
            return
        first = int(places[0])
        worst = int(places[np.argmax(badness[places])])
        where = f"beam {self._field.number}, layer {layer}, spot {first}"
        self._add(
            rule,
            where,
            texts.full(first),
            count=len(places),
            worst=float(badness[worst]),
            worst_text=texts.short(worst),
        )

    def layer(self, rule: str, layer: int, badness: float, text: str, short: str) -> None:
        """Report a layer as a whole."""
        self.place(rule, f"beam {self._field.number}, layer {layer}", badness, text, short)

    def place(self, rule: str, where: str, badness: float, text: str, short: str) -> None:
        """Report a place that is already in words."""
        self._add(rule, where, text, count=1, worst=badness, worst_text=short)

    def findings(self) -> Iterator[Finding]:
        for rule, found in self._found.items():
            more = "" if found.count == 1 else f"; {found.count} in this beam, the worst {found.worst_text}"
            yield site_finding(rule, found.where, f"{found.text}{more}")

    def _add(self, rule: str, where: str, text: str, *, count: int, worst: float, worst_text: str) -> None:
        found = self._found.get(rule)
        if found is None:
            self._found[rule] = _Gathered(where, text, count, worst, worst_text)
            return
        found.count += count
        if worst > found.worst:
            found.worst, found.worst_text = worst, worst_text


@dataclass(frozen=True, slots=True)
class _Texts:
    """How a rule words the value of a spot: a template with `{0}` and so on, filled from arrays."""

    message: str
    value: str
    columns: tuple[Floats, ...]

    def full(self, spot: int) -> str:
        return self.message.format(self.short(spot))

    def short(self, spot: int) -> str:
        return self.value.format(*(float(column[spot]) for column in self.columns))


def check_spots(
    site: Site, machine: TreatmentMachine, field: PlanField, field_index: int, corrections: Corrections
) -> tuple[list[Finding], tuple[LayerProgram, ...] | None]:
    """Findings about layers and spots, and the field's programs if all layers can be built (else None)."""
    gatherer = _Gatherer(field)
    optics = Optics(site, machine)
    programs: list[LayerProgram] = []
    complete = True
    first_visit = 1
    for index, layer in enumerate(field.layers):
        _check_layer(gatherer, site, machine, field, index, optics=optics)
        try:
            program = build_layer(
                site,
                machine,
                field,
                field_index=field_index,
                layer_index=index,
                first_visit=first_visit,
                corrections=corrections,
                optics=optics,
            )
        except LayerRefused as refusal:
            complete = False
            off = _distance_to_range(machine, layer.energy_mev_u)
            gatherer.place(refusal.rule, refusal.where, off, refusal.problem, f"in layer {index}")
            continue
        programs.append(program)
        _check_backups(gatherer, site, program)
        first_visit += len(program.visits)
    return list(gatherer.findings()), tuple(programs) if complete else None


def _check_backups(gatherer: _Gatherer, site: Site, program: LayerProgram) -> None:
    """Say where the monitors' gains are not known well enough to end a wrong visit within the limit."""
    if not len(program.visits):
        return
    excess_gy = wrong_monitor_excess_gy(site, program)
    worst = int(np.argmax(excess_gy))
    if excess_gy[worst] <= EXCESS_LIMIT_GY * (1.0 + BACKUP_SLACK):
        return
    layer, spot = program.layer_index, int(program.visits["spot"][worst])
    dose_gy = float(visit_dose_gy(program)[worst])
    gatherer.layer(
        "SPOT_DOSE_UNCERTAIN",
        layer,
        float(excess_gy[worst]),
        f"spot {spot} gets up to {dose_gy:.3g} Gy in one visit; should monitor 1 read low, electrometer 2 ends it at "
        f"up to {excess_gy[worst]:.2g} Gy too much, not at {EXCESS_LIMIT_GY:g} Gy: its gain and monitor 1's are known "
        f"to {100.0 * (site.dosimetry.primary.gain_uncertainty + site.dosimetry.secondary.gain_uncertainty):.2g} %",
        f"{excess_gy[worst]:.2g} Gy in layer {layer}",
    )


def _distance_to_range(machine: TreatmentMachine, energy_mev_u: float) -> float:
    return max(machine.energy_min_mev_u - energy_mev_u, energy_mev_u - machine.energy_max_mev_u, 0.0)


def _check_layer(
    gatherer: _Gatherer, site: Site, machine: TreatmentMachine, field: PlanField, index: int, *, optics: Optics
) -> None:
    layer = field.layers[index]
    x_mm = np.asarray(layer.x_mm, dtype=np.float64)
    y_mm = np.asarray(layer.y_mm, dtype=np.float64)
    meterset = np.asarray(layer.meterset, dtype=np.float64)
    used = meterset > 0.0
    if not used.any():
        gatherer.layer("LAYER_EMPTY", index, 0.0, "no spot with weight; the layer is not delivered", f"layer {index}")
        return
    outside = np.maximum(np.abs(x_mm) - machine.field_x_mm, np.abs(y_mm) - machine.field_y_mm)
    gatherer.spots(
        "FIELD_SIZE",
        index,
        used & ~(outside <= SLACK * machine.field_x_mm),
        outside,
        _Texts(
            f"spot outside scan field: {{0}}; the field is +-{machine.field_x_mm:g}, +-{machine.field_y_mm:g} mm",
            "at x {0:g}, y {1:g} mm",
            (x_mm, y_mm),
        ),
    )
    _check_meterset(gatherer, machine, field, index, meterset=meterset, used=used)
    visits = int(used.sum()) * layer.paintings
    if visits > site.scanning.max_visits_per_layer:
        most = site.scanning.max_visits_per_layer
        text = f"{visits} visits ({int(used.sum())} spots, {layer.paintings} paintings); the engine's table has {most}"
        gatherer.layer("LAYER_TOO_LONG", index, visits, text, f"{visits} visits")
    same = int(used.sum()) - len(np.unique(np.stack([x_mm[used], y_mm[used]]), axis=1).T)
    if same:
        text = f"{same} spot{'s' if same > 1 else ''} at a place that the layer has already"
        gatherer.layer("DUPLICATE_SPOTS", index, same, text, f"{same} spots in layer {index}")
    energy = match_energy(site, machine, layer.energy_mev_u)
    if energy is None:
        return  # build_layer says so
    _check_spot_size(gatherer, machine, layer, energy, index)
    for name, axis, current in zip(
        ("x", "y"), (site.scanning.x, site.scanning.y), optics.currents_a(energy, x_mm, y_mm), strict=True
    ):
        gatherer.spots(
            "MAGNET_RANGE",
            index,
            used & ~(np.abs(current) <= axis.max_current_a),
            np.abs(current),
            _Texts(
                f"{{0}} at {energy:g} MeV/u; the {name} magnet's supply gives +-{axis.max_current_a:g} A",
                "x {0:g}, y {1:g} mm needs {2:.1f} A",
                (x_mm, y_mm, current),
            ),
        )


def _check_meterset(
    gatherer: _Gatherer, machine: TreatmentMachine, field: PlanField, index: int, *, meterset: Floats, used: Mask
) -> None:
    """Compare what each painting of a spot gets with the machine's limits, in the plan's own unit."""
    if field.unit == "MU":
        low, high, unit = machine.spot_min_mu, machine.spot_max_mu, "MU"
    else:
        low, high, unit = machine.spot_min_particles, machine.spot_max_particles, "particles"
    paintings = field.layers[index].paintings
    each = meterset / paintings
    shown = f"{{0:.6g}} {unit}" + (f" in each of {paintings} paintings" if paintings > 1 else "")
    gatherer.spots(
        "SPOT_BELOW_MINIMUM",
        index,
        used & (each < low * (1.0 - SLACK)),
        -each,
        _Texts(f"spot below minimum {unit}: {{0}}; the minimum is {low:g} {unit}", shown, (each,)),
    )
    gatherer.spots(
        "SPOT_ABOVE_MAXIMUM",
        index,
        used & ~(each <= high * (1.0 + SLACK)),
        each,
        _Texts(f"spot above maximum {unit}: {{0}}; the maximum is {high:g} {unit}", shown, (each,)),
    )


def _check_spot_size(
    gatherer: _Gatherer, machine: TreatmentMachine, layer: Layer, energy_mev_u: float, index: int
) -> None:
    if layer.spot_fwhm_mm is None:
        return
    own = [fwhm_mm(sigma) for sigma in spot_sigma_mm(machine, energy_mev_u)]
    difference = max(abs(plan / mine - 1.0) for plan, mine in zip(layer.spot_fwhm_mm, own, strict=True))
    if difference > SPOT_SIZE_DIFFERENCE:
        wide, high = layer.spot_fwhm_mm
        gatherer.layer(
            "SPOT_SIZE_DIFFERS",
            index,
            difference,
            f"FWHM {wide:.2f} x {high:.2f} mm in the plan, {own[0]:.2f} x {own[1]:.2f} mm on this machine at "
            f"{energy_mev_u:g} MeV/u",
            f"by {difference * 100:.0f} % in layer {index}",
        )
