"""What delivery may learn from the spots that it measures, and how far it may follow: part of the table `scanning`."""

from __future__ import annotations

from pydantic import Field

from sites.table import Positive, Table


class Adaptation(Table):
    """Both adaptations are off unless a site asks for them; the plan and its limits never adapt."""

    learn_early: bool = False
    """Learn how much charge comes after a spot's end, and end spots of the layers still to be downloaded by it.
    Not in step mode, where each spot has a preset of its own."""
    learn_early_spots: int = Field(default=5, ge=3)
    """Beam-offs that must have been measured before anything is learned, or called changed, from them."""
    beam_off_change_us: Positive = 150.0
    """With learn_early: beam-off later or sooner by more than this than the site's value, or than learned before in
    the field, trips (BEAM_OFF_CHANGED)."""
    position_feedback: bool = False
    """Let the measured offset of a layer correct the next layers."""
    position_feedback_spots: int = Field(default=5, ge=3)
    """Spots with a good position that must have been measured for a correction."""
    position_feedback_step_mm: Positive = 0.5
    """The correction changes by no more than this between two layers."""
    position_feedback_limit_mm: Positive = Field(default=2.0, le=2.0)
    """A correction that would be greater than this trips (POSITION_FEEDBACK_BOUND)."""
