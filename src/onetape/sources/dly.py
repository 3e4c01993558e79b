"""Sierra Chart's .dly files, followed: a bar for each day, and again when its line changed.

[[source]]
kind = "dly"
path = "/sierra/Data/ES.dly"
symbol = "ES"
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from onetape.clock import now_ns
from onetape.errors import ConfigInvalid, ImportInvalid
from onetape.importing import dly
from onetape.importing.scid_file import Prices
from onetape.sources.growing import GrowingFile, GrowingSource
from onetape.sources.source import ALIVE_S, Delivery


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `[[source]] kind = "dly"` takes: as of `scid`."""

    path: str
    symbol: str | None = None
    source: str = "sierra"
    multiplier: str | float = 1
    tick_size: str | float | None = None


def make(name: str, options: Options) -> DlyFile:
    """Return the source. Raises ConfigInvalid, naming the key."""
    path = Path(options.path)
    symbol = dly.symbol_of(path) if options.symbol is None else options.symbol
    if not symbol:
        raise ConfigInvalid(f"source {name}: path = {options.path!r}", hint="the path of a file, or give the symbol")
    return DlyFile(path, symbol, name=name, source=options.source, prices=Prices(options.multiplier, options.tick_size))


class DlyFile(GrowingSource):
    """Daily bars of one symbol. It has no cursor: each line is known by its content (the deliveries' ids).

    A last line that has no end yet is taken when the file has stood still. A day that is changed back to what it was is
    a bar again, under an identity of its own.
    """

    kind = "dly"

    def __init__(
        self,
        path: str | Path,
        symbol: str,
        *,
        name: str = "dly",
        source: str | None = "sierra",
        prices: Prices | None = None,
        clock: Callable[[], int] = now_ns,
    ) -> None:
        super().__init__(name, clock=clock)
        self._path, self._symbol, self._from, self._prices = Path(path), symbol, source, prices or Prices()
        self._stand: dict[int, bytes] = {}  # what was told last, by the day's start
        self._ever: set[bytes] = set()

    def _deliveries(self) -> Iterator[Delivery]:
        while not self.stopped:
            yield from self._reading(self._path)

    def _of(self, file: GrowingFile) -> Iterator[Delivery]:
        before: bytes | None = None
        while not self.stopped and not file.replaced:
            if file.size > dly.BYTES_MAX:
                raise ImportInvalid(f"{self._path}: {file.size} bytes", hint="a file of days is not as long")
            raw = file.read(0, file.size)
            whole = raw if raw == before else raw[: raw.rfind(b"\n") + 1]
            if whole or raw == before:
                lines = dly.parse(whole, str(self._path), self._symbol, self._from, self._prices, self._clock())
                wrong = [line for line in lines if line.wrong is not None]
                if raw != before and wrong:
                    self._count(refused=len(wrong))
                self._tell(state="live", trouble=None if not wrong else f"{self._path}, {wrong[0].says}")
                fresh = [(line.bar, key) for line in lines if (key := self._fresh(line)) is not None]
                yield Delivery(records=[bar for bar, _ in fresh], ids=[key for _, key in fresh] or None)
            before = raw
            until = time.monotonic() + ALIVE_S * 0.9
            file.wait(until - time.monotonic(), self._stopped)

    def _fresh(self, line: dly.Line) -> bytes | None:
        """Return the identity of a line that says something new of its day, else None."""
        day, content = line.bar.ts_start_ns, line.id
        stood = self._stand.get(day)
        if line.wrong is not None or stood == content:
            return None
        self._stand[day] = content
        if content not in self._ever:
            self._ever.add(content)
            return content
        changed_back = content + (stood or b"") + self._clock().to_bytes(8, "little")
        return hashlib.blake2b(changed_back, digest_size=16, person=b"dly").digest()
