"""The delivery state table: what may follow what. An undefined transition is an error, never ignored."""

from __future__ import annotations

from enum import StrEnum

from drivers.errors import SpotwiseError


class State(StrEnum):
    """States of a treatment."""

    IDLE = "IDLE"
    LOADED = "LOADED"
    CHECKED = "CHECKED"
    PREPARED = "PREPARED"
    ARMED = "ARMED"
    DELIVERING = "DELIVERING"
    INTERRUPTED = "INTERRUPTED"
    """Paused by the operator, who may resume."""
    TRIPPED = "TRIPPED"
    """An interlock latched; a reset leads to TERMINATED."""
    TERMINATED = "TERMINATED"
    """Ended before its time, by an operator's abort or by the reset of a trip: what is left is armed anew."""
    COMPLETED = "COMPLETED"


class Event(StrEnum):
    """What moves a treatment on."""

    LOAD = "load"
    CHECK = "check"
    PREPARE = "prepare"
    ARM = "arm"
    BEAM_ON = "beam_on"
    PAUSE = "pause"
    RESUME = "resume"
    FIELD_DONE = "field_done"
    COMPLETE = "complete"
    TRIP = "trip"
    ABORT = "abort"
    RESET = "reset"


S, E = State, Event
TABLE: dict[State, dict[Event, State]] = {
    S.IDLE: {E.LOAD: S.LOADED},
    S.LOADED: {E.LOAD: S.LOADED, E.CHECK: S.CHECKED},
    S.CHECKED: {E.LOAD: S.LOADED, E.PREPARE: S.PREPARED, E.ABORT: S.TERMINATED},
    S.PREPARED: {E.ARM: S.ARMED, E.TRIP: S.TRIPPED, E.ABORT: S.TERMINATED},
    S.ARMED: {E.BEAM_ON: S.DELIVERING, E.TRIP: S.TRIPPED, E.ABORT: S.TERMINATED},
    S.DELIVERING: {
        E.PAUSE: S.INTERRUPTED,
        E.FIELD_DONE: S.PREPARED,
        E.COMPLETE: S.COMPLETED,
        E.TRIP: S.TRIPPED,
        E.ABORT: S.TERMINATED,
    },
    S.INTERRUPTED: {E.RESUME: S.DELIVERING, E.TRIP: S.TRIPPED, E.ABORT: S.TERMINATED},
    S.TRIPPED: {E.RESET: S.TERMINATED},
    S.TERMINATED: {E.LOAD: S.LOADED},
    S.COMPLETED: {E.LOAD: S.LOADED},
}


class UndefinedTransition(SpotwiseError):
    """A command that the present state does not know."""

    exit_status = 3


def follow(state: State, event: Event) -> State:
    """The next state. Raises `UndefinedTransition`."""
    after = TABLE[state].get(event)
    if after is None:
        known = ", ".join(e.value for e in TABLE[state]) or "nothing"
        raise UndefinedTransition(f"'{event.value}' is not possible in state {state.value}; possible: {known}")
    return after
