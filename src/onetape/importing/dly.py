"""Sierra Chart's .dly files: one line a day, as text; they become daily bars. A line that changed is a bar again.

The first line names the columns, padded with blanks: Date, Open, High, Low, Close, Volume, OpenInterest. A bar starts
at the day's midnight, UTC. Each line is known by its content, so that a file that grew, or whose last day changed, adds
what is new.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Generator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from onetape.clock import now_ns
from onetape.errors import ImportInvalid
from onetape.importing.format import BATCH_ROWS, Batch, Format, Options, Part, Tell, Wrong
from onetape.importing.scid_file import Prices
from onetape.record import Bar

#: 50 years of days are a megabyte.
BYTES_MAX = 64 << 20
_DAY_NS = 86_400_000_000_000
_NEEDED = ("date", "open", "high", "low", "close")
_FORMS = ("%Y/%m/%d", "%Y-%m-%d", "%Y%m%d")


class Line(msgspec.Struct, frozen=True):
    """A line: its number in the file, its bar, or what is wrong with it (the bar is then one that a tape refuses)."""

    number: int
    bar: Bar
    wrong: Wrong | None = None

    @property
    def says(self) -> str:
        """What is wrong with it, and where."""
        wrong = self.wrong
        return "" if wrong is None else f"line {self.number}, {wrong.field}: {wrong.value!r}: {wrong.why}"

    @property
    def id(self) -> bytes:
        """What its content is known by."""
        bar = self.bar
        content = (bar.symbol, bar.source, bar.ts_start_ns, bar.open, bar.high, bar.low, bar.close, bar.volume)
        return hashlib.blake2b(repr((content, bar.complete)).encode(), digest_size=16, person=b"dly").digest()


def parse(raw: bytes, shown: str, symbol: str, source: str | None, prices: Prices, at_ns: int) -> list[Line]:
    """Return the lines of a file. A day that is not over at `at_ns` is not complete.

    Half a line at the end, without a line break and with too few columns, is left out: it is being written. Raises
    ImportInvalid for a header that is none.
    """
    text = raw.decode("utf-8-sig", "replace")
    lines = text.splitlines()
    names = [name.strip().lower().replace(" ", "") for name in lines[0].split(",")] if lines else []
    missing = [name for name in _NEEDED if name not in names]
    if missing:
        raise ImportInvalid(
            f"{shown}, line 1: no column {', '.join(missing)}",
            hint="a .dly begins with Date, Open, High, Low, Close, Volume",
            file=shown,
        )
    places = {name: names.index(name) for name in (*_NEEDED, "volume") if name in names}
    found = []
    for number, line in enumerate(lines[1:], 2):
        cells = [cell.strip() for cell in line.split(",")]
        if not any(cells):
            continue
        if number == len(lines) and not text.endswith(("\n", "\r")) and len(cells) < len(names):
            continue
        found.append(_line(number, cells, places, symbol, source, prices, at_ns))
    return found


def _line(
    number: int,
    cells: Sequence[str],
    places: dict[str, int],
    symbol: str,
    source: str | None,
    prices: Prices,
    at_ns: int,
) -> Line:
    values: dict[str, float] = {}
    start_ns, wrong = -1, None
    for name, place in places.items():
        cell = cells[place] if place < len(cells) else ""
        if name == "date":
            start_ns = _day_ns(cell)
            if start_ns < 0:
                wrong = Wrong("Date", cell, "a day is such as 2026/01/05")
            elif start_ns > at_ns + _DAY_NS:
                wrong = Wrong("Date", cell, "a day in the future: a wrong clock, or a damaged file")
            continue
        try:
            values[name] = float(cell)
            if not math.isfinite(values[name]):
                raise ValueError
        except ValueError:
            wrong = wrong or Wrong(name.capitalize(), cell, "a number")
            values[name] = math.nan
    opened, high, low, close = (prices.of_text(values[name]) for name in ("open", "high", "low", "close"))
    bar = Bar(
        symbol,
        "1d",
        -1 if wrong else start_ns,
        opened,
        high,
        low,
        close,
        volume=values.get("volume"),
        complete=start_ns + _DAY_NS <= at_ns,
        source=source,
    )
    return Line(number, bar, wrong)


def _day_ns(text: str) -> int:
    for form in _FORMS:
        try:
            return int(datetime.strptime(text, form).replace(tzinfo=UTC).timestamp()) * 1_000_000_000
        except ValueError:
            continue  # in another form, or in none: -1 says so
    return -1


def symbol_of(path: Path) -> str:
    """Return the symbol that a file is named after."""
    return path.name.removesuffix(path.suffix)


class _File(Part):
    """One file."""

    kind = "bars"

    def __init__(self, path: Path, options: Options) -> None:
        self.path, self.shown = path, str(path)
        self.bytes_total = path.stat().st_size
        self._symbol, self._source = options.symbol or symbol_of(path), options.source or "sierra"
        self._prices = Prices(options.multiplier, options.tick_size)
        self._now_ns = now_ns()
        self.how = {"symbol": self._symbol, "source": self._source, **self._prices.how}

    def batches(self, tell: Tell) -> Generator[Batch, None, str]:
        if self.bytes_total > BYTES_MAX:
            raise ImportInvalid(f"{self.shown}: {self.bytes_total} bytes", hint="a file of days is not as long")
        raw = self.path.read_bytes()
        tell(len(raw))
        lines = parse(raw, self.shown, self._symbol, self._source, self._prices, self._now_ns)
        for first in range(0, len(lines), BATCH_ROWS):
            part = lines[first : first + BATCH_ROWS]

            def place(index: int, part: Sequence[Line] = part) -> str:
                return f"line {part[index].number}"

            yield Batch(
                data=[line.bar for line in part],
                rows=len(part),
                place=place,
                ids=[line.id for line in part],
                wrong={at: line.wrong for at, line in enumerate(part) if line.wrong is not None},
            )
        return hashlib.sha256(raw).hexdigest()


FORMAT = Format(
    name="dly",
    says="Sierra Chart's daily files (.dly): daily bars",
    detects=lambda path: path.is_file() and path.suffix.lower() == ".dly",
    parts=lambda path, options: [_File(path, options)],
    uses=frozenset({"symbol", "source", "multiplier", "tick_size"}),
)
