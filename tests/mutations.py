"""Seeded damage to plan files, and a judge: whatever is done to a file, it is refused or understood rightly.

A case is rightly handled if the controller turns the file down with named rules, or understands it as the
second reader does. Run a campaign with

    python -m tests.mutations --count 1000 --site carbon-gantry
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import random
import struct
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from controller.plan.check import CheckReport, check_plan
from controller.plan.table import WIDTH, format_report
from sites.loader import load_site, shipped_sites
from sites.plans import example_plan
from sites.schema import Site
from tests.make_plan import BeamSpec, LayerSpec, SetupSpec, make_plan, plan_bytes
from tests.plan_compare import differences
from tests.plan_reader import read

CPU_LIMIT_S = 20.0
"""No case may take longer on the processor; the largest base plan takes under 0.2 s."""
TEXTS = [
    *(b"NaN", b"inf", b"-inf", b"1e400", b"-1", b"0", b"1e30", b"1e-30", b"208,69", b"0x10", b"--1", b"1\\2", b"\\"),
    *(b"99999999999", b"-0", b"1e5", b"360", b"-360.5", b"TREATMENT", b"SETUP", b"NONE", b"IN", b"OUT", b"DYNAMIC"),
    *(b"\x1b[2J", b"\0\0\0\0", b"\xff\xfe", b"A" * 70, b"9" * 4096, b"%s%n", b"../../etc/passwd", b"<script>"),
    *(b"APPROVED", b"UNAPPROVED", b"MU", b"NP", b"ION", b"PROTON", b"PHOTON", b"UNIFORM", b"ALLOWED", b"1", b"2"),
]
FLOATS = [math.nan, math.inf, -math.inf, -1.0, 0.0, 1e30, -1e-30, 1e-42, 3.4e38, 1.0, 12345.678]


@dataclass(frozen=True)
class Case:
    """One damaged file."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Verdict:
    """What became of a case; `faults` is empty where it was handled rightly."""

    outcome: str
    rules: tuple[str, ...]
    faults: tuple[str, ...]


def base_plans() -> list[tuple[str, bytes]]:
    """Return plans to damage: made to order in both encodings, shipped examples, and reference plans if at hand."""
    carbon = make_plan(
        [
            BeamSpec(range_shifter=(0, "RS", None), magnets=True, final_weight=100.0, table_mm=(1.0, 2.0, 3.0)),
            BeamSpec(number=5, name="S", delivery="SETUP"),
            BeamSpec(number=2, name="F2", gantry_deg=0.0, unit="NP", one_point_per_layer=True, ripple_filter="R"),
        ],
        groups={1: {1: 40.0, 2: 5e6}, 3: {2: 6e6}},
        setups=[SetupSpec(1, motion=("GATING", "BELT"))],
    )
    single = make_plan([BeamSpec(layers=[LayerSpec(200.0, [(1.0, 2.0, 3.0)], paintings=4)], ion="1H", machine="TR3")])
    plans = [
        ("made explicit", plan_bytes(carbon)),
        ("made implicit", plan_bytes(carbon, implicit=True)),
        ("single spot", plan_bytes(single)),
        ("small_carbon", example_plan("small_carbon").read_bytes()),
        ("raster", RASTER),
    ]
    shared = Path(os.environ.get("SPOTWISE_SHARED", Path(__file__).parents[2] / "shared")) / "plans"
    for name in ("bad/B00_control_valid.dcm", "good/R02_varian_sobp_1Gy_12layer.dcm", "good/R01_varian_qa_4field.dcm"):
        if (shared / name).is_file():
            plans.append((name, (shared / name).read_bytes()))
    return plans


RASTER = b"""rstfile 20030630
sistable 19981218
patient_id phantom
machine# 0
projectile 12C
charge 6
mass 12
gantryangle 0
couchangle -90
stereotacticcoordinates
bolus 0
ripplefilter 3 mm RIFI
#submachines 2
#particles 55715.1 70000 306860
submachine# 91 229.76 2 3.7
#particles 55715.1 70000 181430
stepsize 2 2
#points 3
2 -2 55715.1
0 -2 55715.1
0 0 70000
submachine# 94 233.42 1 3.7
#particles 60000 65430 125430
stepsize 2 2
#points 2
2 2 60000
0 2 65430
"""


