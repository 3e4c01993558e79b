"""Output: records and tables for people and for programs, and the one line that an error is."""

from __future__ import annotations

import select
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from onetape.clock import to_text
from onetape.record import BUY, SELL, Bar, Cancel, Record, Tick
from onetape.store.rolls import Roll

TICK_COLUMNS = tuple(name for name in Tick.__struct_fields__ if name not in ("symbol", "seq"))
BAR_COLUMNS = ("open", "high", "low", "close", "volume", "vwap", "trades", "bid_volume", "ask_volume", "source")
_SIDES = {BUY: "buy", SELL: "sell"}


def as_dict(record: Record | Roll) -> dict[str, Any]:
    """Return a record as JSON shows it: kind, time as ISO text, then what is there; what is absent is left out."""
    fields = {name: value for name, value in msgspec.structs.asdict(record).items() if value is not None}
    if isinstance(record, Bar):
        return {"kind": "bar", "time": to_text(record.ts_start_ns), **fields}
    if isinstance(record, Cancel):
        return {"kind": "cancel", "time": to_text(record.ts_event_ns), **fields}
    if isinstance(record, Roll):
        return {"kind": "roll", "time": to_text(record.ts_ns), **fields}
    shown = {"kind": "tick", "time": to_text(record.ts_event_ns), **fields}
    if record.ts_recv_ns is not None:
        shown["recv_time"] = to_text(record.ts_recv_ns)
    return {name: value for name, value in shown.items() if value or name not in ("side", "flags")}


def json_line(value: Any) -> str:
    """Return a value as one line of JSON."""
    return msgspec.json.encode(value).decode()


def number(value: float | int | None) -> str:
    """Return a number as it was given: every digit that counts, and no more."""
    if value is None:
        return ""
    if isinstance(value, int):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    return repr(value)


def cell(name: str, value: Any) -> str:
    """Return a field of a record as a table shows it."""
    if value is None:
        return ""
    if name in ("ts_event_ns", "ts_recv_ns", "ts_start_ns"):
        return to_text(value)
    if name == "side":
        return _SIDES.get(value, "")
    return number(value) if isinstance(value, int | float) else str(value)


def plain(text: str) -> str:
    """Return a text without anything that would act on a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def heading(name: str) -> str:
    """Return a field's name as a table's head shows it."""
    return {"ts_event_ns": "time", "ts_start_ns": "time", "ts_recv_ns": "received"}.get(name, name)


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def _pad(text: str, width: int, right: bool) -> str:
    blank = " " * (width - _width(text))
    return blank + text if right else text + blank


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: Iterable[str] = ()) -> list[str]:
    """Return lines of aligned columns, nothing cut off; columns without any value are left out.

    Columns named in `left` are text and aligned left; the others are numbers.
    """
    kept = [i for i, _ in enumerate(head) if not rows or any(row[i] for row in rows)]
    texts = [[plain(row[i]) for i in kept] for row in rows]
    names = [head[i] for i in kept]
    widths = [max([_width(name), *(_width(row[at]) for row in texts)]) for at, name in enumerate(names)]
    lefts = set(left)

    def line(row: Sequence[str]) -> str:
        padded = (_pad(text, widths[at], names[at] not in lefts) for at, text in enumerate(row))
        return "  ".join(padded).rstrip()

    return [line(names), *map(line, texts)]


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: Iterable[str] = ()) -> None:
    """Print a table; its head is bold on a terminal."""
    first, *rest = table(head, rows, left)
    out = sys.stdout
    out.write(f"\x1b[1m{first}\x1b[0m\n" if out.isatty() else first + "\n")
    out.writelines(text + "\n" for text in rest)


def print_facts(facts: Mapping[str, str]) -> None:
    """Print names and values, aligned."""
    width = max(map(len, facts))
    sys.stdout.writelines(f"{name:<{width}}  {plain(value)}\n" for name, value in facts.items())


def size(count: float) -> str:
    """Return a number of bytes for a person."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"


def duration(seconds: float) -> str:
    """Return a duration for a person: 0.4 s, 12 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def note(text: str) -> None:
    """Print what a person should know to stderr, so that stdout stays what was asked for."""
    sys.stderr.write(plain(text) + "\n")


def reader_left() -> bool:
    """Return whether the reader of stdout's pipe has gone away, which a write would only find out later."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # stdout is no file: somebody collects it
        return False


def print_error(message: str) -> None:
    """Print an error as the one line it is."""
    sys.stderr.write(f"onetape: error: {plain(' '.join(message.split()))}\n")
