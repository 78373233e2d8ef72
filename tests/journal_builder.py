"""Writes small synthetic journals: two carbon fields, repainting, zero-weight spots, with or without an early end.

The numbers hang together as in a real journal: rows, visits and programs describe the same delivery.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from controller.machine.program import BEAM_OFF_AFTER, VISIT_PLAN_DTYPE
from controller.plan.model import (
    CouchPosition,
    Layer,
    MetersetUnit,
    PatientIdentity,
    Plan,
    PlanField,
    RangeShifterSetting,
)
from controller.record.journal import JournalWriter
from controller.record.schema import QUALITY_NO_POSITION, ROW_DTYPE, ROW_NS, VISIT_DTYPE, VISIT_PARTIAL
from drivers.wires.frames import FLAG_ARMED, FLAG_BEAM, FLAG_CHAIN, FLAG_HV_OK, FLAG_REQUEST, FLAG_SPILL
from sites.schema import Site

SITE_FILE = Path(__file__).parents[1] / "sites" / "carbon-fixed.toml"
COUNTS_PER_PARTICLE = 0.05
COUNTS_PER_PARTICLE_2 = 0.06
STRIP_SCALE = 8 / 9
RATE = 8e7
IDENTITY = PatientIdentity(
    name="PLANTED^NAME",
    id="PLANTED-ID-77",
    birth_date="19610203",
    sex="O",
    study_instance_uid="1.2.826.0.1.3680043.8.498.4711",
    study_date="20260301",
    study_time="113000",
    study_id="PLANTEDST",
    accession_number="PLANTEDACC",
    referring_physician="PLANTED^DOCTOR",
    frame_of_reference_uid="1.2.826.0.1.3680043.8.498.4712",
)


def layer(
    number: int, energy: float, unit: MetersetUnit, *, paintings: int = 1, spots: int = 9, spacing: float = 3.0
) -> Layer:
    """A square of spots; the spot in the middle has no weight."""
    side = round(spots**0.5)
    x = tuple(spacing * (i % side - (side - 1) / 2) for i in range(spots))
    y = tuple(spacing * (i // side - (side - 1) / 2) for i in range(spots))
    weight = 2e5 if unit == "NP" else 1.5
    return Layer(
        energy_mev_u=energy,
        tune_id="2",
        paintings=paintings,
        x_mm=x,
        y_mm=y,
        meterset=tuple(0.0 if i == spots // 2 else weight * paintings * (1 + 0.1 * i) for i in range(spots)),
        spot_fwhm_mm=(6.0, 6.0),
        range_shifters=(RangeShifterSetting(1, "RS_3CM", 30.0),) if number < 0 else (),
        control_point=2 * number,
    )


def make_plan(units: tuple[MetersetUnit, MetersetUnit] = ("MU", "MU"), spots: int = 9) -> Plan:
    """Two fields: three layers (one painted twice) and two."""
    fields = []
    for f, unit in enumerate(units):
        energies = (260.0, 250.0, 240.0) if f == 0 else (220.0, 210.0)
        layers = tuple(layer(i, e, unit, paintings=2 if i == 1 else 1, spots=spots) for i, e in enumerate(energies))
        fields.append(
            PlanField(
                number=f + 3,
                name=f"Field {f + 1}",
                machine_name="REF-C",
                ion="12C",
                unit=unit,
                meterset=sum(sum(x.meterset) for x in layers),
                gantry_deg=90.0 if f == 0 else 0.0,
                couch=CouchPosition(None, None, None, 0.0, 0.0, 0.0),
                snout_id="S1",
                snout_mm=420.0,
                vsad_mm=(9000.0, 8500.0),
                ripple_filter="RIFI_3MM" if f == 0 else None,
                lateral_spreaders=((1, "MAGX"), (2, "MAGY")),
                isocenter_mm=(0.0, 0.0, 0.0),
                reordering_allowed=False,
                scan_mode="MODULATED",
                control_points=2 * len(layers),
                layers=layers,
            )
        )
    return Plan(
        format="dicom",
        label="TEST",
        sop_instance_uid="1.2.826.0.1.3680043.8.498.99",
        approval="APPROVED",
        fraction_group=1,
        fraction_groups=(1,),
        fractions_planned=10,
        gating=None,
        patient_position="HFS",
        fields=tuple(fields),
        setup_beams=(),
        shown=(),
        file_sha256="ab" * 32,
    )


def site() -> Site:
    """The shipped carbon site."""
    return Site.model_validate_json(json.dumps(tomllib.loads(SITE_FILE.read_text())))


@dataclass
class Builder:
    """Delivers a plan into a journal, exactly or with seeded errors."""

    path: Path
    plan: Plan = field(default_factory=make_plan)
    dose_sd: float = 0.003
    position_sd_mm: float = 0.1
    no_position: tuple[tuple[int, int, int], ...] = ()
    """(field, layer, spot) whose centroid is missing."""
    t_ns: int = 1_000_000_000
    counts: np.ndarray[Any, Any] = field(default_factory=lambda: np.array([10_000, 20_000], np.int64))
    delivered: int = 0
    part: int = 0

    def __post_init__(self) -> None:
        self.site = site()
        self.rng = np.random.default_rng(5)
        self.journal = JournalWriter(self.path)
        self.done: set[tuple[int, int]] = set()

    def particles_per_unit(self, f: int, energy: float) -> float:
        mu = self.site.treatment_machines["REF-C"].mu
        per_mu = mu.particles_per_mu * (energy / mu.reference_mev_u) ** mu.exponent
        return per_mu if self.plan.fields[f].unit == "MU" else 1.0

    def begin(self, **changed: Any) -> None:
        """HEADER and what comes before the first field."""
        self.part += 1
        self.journal.header(
            self.t_ns,
            {
                "format": "spotwise-journal",
                "version": "0.1.0",
                "epoch": "2026-03-02T09:00:00Z",
                "seed": 0,
                "clock": "virtual",
                "plan": dataclasses.asdict(self.plan),
                "plan_sha256": self.plan.content_sha256(),
                "site": self.site.model_dump(mode="json"),
                "site_sha256": "cd" * 32,
                "operator": "simulated",
                "part": self.part,
                "simulated": True,
                **changed,
            },
        )
        for name, device in self.site.devices.items():
            self.event("device", device=name, id=device.device_id, simulated=True, map_sha256="0" * 16, boot_nonce=7)
        self.event("corrections", ktp=1.0151, temperature_c=22.0, pressure_hpa=1005.0, pedestals=[0.0, 0.0])

    def event(self, name: str, /, **values: Any) -> None:
        self.journal.event(self.t_ns, name, **values)

    def setup(self, f: int) -> None:
        plan = self.plan.fields[f]
        for device, quantity, value, unit in (
            ("gantry", "angle_deg", plan.gantry_deg, "deg"),
            ("couch", "vertical_mm", -12.5, "mm"),
            ("couch", "longitudinal_mm", 40.0, "mm"),
            ("couch", "lateral_mm", 3.25, "mm"),
            ("couch", "rotation_deg", 0.0, "deg"),
            ("couch", "pitch_deg", 0.0, "deg"),
            ("couch", "roll_deg", 0.0, "deg"),
            ("nozzle", "snout_code", 101, ""),
            ("nozzle", "snout_mm", 420.0, "mm"),
            ("nozzle", "range_shifter_code", 0, ""),
            ("nozzle", "ripple_filter_code", 301 if plan.ripple_filter else 0, ""),
        ):
            off = 0.01 if unit == "deg" and device == "gantry" else 0.0
            self.event("setup", field=f, device=device, quantity=quantity, set=value, readback=value + off, unit=unit)
        self.t_ns += 1_000_000_000

    def program(self, f: int, i: int) -> np.ndarray[Any, Any]:
        """All visits of a layer, numbered through the field."""
        plan = self.plan.fields[f].layers[i]
        first = 1 + sum(np.count_nonzero(x.meterset) * x.paintings for x in self.plan.fields[f].layers[:i])
        per_unit = self.particles_per_unit(f, plan.energy_mev_u)
        rows: list[Any] = []
        for painting in range(plan.paintings):
            for spot, meterset in enumerate(plan.meterset):
                if meterset == 0:
                    continue
                row = np.zeros((), VISIT_PLAN_DTYPE)
                row["visit"] = first + len(rows)
                row["painting"], row["spot"] = painting, spot
                row["x_mm"], row["y_mm"] = plan.x_mm[spot], plan.y_mm[spot]
                row["meterset"] = meterset / plan.paintings
                row["particles"] = row["meterset"] * per_unit
                row["x_current_a"], row["y_current_a"] = plan.x_mm[spot] * 3.0, plan.y_mm[spot] * 3.2
                row["preset_counts"] = round(float(row["particles"]) * COUNTS_PER_PARTICLE)
                row["expected_counts_2"] = row["particles"] * COUNTS_PER_PARTICLE_2
                row["x_strip_mm"], row["y_strip_mm"] = row["x_mm"] * STRIP_SCALE, row["y_mm"] * STRIP_SCALE
                rows.append(row)
        table = np.array(rows, VISIT_PLAN_DTYPE)
        table["flags"][-1] |= BEAM_OFF_AFTER
        return table

    def deliver_layer(self, f: int, i: int, stop_after: int | None = None) -> bool:
        """Deliver what is left of a layer; False where `stop_after` visits (in total) stopped it, the last one half."""
        plan = self.plan.fields[f].layers[i]
        table = self.program(f, i)
        table = table[[(f, int(v)) not in self.done for v in table["visit"]]]
        if len(table) == 0:
            return True
        head = {
            "field_index": f,
            "layer_index": i,
            "plan_energy_mev_u": plan.energy_mev_u,
            "energy_mev_u": plan.energy_mev_u,
            "ion": "12C",
            "intensity_level": 6,
            "rate_per_s": RATE,
            "counts_per_particle": COUNTS_PER_PARTICLE,
            "counts_per_particle_2": COUNTS_PER_PARTICLE_2,
            "particles_per_mu": self.particles_per_unit(f, plan.energy_mev_u),
            "early_on_counts": 0,
            "early_off_counts": 0,
            "sigma_x_mm": 2.1,
            "sigma_y_mm": 2.0,
            "strip_scale_x": STRIP_SCALE,
            "strip_scale_y": STRIP_SCALE,
        }
        self.event("layer", field=f, layer=i, phase="request")
        self.journal.program(self.t_ns, head, table)
        self.t_ns += 2_000_000_000
        self.event(
            "layer",
            field=f,
            layer=i,
            phase="ready",
            energy_set_mev_u=plan.energy_mev_u,
            energy_readback_mev_u=plan.energy_mev_u + 0.001,
            energy_sensor_mev_u=plan.energy_mev_u + 0.02,
            intensity_level=6,
            port_deg=self.plan.fields[f].gantry_deg,
        )
        self.t_ns += 10_000_000
        self.event("layer", field=f, layer=i, phase="armed")
        self.t_ns += 5_000_000
        self.event("layer", field=f, layer=i, phase="start")
        self.idle(5)
        for row in table:
            self.delivered += 1
            partial = self.delivered == stop_after
            self.visit(f, i, row, partial)
            if partial:
                return False
        self.idle(5)
        self.event("layer", field=f, layer=i, phase="end")
        self.t_ns += 20_000_000
        return True

    def idle(self, rows: int) -> None:
        block = np.zeros(rows, ROW_DTYPE)
        block["t_ns"] = self.t_ns + ROW_NS * (1 + np.arange(rows))
        self._rows(block, FLAG_ARMED | FLAG_CHAIN | FLAG_HV_OK | FLAG_SPILL, np.zeros((rows, 2)), -(2**31))
        self.t_ns += rows * ROW_NS

    def visit(self, f: int, i: int, plan: np.void, partial: bool) -> None:
        share = (0.5 if partial else 1.0) * (1 + self.dose_sd * self.rng.standard_normal())
        particles = float(plan["particles"]) * share
        count = max(1, round(particles / RATE * 1e9 / ROW_NS))
        counts = np.array([round(particles * COUNTS_PER_PARTICLE), round(particles * COUNTS_PER_PARTICLE_2)])
        visit = np.zeros(1, VISIT_DTYPE)
        visit["t_start_ns"], visit["t_end_ns"] = self.t_ns, self.t_ns + count * ROW_NS
        visit["beam_on_ns"] = count * ROW_NS - 50_000
        visit["counts_1"], visit["counts_2"] = counts
        visit["frame_counts_1"], visit["frame_counts_2"] = counts
        visit["particles_1"] = counts[0] / COUNTS_PER_PARTICLE
        visit["particles_2"] = counts[1] / COUNTS_PER_PARTICLE_2
        per_unit = float(plan["particles"] / plan["meterset"])
        visit["meterset_1"], visit["meterset_2"] = visit["particles_1"] / per_unit, visit["particles_2"] / per_unit
        visit["planned_particles"], visit["planned_meterset"] = plan["particles"], plan["meterset"]
        off = self.position_sd_mm * self.rng.standard_normal(2)
        visit["x_mm"], visit["y_mm"] = plan["x_mm"] + off[0], plan["y_mm"] + off[1]
        visit["planned_x_mm"], visit["planned_y_mm"] = plan["x_mm"], plan["y_mm"]
        visit["sigma_x_mm"] = visit["sigma_y_mm"] = 2.1
        visit["x_current_a"], visit["y_current_a"] = plan["x_current_a"] + 0.3, plan["y_current_a"] - 0.3
        for name in ("visit", "spot", "painting", "flags"):
            visit[name] = plan[name]
        visit["field"], visit["layer"], visit["part"] = f, i, self.part
        missing = (f, i, int(plan["spot"])) in self.no_position
        if missing:
            visit["quality"] |= QUALITY_NO_POSITION
            visit["x_mm"] = visit["y_mm"] = visit["sigma_x_mm"] = visit["sigma_y_mm"] = np.nan
        if partial:
            visit["flags"] |= VISIT_PARTIAL
        else:
            self.done.add((f, int(plan["visit"])))
        rows = np.zeros(count, ROW_DTYPE)
        rows["t_ns"] = self.t_ns + ROW_NS * (1 + np.arange(count))
        rows["visit"] = plan["visit"]
        steps = np.diff(np.round(np.outer(np.arange(count + 1) / count, counts)), axis=0)
        flags = FLAG_BEAM | FLAG_REQUEST | FLAG_ARMED | FLAG_CHAIN | FLAG_HV_OK | FLAG_SPILL
        self._rows(rows, flags, steps, -(2**31) if missing else round(float(visit["x_mm"][0]) * STRIP_SCALE * 1000))
        self.t_ns += count * ROW_NS
        self.journal.visits(visit)

    def _rows(self, rows: np.ndarray[Any, Any], flags: int, steps: np.ndarray[Any, Any], x_um: int) -> None:
        total = self.counts + np.cumsum(steps, axis=0).astype(np.int64)
        rows["counts_1"], rows["counts_2"] = total[:, 0], total[:, 1]
        rows["flags"] = flags
        for name in ("x_strip_um", "y_strip_um", "sigma_x_strip_um", "sigma_y_strip_um"):
            rows[name] = x_um
        rows["x_set_ma"], rows["x_primary_ma"], rows["x_redundant_ma"] = 1500, 1501, 1499
        rows["x_voltage_mv"], rows["x_field_utm"] = 2500, 243
        rows["frames_1"] = rows["frames_2"] = 2
        rows["permit"] = 1
        self.counts = total[-1]
        self.journal.rows(rows)

    def deliver(self, stop_after: int | None = None) -> bool:
        """All fields from where they are; False where stopped."""
        for f, plan in enumerate(self.plan.fields):
            if all((f, int(v)) in self.done for i in range(len(plan.layers)) for v in self.program(f, i)["visit"]):
                continue
            self.setup(f)
            for i in range(len(plan.layers)):
                if not self.deliver_layer(f, i, stop_after):
                    return False
        return True

    def trip(self) -> None:
        self.event(
            "trip",
            id="SPOT_POSITION",
            value=1.4,
            limit=1.0,
            unit="mm",
            t_cause_ns=self.t_ns - 300_000,
            first_out=True,
            hint="check the scan magnets' calibration",
        )
        self.event("state", state="TRIPPED", previous="DELIVERING", cause="SPOT_POSITION")

    def end(self, outcome: str) -> None:
        self.journal.end(self.t_ns, {"outcome": outcome, "counts_1": int(self.counts[0])})
        self.t_ns += 60_000_000_000


def complete(path: Path, **options: Any) -> Path:
    """A treatment that went well."""
    build = Builder(path, **options)
    build.begin()
    assert build.deliver()
    build.end("completed")
    build.journal.close()
    return path


def interrupted(path: Path, *, after: int = 20, how: str = "trip", resumed: bool = False, **options: Any) -> Path:
    """Stopped in visit number `after`: by a "trip", an "abort", or a "crash" (no END); resumed to the end if asked."""
    build = Builder(path, **options)
    build.begin()
    assert not build.deliver(after)
    if how == "trip":
        build.trip()
    elif how == "abort":
        build.event("command", name="abort", operator="simulated", reason="test")
    if how != "crash":
        build.end("interrupted")
    if resumed:
        build.begin()
        assert build.deliver()
        build.end("completed")
    build.journal.close()
    return path
