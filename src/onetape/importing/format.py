"""The format: what the import asks of one. It knows its files, and finds in each the parts, streams of records."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from onetape.record import Bar
from onetape.tape import Tape

#: Rows of one transaction. Part of a batch's identity: a part cuts its rows at multiples of it, whatever it reads.
BATCH_ROWS = 65_536

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


def shown(value: object) -> str:
    """Return a value as messages show it: short, on one line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
