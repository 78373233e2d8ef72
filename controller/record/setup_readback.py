"""What the devices read back while a field was set up, from the "setup" events of a part."""

from __future__ import annotations

from dataclasses import dataclass

from controller.record.journal_reader import Part

REQUIRED = {("gantry", "angle"), ("couch", "rotation")}
"""Without these read-backs nobody verified where the beam came from."""


@dataclass(frozen=True, slots=True)
class Setup:
    """Read-backs of one field; the last of each quantity counts."""

    readback: dict[tuple[str, str], float]
    """By device and quantity, without the unit's suffix."""

    def value(self, device: str, quantity: str) -> float | None:
        """Read-back of a quantity (`angle_deg`, `snout_mm`), or None where nothing was read back."""
        return self.readback.get((device, _stem(quantity)))

    @property
    def verified(self) -> bool:
        """Gantry and couch were read back (inside their tolerances, or the event would not exist)."""
        return self.readback.keys() >= REQUIRED


def setups(part: Part) -> dict[int, Setup]:
    """Read-backs by index of the field; fields that were never set up are not in it."""
    found: dict[int, Setup] = {}
    for event in part.events:
        if event["event"] == "setup":
            setup = found.setdefault(int(event["field"]), Setup({}))
            value = event.get("readback")
            if isinstance(value, int | float):
                setup.readback[(event["device"], _stem(event["quantity"]))] = float(value)
    return found


def _stem(quantity: str) -> str:
    return quantity.removesuffix("_mm").removesuffix("_deg")
