"""ASCII lines: the codec against everything, and the port against late, broken and refused answers."""

from __future__ import annotations

import asyncio
import contextlib
import string
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from drivers.errors import DeviceRefused, LinkLost
from drivers.wires.addresses import serial_address
from drivers.wires.faults import FaultKind, WireFault, WireFaults
from drivers.wires.serial_line import (
    MAX_LINE,
    MAX_TEXT,
    AsciiLinePort,
    Line,
    LineBuffer,
    LineKind,
    crc16,
    decode_line,
    encode_line,
)
from drivers.wires.virtual_loop import VirtualLoop
from simulators.devices.servers import serve_ascii
from tests.wire_parts import Axis, on_both_loops, within

BAUD = 115200

text = st.text(alphabet=sorted(set(map(chr, range(32, 127))) - set(":;!*")), max_size=MAX_TEXT)
lines = st.builds(Line, st.sampled_from(LineKind), st.integers(0, 255), text)

# ---- codec


def test_the_checksum_is_the_published_one() -> None:
    """CRC-16/MODBUS check value: 0x4B37 for "123456789"."""
    assert crc16(b"123456789") == 0x4B37


def test_a_line_is_the_bytes_of_the_table_in_the_documentation() -> None:
    line = encode_line(Line(LineKind.REQUEST, 0x2A, "GOTO 12.5"))
    assert line == b":2AGOTO 12.5*%04X\r\n" % crc16(b":2AGOTO 12.5")
    documented = (Path(__file__).parents[1] / "docs" / "wires.md").read_text()
    assert line.decode().strip() in documented


@given(lines)
def test_what_is_encoded_decodes_to_itself(line: Line) -> None:
    data = encode_line(line)
    assert len(data) <= MAX_LINE
    assert decode_line(data[:-1]) == line
    assert LineBuffer().feed(data) == [line]


@given(st.lists(lines, max_size=8), st.data())
def test_however_the_bytes_are_cut_the_lines_are_the_same(sent: list[Line], data: st.DataObject) -> None:
    stream = b"".join(map(encode_line, sent))
    buffer = LineBuffer()
    got: list[Line] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        got += buffer.feed(stream[:size])
        stream = stream[size:]
    assert got == sent
    assert buffer.broken == 0


@given(lines, st.integers(0, 10_000), st.integers(1, 255))
def test_no_single_changed_byte_goes_unnoticed(line: Line, at: int, mask: int) -> None:
    data = encode_line(line)
    at %= len(data)
    changed = data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]
    got = LineBuffer().feed(changed + b"\n")
    assert got in ([], [line]), "only the CR and the LF may be lost without losing the line"


@given(st.lists(st.binary(max_size=600), max_size=5), lines)
@example([b":" * 10_000], Line(LineKind.ANSWER, 1, "x"))
def test_garbage_never_raises_and_the_line_after_its_end_is_heard(garbage: list[bytes], line: Line) -> None:
    buffer = LineBuffer()
    for piece in garbage:
        buffer.feed(piece)
        assert len(buffer._rest) < MAX_LINE, "memory is bounded"
    buffer.feed(b"\n")
    assert buffer.feed(encode_line(line)) == [line]


def test_a_line_directly_behind_a_broken_one_is_heard() -> None:
    whole = Line(LineKind.ANSWER, 7, "1.000")
    assert LineBuffer().feed(b";06 2.0" + encode_line(whole)) == [whole]


def test_a_line_that_is_too_long_is_dropped_whole() -> None:
    buffer = LineBuffer()
    body = b":00" + b"A" * 300
    assert buffer.feed(body + b"*%04X\r\n" % crc16(body)) == []
    assert buffer.feed(body) == []
    assert buffer.feed(b"*%04X\r\n" % crc16(body)) == []
    assert buffer.broken == 2


@pytest.mark.parametrize("bad", ["a*b", "a:b", "a;b", "a!b", "a\nb", "a\x00b", "é", "x" * (MAX_TEXT + 1)])
def test_text_that_the_protocol_cannot_carry_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match=r"characters|printable"):
        encode_line(Line(LineKind.REQUEST, 0, bad))


def test_lower_case_hex_and_wrong_sequences_are_no_lines() -> None:
    good = encode_line(Line(LineKind.ANSWER, 0xAB, "x"))[:-2]
    assert decode_line(good) is not None
    assert decode_line(good.replace(b"AB", b"ab")) is None
    with pytest.raises(ValueError, match="sequence 256"):
        encode_line(Line(LineKind.ANSWER, 256, "x"))
    assert set(string.hexdigits) > set("AB")


# ---- port


@asynccontextmanager
async def an_axis(folder: Path, faults: WireFaults | None = None) -> AsyncIterator[tuple[AsciiLinePort, Axis]]:
    axis = Axis()
    path = str(folder / "couch")
    async with serve_ascii(axis, path, BAUD, faults=faults):
        port = AsciiLinePort("couch", path, BAUD)
        await port.connect(within(5))
        yield port, axis
        await port.close()


@on_both_loops
async def test_commands_are_answered_and_the_sequence_wraps(tmp_path: Path) -> None:
    async with an_axis(tmp_path) as (port, axis):
        assert await port.query("GOTO -12.5", within(5)) == "OK"
        for _ in range(300):
            assert await port.query("GET", within(5)) == "-12.500"
        assert len(axis.asked) == 301, "the echo on opening is not the device's business"
        assert (port.stale_answers, port.broken_lines) == (0, 0)


