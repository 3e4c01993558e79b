"""Recordings: raw websocket messages of exchanges, a message a line behind the time when it was received.

Two forms. Lines `<ns> <json>`, as hftbacktest's collectors write them; the venue shows in the messages. And lines
`<seconds>: <json>` under a line that names the address, with requests and REST answers between, as cryptofeed writes
them. A message that is not taken is counted by its kind.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast
from urllib.parse import urlsplit

import msgspec

from onetape.errors import ImportInvalid
from onetape.importing import format
from onetape.importing.format import Batch, Format, Options, Part, Tell, Wrong
from onetape.importing.venues import Said, Skip, Venue, seconds
from onetape.importing.venues.binance import Binance
from onetape.importing.venues.bitmex import Bitmex
from onetape.importing.venues.kraken import Kraken

#: A message longer than this is none: a file of another kind, or a damaged one.
_LINE_BYTES_MAX = 64 << 20
_NS_LINE = re.compile(rb"\d{16,19} [\[{]")
_ADDRESS = re.compile(
    r"(?P<url>(?:wss?|https?)://\S+) (?P<way><->|->|<-) (?P<time>\d+(?:\.\d+)?)(?:: (?P<body>.*))?", re.S
)
_HOSTS = {"binance.com": "binance", "binance.us": "binance", "bitmex.com": "bitmex", "kraken.com": "kraken"}
_UNREADABLE = {"symbol": "?", "ts_event_ns": -1}
_FIELDS = [
    "symbol",
    "ts_event_ns",
    "price",
    "size",
    "bid",
    "ask",
    "bid_size",
    "ask_size",
    "side",
    "open",
    "high",
    "low",
    "volume",
    "vwap",
    "trades",
    "source",
    "ts_recv_ns",
]


class _Line(NamedTuple):
    """One line taken apart: a message said, nothing (what we sent, a blank line), or why it is neither."""

    said: Said | None
    skipped: str = ""
    wrong: str = ""


class _Recording(Part):
    """One file."""

    def __init__(self, path: Path, options: Options) -> None:
        self.path, self.shown = path, str(path)
        self.bytes_total = path.stat().st_size
        self._options = options
        first = next(self._lines(), b"")
        self._addressed = not _NS_LINE.match(first)
        self._venue = self._named(first) if self._addressed else "binance"
        template = options.symbol or "{symbol}"
        if "{symbol}" not in template:
            raise ImportInvalid(
                f"--symbol {template}: a recording names its symbols", hint="--symbol 'binance:{symbol}' adds to them"
            )
        self._template = template
        self.how = {
            "venue": self._venue,
            "symbol": template,
            "source": options.source,
            "allow_cut": options.allow_cut,
        }
        self.notes: list[str] = []

    def _named(self, first: bytes) -> str:
        found = _ADDRESS.match(first.decode(errors="replace"))
        host = urlsplit(found["url"]).hostname or "" if found else ""
        for name, venue in _HOSTS.items():
            if host == name or host.endswith("." + name):
                return venue
        raise ImportInvalid(
            f"{self.path}, line 1: {host!r} is no venue that is known", hint=f"there is {', '.join(sorted(_HOSTS))}"
        )

    def batches(self, tell: Tell) -> Generator[Batch, None, str]:
        """Yield the ticks of all messages, in the order of the lines."""
        skipped: dict[str, int] = {}

        def skip(kind: str, count: int) -> None:
            skipped[kind] = skipped.get(kind, 0) + count

        venue = self._made(skip)
        content = hashlib.sha256()
        rows: list[dict[str, Any]] = []
        lines: list[int] = []
        wrong: dict[int, Wrong] = {}
        self.notes = []
        for number, raw in enumerate(self._lines(tell), 1):
            content.update(raw)
            found = self._taken(venue, raw, skip)
            if isinstance(found, str):
                if self._options.allow_cut and not raw.endswith(b"\n"):
                    self.notes = [f"line {number} is cut off and was left out"]
                    continue
                wrong[len(rows)] = Wrong("message", raw[:200].decode(errors="replace").rstrip(), found)
                found = [_UNREADABLE]
            rows.extend(found)
            lines.extend([number] * len(found))
            while len(rows) >= format.BATCH_ROWS:
                yield self._batch(rows[: format.BATCH_ROWS], lines[: format.BATCH_ROWS], wrong, skipped)
                rest = {at - format.BATCH_ROWS: one for at, one in wrong.items() if at >= format.BATCH_ROWS}
                del rows[: format.BATCH_ROWS], lines[: format.BATCH_ROWS]
                wrong, skipped = rest, {}
        venue.end()
        yield self._batch(rows, lines, wrong, skipped)
        return content.hexdigest()

    def _made(self, skip: Skip) -> Venue:
        if self._venue == "binance":
            return Binance(skip, self._searched)
        return Kraken(skip) if self._venue == "kraken" else Bitmex(skip)

    def _searched(self, pattern: re.Pattern[bytes]) -> set[bytes]:
        return {match[1] for raw in self._lines() if (match := pattern.search(raw, 0, 300))}

    def _taken(self, venue: Venue, raw: bytes, skip: Skip) -> list[dict[str, Any]] | str:
        """Return the ticks of a line, or what is wrong with it."""
        try:
            line = self._parsed(raw)
        except (ValueError, msgspec.DecodeError) as error:
            return f"not a received message: {error}" if raw.endswith(b"\n") else f"cut off: {error}"
        if line.skipped:
            skip(line.skipped, 1)
        if line.said is None:
            return line.wrong or []
        try:
            return venue.take(line.said)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            return f"not a message as {venue.name} sends them: {type(error).__name__} {error}"

    def _parsed(self, raw: bytes) -> _Line:
        if not raw.strip():
            return _Line(None)
        if not self._addressed:
            time, _, body = raw.partition(b" ")
            if not time.isdigit():
                return _Line(None, wrong="no time in ns at its begin")
            return _Line(Said(msgspec.json.decode(body), int(time), None))
        text = raw.decode()
        found = _ADDRESS.match(text)
        if found is None:
            stamp, colon, json = text.partition(": ")
            if not colon:
                return _Line(None, wrong="no time and ': ' at its begin")
            if stamp == "configuration":
                return _Line(None, skipped="requests and connections")
            return _Line(Said(msgspec.json.decode(json), seconds(stamp), None))
        if found["way"] != "->":
            return _Line(None, skipped="requests and connections")
        return _Line(Said(msgspec.json.decode(found["body"] or ""), seconds(found["time"]), found["url"]))

    def _batch(
        self, rows: Sequence[dict[str, Any]], lines: Sequence[int], wrong: dict[int, Wrong], skipped: dict[str, int]
    ) -> Batch:
        data: dict[str, Any] = {name: [row.get(name) for row in rows] for name in _FIELDS}
        data["side"] = [side or 0 for side in data["side"]]
        if self._template != "{symbol}":
            data["symbol"] = [self._template.replace("{symbol}", name) for name in data["symbol"]]
        if self._options.source is not None:
            data["source"] = self._options.source
        mine = {at: one for at, one in wrong.items() if at < len(rows)}
        return Batch(data=data, rows=len(rows), place=_placed(list(lines)), wrong=mine, skipped=skipped)

    def _lines(self, tell: Tell | None = None) -> Iterator[bytes]:
        number = 0
        try:
            with _opened(self.path) as (stream, place):
                while line := stream.readline(_LINE_BYTES_MAX):
                    number += 1
                    if len(line) == _LINE_BYTES_MAX:
                        raise ImportInvalid(f"{self.path}, line {number}: longer than {_LINE_BYTES_MAX >> 20} MiB")
                    if tell is not None and number % 4096 == 0:
                        tell(place())
                    yield line
        except (EOFError, zlib.error, OSError) as error:
            if self._options.allow_cut and isinstance(error, EOFError):
                self.notes = [f"after line {number} the file is cut off"]
                return
            raise ImportInvalid(
                f"{self.path}, line {number + 1}: cannot be read: {error}",
                hint="the file is damaged or cut off; --allow-cut takes what is whole of one that was cut",
            ) from error


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], Callable[[], int]]]:
    with ExitStack() as stack:
        raw: IO[bytes] = stack.enter_context(path.open("rb"))
        magic = raw.read(2)
        raw.seek(0)
        stream = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=raw))) if magic == b"\x1f\x8b" else raw
        yield stream, raw.tell


def _placed(lines: Sequence[int]) -> Callable[[int], str]:
    return lambda index: f"line {lines[index]}"


def _detects(path: Path) -> bool:
    try:
        with _opened(path) as (stream, _):
            first = stream.readline(65_536)
    except (OSError, EOFError, zlib.error):
        return False
    return bool(_NS_LINE.match(first) or _ADDRESS.match(first.decode(errors="replace")))


def _parts(path: Path, options: Options) -> Sequence[Part]:
    return [_Recording(path, options)]


FORMAT = Format(
    name="recording",
    says="raw websocket messages of Binance, BitMEX or Kraken, a line each (hftbacktest, cryptofeed), plain or .gz",
    detects=_detects,
    parts=_parts,
    uses=frozenset({"symbol", "source", "allow_cut"}),
)
