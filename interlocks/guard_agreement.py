"""Whether the controller and the guard mean the same: what a session must say before any field of it may be armed.

A session is refused where the plan, the room or the account of what was given are not what the guard knows, and agreed
on once every layer was said and is the layer of the guard's own reading. What is refused stays so until another session
does better; what was agreed on nobody changes afterwards, since limits are made of it. No I/O but `read`, and no clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from drivers.errors import BadInput, Refused
from drivers.wires.guard_link import LayerLimits, Session
from interlocks.guard_account import Account
from interlocks.guard_judge import Finding, Limits, judge_age, judge_air, judge_jump, ktp_of, limits_of
from interlocks.guard_numbers import ExpectedField, counts_per_particle, differs, expected_fields
from interlocks.guard_plan import PlannedDelivery
from interlocks.guard_state import Memory
from sites.schema import GuardRules, Site

REFERENCE_MEV_U = 150.0
KTP_AGREEMENT = 0.003
"""Between two sensors of one room, as the controller allows its two."""
AIR_AGE_FACTOR = 8
"""The air may be so many times as old as the chain's sensors: it is read more seldom, and changes slowly."""


@dataclass(frozen=True, slots=True)
class Air:
    """What electrometer 2 said of itself last."""

    asked_ns: int
    temperature_c: float
    pressure_hpa: float
    counts: int
    """The retained counter."""


class Agreement:
    """What one session said, and what came of it."""

    def __init__(self, site: Site, rules: GuardRules, read: Callable[[], PlannedDelivery]) -> None:
        """`read` reads the plan file anew. Raises its `BadInput` or `Refused`."""
        self.site = site
        self.rules = rules
        self.plan = read()
        self.expected: tuple[ExpectedField, ...] = expected_fields(site, self.plan)
        self.said: Session | None = None
        self.refused: Finding | None = None
        self.agreed = False
        self._read = read
        self._layers: dict[tuple[int, int], LayerLimits] = {}

    def begin(self, said: Session, air: Air | None, account: Account, now_ns: int) -> None:
        """Another session: nothing is agreed on; `refused` says what of it cannot be right whatever its layers are."""
        self.said, self._layers, self.agreed = said, {}, False
        self.refused = (
            self._refuse_plan(said)
            or account.moved
            or refuse_room(self.site, self.rules, air, said.ktp, account.memory, now_ns)
        )
        if self.refused is None and air is not None:
            account.know_room(ktp_of(self.site, air.temperature_c, air.pressure_hpa), reference_counts(self.site))
            self.refused = account.begin_part(said, self.plan)

    def _refuse_plan(self, said: Session) -> Finding | None:
        """The file as it is now, and how much of it there is."""
        try:
            self.plan = self._read()
            self.expected = expected_fields(self.site, self.plan)
        except (BadInput, Refused) as error:
            return Finding("GUARD_PLAN", math.nan, math.nan, str(error))
        sha256 = said.plan_sha256.hex()
        if sha256 != self.plan.sha256:
            detail = f"the controller read {sha256[:16]}, the guard {self.plan.sha256[:16]}"
            return Finding("GUARD_PLAN", math.nan, math.nan, detail)
        layers = sum(len(field.layers) for field in self.expected)
        for what, got, wanted in (
            ("fraction group", said.fraction_group, self.plan.fraction_group),
            ("fields", said.fields, len(self.expected)),
            ("layers", said.layers, layers),
        ):
            if got != wanted:
                return Finding("GUARD_LIMITS", float(got), float(wanted), what)
        return None

    def take(self, layer: LayerLimits) -> bool:
        """What the controller means by one layer. True where that settled it: all were said, and compared."""
        if self.agreed:
            return False
        self._layers[layer.field, layer.layer] = layer
        said = self.said
        if said is None or self.refused is not None or len(self._layers) < said.layers:
            return False
        self.refused = self._first_difference(said.ktp)
        self.agreed = self.refused is None
        return True

    def _first_difference(self, ktp: float) -> Finding | None:
        for index, field in enumerate(self.expected):
            for number, layer in enumerate(field.layers):
                one = self._layers.get((index, number))
                if one is None:
                    detail = f"field {index + 1}, layer {number + 1}: nothing said"
                    return Finding("GUARD_LIMITS", math.nan, math.nan, detail)
                difference = differs(self.site, self.rules, field, layer, one, ktp)
                if difference is not None:
                    return Finding("GUARD_LIMITS", difference.value, difference.limit, difference.detail)
        return None

    def limits(self, field: int, layer: int) -> Limits:
        """What holds while a layer may run, by the rates and the kTP that were agreed on; only then."""
        assert self.agreed
        assert self.said is not None
        expected = self.expected[field]
        rates = tuple(self._layers[field, k].rate_per_s for k in range(len(expected.layers)))
        return limits_of(self.site, self.rules, expected, layer, rates, self.said.ktp)

    def withdraw(self) -> None:
        """Nothing is agreed on any more, and no layer that is said changes that."""
        self.said, self.agreed = None, False


def refuse_room(
    site: Site, rules: GuardRules, air: Air | None, said_ktp: float, memory: Memory, now_ns: int
) -> Finding | None:
    """Air and calibration: of a treatment room, as the controller says, and as they were at the last treatment."""
    asked_ns = None if air is None else air.asked_ns
    limit_ns = AIR_AGE_FACTOR * round(rules.max_age_ms * 1e6)
    stale = judge_age("GUARD_CORRECTIONS", now_ns, asked_ns, limit_ns, "no reading of the air")
    if stale is not None or air is None:
        return stale
    found = judge_air(site, rules, air.temperature_c, air.pressure_hpa)
    if found is not None:
        return found
    own = ktp_of(site, air.temperature_c, air.pressure_hpa)
    found = judge_jump("GUARD_CORRECTIONS", said_ktp, own, KTP_AGREEMENT, "the controller's against the guard's")
    found = found or judge_jump("GUARD_CORRECTIONS", own, memory.ktp, rules.ktp_jump, "since the last treatment")
    if found is not None:
        return found
    low, high = rules.gain
    gain = site.dosimetry.secondary.gain
    if not low <= gain <= high:
        return Finding("GUARD_CORRECTIONS", gain, low if gain < low else high, "gain of electrometer 2")
    return judge_jump(
        "GUARD_CORRECTIONS",
        reference_counts(site),
        memory.counts_per_particle,
        rules.calibration_jump,
        "counts per particle since the last treatment",
    )


def reference_counts(site: Site) -> float:
    """Counts per particle by which two days' calibrations are compared."""
    return counts_per_particle(site, site.accelerator.ions[0], REFERENCE_MEV_U)
