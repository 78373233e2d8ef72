"""Plans as values, for tests of what comes after reading: small, deliverable, and easy to change in one place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from controller.plan.model import CouchPosition, Layer, Plan, PlanField


def layer(**changes: Any) -> Layer:
    """A layer of 3 x 3 spots of 2 MU, 4 mm apart, deliverable with carbon ions."""
    spots = [(4.0 * (i % 3 - 1), 4.0 * (i // 3 - 1)) for i in range(9)]
    plain = Layer(
        energy_mev_u=250.0,
        tune_id="2",
        paintings=1,
        x_mm=tuple(x for x, _ in spots),
        y_mm=tuple(y for _, y in spots),
        meterset=(2.0,) * 9,
        spot_fwhm_mm=None,
        range_shifters=(),
        control_point=0,
    )
    return replace(plain, **changes)


def spots(points: list[tuple[float, float, float]], **changes: Any) -> Layer:
    """A layer with spots at (x, y) of the given meterset."""
    x, y, meterset = zip(*points, strict=True) if points else ((), (), ())
    return layer(x_mm=tuple(x), y_mm=tuple(y), meterset=tuple(meterset), **changes)


def plan_field(*layers: Layer, **changes: Any) -> PlanField:
    """A field for REF-C at gantry 90, deliverable at both carbon rooms."""
    layers = layers or (layer(), layer(energy_mev_u=240.0, control_point=2))
    plain = PlanField(
        number=1,
        name="F1",
        machine_name="REF-C",
        ion="12C",
        unit="MU",
        meterset=sum(sum(item.meterset) for item in layers),
        gantry_deg=90.0,
        couch=CouchPosition(None, None, None, 0.0, 0.0, 0.0),
        snout_id="S1",
        snout_mm=450.0,
        vsad_mm=(9000.0, 8500.0),
        ripple_filter=None,
        lateral_spreaders=(),
        isocenter_mm=(0.0, 0.0, 0.0),
        reordering_allowed=False,
        scan_mode="MODULATED",
        control_points=2 * len(layers),
        layers=layers,
    )
    return replace(plain, **changes)


def proton_field(*layers: Layer, **changes: Any) -> PlanField:
    """A field for REF-P at the proton room."""
    layers = layers or (layer(energy_mev_u=120.0, tune_id="4.0"),)
    return plan_field(*layers, **{"machine_name": "REF-P", "ion": "1H", "vsad_mm": (2200.0, 1900.0), **changes})


def plan(*fields: PlanField, **changes: Any) -> Plan:
    """An approved DICOM plan of one fraction group."""
    fields = fields or (plan_field(),)
    plain = Plan(
        format="dicom",
        label="TEST",
        sop_instance_uid="1.2.3",
        approval="APPROVED",
        fraction_group=1,
        fraction_groups=(1,),
        fractions_planned=1,
        gating=None,
        patient_position="HFS",
        fields=fields,
        setup_beams=(),
        shown=(),
        file_sha256="0" * 64,
    )
    return replace(plain, **changes)