@on_both_loops
async def test_refusals_name_device_command_and_reason(tmp_path: Path) -> None:
    async with an_axis(tmp_path) as (port, _):
        with pytest.raises(DeviceRefused, match=r"couch: serial://.*couch: command 'JUMP' refused: 3,no such command"):
            await port.query("JUMP", within(5))
        with pytest.raises(DeviceRefused, match=r"6,moving_ wait_"):
            await port.query("BUSY", within(5))
        with pytest.raises(DeviceRefused, match="4,a bug in the simulated device"):
            await port.query("BUG", within(5))
        with pytest.raises(ValueError, match="printable"):
            await port.query("GET*", within(5))
        assert await port.query("GET", within(5)) == "0.000"


@pytest.mark.parametrize("how", ["timeout", "cancellation"])
@on_both_loops
async def test_a_late_answer_is_recognised_and_dropped(how: str, tmp_path: Path) -> None:
    faults = WireFaults(
        [WireFault(serial_address(str(tmp_path / "couch")), FaultKind.DELAY, nth=2, delay_ns=300_000_000)]
    )
    async with an_axis(tmp_path, faults) as (port, axis):
        if how == "timeout":
            with pytest.raises(LinkLost, match=r"command 'GET': no answer within .*deadline of: poll"):
                await port.query("GET", within(0.05, "poll"))
        else:
            task = asyncio.create_task(port.query("GET", within(60)))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        axis.position_mm = 4.0
        assert await port.query("GET", within(5)) == "4.000", "not the 0.000 that came late"
        assert port.stale_answers == 1


@pytest.mark.parametrize("at", range(14))
@on_both_loops
async def test_a_broken_answer_is_silence(at: int, tmp_path: Path) -> None:
    fault = WireFault(serial_address(str(tmp_path / "couch")), FaultKind.CORRUPT, nth=2, byte=at, mask=0x11)
    faults = WireFaults([fault])
    async with an_axis(tmp_path, faults) as (port, axis):
        axis.position_mm = 1.0
        with contextlib.suppress(LinkLost):
            assert await port.query("GET", within(0.05)) == "1.000", "a changed CR is no loss"
        axis.position_mm = 2.0
        try:
            assert await port.query("GET", within(0.5)) == "2.000"
        except LinkLost:  # a lost LF swallows the next line too
            assert at == 13
        axis.position_mm = 3.0
        assert await port.query("GET", within(5)) == "3.000"
        assert faults.applied


@on_both_loops
async def test_answers_that_come_twice_are_taken_once(tmp_path: Path) -> None:
    faults = WireFaults([WireFault(serial_address(str(tmp_path / "couch")), FaultKind.DUPLICATE, "both")])
    async with an_axis(tmp_path, faults) as (port, axis):
        for position in range(20):
            axis.position_mm = float(position)
            assert await port.query("GET", within(5)) == f"{position:.3f}"
        assert port.stale_answers > 0


@on_both_loops
async def test_a_line_that_is_lost_fails_the_pending_query_and_is_opened_again(tmp_path: Path) -> None:
    path = str(tmp_path / "couch")
    faults = WireFaults([WireFault(serial_address(path), FaultKind.DROP, nth=2)])
    port = AsciiLinePort("couch", path, BAUD)
    with pytest.raises(LinkLost, match="couch"):
        await port.connect(within(5))
    async with serve_ascii(Axis(), path, BAUD, faults=faults):
        await port.connect(within(5))
        pending = asyncio.create_task(port.query("GET", within(3600)))
        await asyncio.sleep(0.05)
    with pytest.raises(LinkLost, match="lost"):
        await pending
    with pytest.raises(LinkLost):
        await port.query("GET", within(0.5))
    async with serve_ascii(Axis(), path, BAUD):
        assert await port.query("GET", within(5)) == "0.000"
        await port.close()
        with pytest.raises(LinkLost, match="call connect first"):
            await port.query("GET", within(5))


@on_both_loops
async def test_closing_ends_a_pending_query_and_frees_the_port(tmp_path: Path) -> None:
    path = str(tmp_path / "couch")
    async with serve_ascii(
        Axis(), path, BAUD, faults=WireFaults([WireFault(serial_address(path), FaultKind.DROP, nth=2)])
    ):
        port = AsciiLinePort("couch", path, BAUD)
        await port.connect(within(5))
        pending = asyncio.create_task(port.query("GET", within(3600)))
        await asyncio.sleep(0.02)
        await port.close()
        with pytest.raises(LinkLost, match="the port was closed"):
            await pending
        other = AsciiLinePort("couch", path, BAUD)
        await other.connect(within(5))
        assert await other.query("GET", within(5)) == "0.000"
        with pytest.raises(LinkLost):
            await port.connect(within(5))  # exclusive
        await other.close()
        await port.close()


@on_both_loops
async def test_an_answer_meant_for_a_process_before_us_is_not_ours(tmp_path: Path) -> None:
    """The one before asked with the sequence number that we use next, and died; its answer comes now."""
    path = str(tmp_path / "couch")
    faults = WireFaults([WireFault(serial_address(path), FaultKind.DELAY, nth=2, delay_ns=200_000_000)])
    axis = Axis()
    async with serve_ascii(axis, path, BAUD, faults=faults):
        before = AsciiLinePort("couch", path, BAUD)
        await before.connect(within(5))
        with pytest.raises(LinkLost):
            await before.query("GET", within(0.02))
        await before.close()
        after = AsciiLinePort("couch", path, BAUD)
        await after.connect(within(5))
        axis.position_mm = 9.0
        assert await after.query("GET", within(5)) == "9.000"
        if isinstance(asyncio.get_running_loop(), VirtualLoop):
            assert after.stale_answers == 1
        await after.close()
