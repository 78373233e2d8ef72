"""Strict walk over the bytes of a DICOM file, before pydicom may interpret them.

pydicom returns a partial data set for a truncated file, keeps the last of repeated elements, guesses where
a value representation is wrong, and reads unknown transfer syntaxes as Explicit VR Little Endian. Each of
these could turn a damaged plan into another plan. `walk` therefore visits every element header by the rules of
PS3.5 (sections 7.1, 7.5, Annex A) and PS3.10 (section 7.1), within stated limits, and refuses the file
at the first breach. Its `Outline` lets the reader prove afterwards that pydicom saw the same elements.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

from pydicom.datadict import dictionary_VR

from controller.plan.rules import MalformedPlan, finding

MAX_FILE_BYTES: Final = 256 * 1024 * 1024
MAX_ELEMENTS: Final = 300_000
"""Elements of all levels; the largest plan known has about 5,000, 64 fields of 100 layers have 250,000."""
MAX_ITEMS: Final = 100_000
"""Sequence items of all levels; 64 fields of 100 layers have 50,000. Each costs pydicom some 60 us and 2 kB."""
MAX_CHARACTER_SET: Final = 256
"""Bytes of SpecificCharacterSet, which pydicom splits and looks up before anyone can judge it."""
MAX_DEPTH: Final = 12
"""Nested sequences; an RT Ion Plan needs 5."""

IMPLICIT_LITTLE: Final = "1.2.840.10008.1.2"
EXPLICIT_LITTLE: Final = "1.2.840.10008.1.2.1"

CHARACTER_SET: Final = 0x00080005
UNDEFINED: Final = 0xFFFFFFFF
_ITEM: Final = 0xFFFEE000
_ITEM_END: Final = 0xFFFEE00D
_SEQUENCE_END: Final = 0xFFFEE0DD
_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_SHORT = frozenset(
    b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split(),
)
_HEADER = struct.Struct("<HHI")
_TAG_VR_LENGTH = struct.Struct("<HH2sH")
_LENGTH = struct.Struct("<I")


@dataclass(slots=True)
class Outline:
    """What a data set consists of, as sums that do not depend on the order of visiting."""

    elements: int = 0
    items: int = 0
    tags: int = 0
    """Sum of tag x depth."""
    value_bytes: int = 0
    """Bytes of all values that are neither sequences nor SpecificCharacterSet (pydicom converts that at once)."""


@dataclass(frozen=True, slots=True)
class DicomLayout:
    """File meta values by tag, where the data set starts, and its outline."""

    meta: dict[int, bytes]
    implicit_vr: bool
    outline: Outline


@dataclass(slots=True)
class _Frame:
    """A data set, item or sequence being walked; `end` is None where a delimiter ends it."""

    is_sequence: bool
    end: int | None
    limit: int
    implicit_vr: bool
    where: str
    last_tag: int = -1
    items: int = field(default=0)


class _Walker:
    def __init__(self, name: str, data: bytes) -> None:
        self.name = name
        self.data = data
        self.pos = 132

    def fail(self, rule: str, message: str, where: str = "") -> MalformedPlan:
        place = f"byte {self.pos}" + (f", in {where}" if where else "")
        return MalformedPlan(self.name, finding(rule, place, message))

    def meta(self) -> dict[int, bytes]:
        """Read group 0002, which is always Explicit VR Little Endian."""
        values: dict[int, bytes] = {}
        last = -1
        while self.pos < len(self.data):
            if len(self.data) - self.pos < 8:
                raise self.fail("TRUNCATED", "the file ends inside the file meta information")
            if not self.data.startswith(b"\x02\x00", self.pos):
                break
            tag, vr, length = self._explicit_header(len(self.data), "file meta information")
            if tag <= last:
                raise self.fail("DICOM_STRUCTURE", f"element {_show(tag)} is out of order or repeated in the file meta")
            if vr == b"SQ" or length == UNDEFINED:
                raise self.fail("DICOM_STRUCTURE", f"element {_show(tag)} of the file meta has no plain value")
            self._check_length(tag, length, len(self.data), "file meta information")
            last = tag
            values[tag] = self.data[self.pos : self.pos + length]
            self.pos += length
        declared = values.get(0x00020000)
        if declared is None or len(declared) != 4 or _LENGTH.unpack(declared)[0] != self.pos - 144:
            raise self.fail("DICOM_STRUCTURE", "FileMetaInformationGroupLength (0002,0000) is absent or wrong")
        return values

    def dataset(self, implicit_vr: bool) -> Outline:
        """Walk the data set to the last byte of the file."""
        outline = Outline()
        size = len(self.data)
        stack = [_Frame(False, size, size, implicit_vr, "the data set")]
        while stack:
            frame = stack[-1]
            if self.pos == frame.end:
                stack.pop()
            elif frame.limit - self.pos < 8:
                raise self.fail("TRUNCATED", "the file or its enclosing sequence ends inside an element", frame.where)
            elif frame.is_sequence:
                self._item(stack, frame, outline)
            else:
                self._element(stack, frame, outline)
        return outline

    def _item(self, stack: list[_Frame], frame: _Frame, outline: Outline) -> None:
        group, element, length = _HEADER.unpack_from(self.data, self.pos)
        tag = group << 16 | element
        self.pos += 8
        if tag == _SEQUENCE_END and frame.end is None and length == 0:
            stack.pop()
            return
        if tag != _ITEM:
            raise self.fail("DICOM_STRUCTURE", f"wanted an item, got {_show(tag)}", frame.where)
        frame.items += 1
        outline.items += 1
        if outline.items > MAX_ITEMS:
            raise self.fail("LIMIT_EXCEEDED", f"more than {MAX_ITEMS} items", frame.where)
        child = _Frame(False, None, frame.limit, frame.implicit_vr, f"{frame.where} item {frame.items}")
        self._push(stack, child, length)

    def _element(self, stack: list[_Frame], frame: _Frame, outline: Outline) -> None:
        if frame.end is None and self.data.startswith(b"\xfe\xff\x0d\xe0", self.pos):
            if _HEADER.unpack_from(self.data, self.pos)[2] != 0:
                raise self.fail("DICOM_STRUCTURE", "an item delimiter has a length", frame.where)
            self.pos += 8
            stack.pop()
            return
        if frame.implicit_vr:
            group, element, length = _HEADER.unpack_from(self.data, self.pos)
            tag, vr = group << 16 | element, b""
            self.pos += 8
        else:
            tag, vr, length = self._explicit_header(frame.limit, frame.where)
        if tag <= frame.last_tag:
            raise self.fail("DICOM_STRUCTURE", f"element {_show(tag)} is out of order or repeated", frame.where)
        if tag >> 16 in (0, 2, 0xFFFE):
            raise self.fail("DICOM_STRUCTURE", f"element {_show(tag)} must not be in a data set", frame.where)
        frame.last_tag = tag
        outline.elements += 1
        outline.tags += tag * len(stack)
        if outline.elements > MAX_ELEMENTS:
            raise self.fail("LIMIT_EXCEEDED", f"more than {MAX_ELEMENTS} elements", frame.where)
        if vr == b"SQ" or (length == UNDEFINED and vr in (b"", b"UN")) or (not vr and _is_sequence(tag)):
            # A sequence of VR UN and undefined length is encoded in implicit VR (PS3.5, 6.2.2).
            implicit = frame.implicit_vr or vr == b"UN"
            self._push(stack, _Frame(True, None, frame.limit, implicit, _show(tag)), length)
            return
        self._check_length(tag, length, frame.limit, frame.where)
        if tag != CHARACTER_SET:
            outline.value_bytes += length
        elif length > MAX_CHARACTER_SET:
            raise self.fail("LIMIT_EXCEEDED", f"SpecificCharacterSet has {length} bytes", frame.where)
        self.pos += length

    def _push(self, stack: list[_Frame], child: _Frame, length: int) -> None:
        if len(stack) > 2 * MAX_DEPTH:
            raise self.fail("LIMIT_EXCEEDED", f"sequences are nested deeper than {MAX_DEPTH}", child.where)
        if length != UNDEFINED:
            if length > child.limit - self.pos:
                left = child.limit - self.pos
                raise self.fail("TRUNCATED", f"truncated: {length} bytes wanted, {left} are left", child.where)
            child.end = child.limit = self.pos + length
        stack.append(child)

    def _explicit_header(self, limit: int, where: str) -> tuple[int, bytes, int]:
        group, element, vr, length = _TAG_VR_LENGTH.unpack_from(self.data, self.pos)
        tag = group << 16 | element
        if vr in _SHORT:
            self.pos += 8
            return tag, vr, length
        if vr not in _LONG:
            raise self.fail("DICOM_STRUCTURE", f"element {_show(tag)} has no valid value representation", where)
        if limit - self.pos < 12:
            raise self.fail("TRUNCATED", f"the file or its enclosing sequence ends inside {_show(tag)}", where)
        if length:
            raise self.fail("DICOM_STRUCTURE", f"reserved bytes of element {_show(tag)} are not zero", where)
        (length,) = _LENGTH.unpack_from(self.data, self.pos + 8)
        self.pos += 12
        return tag, vr, length

    def _check_length(self, tag: int, length: int, limit: int, where: str) -> None:
        if length == UNDEFINED:
            raise self.fail("DICOM_STRUCTURE", f"element {_show(tag)} must have a defined length", where)
        if length > limit - self.pos:
            raise self.fail(
                "TRUNCATED",
                f"truncated: element {_show(tag)} wants {length} bytes, {limit - self.pos} are left",
                where,
            )
        if length % 2:
            raise self.fail("DICOM_STRUCTURE", f"element {_show(tag)} has the odd length {length}", where)


def _show(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _is_sequence(tag: int) -> bool:
    try:
        return dictionary_VR(tag) == "SQ"
    except KeyError:
        return False


def walk(name: str, data: bytes, sop_class_uid: str) -> DicomLayout:
    """Check the encoding of a whole DICOM file.

    Args:
        name: what messages call the file.
        data: the file, at most `MAX_FILE_BYTES`.
        sop_class_uid: the SOP class that the file meta information must name.

    Raises:
        MalformedPlan: on the first breach of an encoding rule or limit.

    """
    walker = _Walker(name, data)
    meta = walker.meta()
    syntax = uid_text(meta.get(0x00020010, b""))
    if syntax not in (IMPLICIT_LITTLE, EXPLICIT_LITTLE):
        raise MalformedPlan(
            name,
            finding(
                "TRANSFER_SYNTAX",
                "TransferSyntaxUID",
                f"wanted {IMPLICIT_LITTLE} or {EXPLICIT_LITTLE}, got {syntax or 'nothing'}",
            ),
        )
    stored = uid_text(meta.get(0x00020002, b""))
    if stored != sop_class_uid:
        raise MalformedPlan(
            name,
            finding(
                "NOT_AN_ION_PLAN",
                "MediaStorageSOPClassUID",
                f"not an RT Ion Plan: wanted {sop_class_uid}, got {stored or 'nothing'}",
            ),
        )
    implicit = syntax == IMPLICIT_LITTLE
    return DicomLayout(meta, implicit, walker.dataset(implicit))


def uid_text(value: bytes) -> str:
    """UID as text for comparisons and messages: padding off, at most 64 characters, printable."""
    text = value[:65].rstrip(b"\0 ").decode("ascii", "replace")
    return "".join(c if c in "0123456789." else "?" for c in text[:64])
