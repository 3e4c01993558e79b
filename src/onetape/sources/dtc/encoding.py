"""The encodings: bytes to messages and back, in each of the four that are spoken here.

    codec = codec_of(JSON)
    wire = codec.encode(HEARTBEAT, {"NumDroppedMessages": 0})
    for number, fields in codec.feed(b"…"): ...

A codec keeps what is not a whole message yet, never more than its bound. Nonsense raises Malformed: the connection is
of no use after it.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Protocol

import msgspec

from onetape.sources.dtc.layout import Layout, Malformed
from onetape.sources.dtc.messages import (
    BINARY,
    BINARY_VLS,
    DEFINITIONS,
    ENCODING_REQUEST,
    ENCODING_RESPONSE,
    JSON,
    JSON_COMPACT,
)

#: A JSON message is at most this long. It says no length, and its end may never come.
JSON_BYTES_MAX = 1 << 20

Message = tuple[int, dict[str, Any]]


class Codec(Protocol):
    """One encoding's state on one connection."""

    encoding: int
    unknown: int  # messages of a type that is not known here: left out

    def encode(self, number: int, fields: dict[str, Any]) -> bytes:
        """Return the message as it goes over the wire."""

    def feed(self, data: bytes) -> Generator[Message, None, None]:
        """Yield the whole messages that these bytes end. Raises Malformed."""

    def rest(self) -> bytes:
        """Return and forget what is kept: the bytes behind the last message that was yielded."""

    def keep(self, data: bytes) -> None:
        """Keep bytes for the next feed()."""


def _layouts(*, variable: bool) -> dict[int, Layout]:
    fixed = (ENCODING_REQUEST, ENCODING_RESPONSE)
    return {
        number: Layout(number, made.fields, pack=made.pack, variable=variable and number not in fixed)
        for number, made in DEFINITIONS.items()
    }


_FIXED, _VARIABLE = _layouts(variable=False), _layouts(variable=True)


class BinaryCodec:
    """Structures with their size (uint16) and type (uint16) in front."""

    def __init__(self, *, variable: bool = False) -> None:
        self.encoding = BINARY_VLS if variable else BINARY
        self.unknown = 0
        self._layouts = _VARIABLE if variable else _FIXED
        self._kept = b""

    def encode(self, number: int, fields: dict[str, Any]) -> bytes:
        """Return the structure."""
        return self._layouts[number].pack(fields)

    def feed(self, data: bytes) -> Generator[Message, None, None]:
        """Yield what is whole. A size under 4 raises: it would never end."""
        self._kept = data = self._kept + data if self._kept else data
        at, end = 0, len(data)
        try:
            while end - at >= 4:
                size = data[at] | data[at + 1] << 8
                if size < 4:
                    raise Malformed(f"a message of {size} bytes: the size and the type alone take 4")
                if end - at < size:
                    break
                layout = self._layouts.get(data[at + 2] | data[at + 3] << 8)
                message = data[at : at + size]
                at += size
                if layout is None:
                    self.unknown += 1
                else:
                    yield layout.number, layout.unpack(message)
        finally:
            self._kept = data[at:]

    def rest(self) -> bytes:
        """Return and forget what is kept."""
        kept, self._kept = self._kept, b""
        return kept

    def keep(self, data: bytes) -> None:
        """Keep bytes for the next feed()."""
        self._kept += data


class JsonCodec:
    """Objects, each ended by a zero byte. Compact: the fields are a list `F`, in the order of their table."""

    def __init__(self, *, compact: bool = False, bytes_max: int = JSON_BYTES_MAX) -> None:
        self.encoding = JSON_COMPACT if compact else JSON
        self.unknown = 0
        self._compact = compact
        self._bytes_max = bytes_max
        self._kept = bytearray()
        self._searched = 0  # so many bytes of it hold no end of a message

    def encode(self, number: int, fields: dict[str, Any]) -> bytes:
        """Return the object and its zero byte."""
        if self._compact:
            table = DEFINITIONS[number].fields
            value: dict[str, Any] = {"Type": number, "F": [fields.get(name, default) for name, _, default in table]}
        else:
            value = {"Type": number, **fields}
        return msgspec.json.encode(value) + b"\0"

    def feed(self, data: bytes) -> Generator[Message, None, None]:
        """Yield what is whole. A message without an end raises at the bound."""
        self._kept += data
        at, searched = 0, self._searched
        self._searched = 0  # in case this ends early: what is behind the message it ends at may hold another
        try:
            while (end := self._kept.find(0, searched)) >= 0:
                text = bytes(self._kept[at:end])
                at = searched = end + 1
                if len(text) > self._bytes_max:
                    raise Malformed(f"a JSON message of more than {self._bytes_max} bytes")
                message = self._decode(text)
                if message is not None:
                    yield message
        finally:
            del self._kept[:at]
        self._searched = len(self._kept)
        if len(self._kept) > self._bytes_max:
            raise Malformed(f"a JSON message of more than {self._bytes_max} bytes")

    def _decode(self, text: bytes) -> Message | None:
        try:
            value = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise Malformed(f"what is no JSON: {text[:40]!r}") from error
        number = value.get("Type") if isinstance(value, dict) else None
        if not isinstance(number, int):
            raise Malformed(f"a JSON message without a type: {text[:40]!r}")
        made = DEFINITIONS.get(number)
        if made is None:
            self.unknown += 1
            return None
        listed = value.get("F")
        if isinstance(listed, list):
            value = {name: cell for (name, _, _), cell in zip(made.fields, listed, strict=False)}
        return number, {name: _typed(name, code, value.get(name), default) for name, code, default in made.fields}

    def rest(self) -> bytes:
        """Return and forget what is kept."""
        kept = bytes(self._kept)
        self._kept.clear()
        self._searched = 0
        return kept

    def keep(self, data: bytes) -> None:
        """Keep bytes for the next feed()."""
        self._kept += data


def _typed(name: str, code: str, value: Any, default: Any) -> Any:
    """The value as the field's type has it; null and absent are the default."""
    if value is None:
        return default
    if code[0] == "s":
        if isinstance(value, str):
            return value
    elif isinstance(value, int | float):
        if code in "fd":
            try:
                return float(value)
            except OverflowError as error:
                raise Malformed(f"{name} = a number of {len(str(value))} digits") from error
        if isinstance(value, int) or value.is_integer():
            return int(value)
    raise Malformed(f"{name} = {value!r:.60}")


def codec_of(encoding: int) -> Codec:
    """Return a new codec. Raises Malformed for an encoding that is not spoken here."""
    if encoding in (BINARY, BINARY_VLS):
        return BinaryCodec(variable=encoding == BINARY_VLS)
    if encoding in (JSON, JSON_COMPACT):
        return JsonCodec(compact=encoding == JSON_COMPACT)
    raise Malformed(f"encoding {encoding}, which is not spoken here")
