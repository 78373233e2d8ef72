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


REALTIME_TESTS = (
    "tests/test_realtime_judges.py",
    "tests/test_realtime_clock.py",
    "tests/test_realtime_idle.py",
    "tests/test_realtime_edges.py",
    "tests/test_realtime_permits.py",
    "tests/test_realtime_conditions.py",
)

GROUPS = {
    "matrix": Group(False, ("interlocks/matrix.toml",), ("tests/test_interlock_matrix.py",)),
    "realtime": Group(
        True,
        ("interlocks/realtime.py", "controller/dose/frame_clock.py"),
        REALTIME_TESTS,
    ),
    "decide": Group(
        True,
        ("controller/dose/integrator.py",),
        REALTIME_TESTS,
        (
            "decide",
            "handle_frame",
            "handle_frame_at",
            "handle_silence",
            "obey_control",
            "clear_latch",
            "start_field",
            "integrate_idle",
        ),
    ),
    "permits": Group(True, ("drivers/wires/permits.py",), ("tests/test_codecs.py", "tests/test_guard_link.py")),
    "chain": Group(True, ("simulators/plant/chain.py",), ("tests/test_plant_chain.py",)),
    "slow": Group(
        False,
        (
            "interlocks/slow.py",
            "interlocks/latch.py",
            "interlocks/conditions.py",
        ),
        (
            "tests/test_slow_conditions.py",
            "tests/test_identity_age.py::test_an_identity_counts_until_its_limit_and_not_from_the_future",
            "tests/test_identity_age.py::test_a_device_that_never_said_who_it_is_is_named",
            "tests/test_interlock_matrix.py",
        ),
    ),
    "roles": Group(
        False,
        ("interlocks/roles.py", "interlocks/confirmation.py"),
        (
            "tests/test_roles.py::test_roles_by_name",
            "tests/test_roles.py::test_with_one_real_device_the_name_simulated_has_no_role_even_if_the_site_lists_it",
            "tests/test_roles.py::test_every_condition_is_reset_by_whom_the_matrix_says",
            "tests/test_roles.py::test_one_reserved_condition_among_others_is_named_and_once",
            "tests/test_roles.py::test_a_simulated_room_that_lists_nobody_takes_any_name_and_a_real_one_does_not",
            "tests/test_roles.py::test_in_a_simulated_room_a_given_name_counts_and_none_is_simulated",
            "tests/test_arming.py::test_a_confirmation_holds_for_its_field_and_set_up_and_for_its_time",
        ),
    ),
    "invariant": Group(False, ("interlocks/invariant.py",), ("tests/test_invariant.py",)),
    "overdose": Group(
        False, ("controller/machine/overdose.py",), ("tests/test_machine_physics.py", "tests/test_machine_program.py")
    ),
    "guard": Group(
        False,
        (
            "interlocks/guard_judge.py",
            "interlocks/guard_plan.py",
            "interlocks/guard_state.py",
            "interlocks/guard_numbers.py",
        ),
        (
            "tests/test_guard_judge.py",
            "tests/test_guard_plan.py",
            "tests/test_guard_state.py",
            "tests/test_guard_numbers.py",
            "tests/test_guard_stream.py",
        ),
    ),
    "guard_wires": Group(
        False, ("drivers/wires/guard_link.py",), ("tests/test_guard_link.py",), ("", "encode", "decode")
    ),
    "digest": Group(False, ("interlocks/guard_digest.py",), ("tests/test_guard_judge.py",)),
    "supervisor": Group(
        False,
        (
            "interlocks/guard_supervisor.py",
            "interlocks/guard_agreement.py",
            "interlocks/guard_armed.py",
            "interlocks/guard_account.py",
            "interlocks/guard_stream.py",
        ),
        (
            "tests/test_guard_supervisor.py",
            "tests/test_guard_agreement.py",
            "tests/test_guard_armed.py",
            "tests/test_guard_account.py",
            "tests/test_guard_stream.py",
        ),
    ),
    "guard_turn": Group(False, ("interlocks/guard.py",), ("tests/test_guard_turn.py", "tests/test_guard_links.py")),
    "delivery": Group(
        False,
        (
            "controller/delivery/standing.py",
            "controller/delivery/integrity.py",
            "controller/delivery/stopping.py",
            "controller/delivery/proof.py",
        ),
        (
            "tests/test_standing.py",
            "tests/test_identity_age.py::test_an_armed_room_in_which_one_device_no_longer_says_who_it_is_is_stopped",
            "tests/test_stopping.py",
            "tests/test_beam_off_proof.py",
            "tests/test_integrity.py",
        ),
    ),
}
