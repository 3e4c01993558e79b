"""The layout: where the fields of one binary message stand, as its C structure has them, for both binary encodings.

A field's code is a letter of `struct` for a number, or `s64` for a text of 64 bytes. The fixed encoding writes the text
in place, ended by a zero byte; the one with strings of variable length (VLS) writes offset and length (uint16 each)
there, has a third field of the header with the size of the part that is fixed, and puts the texts behind it.
All is little-endian. Fields are aligned as the C structure's: to their size, but not above the message's `pack`.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from typing import Any

#: A binary message is at most this long: its size is a uint16.
SIZE_MAX = 0xFFFF

_ALIGNS = {"B": 1, "b": 1, "H": 2, "h": 2, "I": 4, "i": 4, "f": 4, "d": 8, "q": 8, "Q": 8}


class Malformed(ValueError):
    """A message that is none."""


class Layout:
    """One message's fields in one binary encoding. `pack()` and `unpack()` go between bytes and a dict by name.

    A message that is shorter than the layout (an older writer's) has the defaults for what it lacks; one that is longer
    (a newer writer's) has the fields that are known here.
    """

    def __init__(
        self, number: int, fields: tuple[tuple[str, str, Any], ...], *, pack: int = 8, variable: bool = False
    ) -> None:
        self.number = number
        self.names = tuple(name for name, _, _ in fields)
        self.defaults = {name: default for name, _, default in fields}
        texts = [index for index, (_, code, _) in enumerate(fields) if code[0] == "s"]
        self._variable = variable and bool(texts)
        self._texts = tuple(texts)
        form, at, most = "<HH", 4, 2
        if self._variable:
            form, at = "<HHH", 6
        self._ends: list[int] = []
        for _, code, _ in fields:
            letters, size, align = self._cell(code)
            align = min(align, pack)
            most = max(most, align)
            gap = -at % align
            form += f"{gap}x{letters}" if gap else letters
            at += gap + size
            self._ends.append(at)
        tail = -at % most
        self._struct = struct.Struct(form + (f"{tail}x" if tail else ""))
        self.size = self._struct.size
        self._default = self.pack({})

    def _cell(self, code: str) -> tuple[str, int, int]:
        if code[0] != "s":
            return code, _ALIGNS[code], _ALIGNS[code]
        if self._variable:
            return "HH", 4, 2
        return f"{code[1:]}s", int(code[1:]), 1

    def pack(self, values: dict[str, Any]) -> bytes:
        """Return the message. What is not given has its default; a text too long for its place is cut."""
        cells = [values.get(name, self.defaults[name]) for name in self.names]
        if not self._variable:
            for index in self._texts:
                cells[index] = _text_bytes(cells[index])
            packed = bytearray(self._struct.pack(self._struct.size, self.number, *cells))
            for index in self._texts:
                packed[self._ends[index] - 1] = 0  # a text that fills its place loses its last byte, not its end
            return bytes(packed)
        behind, at, flat = b"", self._struct.size, []
        for index, cell in enumerate(cells):
            if index not in self._texts:
                flat.append(cell)
                continue
            text = _text_bytes(cell)
            flat += [at + len(behind), len(text) + 1] if text else [0, 0]
            behind += text + b"\0" if text else b""
        whole = at + len(behind)
        if whole > SIZE_MAX:
            raise Malformed(f"a message of type {self.number} with {whole} bytes: {SIZE_MAX} is the most")
        return self._struct.pack(whole, self.number, at, *flat) + behind

    def unpack(self, message: bytes) -> dict[str, Any]:
        """Return the fields of a whole message. Raises Malformed for a text that lies outside of it."""
        size = self._struct.size
        if self._variable:
            return self._unpack_variable(message)
        if len(message) < size:
            message = self._filled(message, len(message))
        cells = self._struct.unpack_from(message)
        values = dict(zip(self.names, cells[2:], strict=True))
        for index in self._texts:
            name = self.names[index]
            values[name] = _text(values[name])
        return values

    def _unpack_variable(self, message: bytes) -> dict[str, Any]:
        base = int.from_bytes(message[4:6], "little") if len(message) >= 6 else 0
        if not 6 <= base <= len(message):
            raise Malformed(f"a message of type {self.number} whose fixed part has {base} of {len(message)} bytes")
        fixed = message if base >= self._struct.size else self._filled(message, base)
        cells = iter(self._struct.unpack_from(fixed)[3:])
        values: dict[str, Any] = {}
        for index, name in enumerate(self.names):
            if index not in self._texts:
                values[name] = next(cells)
                continue
            offset, length = next(cells), next(cells)
            if length and (offset < base or offset + length > len(message)):
                raise Malformed(f"a message of type {self.number} whose {name} lies outside of it")
            values[name] = _text(message[offset : offset + length])
        return values

    def _filled(self, message: bytes, known: int) -> bytes:
        """The message with defaults for every field that does not lie wholly in its first `known` bytes."""
        index = bisect_right(self._ends, known)
        whole = self._ends[index - 1] if index else 0
        return message[:whole] + self._default[whole : self._struct.size]


def _text_bytes(value: str) -> bytes:
    return value.encode("utf-8", "replace").split(b"\0", 1)[0]


def _text(value: bytes) -> str:
    return value.split(b"\0", 1)[0].decode("utf-8", "replace")
