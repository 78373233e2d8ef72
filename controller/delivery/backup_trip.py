"""Which of its own limits electrometer 2 has cut the beam at: asked of the device once the beam is off.

Its flag in the frames says only that it has tripped; which limit, and in which visit, is in its registers.
"""

from __future__ import annotations

from collections.abc import Sequence

from controller.delivery.layer import rate_limit_per_s
from controller.delivery.run import Run
from controller.machine.program import LayerProgram
from drivers.contracts import TRIP_BACKUP, TRIP_RATE
from drivers.deadline import Deadline
from drivers.errors import DeviceError
from sites.schema import Site

CONDITION = "BACKUP_TRIPPED"
ASK_S = 1.0


async def what_cut(run: Run) -> str:
    """What electrometer 2 says, in words; '' where it has not tripped, or cannot be asked. Never raises for that."""
    if CONDITION not in {trip.id for trip in run.latch.latched}:
        return ""
    try:
        status = await run.devices.electrometer_2.status(Deadline.after(ASK_S, "why electrometer 2 tripped"))
    except (DeviceError, TimeoutError) as error:
        run.event("warning", text=f"electrometer_2: which limit has cut is not known: {error}")
        return ""
    index = run.tally.field_index
    programs = run.programs[index] if 0 <= index < len(run.programs) else ()
    text = limit_in_words(status.trip, status.trip_visit, run.site, programs)
    if text:
        run.event("warning", text=text)
    return text


def limit_in_words(trip: int, visit: int, site: Site, programs: Sequence[LayerProgram]) -> str:
    """Which limit it was, as it was loaded and read back where the visit is one of these programs."""
    if trip not in (TRIP_BACKUP, TRIP_RATE):
        return ""
    which = "limit on rate" if trip == TRIP_RATE else "limit of the visit"
    for program in programs:
        rows = program.visits[program.visits["visit"] == visit]
        if len(rows):
            rate_per_s, counts = rate_limit_per_s(site, program), int(rows["backup_counts"][0])
            which += f", {rate_per_s:.0f} counts per s," if trip == TRIP_RATE else f", {counts} counts,"
            break
    return f"electrometer_2: its {which} was reached in visit {visit}"
