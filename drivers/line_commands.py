"""Line commands of an ASCII device, both sides: `MOV 12.50 - 0.00` to named values and back.

Words are separated by single blanks; a decimal has exactly the map's digits after the point, a bool is 0 or 1,
`-` is an optional value left out. Numbers travel as text, so what is read is to the last digit what was sent.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from drivers.register_codec import LimitError, limit_text
from drivers.register_map import LineCommand, LineField, RegisterMap

LineValue = int | float | bool | str | None
_INTEGER = re.compile(r"-?\d{1,20}")


def format_command(command: LineCommand, values: Mapping[str, LineValue]) -> str:
    """The line to send. Raises `LimitError`."""
    return " ".join([command.send, *(format_word(f, values[f.name]) for f in command.arguments)])


def format_answer(command: LineCommand, values: Mapping[str, LineValue]) -> str:
    """The answer to give, limits not judged: a device with a broken encoder shows what it has."""
    return " ".join(format_word(f, values[f.name], judge=False) for f in command.answer)


def parse_answer(command: LineCommand, text: str) -> dict[str, LineValue]:
    """Values of an answer. Raises `LimitError` for one that the map does not allow."""
    return _parse(f"answer to {command.send}", command.answer, text.split(" ") if text else [])


def parse_command(register_map: RegisterMap, text: str) -> tuple[LineCommand, dict[str, LineValue]]:
    """Command and values of a received line. Raises `LimitError` for one that the map does not have."""
    word, *arguments = text.split(" ")
    for command in register_map.commands:
        if command.send == word:
            return command, _parse(word, command.arguments, arguments)
    raise LimitError(f"{word!r} is no command of {register_map.device}")


def format_word(field: LineField, value: LineValue, *, judge: bool = True) -> str:
    """One value as it stands in a line. Raises `LimitError`."""
    if value is None:
        if not field.optional:
            raise LimitError(f"{field.name} must be given")
        return "-"
    if field.type == "text":
        text = str(value)
        if not (text.isascii() and text.isprintable()) or " " in text or text in ("", "-"):
            raise LimitError(f"{field.name}: {value!r} is not one printable ASCII word")
        return text
    if field.type == "bool":
        return "1" if value else "0"
    if isinstance(value, str) or not math.isfinite(value):
        raise LimitError(f"{field.name}: {value} is not a finite number")
    if judge:
        _judge(field, value)
    if field.type == "integer":
        return str(int(value))
    text = f"{value:.{field.decimals}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def _parse(what: str, fields: tuple[LineField, ...], words: list[str]) -> dict[str, LineValue]:
    if len(words) != len(fields):
        raise LimitError(f"{what}: wanted {len(fields)} values, got {len(words)}: {' '.join(words)!r}")
    return {field.name: _value(what, field, word) for field, word in zip(fields, words, strict=True)}


def _value(what: str, field: LineField, word: str) -> LineValue:
    if word == "-" and field.optional:
        return None
    value: int | float
    if field.type == "text":
        if not word:
            raise LimitError(f"{what}: {field.name} is empty")
        return word
    if field.type == "bool":
        if word not in ("0", "1"):
            raise LimitError(f"{what}: {field.name} is {word!r}, neither 0 nor 1")
        return word == "1"
    if field.type == "integer":
        if not _INTEGER.fullmatch(word):
            raise LimitError(f"{what}: {field.name} is {word!r}, no integer")
        value = int(word)
    else:
        if not re.fullmatch(rf"-?\d{{1,9}}\.\d{{{field.decimals}}}", word):
            raise LimitError(f"{what}: {field.name} is {word!r}, no number with {field.decimals} decimals")
        value = float(word)
    _judge(field, value)
    return value


def _judge(field: LineField, value: float) -> None:
    low, high = field.minimum, field.maximum
    if (low is not None and value < low) or (high is not None and value > high):
        raise LimitError(f"{field.name}: {value:g} is outside its hard limits {limit_text(field)}")
