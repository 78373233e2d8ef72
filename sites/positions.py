"""Line numbers of keys in a TOML text, so that a message about a site file can say where to look.

The standard parser gives values without positions. This scanner runs after it, over a text that is known to be
valid TOML, and therefore trusts it: it only has to know where keys, strings, arrays and tables begin and end.
"""

from __future__ import annotations

import re
import tomllib

KeyPath = tuple[str | int, ...]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(r'"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'', re.DOTALL)
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_SCALAR = re.compile(r"[^,\]\}\n#]*")


class _Scanner:
    """One pass over a valid text; `lines` grows as keys are met."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[KeyPath, int] = {}
        self.table_counts: dict[KeyPath, int] = {}
        self._counted_to = 0
        self._line = 1

    def document(self) -> None:
        prefix: KeyPath = ()
        while self._skip(_BLANK) < len(self.text):
            if self.text.startswith("[[", self.at):
                prefix = self._header(2)
            elif self.text[self.at] == "[":
                prefix = self._header(1)
            else:
                self._pair(prefix)

    def _header(self, brackets: int) -> KeyPath:
        line = self._line_here()
        self.at += brackets
        keys = self._keys()
        self.at += brackets
        path: KeyPath = ()
        for position, key in enumerate(keys):
            path = (*path, key)
            self.lines.setdefault(path, line)
            if brackets == 2 and position == len(keys) - 1:
                self.table_counts[path] = self.table_counts.get(path, -1) + 1
            if path in self.table_counts:
                path = (*path, self.table_counts[path])
                self.lines.setdefault(path, line)
        return path

    def _pair(self, prefix: KeyPath) -> None:
        line = self._line_here()
        path = prefix
        for key in self._keys():
            path = (*path, key)
            self.lines.setdefault(path, line)
        self._skip(_SPACE)
        self.at += 1  # the equals sign
        self._skip(_SPACE)
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        first = self.text[self.at : self.at + 1]
        if first in {'"', "'"}:
            self._skip(_STRING)
        elif first == "[":
            self._list(path, "]")
        elif first == "{":
            self._list(path, "}")
        else:
            self._skip(_SCALAR)

    def _list(self, path: KeyPath, end: str) -> None:
        """Read an array or an inline table, whose items are separated alike."""
        self.at += 1
        index = 0
        while True:
            self._skip(_BLANK)
            if self.at >= len(self.text):
                return
            if self.text[self.at] == end:
                self.at += 1
                return
            if self.text[self.at] == ",":
                self.at += 1
                continue
            before = self.at
            if end == "]":
                self.lines.setdefault((*path, index), self._line_here())
                self._value((*path, index))
            else:
                self._pair(path)
            index += 1
            if self.at == before:  # cannot happen in valid text; a scanner must not loop for ever on any text
                return

    def _keys(self) -> list[str]:
        keys: list[str] = []
        while True:
            self._skip(_SPACE)
            quoted = self.text[self.at : self.at + 1] in {'"', "'"}
            start, stop = self.at, self._skip(_STRING if quoted else _BARE)
            piece = self.text[start:stop]
            keys.append(str(tomllib.loads(f"k = {piece}")["k"]) if quoted else piece)
            self._skip(_SPACE)
            if self.text[self.at : self.at + 1] != ".":
                return keys
            self.at += 1

    def _skip(self, pattern: re.Pattern[str]) -> int:
        match = pattern.match(self.text, self.at)
        if match is not None:
            self.at = match.end()
        return self.at

    def _line_here(self) -> int:
        self._line += self.text.count("\n", self._counted_to, self.at)
        self._counted_to = self.at
        return self._line


def key_lines(text: str) -> dict[KeyPath, int]:
    """Lines (from 1) of all keys and array items of a valid TOML text, by their full path.

    A table that is opened several times has the line of its first mention.
    """
    scanner = _Scanner(text.replace("\r\n", "\n"))
    scanner.document()
    return scanner.lines


def line_of(lines: dict[KeyPath, int], path: KeyPath) -> int:
    """Line of the key, or of the nearest table around it that the text has; 1 where it has none."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return 1
