"""The ending: what a newcomer looks at on the new tape: the latest prices, candles, sizes, commands to go on with."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

import msgspec
from rich.console import RenderableType

from onetape.clock import to_text
from onetape.demo.market import Instrument
from onetape.demo.place import Place
from onetape.demo.telling import Telling, size
from onetape.demo.writers import Tally
from onetape.record import MINUTE_NS, Bar, Tick, interval_ns
from onetape.tape import Tape

#: Draws bars: (bars, width, height, title, ascii only, colour).
Chart = Callable[[Sequence[Bar], int, int, str, bool, bool], RenderableType]

_INTERVALS = ("1min", "5min", "15min", "30min", "60min")
_CANDLES_MAX = 96
_CHART_ROWS = 14
_PREFERRED = ("COMEX:GCZ13", "IBM", "BINANCE:ETHUSDT", "OANDA:EURUSD")


class TapeSize(msgspec.Struct, frozen=True):
    """What the file takes, all of it, and how much that is a tick."""

    file_bytes: int
    ticks: int
    bars: int
    symbols: int
    bytes_per_tick: float


def measure(tape: Tape) -> TapeSize:
    """Seal and close the tape, which empties its write-ahead log into it, and measure the file."""
    tape.seal()
    stats = tape.stats()
    tape.close()
    files = [tape.path.with_name(f"{tape.path.name}{suffix}") for suffix in ("", "-wal", "-shm")]
    taken = sum(path.stat().st_size for path in files if path.exists())
    bars = stats.bars_kept + stats.bars_given
    return TapeSize(taken, stats.ticks, bars, stats.symbols, round(taken / max(1, stats.ticks), 2))


def show_latest(telling: Telling, tape: Tape, instruments: Sequence[Instrument], tally: Tally) -> dict[str, Tick]:
    """Print the latest tick of a few symbols, recorded, simulated and live; return them."""
    known = {one.symbol: one for one in instruments}
    live = [key.partition(":")[2] for key in tally.streams]
    simulated = [symbol for symbol, one in known.items() if not one.real and symbol not in live]
    # Of the live ones the first was there before, and the last was listed while the migration ran
    wanted = [*(s for s in _PREFERRED if s in known), *simulated[-1:], *live[:1], *live[-1:]]
    rows, found = [], {}
    for symbol in dict.fromkeys(wanted):
        tick = tape.latest(symbol)
        if tick is None:
            continue
        found[symbol] = tick
        origin = known[symbol].origin if symbol in known else None
        what = (origin or ("live writer" if symbol in live else "simulated")).partition(",")[0]
        moment = to_text(tick.ts_event_ns)[:19].replace("T", " ")
        rows.append([symbol, what, moment, *map(_price, (tick.price, tick.bid, tick.ask))])
    telling.table(["latest tick of", "from", "at (UTC)", "price", "bid", "ask"], rows, left=3)
    return found


def _price(value: float | None) -> str:
    return "" if value is None else repr(value)


def show_candles(telling: Telling, tape: Tape, instruments: Sequence[Instrument], tally: Tally, chart: Chart) -> str:
    """Draw one symbol's bars, made by the tape of its ticks; return the symbol and the interval as command options."""
    live = {key.partition(":")[2] for key in (*tally.streams, *tally.hashes)}
    chosen = _most_traded([one for one in instruments if one.symbol not in live])
    times = [tick.ts_event_ns for tick in chosen.ticks if tick.price is not None]
    minutes = (max(times) - min(times)) // MINUTE_NS + 1
    interval = next(
        (i for i in _INTERVALS if minutes * MINUTE_NS <= _CANDLES_MAX * interval_ns(i)),
        _INTERVALS[-1],
    )
    bars = tape.bar_list(chosen.symbol, interval)
    title = f"{chosen.symbol}  {interval}" + ("" if chosen.real else "  (simulated)")
    telling.gap()
    drawn = chart(bars[-_CANDLES_MAX:], telling.width, _CHART_ROWS, title, telling.ascii_only, telling.colour)
    telling.show(drawn)
    telling.gap()
    return f"{chosen.symbol} {interval}"


def _most_traded(instruments: Sequence[Instrument]) -> Instrument:
    """Return the instrument with the most trades, a real one where there is one."""
    return max(instruments, key=lambda one: (one.real, sum(tick.price is not None for tick in one.ticks)))


def show_size(telling: Telling, taken: TapeSize) -> None:
    """Print what the file holds and takes."""
    telling.line(
        f"The file takes {size(taken.file_bytes)} for {taken.ticks:,} ticks and {taken.bars:,} bars of "
        f"{taken.symbols} symbols: {taken.bytes_per_tick:.1f} bytes a tick, all that is in the file included."
    )


def commands(command: str, place: Place, charted: str, live: str) -> list[str]:
    """Return commands that work after the demo: all they need is in its folder. `live`: an old key writers wrote."""
    symbol, interval = charted.split(" ")
    tape = f"--tape {shlex.quote(str(place.tape))}"
    return [
        f"{command} latest {tape}",
        f"{command} history {symbol} {tape}",
        f"{command} bars {symbol} --interval {interval} {tape}",
        f"{command} stats {tape}",
        f"{command} migrate status {tape}",
        f"{command} migrate why {live} {tape}",
    ]
