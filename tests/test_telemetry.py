"""Telemetry against real brokers: amqtt in its own process, and mosquitto with and without password and TLS."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from controller.telemetry import Telemetry
from controller.telemetry_schema import TOPICS, document, encode
from controller.telemetry_sinks import MemorySink, SpotBatcher, SpotPoint
from drivers.errors import BadInput
from simulators.broker import broker_process
from sites.schema import Telemetry as Settings
from tests.brokers import mosquitto, reader, until

ROOT = Path(__file__).parents[1]
STATE = {"t_ns": 5, "state": "READY"}
CLEAR = {"t_ns": 6, "clear": True, "latched": []}


def make(port: int, **settings: Any) -> Telemetry:
    options = {"url": f"mqtt://127.0.0.1:{port}", **settings}
    return Telemetry(Settings(**options), "test-site", software="0.0.0", now_ns=lambda: 1)


def state(number: int) -> dict[str, Any]:
    return {"t_ns": number, "state": f"S{number}"}


@pytest.fixture(params=["amqtt", "mosquitto"])
async def broker(
    request: pytest.FixtureRequest, program: Callable[[str], str], free_port: Callable[[], int], tmp_path: Path
) -> AsyncIterator[int]:
    """The port of a running broker."""
    port = free_port()
    async with AsyncExitStack() as stack:
        if request.param == "amqtt":
            await stack.enter_async_context(broker_process("127.0.0.1", port))
        else:
            await stack.enter_async_context(mosquitto(program("mosquitto"), tmp_path, port))
        yield port


async def test_messages_arrive_in_order_below_the_sites_topic(broker: int) -> None:
    async with reader(broker) as seen, make(broker).running() as telemetry:
        for number in range(20):
            telemetry.publish("state", state(number))
        telemetry.publish("devices/gantry", {"t_ns": 1, "device": "g", "link": "up", "simulated": True, "values": {}})
        await until("the device message", lambda: seen.of("devices/gantry"))
    assert [body["state"] for body in seen.of("state")] == [f"S{n}" for n in range(20)]
    assert {topic.rsplit("/", 1)[0] for topic, _, _ in seen.messages} == {
        "spotwise/test-site/v1",
        "spotwise/test-site/v1/devices",
    }


async def test_a_late_listener_gets_the_last_state_interlocks_and_availability(broker: int) -> None:
    async with make(broker).running() as telemetry:
        for number in range(3):
            telemetry.publish("state", state(number))
        telemetry.publish("interlocks", CLEAR)
        telemetry.publish("layer", {"t_ns": 1, "field": 0, "layer": 0, "phase": "start"})
        await until("all sent", lambda: telemetry.counts.sent >= 6)
        async with reader(broker) as seen:
            await until("three retained messages", lambda: len(seen.messages) >= 3)
    assert all(retained for _, _, retained in seen.messages)
    assert seen.of("state")[0]["state"] == "S2"
    assert seen.of("interlocks")[0]["clear"] is True
    assert seen.of("availability")[0]["status"] == "online"
    assert seen.of("layer") == []


async def test_closing_sends_the_queue_then_says_offline(broker: int) -> None:
    async with reader(broker) as seen:
        async with make(broker).running() as telemetry:
            await until("the link", lambda: telemetry.counts.connections)
            for number in range(50):
                telemetry.publish("state", state(number))
        await until(
            "the farewell", lambda: seen.of("availability")[-1:] and seen.of("availability")[-1]["status"] == "offline"
        )
    assert len(seen.of("state")) == 50
    assert seen.of("availability")[-1]["reason"] == "closed"
    assert telemetry.counts.dropped == 0


async def test_cancelling_the_task_still_says_offline(broker: int) -> None:
    async with reader(broker) as seen:
        telemetry = make(broker)
        task = asyncio.create_task(telemetry.run())
        await until("the link", lambda: seen.of("availability"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until("the farewell", lambda: seen.of("availability")[-1]["reason"] == "closed")


VICTIM = """
import asyncio, sys
from controller.telemetry import Telemetry
from sites.schema import Telemetry as Settings

async def main():
    settings = Settings(url=f"mqtt://127.0.0.1:{sys.argv[1]}")
    async with Telemetry(settings, "test-site", software="0", now_ns=lambda: 7).running():
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_the_broker_says_offline_for_a_killed_controller(broker: int) -> None:
    async with reader(broker) as seen:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", VICTIM, str(broker), cwd=ROOT)
        try:
            await until("the victim online", lambda: seen.of("availability"))
        finally:
            process.kill()
            await process.wait()
        await until("its last will", lambda: seen.of("availability")[-1]["status"] == "offline")
        assert seen.of("availability")[-1]["reason"] == "lost"
        async with reader(broker) as later:
            await until("the retained will", lambda: later.messages)
    assert later.of("availability") == seen.of("availability")[-1:]


