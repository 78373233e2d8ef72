"""Who answers, asked again and again: only its boot nonce tells that a device was power-cycled, and its self-test void.

An identity is as old as the question that it answered. One that is too old says nothing of the device that answers now:
what was self-tested may have been restarted since (S1), so its age is judged as a status's is.
"""

from __future__ import annotations

import asyncio

from controller.clock import now_ns
from controller.delivery.run import Run
from drivers.deadline import Deadline
from drivers.errors import DeviceError
from sites.devices import Device
from sites.schema import Site

IDENTIFY_S = 0.5
"""Between two devices whose identity is asked for: each is asked once in some seconds."""
ROUNDS = 2
"""An identity may be missed once, however slow all the others answer; lines that answer as they should miss many."""


def answer_s(device: Device) -> float:
    """How long a device has to say who it is."""
    return max(device.request_timeout_ms, device.max_age_ms) * 1e-3


def oldest_identity_ns(site: Site) -> int:
    """The oldest that an identity may be: two rounds in which every device uses all its time, and an answer to come."""
    answers_s = [answer_s(device) for _, device in site.devices.items()]
    return round((ROUNDS * sum(IDENTIFY_S + s for s in answers_s) + max(answers_s) + IDENTIFY_S) * 1e9)


async def ask_identity(run: Run, name: str, deadline: Deadline) -> None:
    """Ask one device; latches `DEVICE_RESTARTED` where it is not who it was. Raises `DeviceError`."""
    asked_ns = now_ns()
    got = await getattr(run.devices, name).identify(deadline)
    before, run.identities[name] = run.identities[name], got
    run.identified_ns[name] = asked_ns
    if got != before:
        run.trip("DEVICE_RESTARTED", detail=f"{name}: another boot nonce, or another device")


async def renew_identities(run: Run, deadline: Deadline) -> None:
    """Ask those again that were asked long ago, as before a reconciliation of many rows. Raises `DeviceError`."""
    half_ns = oldest_identity_ns(run.site) // 2
    for name, _ in run.site.devices.items():
        if now_ns() - run.identified_ns[name] > half_ns:
            await ask_identity(run, name, deadline)


async def ask_identities(run: Run) -> None:
    """One after the other, for ever."""
    while True:
        for name, device in run.site.devices.items():
            await asyncio.sleep(IDENTIFY_S)
            try:
                await ask_identity(run, name, Deadline.after(answer_s(device), f"identity of {name}"))
            except DeviceError:
                continue  # the polls judge whether a device answers, and how late; the identity gets older
