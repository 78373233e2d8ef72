"""Bytes of a recording of frames (`frames/part-N.frames`): a file header, then blocks, each with CRCs of its own.

The byte tables are in docs/replay.md. A recording that ends without an END block was torn: the process was killed, or
the disk failed. Reading believes nothing; what is damaged is said with its place, down to the frame where possible.
"""

from __future__ import annotations

import enum
import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.dose.narrow import pack, unpack
from drivers.errors import BadInput

MAGIC = b"SPWFRMS\n"
FILE_VERSION = 1
FILE_HEADER = MAGIC + struct.pack("<II", FILE_VERSION, 0)
HEAD = struct.Struct("<HHIIIQqqI")
"""type, version, bytes of the payload, words, entries, number of the first entry, first and last time, its CRC."""
CRC = struct.Struct("<I")
HEAD_BYTES = HEAD.size + CRC.size
BLOCK_VERSION = 1
MAX_WORDS = 1 << 24
FOLDER = "frames"


class BlockType(enum.IntEnum):
    """Kinds of blocks."""

    BEGIN = 1
    FIELD = 2
    ENTRIES = 3
    END = 4


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """One block as read, its CRCs right unless `damage` says otherwise."""

    kind: BlockType
    offset: int
    words: int
    entries: int
    first_entry: int
    t_first_ns: int
    t_last_ns: int
    payload: bytes
    damage: str | None = None


class TornRecording(BadInput):
    """The file ends, or becomes unreadable, in the middle."""


def recording_path(directory: Path, part: int) -> Path:
    """Where a part's frames are."""
    return directory / FOLDER / f"part-{part}.frames"


def make_block(
    kind: BlockType, payload: bytes, *, words: int = 0, entries: int = 0, first_entry: int = 0, t_ns: tuple[int, int]
) -> bytes:
    """One block as bytes."""
    head = HEAD.pack(
        kind, BLOCK_VERSION, len(payload), words, entries, first_entry, t_ns[0], t_ns[1], zlib.crc32(payload)
    )
    return head + CRC.pack(zlib.crc32(head)) + payload


def entries_payload(entries: NDArray[np.int64]) -> bytes:
    """Entries of the tape as stored."""
    return pack(entries)


def entries_of(block: Block) -> NDArray[np.int64]:
    """The entries of an ENTRIES block; of a damaged one as many as can be made out, and no promise about them."""
    return unpack(block.payload, block.words)


def json_payload(value: Mapping[str, Any], rest: bytes = b"") -> bytes:
    """A JSON object on a line, and what follows it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode() + b"\n" + rest


def parse_payload(path: Path, block: Block) -> tuple[dict[str, Any], bytes]:
    """The JSON object of a BEGIN, FIELD or END block, and what follows it."""
    line, _, rest = block.payload.partition(b"\n")
    try:
        value = json.loads(line)
    except ValueError as error:
        raise BadInput(f"{path}: block at byte {block.offset}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadInput(f"{path}: block at byte {block.offset}: not a JSON object")
    return value, rest


def read_blocks(path: Path) -> Iterator[Block]:
    """All blocks of a recording in order.

    A block whose payload does not fit its CRC comes with `damage`. Raises `BadInput` for no such file or no recording,
    `TornRecording` where the file ends in a block, ends without an END block, or a block's head is damaged.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from error
    with file:
        start = file.read(len(FILE_HEADER))
        if start != FILE_HEADER:
            if FILE_HEADER.startswith(start):
                raise TornRecording(f"{path}: torn inside the file header ({len(start)} bytes)")
            raise BadInput(f"{path}: not a Spotwise recording of version {FILE_VERSION}: starts with {start.hex()}")
        offset = len(FILE_HEADER)
        while head := file.read(HEAD_BYTES):
            block = _block(path, offset, head, file)
            yield block
            offset += HEAD_BYTES + len(block.payload)
            if block.kind is BlockType.END:
                if file.read(1):
                    raise TornRecording(f"{path}: bytes after the END block at byte {offset}")
                return
    raise TornRecording(f"{path}: torn: ends at byte {offset} without an END block; the blocks before are whole")


def _block(path: Path, offset: int, head: bytes, file: Any) -> Block:
    if len(head) < HEAD_BYTES:
        raise TornRecording(f"{path}: torn: {len(head)} bytes of a block's head at byte {offset}, want {HEAD_BYTES}")
    kind, version, size, words, entries, first, t_first, t_last, crc = HEAD.unpack_from(head)
    if zlib.crc32(head[: HEAD.size]) != CRC.unpack_from(head, HEAD.size)[0]:
        raise TornRecording(f"{path}: damaged at byte {offset}: CRC of a block's head is wrong; what follows is lost")
    if version != BLOCK_VERSION or kind not in set(BlockType) or words > MAX_WORDS:
        raise TornRecording(f"{path}: block at byte {offset}: type {kind} version {version}: of a newer Spotwise?")
    payload = file.read(size)
    if len(payload) < size:
        raise TornRecording(f"{path}: torn: {len(payload)} of the {size} bytes of the block at byte {offset} are there")
    found = zlib.crc32(payload)
    damage = None
    if found != crc:
        damage = f"{path}: block at byte {offset}: CRC {found:08x}, wanted {crc:08x}"
    return Block(BlockType(kind), offset, words, entries, first, t_first, t_last, payload, damage)
