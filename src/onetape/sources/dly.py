"""Sierra Chart's .dly files, followed: a bar for each day, and again when its line changed.

[[source]]
kind = "dly"
path = "/sierra/Data/ES.dly"
symbol = "ES"
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from onetape.clock import now_ns
from onetape.errors import ConfigInvalid, ImportInvalid
from onetape.importing import dly
from onetape.importing.scid_file import Prices
from onetape.sources.growing import GrowingFile
from onetape.sources.source import ALIVE_S, Delivery, Source

_RETRY_S = 0.25


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


class DlyFile(Source):
    """Daily bars of one symbol. It has no cursor: each line is known by its content (the deliveries' ids)."""

    kind = "dly"
    live = False  # a file that does not grow says nothing of why: its silence covers nothing

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
        self._told_ids: set[bytes] = set()

    def _deliveries(self) -> Iterator[Delivery]:
        while not self.stopped:
            try:
                with GrowingFile(self._path) as file:
                    yield from self._of(file)
            except (OSError, ImportInvalid) as error:
                why = error.message if isinstance(error, ImportInvalid) else f"{self._path}: {error.strerror}"
                self._tell(state="waiting", trouble=f"{why}; it is read again")
                self._wait(_RETRY_S)

    def _of(self, file: GrowingFile) -> Iterator[Delivery]:
        before: bytes | None = None
        while not self.stopped and not file.replaced:
            if file.size > dly.BYTES_MAX:
                raise ImportInvalid(f"{self._path}: {file.size} bytes", hint="a file of days is not as long")
            raw = file.read(0, file.size)
            lines = dly.parse(raw, str(self._path), self._symbol, self._from, self._prices, self._clock())
            fresh = [line for line in lines if line.wrong is None and line.id not in self._told_ids]
            wrong = [line for line in lines if line.wrong is not None]
            if raw != before and wrong:
                self._count(refused=len(wrong))
            before = raw
            self._tell(state="live", trouble=None if not wrong else f"{self._path}, {wrong[0].says}")
            yield Delivery(records=[line.bar for line in fresh], ids=[line.id for line in fresh] if fresh else None)
            self._told_ids = {line.id for line in lines}
            until = time.monotonic() + ALIVE_S * 0.9
            file.wait(until - time.monotonic(), self._stopped)
