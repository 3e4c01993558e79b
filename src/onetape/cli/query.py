"""Commands that look at a tape: latest, history, tail, symbols, stats."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onetape.cli import output
from onetape.cli.options import End, Json, Start, TapePath, open_tape
from onetape.cli.times import HELP, parse_span, parse_time, position
from onetape.errors import ConfigInvalid

if TYPE_CHECKING:
    from onetape.record import Bar, Record, Tick
    from onetape.tape import Tape

_TEXT = ("symbol", "time", "received", "side", "source", "interval")
_TIMES = ("ts_event_ns", "ts_start_ns", "ts_ns", "ts_recv_ns", "recv_time", "priced_ns")
_NOT_IN_A_LINE = ("kind", *_TIMES, "flags", "complete")
_LATEST = ("ts_event_ns", "price", "size", "bid", "ask", "bid_size", "ask_size", "volume", "source")
_JOINED = ("ts_event_ns", "price", "size", "side", "bid", "ask", "bid_size", "ask_size", "quote_age_ns")
#: How often `tail` looks whether its reader is still there and whether its time is up, while nothing comes.
_LOOK_S = 0.5

TAIL_ENDS = """\b
It ends with exit code 0 after --count records, after --idle seconds without one,
or when the reader of its output goes away; with 130 on Ctrl-C.
"""

Symbols = Annotated[list[str] | None, typer.Argument(metavar="[SYMBOL]...", help="All symbols if left out.")]
Symbol = Annotated[str, typer.Argument(help="Which symbol.")]


def latest(symbols: Symbols = None, json: Json = False, tape: TapePath = None) -> None:
    """Show the newest tick of each symbol."""
    with open_tape(tape) as opened:
        if symbols:
            check_known(opened, symbols)
            asked = {name: opened.latest(name) for name in dict.fromkeys(symbols)}
        else:
            asked = dict(sorted(opened.latest().items()))
    found = {name: tick for name, tick in asked.items() if tick is not None}
    if json:
        print_json([output.as_dict(tick) for tick in found.values()])
    elif found:
        rows = [[tick.symbol, *_cells(tick, _LATEST)] for tick in found.values()]
        output.print_table(["symbol", *map(output.heading, _LATEST)], rows, _TEXT)
    for name in asked.keys() - found.keys():
        output.note(f"{name} has no ticks, only bars: see onetape bars {name}")
    if not asked:
        output.note("the tape is empty")


def history(
    symbols: Annotated[list[str], typer.Argument(metavar="SYMBOL...", help="Which symbols.")],
    start: Start = None,
    end: End = None,
    limit: Annotated[int, typer.Option(min=0, help="At most this many, the newest; 0: all.")] = 20,
    columns: Annotated[str, typer.Option(metavar="NAME,…", help="Only these fields of a tick, in this order.")] = "",
    as_of: Annotated[
        str | None,
        typer.Option("--as-of", metavar="WHEN", help="What the tape said at a position, a snapshot or a time."),
    ] = None,
    quotes: Annotated[
        bool, typer.Option("--quotes", help="Only trades, each with the newest quote before it. Of one symbol.")
    ] = False,
    max_age: Annotated[
        float | None, typer.Option(min=0, metavar="S", help="With --quotes: none older than so many seconds.")
    ] = None,
    json: Json = False,
    tape: TapePath = None,
) -> None:
    """Show ticks of one symbol or several, oldest first: the newest 20 unless told otherwise."""
    start_ns, end_ns = parse_span(start, end)
    names = [name.strip() for name in columns.split(",") if name.strip()]
    moment = position(as_of)
    if quotes and (len(symbols) > 1 or names):
        raise ConfigInvalid("--quotes is of one symbol, and has its own columns", hint="leave the others out")
    if max_age is not None and not quotes:
        raise ConfigInvalid("--max-age is the age of a quote", hint="give --quotes too")
    with open_tape(tape) as opened:
        check_known(opened, symbols)
        _check_columns(names)
        asked = symbols[0] if len(symbols) == 1 else symbols
        if quotes:
            age_ns = None if max_age is None else int(max_age * 1_000_000_000)
            found = opened.trades_with_quotes(symbols[0], start_ns, end_ns, max_age_ns=age_ns, as_of=moment)
        elif start_ns is None and end_ns is None and limit and moment is None and isinstance(asked, str):
            found = opened.recent(asked, limit)
        elif start_ns is None and end_ns is None and limit and moment is None:
            found = opened.newest(asked, limit)
            found = found.slice(max(0, found.num_rows - limit))
        else:
            found = opened.read(asked, start_ns, end_ns, as_of=moment)
    if isinstance(found, list):
        rows, total = [{name: getattr(tick, name) for name in tick.__struct_fields__} for tick in found], 0
    else:
        total = found.num_rows
        rows = found.slice(max(0, total - limit) if limit else 0).to_pylist()
    if json:
        print_json([_joined_row(row) if quotes else _json_row(row, names) for row in rows])
    elif rows:
        # A continuous future's contract, or what an alias stands for; or there are several.
        symbol = [] if all(row["symbol"] == asked for row in rows) else ["symbol"]
        shown = names or [*symbol, *(_JOINED if quotes else output.TICK_COLUMNS), "seq"]
        cells = [[output.cell(name, row[name]) for name in shown] for row in rows]
        if not names:  # a column of nothing but "no flags" says nothing
            cells = [["" if n == "flags" and c == "0" else c for n, c in zip(shown, r, strict=True)] for r in cells]
        output.print_table(list(map(output.heading, shown)), cells, _TEXT)
    else:
        what = f"{'trades' if quotes else 'ticks'} of {', '.join(symbols)}"
        output.note(f"no {what} in that time" if start or end else f"no {what}, only bars")
    if total > len(rows):
        output.note(f"the newest {len(rows):,} of {total:,} ticks; --limit 0 shows all")


def tail(
    symbols: Symbols = None,
    from_seq: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Begin after this position; 0: at the beginning.")
    ] = None,
    from_time: Annotated[str | None, typer.Option(metavar="TIME", help=f"Begin at this time: {HELP}")] = None,
    count: Annotated[int | None, typer.Option(min=1, metavar="N", help="End after this many records.")] = None,
    idle: Annotated[
        float | None, typer.Option(min=0, metavar="S", help="End when nothing came for so many seconds.")
    ] = None,
    json: Json = False,
    tape: TapePath = None,
) -> None:
    """Follow the tape live: every record as any process appends it, from now on or from a position or time."""
    if from_seq is not None and from_time is not None:
        raise ConfigInvalid("--from-seq and --from-time were both given", hint="give one")
    start_ns = parse_time(from_time, "--from-time")
    left = sys.maxsize if count is None else count
    quiet_s = 0.0
    with open_tape(tape) as opened, opened.follow(symbols or None, from_seq, start_ns) as follower:
        while left and not output.reader_left():
            wait_s = _LOOK_S if idle is None else max(0.0, min(_LOOK_S, idle - quiet_s))
            found = follower.take(wait_s)[:left]
            if found:
                text = map(_tail_json if json else _tail_line, found)
                sys.stdout.write("\n".join(text) + "\n")
                sys.stdout.flush()
                left -= len(found)
                quiet_s = 0.0
                continue
            quiet_s += wait_s
            if idle is not None and quiet_s >= idle:
                return


def symbols(json: Json = False, tape: TapePath = None) -> None:
    """List the symbols of the tape: how many ticks and bars, from when to when."""
    from onetape.clock import to_text

    with open_tape(tape) as opened:
        found = opened.symbols()
    times = [[None if ns is None else to_text(ns) for ns in (info.ts_first_ns, info.ts_last_ns)] for info in found]
    if json:
        print_json(
            [
                {
                    "symbol": info.symbol,
                    "ticks": info.ticks,
                    "bars": info.bars,
                    "ts_first_ns": info.ts_first_ns,
                    "ts_last_ns": info.ts_last_ns,
                    "first_time": first,
                    "last_time": last,
                }
                for info, (first, last) in zip(found, times, strict=True)
            ]
        )
    elif found:
        rows = [
            [info.symbol, f"{info.ticks:,}", f"{info.bars:,}", first or "", last or ""]
            for info, (first, last) in zip(found, times, strict=True)
        ]
        output.print_table(["symbol", "ticks", "bars given", "first", "last"], rows, ("symbol", "first", "last"))
    else:
        output.note("the tape is empty")


def stats(json: Json = False, tape: TapePath = None) -> None:
    """Show what the tape holds and how large it is."""
    with open_tape(tape) as opened:
        found = opened.stats()
    if json:
        of_process = ("recent_symbols", "recent_records", "subscriptions")  # of this short-lived one: nothing
        names = [name for name in found.__struct_fields__ if name not in of_process]
        print_json([{name: getattr(found, name) for name in names}])
        return
    each = f", {found.file_bytes / found.ticks:.1f} bytes a tick" if found.ticks else ""
    facts = {
        "tape": found.path,
        "symbols": f"{found.symbols:,}",
        "ticks": f"{found.ticks:,}",
        "bars": f"{found.bars_kept:,} kept of ticks (1min), {found.bars_given:,} given",
        "position": f"{found.head:,} ({found.unsealed:,} not sealed yet)",
        "size": f"{output.size(found.file_bytes)}{each}; log {output.size(found.wal_bytes)}",
        "chunks": f"{found.chunks:,}",
        "quarantined": f"{found.quarantined:,}",
        "retention": "for ever" if found.retention_days is None else f"{found.retention_days:g} days of ticks",
        "durability": found.durability,
        "format": str(found.format_version),
    }
    if found.seal_error:
        facts["seal"] = found.seal_error
    output.print_facts(facts)


def check_known(tape: Tape, names: Sequence[str]) -> None:
    """Refuse a symbol the tape has never seen: a typing error must not look like an empty history."""
    known = [info.symbol for info in tape.symbols()]
    for name in names:
        if name not in known and tape.symbol_of(name) not in known and not tape.is_continuous(name):
            by_fold = {symbol.casefold(): symbol for symbol in known}
            close = get_close_matches(name.casefold(), by_fold, n=3, cutoff=0.5)
            hint = f"there is {', '.join(by_fold[c] for c in close)}" if close else "see onetape symbols"
            raise ConfigInvalid(f"no symbol {name!r} on {tape.path}", hint=hint)


def _check_columns(names: Sequence[str]) -> None:
    from onetape.record import Tick

    for name in names:
        if name not in Tick.__struct_fields__:
            raise ConfigInvalid(
                f"--columns: no tick has {name!r}", hint=f"there is {', '.join(Tick.__struct_fields__)}"
            )


def _cells(record: Tick | Bar, names: Sequence[str]) -> list[str]:
    return [output.cell(name, getattr(record, name)) for name in names]


def _json_row(row: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    from onetape.record import Tick

    whole = output.as_dict(Tick(**row))
    if not names:
        return whole
    wanted = {"time"} if "ts_event_ns" in names else set()
    wanted |= {"recv_time"} if "ts_recv_ns" in names else set()
    return {name: whole[name] for name in (*sorted(wanted), *names) if name in whole}


def _joined_row(row: dict[str, Any]) -> dict[str, Any]:
    from onetape.clock import to_text

    told = {name: value for name, value in row.items() if value is not None}
    if not told["side"]:
        del told["side"]
    return {"kind": "trade", "time": to_text(row["ts_event_ns"]), **told}


def _tail_json(record: Record) -> str:
    return output.json_line(output.as_dict(record))


def _tail_line(record: Record) -> str:
    fields = output.as_dict(record)
    for hidden in _NOT_IN_A_LINE:
        fields.pop(hidden, None)
    time, symbol, seq = fields.pop("time"), fields.pop("symbol"), fields.pop("seq", "roll")
    told = "  ".join(f"{name} {output.cell(name, value)}" for name, value in fields.items())
    return output.plain(f"{seq}  {time}  {symbol}  {told}")


def print_json(rows: Sequence[dict[str, Any]]) -> None:
    """Print one JSON object a line."""
    sys.stdout.writelines(output.json_line(row) + "\n" for row in rows)