async def test_a_full_queue_drops_the_oldest_counts_them_and_says_so(broker: int) -> None:
    telemetry = make(broker, queue_limit=10)
    for number in range(25):
        telemetry.publish("state", state(number))
    assert telemetry.counts.dropped == 15
    async with reader(broker) as seen, telemetry.running():
        await until("the newest state", lambda: seen.of("state") and seen.of("state")[-1]["state"] == "S24")
    assert [body["state"] for body in seen.of("state")] == [f"S{n}" for n in range(15, 25)]
    assert seen.of("availability")[0]["dropped"] == 15


def test_publishing_needs_no_broker_and_no_running_loop(free_port: Callable[[], int]) -> None:
    telemetry = make(free_port(), queue_limit=10)
    for number in range(1000):
        telemetry.publish("state", state(number))
        telemetry.publish("no such topic", {"anything": object()})
    assert telemetry.counts.dropped == 1990


async def test_a_broker_that_dies_and_comes_back_is_found_again_with_the_latest_state(
    program: Callable[[str], str], free_port: Callable[[], int], tmp_path: Path
) -> None:
    port, binary = free_port(), program("mosquitto")
    telemetry = make(port, queue_limit=10)
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(mosquitto(binary, tmp_path, port))
        await stack.enter_async_context(telemetry.running())
        telemetry.publish("interlocks", CLEAR)
        await until("the first link", lambda: telemetry.counts.sent >= 2)
        first.kill()
        await first.wait()
        for number in range(100):
            telemetry.publish("state", state(number))
        await asyncio.sleep(0)
        assert telemetry.counts.dropped >= 85
        await stack.enter_async_context(mosquitto(binary, tmp_path, port))
        await until("the second link", lambda: telemetry.counts.connections == 2)
        async with reader(port) as seen:
            await until("the last state", lambda: seen.of("state") and seen.of("state")[-1]["state"] == "S99")
            await until("interlocks again, which the broker had forgotten", lambda: seen.of("interlocks"))


async def test_a_broker_that_freezes_loses_no_time_of_the_publisher_and_closing_still_ends(
    program: Callable[[str], str], free_port: Callable[[], int], tmp_path: Path
) -> None:
    port = free_port()
    async with mosquitto(program("mosquitto"), tmp_path, port) as process:
        async with make(port, queue_limit=10).running() as telemetry:
            await until("the link", lambda: telemetry.counts.sent >= 1)
            process.send_signal(19)  # SIGSTOP
            for number in range(100):
                telemetry.publish("state", state(number))
                await asyncio.sleep(0)
            assert telemetry.counts.dropped >= 85
        process.send_signal(18)  # SIGCONT


async def test_an_ill_formed_message_is_counted_and_the_next_one_goes_out(broker: int) -> None:
    async with reader(broker) as seen, make(broker).running() as telemetry:
        telemetry.publish("state", {"t_ns": 1, "state": "READY", "patient_name": "Nobody"})
        telemetry.publish("state", {"state": "no time"})
        telemetry.publish("nonsense", STATE)
        telemetry.publish("devices/#", STATE)
        telemetry.publish("state", {"t_ns": 1, "state": object()})
        telemetry.publish("state", STATE)
        await until("the good one", lambda: seen.of("state"))
    assert telemetry.counts.rejected == 5
    assert len(seen.of("state")) == 1


async def test_everything_published_validates_against_its_schema(broker: int) -> None:
    async with reader(broker) as seen, make(broker).running() as telemetry:
        for topic, payload in samples():
            telemetry.publish(topic, payload)
        await until("all samples", lambda: len({t.split("/", 3)[3] for t, _, _ in seen.messages}) == len(TOPICS))
    for topic, body, _ in seen.messages:
        assert body["v"] == 1
        encode(topic.split("/", 3)[3], body)


def samples() -> list[tuple[str, dict[str, Any]]]:
    """One message per topic, as the controller makes them."""
    sink = MemorySink()
    batcher = SpotBatcher(sink)
    batcher.add(7, 0, 1, "MU", SpotPoint(1, 0, float("nan"), float("nan"), -1.0, 2.0, 0.5, 0.5, 0.5))
    batcher.add(9, 0, 1, "MU", SpotPoint(2, 1, 1.01, 2.0, 1.0, 2.0, 0.5, 0.5, 0.5))
    batcher.flush()
    trip = {"id": "DOSE", "value": 1.1, "limit": 1.0, "unit": "Gy", "at_ns": 3, "first_out": True, "hint": "look"}
    device = {
        "t_ns": 1,
        "device": "gantry",
        "link": "up",
        "simulated": True,
        "values": {"angle_deg": 90.0, "moving": False},
    }
    return [
        ("state", {**STATE, "field": 0, "fields": 2, "beam": "off", "plan_sha256": "0" * 64, "simulated": True}),
        ("interlocks", {"t_ns": 6, "clear": False, "latched": [trip]}),
        ("layer", {"t_ns": 7, "field": 0, "layer": 1, "phase": "end", "energy_readback_mev_u": 200.01}),
        ("devices/gantry", device),
        *sink.messages,
    ]


