"""Plans that are deliverable, and plans that break one rule each: site, plan, and what the finding must say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from controller.plan.model import CouchPosition, Plan, RangeShifterSetting
from sites.loader import load_site
from sites.schema import Site
from tests.plan_models import layer, plan, plan_field, proton_field, spots

FIXED = load_site("carbon-fixed")
GANTRY = load_site("carbon-gantry")
PROTON = load_site("proton-gantry")


def with_section(site: Site, section: str, **values: Any) -> Site:
    return site.model_copy(update={section: getattr(site, section).model_copy(update=values)})


def couch(**values: Any) -> CouchPosition:
    return replace(CouchPosition(0.0, 700.0, 0.0, 0.0, 0.0, 0.0), **values)


def shifter(name: str = "RS_3CM", wet_mm: float | None = 34.3) -> RangeShifterSetting:
    return RangeShifterSetting(0, name, wet_mm)


def shifted(*settings_by_layer: tuple[RangeShifterSetting, ...]) -> Plan:
    layers = [
        layer(energy_mev_u=150.0 - 5.0 * index, tune_id="4.0", range_shifters=setting)
        for index, setting in enumerate(settings_by_layer)
    ]
    return plan(proton_field(*layers, machine_name="TR3", vsad_mm=(2000.0, 2560.0)))


GOOD = {
    "carbon at fixed ports": (FIXED, plan()),
    "carbon at the vertical port": (FIXED, plan(plan_field(gantry_deg=359.8))),
    "carbon at a gantry": (
        GANTRY,
        plan(plan_field(gantry_deg=225.5, couch=couch(rotation_deg=345.0, pitch_deg=355.0))),
    ),
    "protons": (PROTON, plan(proton_field(gantry_deg=-180.0))),
    "protons through a range shifter": (PROTON, shifted((shifter(),))),
    "carbon with its ripple filter": (FIXED, plan(plan_field(ripple_filter="RIFI_3MM"))),
    "gated carbon": (GANTRY, plan(gating=("GATING", "EXTERNAL_MARKER"))),
    "a plan that says it is not gated": (PROTON, plan(proton_field(), gating=("NONE", "NONE"))),
    "spots at the limits as float32": (FIXED, plan(plan_field(spots([(110.00001, -110.00001, 0.09999999)])))),
    "particles at the limit": (FIXED, plan(plan_field(spots([(0, 0, 1e4)]), unit="NP"))),
    "no snout named": (FIXED, plan(plan_field(snout_id=None))),
}

# rule, site, plan, where, what the message says
BAD: list[tuple[str, Site, Plan, str, str]] = [
    (
        "MACHINE_UNKNOWN",
        FIXED,
        plan(plan_field(machine_name="TR3")),
        "beam 1",
        "'TR3' is not in site carbon-fixed, which has REF-C",
    ),
    ("ION_UNAVAILABLE", FIXED, plan(plan_field(ion="4He")), "beam 1", "particle 4He is not available on machine REF-C"),
    (
        "ION_UNAVAILABLE",
        PROTON,
        plan(plan_field(machine_name=""), format="trip98"),
        "beam 1",
        "particle 12C is not available",
    ),
    (
        "ENERGY_UNAVAILABLE",
        FIXED,
        plan(plan_field(layer(energy_mev_u=520.0))),
        "beam 1, layer 0",
        "energy 520 MeV/u is outside the machine's range, 55 to 430 MeV/u",
    ),
    (
        "FIELD_SIZE",
        FIXED,
        plan(plan_field(layer(), spots([(0, 0, 2.0), (0, -110.1, 2.0)]))),
        "beam 1, layer 1, spot 1",
        "spot outside scan field: at x 0, y -110.1 mm; the field is +-110, +-110 mm",
    ),
    (
        "MAGNET_RANGE",
        with_section(FIXED, "scanning", x=FIXED.scanning.x.model_copy(update={"max_current_a": 100.0})),
        plan(plan_field(spots([(60, 0, 2.0)]))),
        "beam 1, layer 0, spot 0",
        "the x magnet's supply gives +-100 A",
    ),
    (
        "SPOT_BELOW_MINIMUM",
        FIXED,
        plan(plan_field(spots([(0, 0, 2.0), (2, 0, 0.0999)]))),
        "beam 1, layer 0, spot 1",
        "spot below minimum MU: 0.0999 MU; the minimum is 0.1 MU",
    ),
    (
        "SPOT_BELOW_MINIMUM",
        FIXED,
        plan(plan_field(spots([(0, 0, 2.0), (2, 0, 0.79)], paintings=8))),
        "beam 1, layer 0, spot 1",
        "0.09875 MU in each of 8 paintings; the minimum is 0.1 MU",
    ),
    (
        "SPOT_BELOW_MINIMUM",
        FIXED,
        plan(plan_field(spots([(0, 0, 9.9e3)]), unit="NP")),
        "beam 1, layer 0, spot 0",
        "spot below minimum particles: 9900 particles; the minimum is 10000 particles",
    ),
    (
        "SPOT_ABOVE_MAXIMUM",
        FIXED,
        plan(plan_field(spots([(0, 0, 500.01)]))),
        "beam 1, layer 0, spot 0",
        "spot above maximum MU: 500.01 MU; the maximum is 500 MU",
    ),
    (
        "SPOT_ABOVE_MAXIMUM",
        FIXED,
        plan(plan_field(spots([(0, 0, 1.1e8)]), unit="NP")),
        "beam 1, layer 0, spot 0",
        "1.1e+08 particles; the maximum is 1e+08 particles",
    ),
    (
        "SPOT_TOO_SHORT",
        with_section(FIXED, "accelerator", intensities_per_s=(5.5e7,)),
        plan(plan_field(spots([(0, 0, 0.1)]))),
        "beam 1, layer 0, spot 0",
        "the lowest intensity is 5.5e+07/s",
    ),
    (
        "RATE_UNSAFE",
        with_section(FIXED, "accelerator", intensities_per_s=(7e7,)),
        plan(plan_field(spots([(0, 0, 9.0)]))),
        "beam 1, layer 0",
        "a spike of 10 times the intensity until electrometer 2 has cut it would give 0.25 Gy too much",
    ),
    (
        "SPOT_TOO_LONG",
        with_section(FIXED, "tolerances", spot_time_factor=4000.0),
        plan(plan_field(spots([(0, 0, 9.0)]))),
        "beam 1, layer 0, spot 0",
        "exceeds 65535 ms",
    ),
    (
        "SPOT_NOT_MEASURABLE",
        with_section(FIXED, "dosimetry", primary=FIXED.dosimetry.primary.model_copy(update={"gain": 1e-4})),
        plan(plan_field(spots([(3, 0, 0.1)]))),
        "beam 1, layer 0, spot 0",
        "at least 1 is needed",
    ),
    (
        "LAYER_TOO_LONG",
        with_section(FIXED, "scanning", max_visits_per_layer=26),
        plan(plan_field(layer(paintings=3))),
        "beam 1, layer 0",
        "27 visits (9 spots, 3 paintings); the engine's table has 26",
    ),
    (
        "GANTRY_ANGLE",
        FIXED,
        plan(plan_field(gantry_deg=225.5)),
        "beam 1",
        "no port at 225.5 degrees; the room has fixed ports at 0, 90",
    ),
    (
        "GANTRY_ANGLE",
        GANTRY,
        plan(plan_field(gantry_deg=-180.5)),
        "beam 1",
        "gantry angle -180.5 degrees is outside -180 to 360",
    ),
    (
        "COUCH_ROTATION",
        FIXED,
        plan(plan_field(couch=couch(rotation_deg=-5.0))),
        "beam 1",
        "couch rotation -5 degrees is outside 0 to 360",
    ),
    (
        "COUCH_PITCH_ROLL",
        FIXED,
        plan(plan_field(couch=couch(pitch_deg=329.0))),
        "beam 1",
        "couch pitch 329 degrees; the couch has +-30",
    ),
    ("COUCH_PITCH_ROLL", FIXED, plan(plan_field(couch=couch(roll_deg=30.1))), "beam 1", "couch roll 30.1 degrees"),
    (
        "COUCH_RANGE",
        FIXED,
        plan(plan_field(couch=couch(lateral_mm=-1000.5))),
        "beam 1",
        "couch lateral -1000.5 mm is outside -1000 to 1000 mm",
    ),
    ("SNOUT", FIXED, plan(plan_field(snout_id="S9")), "beam 1", "no snout 'S9'; the machine has S1"),
    ("SNOUT", FIXED, plan(plan_field(snout_mm=79.0)), "beam 1", "snout S1 at 79 mm; it reaches 80 to 520 mm"),
    (
        "RANGE_SHIFTER",
        FIXED,
        plan(plan_field(layer(range_shifters=(shifter(),)))),
        "beam 1",
        "no range shifter 'RS_3CM' of 34.3 mm water; the machine has none",
    ),
    (
        "RANGE_SHIFTER",
        PROTON,
        shifted((shifter(wet_mm=57.0),)),
        "beam 1",
        "no range shifter 'RS_3CM' of 57 mm water; the machine has RS_3CM (34.3 mm)",
    ),
    ("RANGE_SHIFTER", PROTON, shifted((shifter(),), ()), "beam 1", "the range shifter changes within the field"),
    (
        "RANGE_SHIFTER",
        PROTON,
        shifted((shifter(), replace(shifter(), number=1))),
        "beam 1",
        "several range shifters at once",
    ),
    (
        "RIPPLE_FILTER",
        FIXED,
        plan(plan_field(ripple_filter="4 mm RIFI")),
        "beam 1",
        "no ripple filter '4 mm RIFI'; the machine has RIFI_3MM (3 mm)",
    ),
    (
        "TUNE_ID",
        FIXED,
        plan(plan_field(layer(), layer(tune_id="7"))),
        "beam 1",
        "unknown tune '7'; the machine has 1, 2, 3, 4",
    ),
    (
        "VSAD_MISMATCH",
        FIXED,
        plan(plan_field(vsad_mm=(9000.0, 8502.0))),
        "beam 1",
        "x 9000, y 8502 mm in the plan; the machine has x 9000, y 8500 mm",
    ),
    (
        "GATING_SOURCE",
        PROTON,
        plan(proton_field(), gating=("GATING", "BELT")),
        "",
        "GATING by 'BELT'; the room has none",
    ),
    (
        "SPOT_SIZE_DIFFERS",
        FIXED,
        plan(plan_field(layer(spot_fwhm_mm=(3.7, 3.7)))),
        "beam 1, layer 0",
        "FWHM 3.70 x 3.70 mm in the plan, 5.04 x 4.74 mm on this machine at 250 MeV/u",
    ),
    (
        "SPOT_DOSE_UNCERTAIN",
        FIXED,
        plan(plan_field(spots([(0, 0, 2.0), (4, 0, 400.0)]))),
        "beam 1, layer 0",
        "electrometer 2 ends it at up to 0.79 Gy too much, not at 0.25 Gy",
    ),
    (
        "LAYER_EMPTY",
        FIXED,
        plan(plan_field(layer(), layer(meterset=(0.0,) * 9))),
        "beam 1, layer 1",
        "no spot with weight",
    ),
    (
        "DUPLICATE_SPOTS",
        FIXED,
        plan(plan_field(spots([(0, 0, 2.0), (4, 0, 2.0), (0, 0, 2.0)]))),
        "beam 1, layer 0",
        "1 spot at a place that the layer has already",
    ),
]
