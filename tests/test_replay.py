"""Recorded frames replay to the bit; what was changed, damaged or left out is found and named."""

from __future__ import annotations

import dataclasses
import json
import resource
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from controller.cli import main
from controller.dose.memory import LIMITS, PLAN, Monitor
from controller.dose.narrow import pack, unpack
from controller.dose.path import MonitorPath
from controller.dose.tape import (
    HEAD_WORDS,
    KIND_FRAME,
    RING_WORDS,
    Tape,
    note_control,
    note_frame,
    note_silence,
    survey,
)
from controller.plan.check import check_plan
from controller.record.frame_recorder import FrameRecorder
from controller.record.frames_format import (
    FILE_HEADER,
    HEAD_BYTES,
    Block,
    BlockType,
    TornRecording,
    entries_of,
    entries_payload,
    make_block,
    read_blocks,
    recording_path,
)
from controller.record.journal import JournalWriter, RecordType, read_journal
from controller.record.rebuild import rebuild
from controller.record.schema import VISIT_DTYPE
from controller.replay import replay
from controller.run_virtual import deliver_virtual
from controller.session import Order, make_directory
from drivers.errors import BadInput
from drivers.wires.frames import new_buffer
from sites.loader import load_site
from tests.delivery_rig import EXAMPLES, fault
from tests.make_plan import BeamSpec, LayerSpec, SetupSpec, grid, make_plan, write_plan
from tests.real_rooms import delivery, make_room, spotwise

PLENTY = 1 << 30


def deliver(
    plan: Path, site: str, out: Path, faults: str | None = None, frames_bytes: int = PLENTY, status: str = "completed"
) -> Path:
    """A delivery in virtual time; returns the treatment directory."""
    room = load_site(site)
    scenario = None
    if faults is not None:
        scenario = out.with_name(f"{out.name}-faults.toml")
        scenario.write_text(faults, encoding="utf-8")
    make_directory(out)
    order = Order(plan, room, out, frames_bytes=frames_bytes)
    outcome = deliver_virtual(order, check_plan(plan, room), scenario)
    assert outcome.status == status, outcome
    return out


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """small_carbon, delivered and recorded; look, don't touch."""
    return deliver(EXAMPLES / "small_carbon.dcm", "carbon-fixed", tmp_path_factory.mktemp("recorded") / "t")


