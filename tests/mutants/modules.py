"""Which files are attacked, and which tests guard each of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """Files that are attacked in one process. Interpreted: what is compiled runs as plain Python, to be changed."""

    interpreted: bool
    files: tuple[str, ...]
    tests: tuple[str, ...]
    functions: tuple[str, ...] = ()
    """Of the files only these; all where empty."""


GROUPS = {
    "realtime": Group(
        True,
        ("interlocks/realtime.py", "controller/dose/frame_clock.py"),
        ("tests/test_realtime_conditions.py", "tests/test_realtime_permits.py"),
    ),
    "decide": Group(
        True,
        ("controller/dose/integrator.py",),
        ("tests/test_realtime_conditions.py", "tests/test_realtime_permits.py"),
        ("decide", "handle_frame", "handle_frame_at", "handle_silence", "obey_control", "clear_latch", "start_field"),
    ),
    "permits": Group(True, ("drivers/wires/permits.py",), ("tests/test_codecs.py", "tests/test_guard_link.py")),
    "chain": Group(True, ("simulators/plant/chain.py",), ("tests/test_plant_chain.py",)),
    "digest": Group(True, ("interlocks/guard_digest.py",), ("tests/test_guard_parts.py",)),
    "slow": Group(
        False,
        (
            "interlocks/slow.py",
            "interlocks/latch.py",
            "interlocks/invariant.py",
            "interlocks/conditions.py",
        ),
        (
            "tests/test_roles.py",
            "tests/test_slow_conditions.py",
            "tests/test_invariant.py",
            "tests/test_interlock_matrix.py",
        ),
    ),
    "invariant": Group(False, ("interlocks/invariant.py",), ("tests/test_invariant.py",)),
    "matrix": Group(False, ("interlocks/matrix.toml",), ("tests/test_interlock_matrix.py",)),
    "overdose": Group(
        False, ("controller/machine/overdose.py",), ("tests/test_machine_physics.py", "tests/test_machine_program.py")
    ),
    "guard": Group(
        False,
        ("interlocks/guard_judge.py", "interlocks/guard_plan.py", "interlocks/guard_state.py"),
        ("tests/test_guard_judge.py", "tests/test_guard_plan.py"),
    ),
    "guard_room": Group(
        False,
        ("interlocks/guard_numbers.py", "interlocks/guard_supervisor.py", "interlocks/guard.py"),
        ("tests/test_guard_judge.py", "tests/test_guard_parts.py", "tests/test_guard_delivery.py"),
    ),
    "delivery": Group(
        False,
        (
            "controller/delivery/standing.py",
            "controller/delivery/integrity.py",
            "controller/delivery/stopping.py",
        ),
        ("tests/test_integrity.py", "tests/test_invariant.py", "tests/test_delivery_faults.py"),
    ),
}
