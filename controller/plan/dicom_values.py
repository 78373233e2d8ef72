"""Typed, strict access to the values of a pydicom data set.

Values are taken as raw bytes and converted here, once, by the rules of PS3.5 (section 6.2). pydicom's own conversion
is not used, because it gives a number for one value and a list for two, None for none, bytes for long float
lists that some writers label UN, accepts 'nan' and '1e400', and converts again at each access. Every getter
names the attribute and its place in what it raises.
"""

from __future__ import annotations

import math
import re
import unicodedata
import warnings
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom.charset import decode_bytes, python_encoding
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

from controller.plan.rules import MalformedPlan, finding

TEXT_CHARS: Final = 64
NAME_CHARS: Final = 324
"""Three groups of a person name of 64 characters and their separators, with room (PS3.5, 6.2: PN)."""
_DECIMAL = re.compile(rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?")
_INTEGER = re.compile(rb"[+-]?\d{1,10}")
_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_CODE = re.compile(r"[A-Za-z0-9_ ]*")
_NAME_DELIMITERS = {0x5E, 0x3D}


class Node:
    """One data set or sequence item with its place in the plan, such as 'beam 2, control point 4'."""

    def __init__(self, dataset: Dataset, file: str, where: str, encodings: tuple[str, ...]) -> None:
        self._dataset = dataset
        self.file = file
        self.where = where
        self._encodings = encodings

    def fail(self, rule: str, message: str) -> MalformedPlan:
        """Return the error that says `message` about this place."""
        return MalformedPlan(self.file, finding(rule, self.where, message))

    def missing(self, keyword: str) -> MalformedPlan:
        """Return the error for an absent or empty attribute."""
        return self.fail("MISSING_VALUE", f"missing {keyword}: wanted a value, got none")

    def at(self, where: str) -> Node:
        """Return the same data set under another place name."""
        return Node(self._dataset, self.file, where, self._encodings)

    def raw(self, keyword: str) -> bytes:
        """Return the bytes of a value; b'' where the attribute is absent or empty.

        Raises:
            MalformedPlan: the attribute is encoded with a value representation that is not its own.

        """
        tag = tag_for_keyword(keyword)
        assert tag is not None, keyword
        element = self._dataset.get_item(tag, keep_deferred=True)
        if element is None:
            return b""
        if not isinstance(element, RawDataElement) or element.VR not in (None, "UN", dictionary_VR(tag)):
            raise self.fail("BAD_VALUE", f"{keyword}: wanted VR {dictionary_VR(tag)}, got {element.VR}")
        value = element.value
        return value if isinstance(value, bytes) else b""

    def has(self, keyword: str) -> bool:
        """Whether the attribute is there with a value."""
        return bool(self.raw(keyword).strip(b" \0"))

    def items(self, keyword: str, place: str, *, most: int) -> list[Node]:
        """Return the items of a sequence, none if it is absent. `place` names one item; its number from 1 is added."""
        tag = tag_for_keyword(keyword)
        assert tag is not None, keyword
        element = self._dataset.get_item(tag, keep_deferred=True)
        if element is None:
            return []
        if element.VR not in (None, "SQ"):
            raise self.fail("BAD_VALUE", f"{keyword}: wanted VR SQ, got {element.VR}")
        sequence = self._dataset[tag].value or []
        if len(sequence) > most:
            raise self.fail("LIMIT_EXCEEDED", f"{keyword}: at most {most} items, got {len(sequence)}")
        prefix = f"{self.where}, " if self.where else ""
        return [
            Node(item, self.file, f"{prefix}{place} {n}", self._encodings) for n, item in enumerate(sequence, start=1)
        ]

    def text(self, keyword: str, *, chars: int = TEXT_CHARS) -> str:
        """Return one line of text without padding; '' where absent. Characters that do not decode become U+FFFD."""
        value = self.raw(keyword)
        if len(value) > 4 * chars:
            raise self.fail("LIMIT_EXCEEDED", f"{keyword}: at most {chars} characters, got {len(value)} bytes")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of undecodable bytes; U+FFFD shows them
            text = decode_bytes(value, list(self._encodings), _NAME_DELIMITERS)
        text = text.strip(" \0")
        if len(text) > chars:
            raise self.fail("LIMIT_EXCEEDED", f"{keyword}: at most {chars} characters, got {len(text)}")
        if any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text):
            raise self.fail("BAD_VALUE", f"{keyword}: holds control characters")
        return text

    def code(self, keyword: str) -> str:
        """Return a code string (CS), '' where absent. Only letters, digits, space and underscore are allowed."""
        text = self.text(keyword)
        if not _CODE.fullmatch(text):
            raise self.fail("BAD_VALUE", f"{keyword}: wanted a code string, got {text!r}")
        return text

    def uid(self, keyword: str, *, required: bool = True) -> str:
        """Return a UID; '' only where it may be absent."""
        text = self.text(keyword)
        if not text and not required:
            return ""
        if not text:
            raise self.missing(keyword)
        if not _UID.fullmatch(text):
            # a UID is as good as a name to whoever has the study: findings are printed, so it is not shown
            raise self.fail("BAD_VALUE", f"{keyword}: wanted a UID, got {len(text)} characters that are none")
        return text

    def integer(self, keyword: str, low: int, high: int) -> int:
        """Return an integer string (IS) within low..high."""
        value = self.optional_integer(keyword, low, high)
        if value is None:
            raise self.missing(keyword)
        return value

    def optional_integer(self, keyword: str, low: int, high: int) -> int | None:
        """Return an integer string within low..high, None where absent."""
        value = self.raw(keyword).strip(b" \0")
        if not value:
            return None
        if not _INTEGER.fullmatch(value):
            raise self.fail("BAD_VALUE", f"{keyword}: wanted an integer, got {_shown(value)}")
        return self._bounded(keyword, int(value), low, high)

    def signed_short(self, keyword: str, low: int, high: int) -> int | None:
        """Return a binary 16-bit integer (SS) within low..high, None where absent."""
        value = self.raw(keyword)
        if not value:
            return None
        if len(value) != 2:
            raise self.fail("BAD_VALUE", f"{keyword}: wanted one value, got {len(value)} bytes")
        return self._bounded(keyword, int.from_bytes(value, "little", signed=True), low, high)

    def _bounded(self, keyword: str, value: int, low: int, high: int) -> int:
        if not low <= value <= high:
            raise self.fail("BAD_VALUE", f"{keyword}: wanted {low} to {high}, got {value}")
        return value

    def decimals(self, keyword: str, count: int) -> tuple[float, ...] | None:
        """Return `count` decimal strings (DS) as finite numbers, None where absent."""
        value = self.raw(keyword).strip(b" \0")
        if not value:
            return None
        if len(value) > 64 * count:
            raise self.fail("LIMIT_EXCEEDED", f"{keyword}: {len(value)} bytes for {count} numbers")
        parts = [part.strip(b" \0") for part in value.split(b"\\")]
        if len(parts) != count:
            raise self.fail("BAD_VALUE", f"{keyword}: wanted {count} numbers, got {len(parts)}")
        numbers = []
        for part in parts:
            if part.lower().strip(b"+-") in (b"nan", b"inf", b"infinity"):
                raise self.fail("NON_FINITE_VALUE", f"{keyword}: non-finite value {_shown(part)}")
            if not _DECIMAL.fullmatch(part):
                raise self.fail("BAD_VALUE", f"{keyword}: wanted a number, got {_shown(part)}")
            number = float(part)
            if not math.isfinite(number):
                raise self.fail("NON_FINITE_VALUE", f"{keyword}: non-finite value {_shown(part)}")
            numbers.append(number)
        return tuple(numbers)

    def decimal(self, keyword: str) -> float:
        """Return one decimal string as a finite number."""
        value = self.optional_decimal(keyword)
        if value is None:
            raise self.missing(keyword)
        return value

    def optional_decimal(self, keyword: str) -> float | None:
        """Return one decimal string as a finite number, None where absent."""
        values = self.decimals(keyword, 1)
        return None if values is None else values[0]

    def singles(self, keyword: str) -> NDArray[np.float64]:
        """Return binary floats (FL), any number of them, not yet judged: NaN passes. One-dimensional, float64."""
        value = self.raw(keyword)
        if len(value) % 4:
            raise self.fail("BAD_VALUE", f"{keyword}: {len(value)} bytes are not a whole number of floats")
        return np.frombuffer(value, "<f4").astype(np.float64)

    def finite_singles(self, keyword: str, count: int) -> tuple[float, ...] | None:
        """Return `count` finite binary floats, None where absent."""
        values = self.singles(keyword)
        if not len(values):
            return None
        if len(values) != count:
            raise self.fail("BAD_VALUE", f"{keyword}: wanted {count} numbers, got {len(values)}")
        if not np.isfinite(values).all():
            raise self.fail("NON_FINITE_VALUE", f"{keyword}: non-finite value")
        return tuple(float(v) for v in values)

    def optional_single(self, keyword: str) -> float | None:
        """Return one finite binary float, None where absent."""
        values = self.finite_singles(keyword, 1)
        return None if values is None else values[0]


def _shown(value: bytes) -> str:
    """Bytes of a file for a message: short and printable."""
    return repr(value[:24].decode("ascii", "backslashreplace"))


def encodings_of(character_sets: str | Sequence[str] | None) -> tuple[str, ...]:
    """Python encodings for a SpecificCharacterSet; unknown names count as the default repertoire (ASCII superset)."""
    names = [character_sets or ""] if isinstance(character_sets, str | None) else list(character_sets)
    return tuple(python_encoding.get(name, "iso8859") for name in names[:16]) or ("iso8859",)
