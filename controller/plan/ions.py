"""Names of ions, such as 1H and 12C, for both plan formats."""

from __future__ import annotations

from typing import Final

SYMBOLS: Final = ("H", "He", "Li", "Be", "B", "C", "N", "O", "F", "Ne", "Na", "Mg", "Al", "Si", "P", "S", "Cl", "Ar")
MAX_MASS_NUMBER: Final = 60
"""Above any isotope of the elements named here."""


def ion_name(mass_number: int, atomic_number: int) -> str:
    """Return the name of an ion; `atomic_number` is 1 to 18."""
    return f"{mass_number}{SYMBOLS[atomic_number - 1]}"
