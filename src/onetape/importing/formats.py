"""Formats: what a file can be, and the one way in which any of them gets onto a tape.

A format knows its files and finds parts in one; a part is a stream of records with an identity of its own, which it
yields in batches. Everything else is here, once: a file is checked to its end before the first record is stored,
every error names file, place and value, batches are known by the digest of the content and of how it is read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from onetape.errors import ConfigInvalid, CursorConflict, ImportInvalid, InvalidRecord
from onetape.progress import Progress, ProgressMeter
from onetape.record import Bar
from onetape.store import table
from onetape.store.layout import KIND_BAR
from onetape.tape import Tape

#: Rows of one transaction. Part of a batch's identity: a part cuts its rows at multiples of it, whatever it reads.
BATCH_ROWS = 65_536
_REFUSED_LISTED = 20
_SYMBOLS_LISTED = 1000
#: Fewer rows than these repeat by themselves: two quiet days of an illiquid contract can look the same.
SESSION_ROWS_MIN = 32

_FLAGS = {"as_path": "as", "mapping": "map"}

OnProgress = Callable[[Progress], object]
Tell = Callable[[int], object]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How files are read. A format says which of these it uses; giving another one is an error.

    symbol, source: of every record, where the file does not say it (a format may take a template). timezone: of
    local times. mapping, kind, interval, time_format: as CsvOptions says them, for files of named columns.
    at: when what the file says was so, where it says no time (as to_ns takes it). as_path: what the file's path would
    be in the vendor's own folder, where that says what it holds.
    multiplier, tick_size: decimals; prices are this many times what the file says, and multiples of the tick size.
    allow_cut: of a file that ends too early, take what is whole. repeats: of a session that comes twice under two
    names, "refuse" both, import it "once", or "keep" both. on_invalid: "raise" stores nothing of a file with a
    record the tape refuses; "quarantine" stores the good ones and keeps the bad ones with their reasons.
    """

    symbol: str | None = None
    source: str | None = None
    timezone: str | None = None
    mapping: dict[str, str] = {}
    kind: Literal["ticks", "bars"] | None = None
    interval: str | None = None
    time_format: str = "auto"
    at: str | None = None
    as_path: str | None = None
    allow_cut: bool = False
    multiplier: str = "1"
    tick_size: str | None = None
    repeats: Literal["refuse", "once", "keep"] = "refuse"
    on_invalid: Literal["raise", "quarantine"] = "raise"

    def given(self) -> set[str]:
        """Return the names of the options that are not at their defaults."""
        plain = Options()
        return {name for name in self.__struct_fields__ if getattr(self, name) != getattr(plain, name)}


class Wrong(msgspec.Struct, frozen=True):
    """What is wrong with a row: the field or column, the text that stands there, and why it cannot be stored."""

    field: str
    value: object
    why: str


class Batch(msgspec.Struct, kw_only=True):
    """Rows ready to append: a mapping of columns for append_table, or a list of Bars.

    `place` says where the row with an index in this batch stands. `wrong`: rows whose text could not be converted,
    by index; the data hold something in their place that the tape refuses too (NaN, a time of -1). `skipped`: how
    many things the file held here that are neither ticks nor bars, by reason. `cursor` replaces the identity that
    the driver gives, for a source that grows.
    """

    data: Mapping[str, Any] | list[Bar]
    rows: int
    place: Callable[[int], str]
    wrong: Mapping[int, Wrong] = {}
    skipped: Mapping[str, int] = {}
    cursor: tuple[str, str | None, str] | None = None
    ids: Sequence[bytes] | None = None
    known: int = 0


class Part:
    """One stream of records in a file: what a format's `parts` returns.

    `shown` names it in messages, `how` is all that decides how its bytes become records (it is in the identity, so it
    must not hold the path), `session` the entry of `how` that tells one session from the next (a date), if there is
    one, `notes` what is worth saying about it.
    """

    path: Path
    shown: str
    kind: str = "nothing"  # what it holds, where no batch tells
    how: Mapping[str, Any]
    session: str | None = None
    bytes_total: int = 0
    steady: bool = True  # a change of the file while it is read is an error
    notes: Sequence[str] = ()

    def begin(self, tape: Tape | None) -> None:
        """Prepare for one reading; with the tape that will be written, or None in a dry run."""

    def end(self, tape: Tape) -> None:
        """Note what is worth remembering, once everything is stored."""

    def batches(self, tell: Tell) -> Generator[Batch, None, str]:
        """Yield the records, cut at multiples of BATCH_ROWS; return the sha256 of the content, not its compression.

        It is called once to check and once more to store, and must yield the same. `tell` is told how many bytes of
        the file were read. Raises ImportInvalid, naming the place.
        """
        raise NotImplementedError


