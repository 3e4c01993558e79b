"""The job: one part of a file on its way onto a tape, known by the digest of its content and of how it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from onetape.errors import CursorConflict, ImportInvalid, InvalidRecord
from onetape.importing.format import BATCH_ROWS, Batch, Format, Options, Part, Wrong, shown
from onetape.progress import Progress, ProgressMeter
from onetape.store import table
from onetape.store.layout import KIND_BAR
from onetape.tape import Tape

_REFUSED_LISTED = 20
_SYMBOLS_LISTED = 1000
#: Fewer rows than these repeat by themselves: two quiet days of an illiquid contract can look the same.
SESSION_ROWS_MIN = 32

OnProgress = Callable[[Progress], object]


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


class Room(msgspec.Struct):
    """How many more rows may be kept in memory between checking and storing."""

    rows: int


class Job:
    """One part: checked to its end, compared with what was there, stored. `room`: shared by the parts of a file."""

    def __init__(
        self, format: Format, part: Part, options: Options, on_progress: OnProgress | None, room: Room
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


def _digest(content: str, how: Mapping[str, Any]) -> str:
    return hashlib.sha256(content.encode() + msgspec.json.encode(how, order="deterministic")).hexdigest()


def _stat(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
