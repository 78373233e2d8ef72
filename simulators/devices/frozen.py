"""A device whose readings stand still, as a hung firmware shows them: faults of the kind `frozen`."""

from __future__ import annotations

from collections.abc import Sequence

from drivers.wires.faults import WireFault
from drivers.wires.ports import RegisterBank


class FrozenBank:
    """A bank of which every register reads, for as long as `fault` lasts, what it read first; writes are obeyed."""

    def __init__(self, bank: RegisterBank, fault: WireFault) -> None:
        self.fault = fault
        self._bank = bank
        self._words: dict[int, int] = {}

    def read(self, address: int, count: int) -> list[int]:
        words = self._bank.read(address, count)
        return [self._words.setdefault(address + at, word) for at, word in enumerate(words)]

    def write(self, address: int, values: Sequence[int]) -> None:
        self._bank.write(address, values)
