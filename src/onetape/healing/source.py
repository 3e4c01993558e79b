"""Sources: who can be asked for what a tape is missing."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

from onetape import tape as tapes
from onetape.errors import ConfigInvalid
from onetape.importing import CsvOptions, Imported, import_csv
from onetape.store.partition import Pair, merged, within
from onetape.tape import Tape

_HOUR_NS = 3_600_000_000_000
_CSV_ENDINGS = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt", ".txt.gz", ".zip")


class Source(Protocol):
    """Whoever has ticks of the past. `name` is what coverage remembers it by: the same source, the same name."""

    @property
    def name(self) -> str:
        """What coverage remembers the source by."""

    def fetch(self, symbol: str, start_ns: int, end_ns: int) -> Iterable[Any]:
        """Return what it has of start_ns <= ts_event_ns < end_ns: lists of Ticks, or tables as for append_table().

        In ascending order of time, in pieces of any size. An error is a failed try, and is tried again.
        """


@runtime_checkable
class Vouching(Protocol):
    """A source that knows for which time its answer is whole.

    One that does not is believed for all it was asked for if it gave any record of it, and for nothing otherwise. One
    that has all there ever was returns [(start_ns, end_ns)]: what it has nothing of is then covered, and quiet.
    """

    def covers(self, symbol: str, start_ns: int, end_ns: int) -> Iterable[Pair]:
        """Return the spans of start_ns … end_ns of which it has all there was. Cheap: asked without a limit of rate."""


class TapeSource:
    """Another tape: a backup, or the one of a second recorder. It vouches for what it holds as covered or quiet."""

    def __init__(self, path: str | os.PathLike[str] | Tape, name: str | None = None) -> None:
        self._own = not isinstance(path, Tape)
        self.tape = path if isinstance(path, Tape) else tapes.open(path, mode="r")
        self.name = name or f"tape:{self.tape.path.name}"

    def fetch(self, symbol: str, start_ns: int, end_ns: int) -> Iterator[Any]:
        """Yield tables of at most an hour."""
        for start in range(start_ns, end_ns, _HOUR_NS):
            found = self.tape.read(symbol, start, min(start + _HOUR_NS, end_ns))
            if found.num_rows:
                yield found

    def covers(self, symbol: str, start_ns: int, end_ns: int) -> list[Pair]:
        """Return what the other tape says is covered or quiet, or where its ticks flow as usual."""
        spans = self.tape.coverage(symbol, start_ns, end_ns)
        return merged((span.start_ns, span.end_ns) for span in spans if span.state in ("covered", "quiet"))

    def close(self) -> None:
        """Close the other tape, if it was opened here."""
        if self._own:
            self.tape.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class CsvSource:
    """CSV files, or folders of them. A file vouches for the time from its first to its last row, for all its symbols.

    They are read onto a tape of their own in a temporary folder, about 10 bytes a tick, which goes with close().
    Raises ImportInvalid as the import would.
    """

    def __init__(
        self, paths: Sequence[str | os.PathLike[str]], options: CsvOptions | None = None, name: str | None = None
    ) -> None:
        files = csv_files(paths)
        self.name = name or "csv:" + ",".join(Path(path).name for path in paths)[:200]
        self._folder = Path(tempfile.mkdtemp(prefix="onetape-heal-"))
        self._done: list[Imported] = []
        try:
            self._held = TapeSource(tapes.open(self._folder / "read.db", retention_days=None))
            for path in files:
                self._done += import_csv(self._held.tape, path, options or CsvOptions())
        except BaseException:
            self.close()
            raise

    def fetch(self, symbol: str, start_ns: int, end_ns: int) -> Iterator[Any]:
        """Yield tables of at most an hour."""
        return self._held.fetch(symbol, start_ns, end_ns)

    def covers(self, symbol: str, start_ns: int, end_ns: int) -> list[Pair]:
        """Return the time between the first and the last row of each file that has the symbol."""
        spans = [
            (done.ts_first_ns, done.ts_last_ns + 1)
            for done in self._done
            if symbol in done.symbols and done.ts_first_ns is not None and done.ts_last_ns is not None
        ]
        return within(spans, start_ns, end_ns)

    def close(self) -> None:
        """Remove the temporary folder."""
        if hasattr(self, "_held"):
            self._held.tape.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def csv_files(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Return the files, and the CSV files directly in the folders, by name. Raises ConfigInvalid if there is none."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(each for each in path.iterdir() if each.name.lower().endswith(_CSV_ENDINGS))
            if not inside:
                raise ConfigInvalid(f"no CSV file in {path}", hint=f"looked for {', '.join(_CSV_ENDINGS)}")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise ConfigInvalid(f"no file {path}", hint="check the path")
    return found
