"""The one error tree of Spotwise.

    SpotwiseError
    |- BadInput           exit 2: a file or command line that cannot be used (unreadable, malformed)
    |- Refused            exit 3: readable, but must not be delivered here
    |- Stopped            exit 4: an interlock or an operator stopped a prepared treatment
    |- DeviceError        a device did not do what it was told; inside a treatment it becomes Stopped
       |- LinkLost        no (valid) answer within the deadline
       |- ReadbackMismatch   the answer is not what was asked for
       |- DeviceRefused   the device answered with an exception or an error code

A message names the device or file, the quantity, what was wanted, what was got, the limit, and what to do.
"""

from __future__ import annotations


class SpotwiseError(Exception):
    """Base of every error that Spotwise raises on purpose."""

    exit_status = 5


class BadInput(SpotwiseError):
    """The input cannot be used: unreadable, malformed, or not what it claims to be."""

    exit_status = 2


class Refused(SpotwiseError):
    """The input is readable, but this must not be delivered here."""

    exit_status = 3


class Stopped(SpotwiseError):
    """A prepared treatment was stopped; what was delivered is in the record."""

    exit_status = 4


class DeviceError(SpotwiseError):
    """A device failed its contract."""

    exit_status = 4

    def __init__(self, device: str, message: str) -> None:
        super().__init__(f"{device}: {message}")
        self.device = device


class LinkLost(DeviceError):
    """No valid answer within the deadline."""


class ReadbackMismatch(DeviceError):
    """The read-back differs from the set value by more than its tolerance."""


class DeviceRefused(DeviceError):
    """The device answered, and said no."""
