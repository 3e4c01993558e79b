"""Instrument lists: a vendor's CSV of tokens and symbols, made aliases of a tape, all of it or nothing."""

from __future__ import annotations

import csv
import gzip
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from onetape.errors import ImportInvalid
from onetape.store.validate import text_problem

if TYPE_CHECKING:
    from onetape.tape import Tape

_PART = re.compile(r"\{([^{}]+)\}")
_ROWS_MAX = 2_000_000


class Listed(msgspec.Struct, frozen=True):
    """What became of an instrument list: rows read, rows left out by `only`, aliases new and known already."""

    file: str
    rows: int
    left_out: int
    added: int
    known: int
    dry_run: bool


class _Row(NamedTuple):
    line: int
    token: str
    symbol: str


def import_instruments(
    tape: Tape | None,
    path: str | os.PathLike[str],
    *,
    token: str = "instrument_token",
    symbol: str = "tradingsymbol",
    source: str | None = None,
    only: Mapping[str, str] | None = None,
    many_to_one: bool = False,
    replace: bool = False,
) -> Listed:
    """Make each row's token an alias of its symbol, in one transaction; without a tape only check the file.

    The file is CSV with a header line, as brokers publish (Zerodha Kite's list is the default), plain or gzip. token:
    a column. symbol: a column, or a template of columns: "{exchange}:{tradingsymbol}". only: rows with these values.
    A token of two symbols is refused; so are two tokens of one symbol unless many_to_one: on two exchanges one name
    often is two instruments. A token that is the symbol itself is left out. source, replace: as in Tape.alias().

    Raises ImportInvalid, naming file and line, and what Tape.add_aliases() raises; nothing is stored then.
    """
    file = Path(path)
    pairs: dict[str, _Row] = {}
    symbols: dict[str, _Row] = {}
    rows = left_out = 0
    for row, values in _rows(file, token, symbol, only or {}):
        rows += 1
        if any(values[column] != value for column, value in (only or {}).items()) or row.token == row.symbol:
            left_out += 1
            continue
        for what, text in (("token", row.token), ("symbol", row.symbol)):
            if (why := text_problem("symbol", text)) is not None:
                raise ImportInvalid(f"{file}: line {row.line}: {what} {text!r}: {why}")
        before = pairs.setdefault(row.token, row)
        if before.symbol != row.symbol:
            raise ImportInvalid(
                f"{file}: line {row.line}: token {row.token!r} is {row.symbol!r}, but {before.symbol!r} in line"
                f" {before.line}",
                hint="a token names one symbol; leave rows out with only, or take another column",
            )
        before = symbols.setdefault(row.symbol, row)
        if before.token != row.token and not many_to_one:
            raise ImportInvalid(
                f"{file}: line {row.line}: {row.symbol!r} has token {row.token!r}, but {before.token!r} in line"
                f" {before.line}",
                hint="tell them apart (symbol '{exchange}:{tradingsymbol}'), or say that they are one (many to one)",
            )
    if tape is None:
        return Listed(str(file), rows, left_out, len(pairs), 0, True)
    done = tape.add_aliases([(row.token, row.symbol) for row in pairs.values()], source=source, replace=replace)
    return Listed(str(file), rows, left_out, done.added, done.known, False)


def _rows(path: Path, token: str, symbol: str, only: Mapping[str, str]) -> Iterator[tuple[_Row, dict[str, str]]]:
    template = symbol if _PART.search(symbol) else "{" + symbol + "}"
    try:
        open_text = gzip.open if path.suffix == ".gz" else open
        with open_text(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            head = [name.strip() for name in next(reader, [])]
            _check_head(path, head, [token, *_PART.findall(template), *only])
            for count, cells in enumerate(reader):
                if not cells:
                    continue
                if len(cells) != len(head) or count >= _ROWS_MAX:
                    why = f"{len(cells)} values under {len(head)} names" if count < _ROWS_MAX else "too many rows"
                    raise ImportInvalid(f"{path}: line {reader.line_num}: {why}", hint="nothing was stored")
                values = {name: sys.intern(cell.strip()) for name, cell in zip(head, cells, strict=True)}
                named = _PART.sub(lambda part, values=values: values[part[1]], template)  # type: ignore[misc]
                yield _Row(reader.line_num, values[token], named), values
    except (OSError, UnicodeDecodeError, csv.Error, EOFError) as error:
        raise ImportInvalid(f"cannot read {path}: {error}", hint="it is a CSV file with a header line") from error


def _check_head(path: Path, head: Sequence[str], needed: Sequence[str]) -> None:
    for name in needed:
        if head.count(name) != 1:
            which = "no column" if name not in head else "two columns"
            raise ImportInvalid(f"{path}: {which} {name!r}", hint=f"there is {', '.join(head) or 'no header line'}")
