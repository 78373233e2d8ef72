"""Site files: found by name or path, read strictly, and every mistake in them named with file and line.

A site file decides how patients' beams are steered, so nothing is guessed: unknown keys, numbers in quotes,
`true` for 1, dates and NaN are errors, and all of them are listed at once.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from drivers.errors import BadInput
from sites.positions import KeyPath, key_lines, line_of
from sites.schema import AsciiAddress, Device, RtuAddress, Site, TcpAddress

SIZE_LIMIT_BYTES = 1_000_000
"""A site file has some ten kilobytes; a hundred times that is no site file."""
ERRORS_SHOWN = 25

_FOLDER = Path(__file__).parent
_WIRES: dict[str, type[BaseModel]] = {"modbus_tcp": TcpAddress, "modbus_rtu": RtuAddress, "ascii": AsciiAddress}


def shipped_sites() -> list[str]:
    """Names of the sites that come with Spotwise, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load_site(name_or_path: str) -> Site:
    """Read a shipped site by its name, or any other by its path.

    Raises `BadInput`, whose message has one line `file:line: key: what is wrong` for each mistake.
    """
    shipped = name_or_path in shipped_sites()
    path = _FOLDER / f"{name_or_path}.toml" if shipped else Path(name_or_path)
    return parse_site(_read(path, name_or_path), str(path))


def parse_site(content: bytes, file: str) -> Site:
    """Check the content of a site file; `file` is its name in messages. Raises `BadInput`."""
    if len(content) > SIZE_LIMIT_BYTES:
        raise BadInput(f"{file}: site file is larger than {SIZE_LIMIT_BYTES} bytes; is this a site file?")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{content[error.start]:02x}"
        raise BadInput(f"{file}:{line}: not UTF-8 text ({byte}); save it as UTF-8") from error
    try:
        data = tomllib.loads(text)
        lines = key_lines(text)
    except tomllib.TOMLDecodeError as error:
        raise BadInput(_syntax_message(file, text, str(error))) from error
    except (ValueError, RecursionError) as error:  # absurd integers, and arrays nested without end
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise BadInput(f"{file}:1: not a usable site file: {reason}") from error
    foreign = [(path, f"{value!s} is a date or time; no site value is one") for path, value in _foreign(data)]
    if foreign:
        raise BadInput(_listing(file, [(line_of(lines, path), path, message) for path, message in foreign]))
    try:
        return _validate(json.dumps(data))
    except ValidationError as error:
        raise BadInput(_listing(file, [_located(lines, data, detail) for detail in error.errors()])) from error


def site_from_config(config: str) -> Site:
    """Site from the text that `effective_config` made, as a journal holds it. Raises `BadInput`."""
    try:
        return _validate(config)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "site"
        raise BadInput(f"stored site: {key}: {first['msg']}; was it written by another version?") from error


def effective_config(site: Site) -> str:
    """Write the whole site, defaults included, as canonical JSON (sorted keys, no spaces): equal for equal sites."""
    return json.dumps(site.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)


def site_sha256(site: Site) -> str:
    """SHA-256 of `effective_config`, as hexadecimal digits."""
    return hashlib.sha256(effective_config(site).encode()).hexdigest()


def _validate(text: str) -> Site:
    # Strict validation of JSON takes arrays for tuples and integers for floats, but no bools and no quoted numbers.
    return Site.model_validate_json(text, strict=True)


def _read(path: Path, asked: str) -> bytes:
    try:
        if not path.is_file():  # also keeps pipes and devices from blocking the reader
            raise BadInput(
                f"{asked}: no such site; shipped sites are {', '.join(shipped_sites())}, "
                "and anything else is taken for the path of a site file"
            )
        with path.open("rb") as file:
            return file.read(SIZE_LIMIT_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise BadInput(f"{asked}: site file cannot be read: {error}") from error


def _syntax_message(file: str, text: str, message: str) -> str:
    match = re.search(r"at line (\d+), column (\d+)", message)
    line = int(match.group(1)) if match else text.count("\n") + 1
    reason = re.sub(r" \(at [^)]*\)$", "", message)
    return f"{file}:{line}: not valid TOML: {reason}"


def _foreign(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, object]]:
    """Values that TOML knows and no site needs: dates and times."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _foreign(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _foreign(item, (*path, index))
    elif not isinstance(value, str | int | float | bool):
        yield path, value


def _located(lines: dict[KeyPath, int], data: Any, detail: ErrorDetails) -> tuple[int, KeyPath, str]:
    path = _plain_path(detail["loc"])
    message = _wording(detail, path, data)
    if detail["type"] == "value_error":  # a check over several keys begins with the key to look at, as 'a.b: text'
        key, _, message = message.partition(": ")
        path = (*path, *key.split("."))
    return line_of(lines, path), path, message


def _plain_path(loc: tuple[str | int, ...]) -> KeyPath:
    """Location in the file: without the marks that the validator adds for tagged unions and dictionary keys."""
    plain: list[str | int] = []
    for position, item in enumerate(loc):
        tagged = position > 0 and loc[position - 1] == "address" and item in _WIRES and loc[0] == "devices"
        if not tagged and item != "[key]":
            plain.append(item)
    return tuple(plain)


def _wording(detail: ErrorDetails, path: KeyPath, data: Any) -> str:
    kind = detail["type"]
    if kind == "missing":
        return "missing; this key has no default"
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(str(path[-1]), _known_keys(path[:-1], data), n=1)
        return "unknown key" + (f"; did you mean {close[0]}?" if close else "")
    message = detail["msg"].removeprefix("Value error, ")
    message = message.replace("Input should be", "must be")
    if kind == "value_error":
        return message
    got = json.dumps(detail["input"], default=str)
    return f"{message}, got {got if len(got) <= 60 else got[:57] + '...'}"


def _known_keys(path: KeyPath, data: Any) -> list[str]:
    """Keys that the schema has in the table at `path`."""
    model: type[BaseModel] = Site
    for item in path:
        data = data[item]
        if model is Device and item == "address":
            wire = data.get("wire") if isinstance(data, dict) else None
            inside = _WIRES.get(wire) if isinstance(wire, str) else None
        elif isinstance(item, str) and item in model.model_fields:
            inside = _model_inside(model.model_fields[item].annotation)
        else:  # the name of a treatment machine, or a place in an array: same table class
            inside = model
        if inside is None:
            return []
        model = inside
    return list(model.model_fields)


def _model_inside(annotation: Any) -> type[BaseModel] | None:
    """Find the table class inside an annotation such as `tuple[Snout, ...]` or `dict[str, TreatmentMachine]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _model_inside(inner)
        if found is not None:
            return found
    return None


def _listing(file: str, errors: list[tuple[int, KeyPath, str]]) -> str:
    shown = sorted(errors, key=lambda error: error[0])[:ERRORS_SHOWN]
    rows = [f"{file}:{line}: {'.'.join(map(str, path)) or 'site'}: {message}" for line, path, message in shown]
    if len(errors) > len(shown):
        rows.append(f"{file}: and {len(errors) - len(shown)} more")
    return "\n".join(rows)
