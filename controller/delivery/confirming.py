"""Two steps to beam, in a run: the confirmation of patient and position, written down, and what arming asks of it."""

from __future__ import annotations

from controller.clock import now_ns
from controller.delivery.run import Run
from controller.delivery.standing import AlreadyTripped
from drivers.errors import Refused
from interlocks.confirmation import Confirmation, why_not_confirmed
from interlocks.roles import SIMULATED


def confirm(run: Run, operator: str, field: int, wanted: int, *, patient_ok: bool, position_ok: bool) -> None:
    """Take a confirmation of `field`, where `wanted` is the next one. Raises `Refused`; written down either way."""
    why = ""
    if field != wanted:
        why = f"field {field + 1} is not the next one, that is field {wanted + 1}"
    elif run.field_set_up != field:
        why = f"field {field + 1} is not set up"
    elif not patient_ok:
        why = "this is not the patient of the plan"
    elif not position_ok:
        why = "the position is not right"
    _note(run, operator, field, why)
    if why:
        raise Refused(f"not confirmed: {why}")


def require_confirmation(run: Run, field: int) -> None:
    """Trip, and raise `AlreadyTripped`, without a valid confirmation; it is used up.

    Where every device is simulated and nobody has said anything, there is no patient: the name `simulated` confirms.
    """
    if run.confirmation is None and run.site.all_simulated and not run.confirmation_refused:
        _note(run, SIMULATED, field, "")
    given, run.confirmation = run.confirmation, None
    valid_ns = round(run.site.operators.confirmation_s * 1e9)
    why = why_not_confirmed(given, field=field, set_up=run.set_ups, now_ns=now_ns(), valid_ns=valid_ns)
    if why:
        run.trip("NOT_READY", detail=why)
        raise AlreadyTripped("NOT_READY")
    run.field_confirmed = field


def _note(run: Run, operator: str, field: int, why: str) -> None:
    run.confirmation = None if why else Confirmation(operator, field, run.set_ups, now_ns())
    run.confirmation_refused = bool(why)
    run.event("confirmation", operator=operator, field=field, passed=not why, reason=why)
