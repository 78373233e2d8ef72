"""Writes report.html: the treatment for a physicist's eye, in one file without links, and without the patient.

Figures come from the summary, pictures and tables from the journal. It says first what was simulated and how the
treatment ended, then what was delivered against the plan, then where the time went, then who took part.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from controller.record.account import FieldAccount, LayerAccount, account, utc
from controller.record.journal_reader import Journal
from controller.record.report_adaptation import adaptation_tables
from controller.record.report_faults import faults_section
from controller.record.report_parts import parts_section
from controller.record.report_pictures import (
    CUT_SHORT,
    DOSE_CLASSES,
    ERROR_SCALE,
    PLANNED,
    error_histograms,
    rate_over_time,
    spot_map,
    time_breakdown,
)
from controller.record.report_self_tests import self_tests_table
from controller.record.summary import dose_errors_pct, position_errors_mm
from controller.record.timing import timing
from controller.record.unclosed import sentence
from drivers.errors import BadInput


def write_report(journal: Journal, summary: dict[str, Any], path: Path) -> None:
    """Write the report. Raises `BadInput` where the disk refuses."""
    try:
        path.write_text(report(journal, summary), encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror}") from error


def _when(header: dict[str, Any], begun: datetime) -> str:
    virtual = (
        " of virtual time, whose date follows from plan, site and seed" if header.get("clock") == "virtual" else ""
    )
    return f"{begun:%Y-%m-%d %H:%M:%S} UTC{virtual}"


def report(journal: Journal, summary: dict[str, Any]) -> str:
    """Return the page."""
    header = journal.header
    fields = account(journal.parts)
    begun = utc(header, journal.parts[0].records[0].t_ns)
    body = [
        "<h1>Treatment report</h1>",
        f'<p class="muted">{_e(header["site"]["title"])} &middot; '
        f"plan {_e(header['plan']['label'] or 'without a label')} &middot; {_when(header, begun)}</p>",
        _banner(journal, summary),
        _facts(summary),
        "<h2>Fields</h2>",
        _fields(summary),
        _trips(journal),
        parts_section(journal, summary, _table),
        faults_section(header, summary),
        "<h2>Spot errors</h2>",
        _errors(fields),
        "<h2>Spot maps</h2>",
        *(_maps(field) for field in fields),
        "<h2>Time</h2>",
        _time(journal, fields),
        "<h2>Layers</h2>",
        _layers(journal, fields),
        adaptation_tables(journal, lambda head, rows: _table(head, rows, numbers=range(1, len(head))), _n),
        "<h2>Machine</h2>",
        _machine(journal),
        self_tests_table(journal, lambda head, rows: _table(head, rows, numbers=(2, 3)), _n),
        _footer(journal, header),
    ]
    style = files("controller.record").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Spotwise treatment report</title><style>{style}</style></head>\n<body>"
        + "\n".join(body)
        + "</body></html>\n"
    )


def _e(value: object) -> str:
    return html.escape(str(value))


def _n(value: float | None, digits: int = 2) -> str:
    return "&ndash;" if value is None or not np.isfinite(value) else f"{value:,.{digits}f}".replace(",", "&#8239;")


def _table(
    head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = (), mono: Iterable[int] = ()
) -> str:
    """Cells are HTML already; `numbers`: columns flushed right; `mono`: columns of identifiers."""
    kinds = dict.fromkeys(numbers, "n") | dict.fromkeys(mono, "mono")

    def cell(tag: str, column: int, text: str) -> str:
        return f'<{tag} class="{kinds[column]}">{text}</{tag}>' if column in kinds else f"<{tag}>{text}</{tag}>"

    lines = ["".join(cell("td", i, text) for i, text in enumerate(row)) for row in rows]
    return (
        "<table><thead><tr>"
        + "".join(cell("th", i, text) for i, text in enumerate(head))
        + "</tr></thead><tbody>"
        + "".join(f"<tr>{line}</tr>" for line in lines)
        + "</tbody></table>"
    )


def _banner(journal: Journal, summary: dict[str, Any]) -> str:
    devices = {e["device"]: e for e in journal.events if e["event"] == "device"}
    pretended = [name for name, device in devices.items() if device.get("simulated")]
    if not devices:
        what = "No device was connected."
    elif len(pretended) == len(devices):
        what = "Every device was simulated: no beam existed."
    elif pretended:
        what = f"Simulated devices: {_e(', '.join(pretended))}. The others were real."
    else:
        what = "Every device was real."
    torn = f" {_e(journal.torn)}." if journal.torn else ""
    crashed = "".join(f" {_e(sentence(part))}" for part in summary.get("unclosed", []))
    return (
        f'<div class="banner"><b>{what}</b> Research software, not a medical device. Doses are what the monitors '
        f"measured.{crashed}{torn}</div>"
    )


def _facts(summary: dict[str, Any]) -> str:
    dose, position, times = summary["spot_dose_error_pct"], summary["spot_position_error_mm"], summary["time_s"]
    share = summary["controller_share"]
    kind = "good" if summary["outcome"] == "completed" else "bad"
    facts = [
        ("outcome", f'<span class="{kind}">{_e(summary["outcome"])}</span>', _trip_count(len(summary["trips"]))),
        (
            "spots delivered",
            f"{summary['spots_delivered']} / {summary['spots_planned']}",
            f"{summary['layers']} layers",
        ),
        (
            "MU by monitor 1",
            _n(summary["mu_primary"]),
            f"planned {_n(summary['mu_planned'])}, monitor 2 {_n(summary['mu_secondary'])}",
        ),
        ("spot dose error", f"{_n(dose['mean'], 3)} %", f"sd {_n(dose['sd'], 3)}, max {_n(dose['max'], 2)}"),
        ("position error, p95", f"{_n(position['p95'], 3)} mm", f"max {_n(position['max'], 3)}"),
        (
            "time",
            f"{_n(times['total'], 1)} s",
            f"controller {_n(None if share is None else 100 * share, 2)} % of ideal",
        ),
    ]
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}<small>{more}</small></dd></div>" for name, value, more in facts)
    return f'<dl class="facts">{cells}</dl>'


def _trip_count(trips: int) -> str:
    return "1 trip" if trips == 1 else f"{trips or 'no'} trips"


def _fields(summary: dict[str, Any]) -> str:
    rows = [
        (
            _e(f["number"]),
            _e(f["name"]),
            _e(f["ion"]),
            f"{f['spots_delivered']} / {f['spots_planned']}",
            _n(f["mu_planned"]),
            _n(f["mu_primary"]),
            _n(f["mu_secondary"]),
            f"{_n(f['spot_dose_error_pct']['mean'], 3)} &plusmn; {_n(f['spot_dose_error_pct']['sd'], 3)}",
            _n(f["spot_position_error_mm"]["p95"], 3),
            _n(f["time_s"]["total"], 1),
        )
        for f in summary["per_field"]
    ]
    head = (
        "beam",
        "name",
        "ion",
        "spots",
        "MU planned",
        "monitor 1",
        "monitor 2",
        "dose error %",
        "position p95 mm",
        "time s",
    )
    return _table(head, rows, numbers=range(3, 10))


def _trips(journal: Journal) -> str:
    rows = []
    for part in journal.parts:
        for event in part.events:
            if event["event"] == "trip":
                rows.append(
                    (
                        _e(event["id"]) + (" <b>first out</b>" if event.get("first_out") else ""),
                        _n((event["t_ns"] - part.records[0].t_ns) / 1e9, 4),
                        _e(f"{event.get('value', '')} {event.get('unit', '')}"),
                        _e(f"{event.get('limit', '')} {event.get('unit', '')}"),
                        _e(event.get("hint", "")),
                        str(part.number),
                    )
                )
    if not rows:
        return ""
    return "<h2>Why it stopped</h2>" + _table(("condition", "at s", "value", "limit", "what to do", "part"), rows)


def _errors(fields: list[FieldAccount]) -> str:
    layers = [layer for field in fields for layer in field.layers]
    dose = np.concatenate([dose_errors_pct(layer) for layer in layers])
    position = np.concatenate([position_errors_mm(layer) for layer in layers])
    if len(dose) == 0:
        return "<p>No spot was delivered.</p>"
    text = (
        "Per spot of the plan, all paintings together, by electrometer 1 and the strip planes; without spots cut short."
    )
    return f'<p class="muted">{text}</p>' + _picture(error_histograms(dose, position), "dose and position errors")


def _maps(field: FieldAccount) -> str:
    half_x = 6.0 + max(float(np.abs(layer.x_planned_mm).max()) for layer in field.layers if len(layer.planned))
    half_y = 6.0 + max(float(np.abs(layer.y_planned_mm).max()) for layer in field.layers if len(layer.planned))
    size = 280 if len(field.layers) <= 60 else 180
    tiles = "".join(
        f'<figure><img src="{spot_map(layer, half_x, half_y, size)}" alt="layer {layer.layer + 1}">'
        f"<figcaption>{_caption(layer)}</figcaption></figure>"
        for layer in field.layers
    )
    legend = "".join(f'<span><i style="background:{colour}"></i>{name}</span>' for _, colour, name in DOSE_CLASSES)
    legend += f'<span><i style="background:{CUT_SHORT}"></i>cut short</span>'
    legend += f'<span><i style="border:2px solid {PLANNED}"></i>planned, not delivered</span>'
    legend += f"<span>tail: position error, {ERROR_SCALE:.0f} times enlarged</span>"
    return (
        f"<h3>{_e(field.plan['name'])}, beam {field.plan['number']}: {2 * half_x:.0f} mm x {2 * half_y:.0f} mm around "
        f'the axis, seen from the source</h3><div class="legend">{legend}</div><div class="maps">{tiles}</div>'
    )


def _caption(layer: LayerAccount) -> str:
    done, wanted = int(layer.complete.sum()), int(layer.wanted.sum())
    position = position_errors_mm(layer)
    worst = f", &le; {_n(float(np.hypot(*position.T).max()), 2)}&nbsp;mm" if len(position) else ""
    return (
        f"<b>{layer.layer + 1}</b> &middot; {_n(layer.plan['energy_mev_u'], 2)} MeV/u<br>{done} / {wanted} spots{worst}"
    )


def _time(journal: Journal, fields: list[FieldAccount]) -> str:
    times = [timing(journal.parts, field.index) for field in fields]
    pictures = _picture(time_breakdown([f.plan["name"] for f in fields], times), "time per field")
    visits = journal.visits[journal.visits["beam_on_ns"] > 0]  # from frames alone there is none
    if len(visits) == 0:
        return pictures
    zero = journal.parts[0].records[0].t_ns
    beam = np.maximum(visits["beam_on_ns"], 1) / 1e9
    levels = []
    for program in journal.programs:
        of_layer = visits[
            (visits["field"] == program.head["field_index"]) & (visits["layer"] == program.head["layer_index"])
        ]
        if len(of_layer):
            ends = (of_layer["t_start_ns"].min() - zero) / 1e9, (of_layer["t_end_ns"].max() - zero) / 1e9
            levels.append((float(ends[0]), float(ends[1]), float(program.head["rate_per_s"])))
    chart = rate_over_time((visits["t_start_ns"] - zero) / 1e9, visits["particles_1"] / beam, levels)
    return pictures + _picture(chart, "particle rate over time")


def _layers(journal: Journal, fields: list[FieldAccount]) -> str:
    measured: dict[tuple[int, int], dict[str, Any]] = {}
    for event in journal.events:
        if event["event"] == "layer":
            measured.setdefault((event["field"], event["layer"]), {}).update(event)
    rows = []
    for field in fields:
        for layer in field.layers:
            seen = measured.get((layer.field, layer.layer), {})
            dose, position = dose_errors_pct(layer), position_errors_mm(layer)
            rows.append(
                (
                    f"{field.plan['number']}.{layer.layer + 1}",
                    _n(layer.plan["energy_mev_u"], 3),
                    _n(seen.get("energy_readback_mev_u"), 3),
                    _n(seen.get("energy_sensor_mev_u"), 3),
                    f"{int(layer.complete.sum())} / {int(layer.wanted.sum())}",
                    str(layer.plan["paintings"]),
                    _n(float(layer.planned.sum()), 3),
                    _n(float(layer.meterset_1.sum()), 3),
                    _n(float(layer.meterset_2.sum()), 3),
                    _n(float(dose.mean()) if len(dose) else None, 3),
                    _n(float(np.hypot(*position.T).max()) if len(position) else None, 3),
                )
            )
    head = (
        "beam.layer",
        "plan MeV/u",
        "read back",
        "sensor",
        "spots",
        "paintings",
        "meterset",
        "monitor 1",
        "monitor 2",
        "mean dose error %",
        "max position error mm",
    )
    table = _table(head, rows, numbers=range(1, 11))
    return f"<details open><summary>{len(rows)} layers</summary>{table}</details>"


def _machine(journal: Journal) -> str:
    out = ""
    devices = {(p.number, e["device"]): e for p in journal.parts for e in p.events if e["event"] == "device"}
    if devices:
        rows = [
            (
                _e(name),
                _e(e.get("id", "")),
                "<b>simulated</b>" if e.get("simulated") else "real",
                _e(e.get("map_sha256", "")),
                _e(e.get("boot_nonce", "")),
                str(part),
            )
            for (part, name), e in devices.items()
        ]
        out += "<h3>Devices</h3>" + _table(
            ("device", "id", "", "register map", "boot nonce", "part"), rows, mono=(1, 3, 4)
        )
    setup = [(p.number, e) for p in journal.parts for e in p.events if e["event"] == "setup"]
    if setup:
        rows6 = [
            (
                str(e["field"] + 1),
                _e(e["device"]),
                _e(e["quantity"]),
                _e(e.get("set")),
                _e(e.get("readback")),
                str(number),
            )
            for number, e in setup
        ]
        out += "<h3>Set-up</h3>" + _table(
            ("field", "device", "quantity", "set", "read back", "part"), rows6, numbers=(3, 4)
        )
    corrections = [(p.number, e) for p in journal.parts for e in p.events if e["event"] == "corrections"]
    if corrections:
        rows5 = [
            (
                _n(e.get("ktp"), 5),
                _n(e.get("temperature_c"), 2),
                _n(e.get("pressure_hpa"), 1),
                _e(e.get("pedestals", "")),
                str(n),
            )
            for n, e in corrections
        ]
        head = ("kTP", "temperature C", "pressure hPa", "pedestals", "part")
        out += "<h3>Corrections, frozen for the part</h3>" + _table(head, rows5)
    out += _step_gate(journal)
    notes = [
        (_n((e["t_ns"] - p.records[0].t_ns) / 1e9, 3), _e(e["event"]), _note(e), str(p.number))
        for p in journal.parts
        for e in p.events
        if e["event"] in {"command", "warning", "reset", "reconcile"}
    ]
    if notes:
        out += "<h3>Commands, resets and warnings</h3>" + _table(("at s", "", "", "part"), notes, numbers=(0,))
    return out


def _step_gate(journal: Journal) -> str:
    """Step mode: PC and links as timed, and the worst spot's bounds."""
    gates = [(p.number, e) for p in journal.parts for e in p.events if e["event"] == "step_gate"]
    rows = [
        (_e(t["name"]), str(t["count"]), *(_n(t[k], 3) for k in ("p50_ms", "p99_ms", "p999_ms", "max_ms")), str(number))
        for number, e in gates
        for t in e["links"]
    ]
    head = ("link", "transactions", "p50 ms", "p99 ms", "p99.9 ms", "max ms", "part")
    out = "<h3>Step mode: PC and links at prepare</h3>" + _table(head, rows, numbers=(1, 2, 3, 4, 5)) if rows else ""
    for number, e in gates:
        share, dead_ms, limit_ms = 100 * e["worst_excess_of_tolerance"], e["worst_dead_ms"], e["dead_limit_ms"]
        out += f"<p>Part {number}, at the worst: {_n(share, 1)} % of the tolerated excess over a spot's preset; "
        out += f"beam off for {_n(dead_ms, 1)} of {_n(limit_ms, 1)} ms.</p>"
    return out


def _note(event: dict[str, Any]) -> str:
    return _e(", ".join(f"{k} {v}" for k, v in event.items() if k not in {"t_ns", "event"}))


def _picture(uri: str, alt: str) -> str:
    return f'<img class="chart" src="{uri}" alt="{_e(alt)}">'


def _footer(journal: Journal, header: dict[str, Any]) -> str:
    made_of = f"journal.bin ({len(journal.records)} records, chain {journal.last_hash.hex()[:16]})"
    site = f"{header['site']['name']} {str(header.get('site_sha256', ''))[:16]}"
    words = (
        f"Made from {made_of} by Spotwise {header.get('version', '')}. Plan {header['plan_sha256'][:16]}, site {site}, "
        f"operator {header.get('operator', '')}, seed {header.get('seed', '')}, {header.get('clock', '')} clock."
    )
    return f"<footer>{_e(words)}</footer>"
