"""Supplies slew, fields lag and remember a little, and the beam goes where the fields send it."""

from __future__ import annotations

from math import sqrt

from drivers.compiled import compiled, compiled_inline
from simulators.plant.noise import unit_noise

MEMORY_MA = 20_000.0
"""A swing of this many mA turns the field's memory over."""


@compiled_inline
def _clip(value, limit):
    return min(max(value, -limit), limit)


@compiled
def advance_magnets(plant, t_ns):
    """One step of 10 us; notes when both read-backs are inside the engine's window."""
    p = plant.parameters
    s = plant.state
    if p.stuck_x == 0:
        towards_ma = 0.0 if p.tripped_x == 1 else s.set_x_ma
        s.current_x_ma += _clip(towards_ma - s.current_x_ma, p.slew_x_ma_step)
    if p.stuck_y == 0:
        towards_ma = 0.0 if p.tripped_y == 1 else s.set_y_ma
        s.current_y_ma += _clip(towards_ma - s.current_y_ma, p.slew_y_ma_step)
    dx = (s.current_x_ma - s.field_x_ma) * p.settle_share
    dy = (s.current_y_ma - s.field_y_ma) * p.settle_share
    s.field_x_ma += dx
    s.field_y_ma += dy
    s.memory_x = _clip(s.memory_x + dx / MEMORY_MA, 1.0)
    s.memory_y = _clip(s.memory_y + dy / MEMORY_MA, 1.0)
    inside = abs(s.current_x_ma - s.set_x_ma) < p.window_ma and abs(s.current_y_ma - s.set_y_ma) < p.window_ma
    if not inside:
        s.arrived_ns = -1
    elif s.arrived_ns < 0:
        s.arrived_ns = t_ns


@compiled_inline
def magnets_at_rest(plant):
    """True when nothing moves any more."""
    s = plant.state
    return (
        s.arrived_ns >= 0
        and abs(s.current_x_ma - s.set_x_ma) < 1e-6
        and abs(s.current_y_ma - s.set_y_ma) < 1e-6
        and abs(s.current_x_ma - s.field_x_ma) < 1e-3
        and abs(s.current_y_ma - s.field_y_ma) < 1e-3
    )


@compiled
def wander(plant, frame):
    """Slow position noise: first-order, correlation over 20 frames; once a frame."""
    p = plant.parameters
    s = plant.state
    s.wander_x_mm = 0.95 * s.wander_x_mm + 0.3122 * p.position_noise_mm * unit_noise(plant, frame, 21)
    s.wander_y_mm = 0.95 * s.wander_y_mm + 0.3122 * p.position_noise_mm * unit_noise(plant, frame, 22)


@compiled_inline
def field_x_tm(plant):
    """True integral field of the x magnet, T m."""
    p = plant.parameters
    s = plant.state
    field_ma = s.field_y_ma if p.swapped == 1 else s.field_x_ma
    return plant.tune[0].field_x_tm_ma * p.gain_x * (field_ma + p.hysteresis_ma * s.memory_x)


@compiled_inline
def field_y_tm(plant):
    """True integral field of the y magnet, T m."""
    p = plant.parameters
    s = plant.state
    field_ma = s.field_x_ma if p.swapped == 1 else s.field_y_ma
    return plant.tune[0].field_y_tm_ma * p.gain_y * (field_ma + p.hysteresis_ma * s.memory_y)


@compiled
def beam_position(plant):
    """Where the beam is at isocentre now: sin(theta) = integral B dl / (B rho), x = SAD tan(theta)."""
    p = plant.parameters
    s = plant.state
    tune = plant.tune[0]
    if tune.brho_tm <= 0.0:
        return
    sin_x = _clip(field_x_tm(plant) / tune.brho_tm, 0.9)
    sin_y = _clip(field_y_tm(plant) / tune.brho_tm, 0.9)
    x = tune.sad_x_mm * sin_x / sqrt(1.0 - sin_x * sin_x) - tune.shift_x_mm
    y = tune.sad_y_mm * sin_y / sqrt(1.0 - sin_y * sin_y) - tune.shift_y_mm
    s.x_mm = tune.inv_xx * x + tune.inv_xy * y + p.offset_x_mm + s.wander_x_mm
    s.y_mm = tune.inv_yx * x + tune.inv_yy * y + p.offset_y_mm + s.wander_y_mm
