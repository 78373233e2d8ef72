"""Example plans that ship with Spotwise: a demo for each kind of machine, and a small one for tests."""

from __future__ import annotations

from pathlib import Path

from drivers.errors import BadInput


def example_plan(name: str) -> Path:
    """Path of a shipped plan, by file name or stem, such as `demo_carbon_2field`; BadInput for another name."""
    folder = Path(__file__).parent
    path = folder / (name if name.endswith(".dcm") else f"{name}.dcm")
    if path.parent != folder or not path.is_file():
        known = ", ".join(sorted(found.stem for found in folder.glob("*.dcm")))
        raise BadInput(f"example plan {name!r}: there is none; known: {known}")
    return path