@pytest.fixture
def credentials(program: Callable[[str], str], tmp_path: Path) -> dict[str, Path]:
    """A certificate for 127.0.0.1 with its key, mosquitto's password file, and the password in a file of ours."""
    files = {name: tmp_path / name for name in ("certificate", "key", "passwords", "secret")}
    subprocess.run(
        [
            *(program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
            *("-keyout", str(files["key"]), "-out", str(files["certificate"])),
        ],
        check=True,
        capture_output=True,
    )
    subprocess.run(
        [program("mosquitto_passwd"), "-b", "-c", str(files["passwords"]), "spotwise", "open sesame"],
        check=True,
        capture_output=True,
    )
    files["secret"].write_text("open sesame\n", encoding="utf-8")
    return files


async def test_password_and_tls_of_a_real_broker(
    program: Callable[[str], str],
    free_port: Callable[[], int],
    tmp_path: Path,
    credentials: dict[str, Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    certificate, secret = credentials["certificate"], credentials["secret"]
    port = free_port()
    extra = (
        f"allow_anonymous false\npassword_file {credentials['passwords']}\n"
        f"certfile {certificate}\nkeyfile {credentials['key']}\n"
    )
    options = {"url": f"mqtts://127.0.0.1:{port}", "username": "spotwise", "password_file": str(secret)}
    async with mosquitto(program("mosquitto"), tmp_path, port, extra):
        async with make(port, ca_file=str(certificate), **options).running() as telemetry:
            telemetry.publish("state", STATE)
            await until("state over TLS", lambda: telemetry.counts.sent >= 2)

        secret.write_text("wrong\n", encoding="utf-8")
        async with make(port, ca_file=str(certificate), **options).running() as refused:
            await until("a refusal", lambda: "ot authori" in caplog.text)
        assert refused.counts.connections == 0

        caplog.clear()
        async with make(port, **options).running() as doubting:
            await until("distrust of an unknown certificate", lambda: "CERTIFICATE_VERIFY_FAILED" in caplog.text)
        assert doubting.counts.connections == 0


async def test_mosquitto_sub_sees_the_topics(
    program: Callable[[str], str], free_port: Callable[[], int], tmp_path: Path
) -> None:
    port = free_port()
    async with mosquitto(program("mosquitto"), tmp_path, port), make(port).running() as telemetry:
        for topic, payload in samples():
            telemetry.publish(topic, payload)
        await until("everything sent", lambda: telemetry.counts.sent >= 1 + len(samples()))
        listener = await asyncio.create_subprocess_exec(
            *(program("mosquitto_sub"), "-p", str(port), "-t", "spotwise/test-site/v1/+", "-C", "3", "-W", "10", "-v"),
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await listener.communicate()
    topics = {line.split(b" ", 1)[0].decode() for line in output.splitlines()}
    assert topics == {f"spotwise/test-site/v1/{name}" for name in ("state", "interlocks", "availability")}


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"url": "http://127.0.0.1:1"}, "wanted mqtt"),
        ({"url": "mqtt://user:secret@127.0.0.1:1"}, "credentials in their own keys"),
        ({"url": "mqtt://127.0.0.1:99999"}, "wanted mqtt"),
        ({"url": "mqtt://127.0.0.1:1", "password_file": "/nowhere"}, "/nowhere"),
        ({"url": "mqtts://127.0.0.1:1", "ca_file": "/nowhere"}, "/nowhere"),
        ({"url": "mqtt://127.0.0.1:1", "ca_file": "/nowhere"}, "only mqtts"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint):
        Telemetry(Settings(**settings), "test-site", software="0", now_ns=lambda: 0)


def test_spots_go_out_per_100_ms_and_per_layer() -> None:
    sink = MemorySink()
    batcher = SpotBatcher(sink)
    point = SpotPoint(1, 0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0)
    for t_ms in range(0, 250, 10):
        batcher.add(t_ms * 1_000_000, 0, 0, "MU", point)
    batcher.add(250_000_000, 0, 1, "MU", point)
    batcher.flush()
    batcher.flush()
    assert [(body["layer"], len(body["visit"])) for _, body in sink.messages] == [(0, 11), (0, 11), (0, 3), (1, 1)]
    assert sink.rejected == []


def test_the_memory_sink_never_raises_and_says_what_was_wrong() -> None:
    sink = MemorySink()
    sink.publish("state", {"t_ns": 1})
    sink.publish("nonsense", {})
    sink.publish("state", STATE)
    assert [topic for topic, _ in sink.rejected] == ["state", "nonsense"]
    assert sink.latest("state") is not None
    assert sink.latest("layer") is None


def test_columns_of_different_length_and_contradictions_are_rejected() -> None:
    body = dict(samples()[-1][1])
    with pytest.raises(ValueError, match="differ in length"):
        encode("spots", {**body, "x_mm": [1.0]})
    with pytest.raises(ValueError, match="clear must be true"):
        encode("interlocks", {"t_ns": 1, "clear": False, "latched": []})
    with pytest.raises(ValueError, match="finite"):
        encode("layer", {"t_ns": 1, "field": 0, "layer": 1, "phase": "end", "energy_set_mev_u": float("inf")})


def test_the_document_is_current() -> None:
    assert (ROOT / "docs" / "telemetry.md").read_text(encoding="utf-8") == document(), (
        "run: python -m controller.telemetry_schema > docs/telemetry.md"
    )
