"""Answers: one JSON document of a vendor's API, whole in memory, turned into records by a pure function of it."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from onetape.errors import ImportInvalid
from onetape.importing import format
from onetape.importing.format import Batch, Part, Tell
from onetape.record import Bar, Tick

#: An answer of an API is smaller; what is larger is another kind of file.
BYTES_MAX = 256 << 20
_HEAD_BYTES = 400


class Told(NamedTuple):
    """What a document holds: records in its order, where each stands, and what is left out, by reason."""

    records: Sequence[Tick] | Sequence[Bar]
    place: Callable[[int], str]
    skipped: Mapping[str, int] = {}
    notes: Sequence[str] = ()


class Answer(Part):
    """One document. `read` makes records of it; its KeyError, TypeError or ValueError say that it cannot."""

    def __init__(self, path: Path, how: Mapping[str, Any], read: Callable[[Any], Told]) -> None:
        self.path, self.shown, self.how = path, str(path), how
        self.bytes_total = path.stat().st_size
        self._read = read

    def batches(self, tell: Tell) -> Generator[Batch, None, str]:
        """Yield its records, with what is left out in the last batch."""
        raw = content(self.path)
        tell(self.bytes_total)
        try:
            told = self._read(msgspec.json.decode(raw))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ImportInvalid(
                f"{self.shown}: not whole JSON: {error}", hint="the file is damaged or cut off: get it again"
            ) from error
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError) as error:
            if isinstance(error, ImportInvalid):
                raise
            raise ImportInvalid(
                f"{self.shown}: not the answer it looks like: {type(error).__name__}: {error}",
                hint="it may be of another kind: --format says which",
            ) from error
        self.notes = told.notes
        rows = format.BATCH_ROWS
        for first in range(0, max(len(told.records), 1), rows):
            part = told.records[first : first + rows]
            last = first + rows >= len(told.records)
            yield Batch(
                data=_data(part),
                rows=len(part),
                place=lambda index, first=first: told.place(first + index),  # type: ignore[misc]
                skipped=told.skipped if last else {},
            )
        return hashlib.sha256(raw).hexdigest()


def _data(records: Sequence[Tick] | Sequence[Bar]) -> Any:
    if records and isinstance(records[0], Bar):
        return list(records)
    return {name: [getattr(record, name) for record in records] for name in Tick.__struct_fields__ if name != "seq"}


def content(path: Path) -> bytes:
    """Return the bytes of a document, unpacked. Raises ImportInvalid."""
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream = gzip.GzipFile(fileobj=file) if zipped else file
            raw = stream.read(BYTES_MAX + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ImportInvalid(f"{path}: cannot be read: {error}", hint="the file is damaged or cut off") from error
    if len(raw) > BYTES_MAX:
        raise ImportInvalid(f"{path}: more than {BYTES_MAX >> 20} MiB", hint="that is no answer of an API")
    return raw


def head(path: Path) -> bytes:
    """Return the first bytes of a document, unpacked, without blanks; nothing where they cannot be read."""
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            return (gzip.GzipFile(fileobj=file) if zipped else file).read(_HEAD_BYTES).translate(None, b" \t\r\n")
    except (OSError, EOFError, zlib.error):
        return b""
