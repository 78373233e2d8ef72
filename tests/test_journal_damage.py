"""The journal of a real treatment under damage: cut, flipped, without power, on a failing disk.

The right answer is always a beginning of what was written, with its end stated, or a refusal that names the place;
never anything that was not written, and never less than what was safe.
"""

from __future__ import annotations

import errno
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from controller.compose import VirtualWorld
from controller.record.journal_format import JournalDiskError
from controller.record.journal_reader import read_journal
from drivers.errors import BadInput
from sites.schema import Site
from tests.delivery_rig import EXAMPLES, run_delivery
from tests.failing_disks import BrokenDisk, PowerlessDisk, after_power_cut, write

PLAN = EXAMPLES / "small_carbon.dcm"


@dataclass(frozen=True)
class Original:
    """A treatment's journal as it was written."""

    data: bytes
    ends: tuple[int, ...]
    """Byte after each record."""
    hashes: tuple[bytes, ...]
    """Of each record: its last 32 bytes."""
    disk: PowerlessDisk


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    """One treatment, delivered once."""
    disk = PowerlessDisk()
    delivery = run_delivery(PLAN, "carbon-fixed", tmp_path_factory.mktemp("journal") / "t", disk=disk)
    assert delivery.outcome.status == "completed"
    path = delivery.directory / "journal.bin"
    data = path.read_bytes()
    with read_journal(path) as journal:
        starts = [r.offset for r in journal.records]
    ends = (*starts[1:], len(data))
    return Original(data, ends, tuple(data[end - 32 : end] for end in ends), disk)


def judge(original: Original, path: Path, data: bytes, least: int = 0) -> str:
    """Read a damaged journal: 'recovered' to a true beginning of at least `least` bytes, or 'refused' with a place."""
    try:
        journal = read_journal(write(path, data))
    except BadInput as error:
        text = str(error)
        assert re.search(r"damaged at byte \d+, record \d+|not a Spotwise journal", text), text
        return "refused"
    with journal:
        count = len(journal.records)
        assert journal.good_bytes in (0, 16, *original.ends)
        assert bytes(data[: journal.good_bytes]) == original.data[: journal.good_bytes]
        assert count == 0 or journal.last_hash == original.hashes[count - 1]
        assert journal.good_bytes >= least
        if journal.good_bytes < len(data):
            assert journal.torn
        return "recovered"


def cut(original: Original, path: Path, places: Iterable[int]) -> None:
    for place in places:
        whole = max((end for end in original.ends if end <= place), default=0)
        assert judge(original, path, original.data[:place], whole) == "recovered", place


def test_a_cut_anywhere_leaves_every_whole_record(original: Original, tmp_path: Path) -> None:
    size = len(original.data)
    assert size > 65536
    places = {*range(0, 40), *range(size - 65536, size, 97)}
    places |= {end + k for end in original.ends for k in (-33, -1, 0, 1, 25) if 0 <= end + k <= size}
    cut(original, tmp_path / "journal.bin", sorted(places))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kib", [16, 32, 48, 64])
def test_a_cut_at_every_byte_of_the_last_64_kib_leaves_every_whole_record(
    kib: int, original: Original, tmp_path: Path
) -> None:
    first = len(original.data) - 1024 * kib
    cut(original, tmp_path / "journal.bin", range(first, first + 16 * 1024 + 1))


def flip(original: Original, path: Path, number: int, seed: int) -> dict[str, int]:
    draw = random.Random(seed)
    found = {"refused": 0, "recovered": 0}
    for _ in range(number):
        data = bytearray(original.data)
        bit = draw.randrange(len(data) * 8)
        data[bit // 8] ^= 1 << bit % 8
        answer = judge(original, path, bytes(data))
        found[answer] += 1
        if answer == "refused" and bit // 8 >= 16:
            # the place that is named is the record that was hit
            with pytest.raises(BadInput) as error:
                read_journal(path)
            named = re.search(r"damaged at byte \d+, record (\d+)", str(error.value))
            assert named is not None
            assert int(named[1]) == next(k for k, end in enumerate(original.ends) if bit // 8 < end)
    return found


def test_a_flipped_bit_is_found_and_its_record_named(original: Original, tmp_path: Path) -> None:
    assert flip(original, tmp_path / "journal.bin", 1000, seed=1) == {"refused": 1000, "recovered": 0}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_flipped_bits_are_found(original: Original, tmp_path: Path) -> None:
    assert flip(original, tmp_path / "journal.bin", 10_000, seed=2) == {"refused": 10_000, "recovered": 0}


def lose_power(original: Original, path: Path, tries: int) -> dict[str, int]:
    found = {"refused": 0, "recovered": 0}
    moments = original.disk.moments
    assert len(moments) > 5
    for number, moment in enumerate(moments):
        draw = random.Random(number)
        for _ in range(tries):
            data = after_power_cut(moment, draw)
            safe = max((end for end in original.ends if end <= len(moment.safe)), default=0)
            found[judge(original, path, data, safe)] += 1
    return found


def test_a_power_cut_before_any_sync_loses_nothing_that_was_synced(original: Original, tmp_path: Path) -> None:
    found = lose_power(original, tmp_path / "journal.bin", tries=40)
    assert found["recovered"] > found["refused"] > 0  # both kinds of answer were tried


def test_what_was_synced_is_whole_records_at_every_sync(original: Original) -> None:
    assert all(len(m.safe) in (0, 16, *original.ends) for m in original.disk.moments)


def operations(tmp_path: Path) -> int:
    disk = BrokenDisk(fails_at=10**9)
    assert run_delivery(PLAN, "carbon-fixed", tmp_path / "whole", disk=disk).outcome.status == "completed"
    return disk.operations


def deliver_on(disk: BrokenDisk, directory: Path, original: Original) -> None:
    """Beam off, the cause named, and every byte that the disk took is a true beginning."""
    worlds: list[VirtualWorld] = []

    def make_world(site: Site, seed: int) -> VirtualWorld:
        worlds.append(VirtualWorld(site, seed))
        return worlds[0]

    # a disk that stays broken ends the program with the journal's own words and exit status
    with pytest.raises(JournalDiskError, match="did not take the journal") as error:
        run_delivery(PLAN, "carbon-fixed", directory, disk=disk, make_world=make_world)
    assert error.value.exit_status == 4
    state = worlds[0].room.plant.state
    assert (state["beam_present"], state["closed"], state["request"]) == (0, 0, 0)
    written = (directory / "journal.bin").read_bytes()
    same = 0
    while same < min(len(written), len(original.data)) and written[same] == original.data[same]:
        same += 1
    # until the disk failed both runs were the same; what came after it is the stop, or nothing
    with read_journal(directory / "journal.bin") as journal:
        assert journal.good_bytes >= max((end for end in original.ends if end <= same), default=0)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_stops_the_beam_and_keeps_what_it_took(
    error: int, original: Original, tmp_path: Path
) -> None:
    count = operations(tmp_path)
    for place in (0, 1, count // 3, count // 2, count - 2):
        disk = BrokenDisk(fails_at=place, error=error, taken_of_last=0.4)
        deliver_on(disk, tmp_path / f"at-{place}", original)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("first", range(4))
def test_a_disk_that_fails_at_any_of_its_operations_stops_the_beam(
    first: int, error: int, original: Original, tmp_path: Path
) -> None:
    for place in range(first, operations(tmp_path), 4):
        disk = BrokenDisk(fails_at=place, error=error, taken_of_last=0.4)
        deliver_on(disk, tmp_path / f"at-{place}", original)