class Format(msgspec.Struct, frozen=True, kw_only=True):
    """A format of files. `parts` raises ImportInvalid; `detects` looks at name and first bytes, and never raises."""

    name: str
    says: str  # one line for people: what files these are
    detects: Callable[[Path], bool]
    parts: Callable[[Path, Options], Sequence[Part]]
    uses: frozenset[str] = frozenset()  # names of Options; on_invalid works everywhere


class Refused(msgspec.Struct, frozen=True):
    """A record that was not stored: where it stands and what is wrong with it."""

    place: str
    field: str
    value: str
    why: str


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one part of a file: `rows` records, of them stored now, known from an earlier import, refused.

    `skipped`: what the file holds besides, by reason. `repeats`: the session that this one repeats, if it was left
    out for that. `dry_run`: nothing was stored.
    """

    file: str
    format: str
    kind: str  # ticks, bars, records (both), or nothing
    rows: int
    stored: int
    known: int
    refused: int
    first_refused: tuple[Refused, ...]
    skipped: dict[str, int]
    ts_first_ns: int | None
    ts_last_ns: int | None
    symbols: tuple[str, ...]
    in_order: bool
    repeats: str | None
    notes: tuple[str, ...]
    digest: str
    dry_run: bool
    seconds: float


def known() -> tuple[Format, ...]:
    """Return every format, in the order in which they are asked whether a file is theirs."""
    from onetape.importing import (
        columnar,
        dbn,
        dly,
        dukascopy,
        kite,
        lean,
        predecessor,
        recordings,
        scid,
    )  # formats stand on this module

    return (
        lean.FORMAT,
        dbn.FORMAT,
        predecessor.FORMAT,
        columnar.PARQUET,
        columnar.ARROW,
        recordings.FORMAT,
        dukascopy.FORMAT,
        kite.FORMAT,
        scid.FORMAT,
        dly.FORMAT,
    )


def find(name: str) -> Format:
    """Return the format of a name. Raises ConfigInvalid."""
    for one in known():
        if one.name == name:
            return one
    names = ", ".join(one.name for one in known())
    raise ConfigInvalid(f"format {name!r} is not known", hint=f"it is one of {names}")


def detect(path: Path) -> Format | None:
    """Return the format whose files look like this one, or None."""
    return next((one for one in known() if one.detects(path)), None)


def files_in(path: Path, format: Format | None = None) -> Iterator[Path]:
    """Yield the file, or all files in a folder that a format takes for its own, in the order of their paths."""
    if not path.is_dir() or (detect(path) if format is None else format.detects(path)):
        yield path
        return
    for found in sorted(path.rglob("*")):
        if found.is_file() and (detect(found) if format is None else format.detects(found)):
            yield found


def import_file(
    tape: Tape | None,
    path: str | os.PathLike[str],
    format: str | None = None,
    options: Options | None = None,
    *,
    on_progress: OnProgress | None = None,
    seen: MutableMapping[str, str] | None = None,
) -> list[Imported]:
    """Import a file; without a tape only say what would be done. Return what became of each part of it.

    Every part is checked before the first one is stored. Imported again, also renamed or packed in another way, it
    changes nothing; after a kill, the same import goes on where it was. `seen` is shared by the files of one run, so
    that a session that comes twice is found without a tape too.

    Raises ImportInvalid with nothing stored; TapeError, with whole batches stored: import again to go on.
    """
    path, options = Path(path), options or Options()
    chosen = detect(path) if format is None else find(format)
    if not path.exists():
        raise ImportInvalid(f"{path}: no such file", hint="check the path")
    if chosen is None:
        raise ImportInvalid(f"{path}: not a format that is known", hint="say which it is: --format NAME")
    unused = options.given() - chosen.uses - {"on_invalid"}
    if unused:
        flags = ", ".join("--" + _FLAGS.get(name, name.replace("_", "-")) for name in sorted(unused))
        raise ConfigInvalid(f"{flags}: nothing in the format {chosen.name} for it", hint="leave it out")
    kept = _Room(BATCH_ROWS)
    jobs = [_Job(chosen, part, options, on_progress, kept) for part in chosen.parts(path, options)]
    for job in jobs:
        job.check(tape)
    seen = {} if seen is None else seen
    for job in jobs:
        job.find_repeat(tape, seen)
    if tape is not None:
        for job in jobs:
            job.store(tape)
    return [job.result(dry_run=tape is None) for job in jobs]


class _Room(msgspec.Struct):
    """How many more rows may be kept in memory between checking and storing."""

    rows: int


class _Job:
    """One part on its way."""

    def __init__(
        self, format: Format, part: Part, options: Options, on_progress: OnProgress | None, room: _Room
    ) -> None:
        self.format, self.part, self.options = format, part, options
        self._on_progress, self._room = on_progress, room
        self._stamp = _stat(part.path)
        self._kept: Batch | None = None
        self._kinds: set[str] = set()
        self._listed: list[Refused] = []
        self._refused_of_batch: dict[int, int] = {}
        self._skipped: dict[str, int] = {}
        self._symbols: dict[str, None] = {}
        self._span: tuple[int, int] | None = None
        self._in_order, self._rows, self._stored, self._known = True, 0, 0, 0
        self._repeats: str | None = None
        self._digest = ""
        self._seconds = 0.0

    def check(self, tape: Tape | None) -> None:
        """Read everything and store nothing. Raises ImportInvalid for the first wrong record, unless quarantined."""
        self.part.begin(tape)
        for number, batch in enumerate(self._batches("checking")):
            self._check(number, batch)
            self._kept = batch if not number else None  # what fits one batch need not be read again
        if self._kept is not None:
            if self._kept.rows > self._room.rows:
                self._kept = None
            else:
                self._room.rows -= self._kept.rows

    def find_repeat(self, tape: Tape | None, seen: MutableMapping[str, str]) -> None:
        """Note whether this session was there before under another name. Raises ImportInvalid where that is refused."""
        if self.part.session is None or self._rows < SESSION_ROWS_MIN or self.options.repeats == "keep":
            return
        mark = self._mark()
        label = str(self.part.how[self.part.session])
        there = seen.setdefault(mark, f"{label} ({self.part.shown})")
        if tape is not None and there.split(" ")[0] == label:
            there = tape.cursor(mark) or there
        if there.split(" ")[0] == label:
            return
        if self.options.repeats == "refuse":
            raise ImportInvalid(
                f"{self.part.shown}: the session of {label} is, row for row, that of {there}; nothing was stored",
                hint="--repeats once imports it once, --repeats keep imports both",
                file=self.part.shown,
                repeats=there,
            )
        self._repeats = there

    def store(self, tape: Tape) -> None:
        """Append the batches that the tape does not know."""
        if self._repeats is not None or not self._rows:
            return
        name = self._identity()
        if self.part.session is not None and self._rows >= SESSION_ROWS_MIN and tape.cursor(self._mark()) is None:
            label = f"{self.part.how[self.part.session]} ({self.part.shown})"
            try:
                tape.append([], cursor=(self._mark(), None, label))
            except CursorConflict:
                pass  # another importer was first, with the same file
        self.part.begin(tape)
        for number, batch in enumerate([self._kept] if self._kept is not None else self._batches("storing")):
            if batch.rows:
                self._append(tape, batch, f"{name}:{number}", self._refused_of_batch.get(number, 0))
        self.part.end(tape)
        self._kept = None

    def _append(self, tape: Tape, batch: Batch, identity: str, refused: int) -> None:
        if self.part.steady and _stat(self.part.path) != self._stamp:
            raise ImportInvalid(f"{self.part.shown} changed while it was read", hint="import a file nobody is writing")
        given: dict[str, Any] = {"on_invalid": self.options.on_invalid}
        if batch.cursor is not None:
            given["cursor"] = batch.cursor
        elif batch.ids is not None:
            given["ids"] = batch.ids
        else:
            given["batch"] = identity
        try:
            if isinstance(batch.data, list):
                done = tape.append(batch.data, **given)
            else:
                done = tape.append_table(batch.data, **given)
        except CursorConflict:
            self._known += batch.rows - refused  # another importer was first, with the same rows
            return
        except InvalidRecord as error:  # a source that is being written has changed since it was checked
            raise ImportInvalid(
                f"{self.part.shown}, {batch.place(error.index)}, {error.field}: {shown(error.value)}: {error.why}; "
                "it was written after it was checked; whole batches before it are stored",
                hint="import it again, which goes on from there; --on-invalid quarantine sets such records aside",
            ) from error
        self._stored += done.stored
        if batch.ids is not None:
            self._known += batch.rows - refused - done.stored
        elif not done.stored and done.last >= done.first:
            self._known += batch.rows - refused

    def result(self, *, dry_run: bool) -> Imported:
        return Imported(
            file=self.part.shown,
            format=self.format.name,
            kind="records" if len(self._kinds) > 1 else next(iter(self._kinds), self.part.kind),
            rows=self._rows,
            stored=self._stored,
            known=self._known,
            refused=sum(self._refused_of_batch.values()),
            first_refused=tuple(self._listed),
            skipped=self._skipped,
            ts_first_ns=self._span[0] if self._span else None,
            ts_last_ns=self._span[1] if self._span else None,
            symbols=tuple(self._symbols),
            in_order=self._in_order,
            repeats=self._repeats,
            notes=tuple(self.part.notes),
            digest=self._digest,
            dry_run=dry_run,
            seconds=self._seconds,
        )

    def _identity(self) -> str:
        return f"{self.format.name}:{_digest(self._digest, {**self.part.how, 'rows': BATCH_ROWS})}"

    def _mark(self) -> str:
        """Return what this content is known by, whichever session it is said to be."""
        how = {name: value for name, value in self.part.how.items() if name != self.part.session}
        return f"session:{self.format.name}:{_digest(self._digest, how)}"

    def _batches(self, step: str) -> Generator[Batch]:
        meter = ProgressMeter(step)

        def tell(read: int) -> None:
            progress = meter.update(read, self.part.bytes_total)
            self._seconds = progress.elapsed_s
            if self._on_progress is not None:
                self._on_progress(progress)

        found = self.part.batches(tell)
        while True:
            try:
                batch = next(found)
            except StopIteration as end:
                self._digest = end.value
                tell(self.part.bytes_total)
                return
            yield batch

    def _check(self, number: int, batch: Batch) -> None:
        """Note what the tape would say to a batch."""
        self._rows += batch.rows + batch.known
        self._known += batch.known
        for reason, count in batch.skipped.items():
            self._skipped[reason] = self._skipped.get(reason, 0) + count
        if not batch.rows:
            return
        self._kinds.add("bars" if isinstance(batch.data, list) else "ticks")
        try:
            if isinstance(batch.data, list):
                found = table.from_records(batch.data, KIND_BAR, 0)
            else:
                found = table.from_table(batch.data)
        except InvalidRecord as error:
            raise self._error(batch.place(error.index), Wrong(error.field, error.value, error.why)) from error
        problems = {problem.index: Wrong(problem.field, problem.value, problem.why) for problem in found.problems()}
        for index in sorted({**problems, **batch.wrong}):
            self._refuse(batch.place, index, batch.wrong.get(index) or problems[index])
        self._refused_of_batch[number] = len({**problems, **batch.wrong})
        good = np.ones(batch.rows, dtype=bool)
        good[[*problems, *batch.wrong]] = False
        ns = found.columns["ts_event_ns"][good]
        if len(ns):
            before = self._span[1] if self._span else int(ns[0])
            self._in_order &= int(ns[0]) >= before and bool((np.diff(ns) >= 0).all())
            self._span = (min(int(ns.min()), self._span[0] if self._span else int(ns[0])), max(int(ns.max()), before))
        for index in np.unique(found.columns["symbol"][good]).tolist():
            if len(self._symbols) < _SYMBOLS_LISTED:
                self._symbols[found.symbols[index]] = None

    def _refuse(self, place: Callable[[int], str], index: int, wrong: Wrong) -> None:
        if self.options.on_invalid == "raise":
            raise self._error(place(index), wrong)
        if len(self._listed) < _REFUSED_LISTED:
            self._listed.append(Refused(place(index), wrong.field, shown(wrong.value), wrong.why))

    def _error(self, place: str, wrong: Wrong) -> ImportInvalid:
        return ImportInvalid(
            f"{self.part.shown}, {place}, {wrong.field}: {shown(wrong.value)}: {wrong.why}; nothing was stored",
            hint="correct it, or import with --on-invalid quarantine",
            file=self.part.shown,
            place=place,
            field=wrong.field,
            value=wrong.value,
        )


def shown(value: object) -> str:
    """Return a value as messages show it: short, on one line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _digest(content: str, how: Mapping[str, Any]) -> str:
    return hashlib.sha256(content.encode() + msgspec.json.encode(how, order="deterministic")).hexdigest()


def _stat(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
