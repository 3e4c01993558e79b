"""Databento DBN files: every version and schema, plain or zstd, whole files and fragments without metadata.

The layout is that of https://databento.com/docs/standards-and-conventions/databento-binary-encoding: metadata, then
records, each with its length in its first byte. The records are decoded by Databento's own library, databento-dbn, an
optional dependency that is imported only when such a file is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from onetape.errors import ConfigInvalid, CursorConflict, ImportInvalid
from onetape.importing.format import Batch, Format, Options, Part, Tell

if TYPE_CHECKING:
    from onetape.tape import Tape

_ZSTD = b"\x28\xb5\x2f\xfd"
_MAGIC = b"DBN"
#: What is read at a time: about 5,000 trades.
_READ_BYTES = 1 << 18
#: Metadata name symbols: some MB for all of an exchange. More than this is a damaged length.
_METADATA_BYTES_MAX = 64 << 20
#: What two files have in common if one is a cut copy of the other: the metadata of the request, or its first records.
_HEAD_BYTES = 4096
#: Length in 4 bytes of a record by type (19: definition, 24: statistics) → the version that wrote it so.
_VERSIONS = {(19, 90): 1, (19, 100): 2, (24, 16): 2}
_RECORD_BYTES_MIN = 16
#: Shorter runs are gathered by type: taking a run costs as much as 50 records of it.
_RUN_MIN = 32


def _detects(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            first = file.read(4)
        if first == _ZSTD:
            return ".dbn" in path.name or _peek(path) == _MAGIC
        return first[:3] == _MAGIC or ".dbn.frag" in path.name
    except (OSError, ValueError):
        return False


def _peek(path: Path) -> bytes:
    with _opened(path) as (stream, _):
        return bytes(stream.read(3))


def _parts(path: Path, options: Options) -> list[Part]:
    try:
        import databento_dbn  # noqa: F401
    except ImportError as error:
        raise ConfigInvalid(f"{path}: reading DBN needs databento-dbn", hint="pip install 'onetape[dbn]'") from error
    return [_File(path, options)]


class _File(Part):
    """One DBN file."""

    def __init__(self, path: Path, options: Options) -> None:
        self.path, self.shown = path, str(path)
        self.bytes_total = path.stat().st_size
        self.notes: list[str] = []
        self._options = options
        self._skip = 0
        self._cut: str | None = None
        self._records = 0
        self._head = b""
        self._gathered: frozenset[int] = frozenset()

    @property
    def how(self) -> dict[str, Any]:  # type: ignore[override]
        """Return what decides about the records; `from` is where a cut copy ended that is on the tape already."""
        return {"symbol": self._options.symbol, "source": self._options.source, "from": self._skip}

    def begin(self, tape: Tape | None) -> None:
        """Look whether the tape has the beginning of this file from a cut copy of it."""
        if tape is not None and not self._head:
            with self._reading() as read:
                self._head = read(_HEAD_BYTES)[0]
            self._skip = int(tape.cursor(self._mark()) or 0)

    def end(self, tape: Tape) -> None:
        """Remember how much of a cut file is stored, so that the whole file, should it turn up, only adds the rest."""
        if self._cut is not None and self._records > self._skip:
            with suppress(CursorConflict):
                tape.append([], cursor=(self._mark(), str(self._skip) if self._skip else None, str(self._records)))

    def _mark(self) -> str:
        return f"dbn:cut:{hashlib.sha256(self._head).hexdigest()}"

    def batches(self, tell: Tell) -> Generator[Batch, None, str]:
        from onetape.importing import dbn_records

        digest = hashlib.sha256()
        self._cut, self._records = None, 0
        self._gathered = frozenset(dbn_records.LAYOUTS)
        with self._reading() as read:
            metadata, version, held = self._metadata(read, digest)
            symbols = dbn_records.Symbols(metadata, self._options.symbol)
            source = self._options.source or (metadata.dataset if metadata is not None else None) or "databento"
            schema = str(metadata.schema) if metadata is not None and metadata.schema is not None else None
            rows = dbn_records.Rows(symbols, source, schema)
            ts_out = bool(metadata.ts_out) if metadata is not None else False
            for run, numbers in self._runs(read, held, digest, tell):
                if run is None:
                    yield from rows.full()
                    continue
                skipped = int(np.searchsorted(numbers, self._skip, side="right"))
                size, rtype = run[0] * 4, run[1]
                layout = dbn_records.LAYOUTS.get(rtype)
                if layout is None:
                    records = self._others(run, len(numbers), ts_out, version)
                    rows.others(records[:skipped], counted=False)
                    rows.others(records[skipped:])
                elif size < layout.bytes_min():
                    raise self._invalid(
                        f"record {numbers[0]}: {size} bytes, too short for its type",
                        "the file is damaged: get it again",
                    )
                elif skipped < len(numbers):
                    rows.take(rtype, run[skipped * size :], size, numbers[skipped:])
                if skipped:
                    rows.skip("records that are on the tape from a cut copy of this file", skipped)
                if len(symbols.seen) > 1:
                    raise self._invalid("two instruments", "leave --symbol out: the file names them itself")
            yield from rows.rest()
        self.notes = dbn_records.note_unnamed(symbols, metadata.mappings if metadata is not None else None)
        if schema in ("mbp-10", "bbo-1s", "bbo-1m", "cbbo-1s", "cbbo-1m"):
            what = "levels 2 to 10 of the book" if schema == "mbp-10" else "the last trade that each snapshot repeats"
            self.notes.append(f"not kept: {what}")
        if self._cut is not None:
            self.notes.append(f"the file is cut short: {self._cut}; its {self._records} whole records were taken")
        return digest.hexdigest()

    def _metadata(self, read: Any, digest: Any) -> tuple[Any, int, bytes]:
        """Return the metadata, or None for a fragment, the version, and bytes that were read beyond."""
        import databento_dbn as dbn

        head, why = read(_READ_BYTES)
        if why and len(head) < len(_MAGIC):
            raise self._invalid(f"it is cut short, {why}; no record before it is whole", "get it again")
        if head[:3] != _MAGIC:
            if ".frag" not in self.path.name:
                raise self._invalid(
                    f"it begins with {head[:8]!r}, not with DBN",
                    "a fragment without metadata is known by .frag in its name; otherwise get the file again",
                )
            digest.update(head)
            return None, _version_of(head), head
        if len(head) < 8:
            raise self._invalid("it ends in its metadata", "get it again", cut=True)
        size = 8 + int.from_bytes(head[4:8], "little")
        if size > _METADATA_BYTES_MAX:
            raise self._invalid(f"its metadata would have {size:,} bytes", "the file is damaged: get it again")
        while len(head) < size:
            more, why = read(size - len(head))
            if not more:
                raise self._invalid(f"it ends in its metadata{': ' + why if why else ''}", "get it again", cut=True)
            head += more
        digest.update(head)
        try:
            return dbn.Metadata.decode(head[:size]), head[3], head[size:]
        except (dbn.DBNError, ValueError, OverflowError) as error:
            raise self._invalid(f"its metadata cannot be read: {error}", "get it again") from error

    def _others(self, run: bytes, count: int, ts_out: bool, version: int) -> list[Any]:
        """Return records that the library has to decode."""
        try:
            records = _decoded(run, ts_out, version)
        except _Undecodable as error:
            raise self._damaged(run, ts_out, version, str(error)) from error
        if len(records) != count:
            raise self._damaged(run, ts_out, version, "a record cannot be decoded")
        return records

    def _runs(self, read: Any, held: bytes, digest: Any, tell: Tell) -> Iterator[tuple[bytes | None, Any]]:
        """Yield records of one type and length, and their numbers in the file; None where all before were yielded.

        Where types take turns, records that are ticks or bars are gathered by type; the others stay in their place,
        because they name symbols. Notes a cut.
        """
        why = ""
        while True:
            at = 0
            mixed: dict[bytes, list[tuple[int, bytes]]] = {}
            while at < len(held):
                size = held[at] * 4
                if size < _RECORD_BYTES_MIN:
                    raise self._invalid(
                        f"record {self._records + 1}: a length of {size} bytes", "the file is damaged: get it again"
                    )
                count = _alike(held, at, size)
                if not count:
                    break
                if count < _RUN_MIN and held[at + 1] in self._gathered:
                    gathered = mixed.setdefault(held[at : at + 2], [])
                    gathered += [
                        (self._records + 1 + i, held[at + i * size : at + (i + 1) * size]) for i in range(count)
                    ]
                    self._records += count
                    at += count * size
                    continue
                yield from _gathered(mixed)
                numbers = np.arange(self._records + 1, self._records + 1 + count)
                run = held[at : at + count * size]
                yield run, numbers
                self._records += count
                at += count * size
            yield from _gathered(mixed)
            yield None, ()
            held = held[at:]
            if why:
                break
            more, why = read(_READ_BYTES, tell)
            if not more:
                break
            digest.update(more)
            held += more
        if held or why:
            what = why or f"{len(held)} bytes of record {self._records + 1} are there"
            if not self._options.allow_cut:
                raise self._invalid(
                    f"it is cut short, {what}; {self._records} records before it are whole",
                    "get it again, or take what is whole with --allow-cut",
                    cut=True,
                )
            self._cut = what

    def _damaged(self, run: bytes, ts_out: bool, version: int, why: str) -> ImportInvalid:
        """Return the error that names the first record of a run that cannot be decoded."""
        at, number = 0, self._records
        while at < len(run):
            size = run[at] * 4
            number += 1
            try:
                if len(_decoded(run[at : at + size], ts_out, version)) != 1:
                    break
            except _Undecodable as error:
                why = str(error)
                break
            at += size
        return self._invalid(f"record {number}: {why}", "the file is damaged: get it again")

    def _invalid(self, what: str, hint: str, *, cut: bool = False) -> ImportInvalid:
        return ImportInvalid(
            f"{self.shown}: {what}; nothing was stored", hint=hint, file=self.shown, records=self._records, cut=cut
        )

    @contextmanager
    def _reading(self) -> Iterator[Any]:
        """Give a function that reads so many bytes and says why there are fewer, if it is not the end."""
        with _opened(self.path) as (stream, raw):
            at, why = 0, ""

            def read(size: int, tell: Tell | None = None) -> tuple[bytes, str]:
                nonlocal at, why
                if why:
                    return b"", why
                try:
                    data = bytes(stream.read(size))
                except OSError as error:
                    if "runcated" not in str(error):
                        raise self._invalid(
                            f"after record {self._records} it cannot be unpacked: {error}", "get it again"
                        ) from error
                    data, why = _salvaged(self.path, at), "the compressed stream ends too early"
                at += len(data)
                if tell is not None:
                    tell(raw.tell())
                return data, why

            yield read


def _gathered(mixed: dict[bytes, list[tuple[int, bytes]]]) -> Iterator[tuple[bytes, Any]]:
    for found in mixed.values():
        yield b"".join(record for _, record in found), np.array([number for number, _ in found])
    mixed.clear()


def _alike(held: bytes, at: int, size: int) -> int:
    """Return how many whole records from a position on have the type and the length of the first of them."""
    count, looked = (len(held) - at) // size, 1
    while looked < count:  # further and further: in a mix of types, a run ends soon
        ahead = min(count - looked, looked * 8)
        start = at + looked * size
        marks = np.frombuffer(held, dtype=np.uint8, offset=start, count=ahead * size).reshape(ahead, size)
        other = (marks[:, 0] != held[at]) | (marks[:, 1] != held[at + 1])
        if other.any():
            return looked + int(np.argmax(other))
        looked += ahead
    return count


class _Undecodable(Exception):
    """Bytes that the library cannot make records of."""


def _decoded(run: bytes, ts_out: bool, version: int) -> list[Any]:
    """Return the records of a run of whole records. Raises _Undecodable."""
    import databento_dbn as dbn

    try:
        decoder = dbn.DBNDecoder(has_metadata=False, ts_out=ts_out, input_version=version)
        decoder.write(run)
        return decoder.decode()
    except (dbn.DBNError, ValueError) as error:
        raise _Undecodable(str(error)) from error
    except BaseException as error:
        # A record that is shorter than its type makes the library panic, which is no Exception.
        if type(error).__name__ != "PanicException":
            raise
        raise _Undecodable(str(error).split(". ")[0]) from error


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    with pa.OSFile(str(path)) as raw:
        zstd = raw.read(4) == _ZSTD
        raw.seek(0)
        stream = pa.CompressedInputStream(raw, "zstd") if zstd else raw
        try:
            yield stream, raw
        finally:
            with suppress(OSError):
                stream.close()


def _salvaged(path: Path, at: int) -> bytes:
    """Return what can be unpacked of a cut file from a position on: a long read that fails gives nothing at all."""
    found = bytearray()
    with _opened(path) as (stream, _), suppress(OSError):
        while at:
            at -= len(stream.read(min(at, _READ_BYTES)))
        while one := stream.read(1):
            found += one
    return bytes(found)


def _version_of(fragment: bytes) -> int:
    """Return the version that records of a fragment were written in: the latest, unless a length says otherwise."""
    at = 0
    while at + 1 < len(fragment) and fragment[at]:
        version = _VERSIONS.get((fragment[at + 1], fragment[at]))
        if version is not None:
            return version
        at += fragment[at] * 4
    return 3


FORMAT = Format(
    name="dbn",
    says="Databento DBN: .dbn, .dbn.zst, .dbn.frag, every schema",
    detects=_detects,
    parts=_parts,
    uses=frozenset({"symbol", "source", "allow_cut"}),
)
