"""The command API of a room: what an operator can do, the same under the command line and any console.

load, check, prepare, arm, beam on, pause, resume, abort, reset. Commands that the present state does not know are
refused; nothing is ever assumed. Arming and resetting need a named operator.
"""

from __future__ import annotations

from pathlib import Path

from controller.delivery.states import State, UndefinedTransition
from controller.delivery.treatment import Treatment
from controller.plan.check import CheckReport, check_plan
from drivers.errors import Refused
from interlocks.roles import is_operator, stranger
from sites.schema import Site


class Commands:
    """One room's commands. `attach` gives it the treatment that `prepare` works on."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.report: CheckReport | None = None
        self.treatment: Treatment | None = None

    def check(
        self,
        path: Path,
        *,
        fraction_group: int | None = None,
        allow_unapproved: bool = False,
        gantry_deg: float | None = None,
        couch_deg: float | None = None,
    ) -> CheckReport:
        """Load a plan and check it against the room."""
        self.report = check_plan(
            path,
            self.site,
            fraction_group=fraction_group,
            allow_unapproved=allow_unapproved,
            gantry_deg=gantry_deg,
            couch_deg=couch_deg,
        )
        return self.report

    def attach(self, treatment: Treatment) -> None:
        """The treatment of the plan that was checked last."""
        if self.report is None or self.report.outcome != "deliverable":
            raise Refused("no plan has passed its check")
        self.treatment = treatment

    def _treatment(self) -> Treatment:
        if self.treatment is None:
            raise UndefinedTransition("no treatment is loaded; check a plan first")
        return self.treatment

    def _named(self, operator: str) -> str:
        if not is_operator(self.site, operator):
            raise Refused(stranger(self.site, operator))
        return operator

    @property
    def state(self) -> State:
        """State of the treatment."""
        return State.IDLE if self.treatment is None else self.treatment.run.state

    async def prepare(self) -> None:
        """Connect, verify and self-test the room."""
        await self._treatment().prepare()

    async def set_up(self, operator: str) -> None:
        """Bring the room to the next field's set-up, for the operator to look at."""
        await self._treatment().set_up(self._named(operator))

    def confirm(self, operator: str, patient: str, field: int, *, position_ok: bool) -> None:
        """First of two steps to beam: the patient's id as typed by whoever looks at the patient, and the position.

        `field`: from 0. Raises `Refused` for anything but the next field's patient and set-up; written down either way,
        without what was typed.
        """
        loaded = None if self.report is None else self.report.loaded
        wanted = "" if loaded is None else loaded.patient.id.strip()
        patient_ok = wanted != "" and patient.strip() == wanted
        self._treatment().confirm(self._named(operator), field, patient_ok=patient_ok, position_ok=position_ok)

    async def arm(self, operator: str, reason: str) -> None:
        """Set the next field up and close the chain."""
        await self._treatment().arm(self._named(operator), reason)

    async def beam_on(self, operator: str) -> None:
        """Deliver the armed field."""
        await self._treatment().beam_on(self._named(operator))

    async def pause(self, operator: str) -> None:
        """Hold the beam; the operator resumes."""
        await self._treatment().pause(self._named(operator))

    async def resume(self, operator: str) -> None:
        """End a pause."""
        await self._treatment().resume(self._named(operator))

    def abort(self, operator: str, cause: str) -> None:
        """Stop the treatment: anybody may, at any time."""
        self._treatment().abort(operator, cause)

    def reset(self, operator: str, reason: str) -> None:
        """Clear latched trips, once their causes are gone; some are a physicist's to clear."""
        self._treatment().reset(self._named(operator), reason)
