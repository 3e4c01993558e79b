"""Recorded files as a source: each record in the file's order, and on from where the tape is after a restart.

    [[source]]
    kind = "file"
    path = "/data/ESZ6.csv.gz"          # a file, or a folder of them

The cursor is a digest of all files up to the current one, and how many of its rows are stored: a file that was
renamed or moved goes on, one that was changed is refused, and one that was added behind the last is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from onetape.clock import now_ns
from onetape.errors import ConfigInvalid, ImportInvalid
from onetape.sources import file_reading
from onetape.sources.file_reading import Piece, Reading
from onetape.sources.source import Delivery, Source


class Options(Reading, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of a source of kind "file": `path`, and how it is read (see Reading)."""

    path: str


class FileSource(Source):
    """Gives what files hold, then ends. It covers nothing: a file does not say what it lacks."""

    kind = "file"
    live = False

    def __init__(
        self, name: str, path: str | Path, how: Reading | None = None, *, clock: Callable[[], int] = now_ns
    ) -> None:
        super().__init__(name, clock=clock)
        self._path, self._how = Path(path), how or Reading()
        self._at: tuple[str, int] | None = None

    def resume(self, cursor: str | None) -> None:
        """Go on behind a cursor `file:DIGEST:ROWS`."""
        super().resume(cursor)
        self._at = None if cursor is None else _parsed(cursor)

    def _deliveries(self) -> Iterator[Delivery]:
        self._tell(state="connecting")
        found = file_reading.files(self._path, self._how)
        chain, start, rows = "", 0, 0
        chains: list[str] = []
        stamps = [_stamp(path) for path in found]
        for path in found:
            chain = hashlib.sha256(f"{chain}:{file_reading.digest(path)}".encode()).hexdigest()[:32]
            chains.append(chain)
            if self.stopped:
                return
        if self._at is not None:
            if self._at[0] not in chains:
                raise ConfigInvalid(
                    f"source {self.name}: {self._path} is not what was read before: a file was changed, or one was "
                    "added before the last",
                    hint="give the changed files to a source of another name",
                )
            start, rows = chains.index(self._at[0]), self._at[1]
        self._tell(state="live")
        for path, chain, stamp in list(zip(found, chains, stamps, strict=True))[start:]:
            self._facts = {**self._facts, "file": str(path)}
            for delivery in self._file(path, chain, rows):
                if _stamp(path) != stamp:
                    raise ImportInvalid(f"{path} changed while it was read", hint="give a file that nobody is writing")
                yield delivery
                if self.stopped:
                    return
            rows = 0

    def _file(self, path: Path, chain: str, skip: int) -> Iterator[Delivery]:
        done = 0
        for piece in file_reading.pieces(path, self._how):
            done += piece.rows
            if done <= skip:
                continue
            fresh = piece.behind(max(0, skip - (done - piece.rows)))
            self._refuse(path, fresh)
            yield Delivery(fresh.records, columns=fresh.columns, cursor=f"file:{chain}:{done}")

    def _refuse(self, path: Path, piece: Piece) -> None:
        if piece.refused:
            self._count(refused=piece.refused)
            self._facts = {"first_refused": f"{path}, {piece.first_refused}", **self._facts}
            file_reading.log.warning("%s: %d refused, first: %s", path, piece.refused, piece.first_refused)


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _parsed(cursor: str) -> tuple[str, int]:
    kind, _, rest = cursor.partition(":")
    chain, _, rows = rest.partition(":")
    if kind != "file" or not rows.isdecimal():
        raise ConfigInvalid(f"{cursor!r} is no cursor of a file", hint="give the source another name")
    return chain, int(rows)


def make(name: str, options: Options) -> FileSource:
    """Return the source of these options."""
    how = {field: getattr(options, field) for field in Reading.__struct_fields__}
    return FileSource(name, options.path, msgspec.convert(how, Reading))