@pytest.fixture
def copied(recorded: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    out = tmp_path / "copy"
    (out / "frames").mkdir(parents=True)
    for name in ("journal.bin", "frames/part-1.frames"):
        (out / name).write_bytes((recorded / name).read_bytes())
    return out


def agrees(directory: Path) -> dict[str, Any]:
    result = replay(directory)
    assert result["agrees"], result["messages"]
    assert result["complete"]
    with read_journal(directory / "journal.bin") as journal:
        assert result["rows"] == journal.row_count > 0
        assert result["visits"] + result["visits_without_frames"] == len(journal.visits) > 0
    return result


def frames_of(words: NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
    """Word and bytes of each frame among entries."""
    at = 0
    while at < len(words):
        head = int(words[at])
        size = head >> 16 & 0xFFFF
        following = at + HEAD_WORDS + (size + 7) // 8
        if head & 0xFF == KIND_FRAME:
            yield at, words[at + HEAD_WORDS : following].tobytes()[:size]
        at = following


def rewrite(path: Path, change: Callable[[Block], Block]) -> None:
    """Write a recording anew, block by block, with right CRCs."""
    data = FILE_HEADER
    for block in map(change, list(read_blocks(path))):
        data += make_block(
            block.kind,
            block.payload,
            words=block.words,
            entries=block.entries,
            first_entry=block.first_entry,
            t_ns=(block.t_first_ns, block.t_last_ns),
        )
    path.write_bytes(data)


def change_frame(
    path: Path, chosen: Callable[[bytes], bool], change: Callable[[bytearray], None]
) -> tuple[int, int, int]:
    """Change the first frame that is chosen; returns its stream, sequence and device time."""
    found: list[tuple[int, int, int]] = []

    def edit(block: Block) -> Block:
        if block.kind is not BlockType.ENTRIES or found:
            return block
        words = entries_of(block).copy()
        for at, frame in frames_of(words):
            if chosen(frame):
                changed = bytearray(frame)
                change(changed)
                filled = changed + bytes(-len(changed) % 8)
                words[at + HEAD_WORDS : at + HEAD_WORDS + len(filled) // 8] = np.frombuffer(filled, np.int64)
                found.append((frame[5], *struct.unpack_from("<Qq", frame, 16)))
                break
        return dataclasses.replace(block, payload=entries_payload(words))

    rewrite(path, edit)
    return found[0]


def beam_on_strips(frame: bytes) -> bool:
    """A frame of electrometer 1 in the middle of one of the later visits, when the log runs."""
    if frame[5] != 1:
        return False
    t_ns, visit, *_, t_change_ns = struct.unpack_from("<qIIQQq", frame, 24)
    return bool(visit >= 5 and t_ns - t_change_ns > 1_000_000 and max(struct.unpack_from("<256i", frame, 64)) > 300)


def test_a_delivery_replays_to_the_bit_and_recording_changes_nothing(recorded: Path, tmp_path: Path) -> None:
    result = agrees(recorded)
    assert result["fields"] == 2
    assert result["visits"] == 48
    assert result["visits_without_frames"] == result["trips"] == 0
    assert result["messages"] == []
    # the limits were compared too: with none of them left out for lack of a site
    other = deliver(EXAMPLES / "small_carbon.dcm", "carbon-fixed", tmp_path / "t", frames_bytes=0)
    assert (other / "journal.bin").read_bytes() == (recorded / "journal.bin").read_bytes()
    assert not (other / "frames").exists()


def test_a_gated_delivery_with_paintings_replays_to_the_bit(tmp_path: Path) -> None:
    layers = [LayerSpec(250.0, grid(16, 40.0), paintings=3), LayerSpec(240.0, grid(16, 40.0), paintings=2)]
    setups = [SetupSpec(motion=("GATING", "EXTERNAL_MARKER"))]
    plan = write_plan(tmp_path / "plan.dcm", make_plan([BeamSpec(layers=layers)], setups=setups))
    out = deliver(plan, "carbon-fixed", tmp_path / "t")
    assert agrees(out)["visits"] == 80
    with read_journal(out / "journal.bin") as journal:
        assert any(e["event"] == "hold" for e in journal.events)


@pytest.mark.parametrize(
    ("what", "condition"),
    [
        (fault("plant.leak", value=0.2), "BEAM_WITHOUT_REQUEST"),
        (fault("plant.nonce_1", value=12345), "DEVICE_RESTARTED"),
        (fault("plant.silent_2", value=1), "MONITORS_DISAGREE"),
        (fault("plant.offset_x_mm", value=2), "SPOT_POSITION"),
        (fault("plant.emergency_stop", value=1), "CHAIN_OPENED"),
    ],
)
def test_a_trip_replays_with_its_value_and_its_visit(what: str, condition: str, tmp_path: Path) -> None:
    out = deliver(EXAMPLES / "small_carbon.dcm", "carbon-fixed", tmp_path / "t", what, status="interrupted")
    result = replay(out)
    assert result["agrees"], result["messages"]
    with read_journal(out / "journal.bin") as journal:
        trips = [e["id"] for e in journal.events if e["event"] == "trip"]
    assert condition in trips
    assert result["trips"] == 1
    assert result["visits"] >= 4


def test_a_flipped_bit_in_a_frame_is_found_and_the_frame_named(copied: Path) -> None:
    def flip(frame: bytearray) -> None:
        frame[200] ^= 0x10

    stream, sequence, t_ns = change_frame(recording_path(copied, 1), beam_on_strips, flip)
    result = replay(copied)
    assert not result["agrees"]
    assert f"says of itself stream {stream}, sequence {sequence}, device time {t_ns} ns" in result["messages"][0]
    assert "fails its CRC" in result["messages"][0]
    assert main(["replay", str(copied)]) == 3


def test_a_flipped_bit_in_the_file_is_found_and_its_frame_named(copied: Path) -> None:
    path = recording_path(copied, 1)
    blocks = [b for b in read_blocks(path) if b.kind is BlockType.ENTRIES]
    block = blocks[len(blocks) // 2]
    data = bytearray(path.read_bytes())
    data[block.offset + HEAD_BYTES + len(block.payload) // 2] ^= 0x01
    path.write_bytes(data)
    result = replay(copied)
    assert not result["agrees"]
    (problem,) = result["parts"][0]["problems"]
    assert f"block at byte {block.offset}: CRC" in problem
    assert "stream" in problem
    assert "sequence" in problem
    assert f"block of entries {block.first_entry} to {block.first_entry + block.entries - 1}" in problem


def test_a_frame_changed_with_its_crc_made_right_is_found_by_what_comes_of_it(copied: Path) -> None:
    def brighten(frame: bytearray) -> None:
        values = struct.unpack_from("<256i", frame, 64)
        brightest = values.index(max(values))
        struct.pack_into("<i", frame, 64 + 4 * brightest, values[brightest] + 5)
        struct.pack_into("<I", frame, len(frame) - 4, zlib.crc32(frame[:-4]))

    _, _, t_ns = change_frame(recording_path(copied, 1), beam_on_strips, brighten)
    difference = replay(copied)["parts"][0]["difference"]
    assert difference["name"] in {"strip_counts", "x_mm", "y_mm"}
    # the row that the frame went into, or the visit if it ended before
    assert t_ns <= difference["t_ns"] <= t_ns + 200_000
    assert difference["journal"] != difference["replayed"]


@pytest.mark.real_clock
async def test_a_delivery_on_the_real_clock_replays_to_the_bit(tmp_path: Path, free_port: Callable[[], int]) -> None:
    room = make_room(tmp_path, free_port)
    out = tmp_path / "t"
    ended = await spotwise(room, *delivery(room, out, "--record-frames")[2:])
    assert ended.status == 0, ended
    result = agrees(out)
    assert result["visits"] == 309
    assert result["frames"] > 50_000
    with read_journal(out / "journal.bin") as journal:
        assert not [e for e in journal.events if e["event"] == "warning"]


def journal_with(directory: Path, change: Callable[[RecordType, bytes], bytes]) -> None:
    """Write the journal anew with changed payloads, and a hash chain that is right."""
    path = directory / "journal.bin"
    with read_journal(path) as journal:
        records = [(r.kind, r.t_ns, journal.payload(r)) for r in journal.records]
    path.unlink()
    with JournalWriter(path) as writer:
        for kind, t_ns, payload in records:
            writer.append(kind, t_ns, change(kind, payload))


@pytest.mark.parametrize(
    "name", ["x_mm", "sigma_y_mm", "late_counts_1", "frame_counts_2", "particles_1", "counts_2", "quality"]
)
def test_a_visit_of_the_journal_that_the_frames_do_not_give_is_named(copied: Path, name: str) -> None:
    def change(kind: RecordType, payload: bytes) -> bytes:
        if kind is not RecordType.VISITS:
            return payload
        visits = np.frombuffer(payload, VISIT_DTYPE).copy()
        chosen = (visits["visit"] == 7) & (visits["field"] == 1)
        if name == "quality":
            visits[name][chosen] |= 1
        elif visits.dtype[name].kind == "f":
            visits[name][chosen] = np.nextafter(visits[name][chosen], np.inf)  # the last bit
        else:
            visits[name][chosen] += 1
        return visits.tobytes()

    journal_with(copied, change)
    difference = replay(copied)["parts"][0]["difference"]
    wanted = {"counts_2": {"counts_2", "particles_2"}}.get(name, {name})
    assert difference["what"] == "visit 7 of field 2"
    assert difference["name"] in wanted
    assert main(["replay", str(copied), "--json"]) == 3


def test_limits_that_the_journals_programs_do_not_give_are_named(copied: Path) -> None:
    def raise_preset(block: Block) -> Block:
        if block.kind is not BlockType.FIELD:
            return block
        line, _, rest = block.payload.partition(b"\n")
        plan = np.frombuffer(zlib.decompress(rest[LIMITS.itemsize :]), PLAN).copy()
        plan["position_limit_mm"][3] += 0.5
        return dataclasses.replace(
            block, payload=line + b"\n" + rest[: LIMITS.itemsize] + zlib.compress(plan.tobytes(), 1)
        )

    rewrite(recording_path(copied, 1), raise_preset)
    result = replay(copied)
    assert not result["agrees"]
    assert "field 1, visit 3: position_limit_mm" in result["messages"][0]


def test_a_recording_that_reaches_its_bound_stops_and_says_so(tmp_path: Path) -> None:
    bound = 15_000_000
    out = deliver(EXAMPLES / "small_carbon.dcm", "carbon-fixed", tmp_path / "t", frames_bytes=bound)
    assert bound - 2_000_000 < recording_path(out, 1).stat().st_size <= bound
    with read_journal(out / "journal.bin") as journal:
        said = [e["text"] for e in journal.events if e["event"] == "warning"]
        visits = len(journal.visits)
    assert len(said) == 1
    assert f"its bound of {bound} bytes is reached" in said[0]
    result = replay(out)
    assert result["agrees"], result["messages"]
    assert not result["complete"]
    assert 0 < result["visits"] < visits
    assert any("stopped early" in m for m in result["messages"])
    rebuild(out)
    assert main(["replay", str(out)]) == 0


def test_a_torn_recording_is_replayed_as_far_as_it_goes_and_does_not_pass(copied: Path) -> None:
    path = recording_path(copied, 1)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    result = replay(copied)
    assert not result["agrees"]
    assert result["parts"][0]["difference"] is None
    assert result["visits"] > 0
    assert "torn" in result["messages"][0]
    with pytest.raises(TornRecording, match="torn"):
        list(read_blocks(path))


def test_a_treatment_without_recording_is_refused_with_what_to_do(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording_path(copied, 1).unlink()
    assert main(["replay", str(copied), "--json"]) == 2
    said = capsys.readouterr()
    assert "part-1.frames: is missing" in said.err
    assert "--record-frames" in said.err
    assert json.loads(said.out)["outcome"] == "unreadable"
    with pytest.raises(BadInput, match="no such directory"):
        replay(copied / "nowhere")


def test_a_missing_block_is_noticed(copied: Path) -> None:
    path = recording_path(copied, 1)
    blocks = [b for b in read_blocks(path) if b.kind is BlockType.ENTRIES]
    gone, data = blocks[5], path.read_bytes()
    path.write_bytes(data[: gone.offset] + data[blocks[6].offset :])
    result = replay(copied)
    assert not result["agrees"]
    assert f"wanted {gone.first_entry}: blocks are missing or exchanged" in result["messages"][0]


def test_a_full_tape_stops_for_good_and_keeps_what_it_has() -> None:
    tape = Tape(1000)
    buffer = new_buffer()
    for number in range(20):
        buffer.i64[2] = number
        note_frame(tape.memory[0], tape.ring, buffer, 1092, number, True)
    assert tape.overrun
    assert not tape.on
    words = tape.take(settled=True)
    sequences = [struct.unpack_from("<q", frame, 16)[0] for _, frame in frames_of(words)]
    assert sequences == list(range(len(sequences)))
    assert 5 < len(sequences) < 20
    note_silence(tape.memory[0], tape.ring, 99)  # room again, but it has stopped
    assert tape.waiting() == 0


def recorder_of(directory: Path, words: int) -> FrameRecorder:
    """A recorder with a tape of its own length, and a path attached."""
    monitor = Monitor()
    recorder = FrameRecorder(directory, monitor, threaded=False)
    recorder.tape = Tape(words)
    recorder.attach(MonitorPath(load_site("carbon-fixed"), monitor))
    return recorder


def play(recorder: FrameRecorder, frames: int) -> None:
    buffer = new_buffer()
    for number in range(frames):
        buffer.i64[2] = number
        note_frame(recorder.tape.memory[0], recorder.tape.ring, buffer, 1092, number, True)


def test_a_recorder_that_cannot_keep_up_stops_and_marks_the_files_end(tmp_path: Path) -> None:
    with recorder_of(tmp_path, 2000) as recorder:
        play(recorder, 30)
        recorder.advance()
        assert "the tape overran" in recorder.warnings()[0]
        assert recorder.warnings() == []
        play(recorder, 30)
        recorder.advance()
    *_, entries, end = read_blocks(recorder.path)
    assert 5 < len(list(frames_of(entries_of(entries)))) == entries.entries < 30
    assert end.kind is BlockType.END
    assert b'"complete":false' in end.payload
    assert b"overran" in end.payload


def test_a_disk_that_takes_no_more_ends_the_recording_after_whole_blocks(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with recorder_of(tmp_path, RING_WORDS // 16) as recorder:
        play(recorder, 600)
        recorder.advance()
        whole = recorder.path.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (whole + 100, hard))
        try:
            play(recorder, 600)
            recorder.advance()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "the disk did not take it" in recorder.warnings()[0]
    assert recorder.path.stat().st_size == whole
    blocks = read_blocks(recorder.path)
    assert [next(blocks).kind for _ in range(2)] == [BlockType.BEGIN, BlockType.ENTRIES]
    with pytest.raises(TornRecording, match="without an END block"):
        next(blocks)


def test_a_tape_gives_every_entry_once_and_in_order_however_it_wraps() -> None:
    tape, monitor, buffer = Tape(997), Monitor(), new_buffer()
    random = np.random.default_rng(1)
    taken = []
    for number in range(2000):
        monitor.control["lease_ns_0"] = number // 3
        note_control(tape.memory[0], tape.ring, monitor.memory[0], number)
        buffer.i64[:] = random.integers(-(1 << 62), 1 << 62, len(buffer.i64))
        buffer.i64[2] = number
        note_frame(tape.memory[0], tape.ring, buffer, int(random.choice((68, 132, 1092, 9, 1408))), number, True)
        if random.random() < 0.5 or tape.waiting() > 500:
            taken.append(tape.take(settled=bool(random.random() < 0.5)))
            if tape.waiting() > 500:
                taken.append(tape.take(settled=True))
    taken.append(tape.take(settled=True))
    assert not tape.overrun
    words = np.concatenate(taken)
    entries, first_ns, last_ns = survey(words, len(words))
    assert (entries, first_ns, last_ns) == (2000 + 667, 0, 1999)
    for piece in taken:
        if len(piece):
            np.testing.assert_array_equal(unpack(pack(piece), len(piece)), piece)