def cases(seed: int, count: int) -> Iterator[Case]:
    """Return `count` damaged files; the same seed gives the same files."""
    bases = base_plans()
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        base, data = bases[number % len(bases)]
        damages: list[Callable[[random.Random, bytes], tuple[str, bytes]]] = [_bytes_damage]
        if data[128:132] == b"DICM":
            damages += [_element_damage] * 4
        else:
            damages += [_line_damage] * 2
        what, damaged = rng.choice(damages)(rng, data)
        yield Case(f"{number}: {base}: {what}", damaged)


def _bytes_damage(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    kind = rng.choice(("flip a bit", "flip bits", "cut", "cut out", "insert", "zero", "repeat", "append", "swap bytes"))
    damaged = bytearray(data)
    start = rng.randrange(len(data))
    size = rng.choice((1, 2, 4, 8, 64, 1024))
    part = data[start : start + size]
    if kind.startswith("flip"):
        for _ in range(1 if kind == "flip a bit" else rng.randint(2, 40)):
            damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del damaged[start:]
    elif kind == "cut out":
        del damaged[start : start + size]
    elif kind == "insert":
        damaged[start:start] = rng.randbytes(size)
    elif kind == "zero":
        damaged[start : start + size] = bytes(len(part))
    elif kind == "repeat":
        damaged[start:start] = part * rng.choice((1, 50))
    elif kind == "append":
        damaged += rng.choice((rng.randbytes(size), data[132:], b"\0" * size))
    else:
        damaged[start : start + size] = part[::-1]
    return f"{kind} at {start} ({size})", bytes(damaged)


def _line_damage(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    kind = rng.choice(("delete", "repeat", "swap", "word", "word", "word", "long"))
    if kind == "delete":
        del lines[at]
    elif kind == "repeat":
        lines[at:at] = [lines[at]] * rng.choice((1, 1000))
    elif kind == "swap":
        other = rng.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    elif kind == "long":
        lines[at] = lines[at] * 1000
    else:
        words = lines[at].split() or [b""]
        words[rng.randrange(len(words))] = rng.choice(TEXTS)
        lines[at] = b" ".join(words)
    return f"{kind} line {at}", b"\n".join(lines)


def _element_damage(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = pydicom.dcmread(io.BytesIO(data))
        path, owner, tag = rng.choice(list(_places(plan, "")))
        what = _damage_element(rng, owner, tag)
        buffer = io.BytesIO()
        plan.save_as(buffer, enforce_file_format=False)
    return f"{path}{keyword_for_tag(tag) or hex(tag)}: {what}", buffer.getvalue()


def _places(dataset: Dataset, path: str) -> Iterator[tuple[str, Dataset, int]]:
    for tag in list(dataset.keys()):
        yield path, dataset, int(tag)
        element = dataset.get_item(tag)
        is_sequence = getattr(element, "VR", None) == "SQ" or (
            getattr(element, "VR", None) is None and dictionary_has_tag(tag) and dictionary_VR(tag) == "SQ"
        )
        if is_sequence:
            for index, item in enumerate(dataset[tag].value or []):
                yield from _places(item, f"{path}{keyword_for_tag(tag)}[{index}].")


def _damage_element(rng: random.Random, owner: Dataset, tag: int) -> str:
    element = owner.get_item(tag)
    if isinstance(element, DataElement) and element.VR == "SQ":
        return _damage_sequence(rng, owner, tag, list(element.value or []))
    vr = getattr(element, "VR", None) or (dictionary_VR(tag) if dictionary_has_tag(tag) else "UN")
    raw = element.value if isinstance(element, RawDataElement) else b""
    kind = rng.choice(("delete", "empty", "extreme", "extreme", "extreme", "repeat", "enlarge", "flip", "shorten"))
    if kind == "delete":
        del owner[tag]
        return kind
    value = raw if isinstance(raw, bytes) else b""
    if kind == "empty":
        value = b""
    elif kind == "repeat":
        value = value * 2 if vr in ("FL", "SS", "UL") else value.rstrip() + b"\\" + value
    elif kind == "enlarge":
        value = (value or b"7") * rng.choice((100, 20_000))
    elif kind == "flip" and value:
        at = rng.randrange(len(value))
        value = value[:at] + bytes([value[at] ^ (1 << rng.randrange(8))]) + value[at + 1 :]
    elif kind == "shorten":
        value = value[: len(value) // 2]
    elif vr == "FL" and len(value) >= 4:
        at = rng.randrange(len(value) // 4) * 4
        value = value[:at] + struct.pack("<f", rng.choice(FLOATS)) + value[at + 4 :]
    elif vr == "SS":
        value = struct.pack("<h", rng.choice((-32768, -1, 0, 1, 5, 6, 32767)))
    else:
        value = rng.choice(TEXTS)
    if len(value) % 2:
        value += b" "
    if vr not in ("OB", "UN", "UT", "SQ") and len(value) > 65534:
        vr = "UN"
    implicit = bool(getattr(element, "is_implicit_VR", owner.original_encoding[0]))
    written_vr = None if implicit else vr
    owner._dict[element.tag] = RawDataElement(element.tag, written_vr, len(value), value, 0, implicit, True)
    return f"{kind} {value[:24]!r}"


def _damage_sequence(rng: random.Random, owner: Dataset, tag: int, items: list[Dataset]) -> str:
    kind = rng.choice(("delete", "empty", "drop", "repeat", "swap", "many", "nest"))
    if kind == "delete":
        del owner[tag]
    elif kind == "empty":
        owner[tag].value = Sequence([])
    elif items:
        at = rng.randrange(len(items))
        if kind == "drop":
            items.pop(at)
        elif kind == "repeat":
            items.insert(at, items[at])
        elif kind == "swap":
            other = rng.randrange(len(items))
            items[at], items[other] = items[other], items[at]
        elif kind == "many":
            items += [items[at]] * 300
        else:
            inner = items[at]
            for _ in range(30):
                outer = Dataset()
                outer[tag] = DataElement(tag, "SQ", Sequence([inner]))
                inner = outer
            items.append(inner)
        owner[tag].value = Sequence(items)
    return kind


def judge(case: Case, site: Site, path: Path) -> Verdict:
    """Check a case as `spotwise check` would, and compare what was understood. `path` is written to."""
    path.write_bytes(case.data)
    started = time.process_time()
    try:
        report = check_plan(path, site)
        text = format_report(report)
        output = json.dumps(report.to_json(), allow_nan=False)
    except Exception as error:  # the judge's boundary: any exception is the finding of this case
        return Verdict("raised", (), (f"raised {type(error).__name__}: {error}",))
    faults = list(_report_faults(report, text, output))
    spent = time.process_time() - started
    if spent > CPU_LIMIT_S:
        faults.append(f"took {spent:.1f} s")
    if report.loaded is not None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                faults += differences(report.loaded.plan, read(case.data))
        except Exception as error:  # the plain reader may trip over a file that should have been refused
            faults.append(f"accepted, but the second reader raised {type(error).__name__}: {error}")
    return Verdict(report.outcome, tuple(f.rule for f in report.findings if f.severity == "refuse"), tuple(faults))


def _report_faults(report: CheckReport, text: str, output: str) -> Iterator[str]:
    if report.outcome == "unreadable" and (report.loaded is not None or report.fields):
        yield "unreadable, but something of it is used"
    if report.outcome != "deliverable" and not any(f.severity == "refuse" for f in report.findings):
        yield f"{report.outcome} without a reason"
    if any(ord(c) < 32 and c != "\n" for c in text) or "\x1b" in output:
        yield "control characters in the report"
    if any(len(line) > WIDTH for line in text.splitlines()):
        yield "a line of the report is too long"
    if len(output) > 1_000_000:
        yield "the report is larger than a megabyte"


def main(arguments: list[str] | None = None) -> int:
    """Run a campaign; 1 if any case was handled wrongly."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--site", choices=shipped_sites(), default="carbon-gantry")
    options = parser.parse_args(arguments)
    site = load_site(options.site)
    outcomes: Counter[str] = Counter()
    rules: Counter[str] = Counter()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(options.seed, options.count):
            verdict = judge(case, site, Path(folder) / "case.dcm")
            outcomes[verdict.outcome] += 1
            rules.update(set(verdict.rules))
            for fault in verdict.faults[:3]:
                print(f"WRONG {case.name}: {fault}", file=sys.stderr)
            wrong += bool(verdict.faults)
    print(json.dumps({"cases": options.count, "wrong": wrong, "outcomes": outcomes, "rules": rules}, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
