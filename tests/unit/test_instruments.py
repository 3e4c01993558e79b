"""Instrument lists: a broker's CSV becomes aliases, all of it or nothing, and never two instruments in one symbol."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest

import onetape
from onetape import ImportInvalid, Tape, Tick
from onetape.importing.instruments import import_instruments

HEAD = (
    "instrument_token,exchange_token,tradingsymbol,name,last_price,expiry,strike,tick_size,lot_size,instrument_type,"
    "segment,exchange\n"
)
ROWS = (
    "408065,1594,INFY,INFOSYS,0,,0,0.05,1,EQ,NSE,NSE\n"
    '128053508,500209,INFY,"INFOSYS, LTD",0,,0,0.05,1,EQ,BSE,BSE\n'
    "256265,1001,NIFTY 50,NIFTY 50,0,,0,0,0,EQ,INDICES,NSE\n"
)
NAMED = "{exchange}:{tradingsymbol}"


@pytest.fixture
def tape(tmp_path: Path) -> Iterator[Tape]:
    with onetape.open(tmp_path / "t.db") as opened:
        yield opened


def _file(tmp_path: Path, text: str | bytes, name: str = "list.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_list_makes_its_tokens_aliases_and_again_changes_nothing(tape: Tape, tmp_path: Path) -> None:
    path = _file(tmp_path, HEAD + ROWS)
    done = import_instruments(tape, path, symbol=NAMED)
    assert (done.rows, done.added, done.known) == (3, 3, 0)
    tape.append([Tick("408065", 10**18, price=1.0), Tick("128053508", 10**18, price=2.0)])
    assert [info.symbol for info in tape.symbols()] == ["BSE:INFY", "NSE:INFY"]
    again = import_instruments(tape, path, symbol=NAMED)
    assert (again.added, again.known) == (0, 3)


def test_one_name_on_two_exchanges_is_not_taken_for_one_symbol(tape: Tape, tmp_path: Path) -> None:
    path = _file(tmp_path, HEAD + ROWS)
    with pytest.raises(ImportInvalid, match=r"line 3: 'INFY' has token '128053508', but '408065' in line 2"):
        import_instruments(tape, path)
    assert tape.aliases() == []
    assert import_instruments(tape, path, many_to_one=True).added == 3
    assert tape.symbol_of("128053508") == tape.symbol_of("408065") == "INFY"


def test_only_some_rows_are_taken(tape: Tape, tmp_path: Path) -> None:
    done = import_instruments(tape, _file(tmp_path, HEAD + ROWS), only={"exchange": "NSE"}, source="kite")
    assert (done.added, done.left_out) == (2, 1)
    assert {(one.name, one.source) for one in tape.aliases()} == {("408065", "kite"), ("256265", "kite")}


def test_a_dry_run_stores_nothing_and_a_packed_file_is_read(tape: Tape, tmp_path: Path) -> None:
    packed = _file(tmp_path, gzip.compress(("\ufeff" + HEAD + ROWS).encode()), "list.csv.gz")
    assert import_instruments(None, packed, symbol=NAMED).added == 3
    assert import_instruments(tape, packed, symbol=NAMED, token="exchange_token").added == 3
    assert tape.symbol_of("1001") == "NSE:NIFTY 50"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "no column 'instrument_token'.*no header"),
        (b"token,symbol\n1,A\n", "no column 'instrument_token'.*there is token, symbol"),
        (b"instrument_token,instrument_token,tradingsymbol\n1,1,A\n", "two columns"),
        (b"instrument_token,tradingsymbol\n1,A\n2\n", "line 3: 1 values under 2 names"),
        (b"instrument_token,tradingsymbol\n1,A\n1,B\n", "line 3: token '1' is 'B', but 'A' in line 2"),
        (b"instrument_token,tradingsymbol\n1,\n", "line 2: symbol ''"),
        (b"instrument_token,tradingsymbol\n,A\n", "line 2: token ''"),
        (b"instrument_token,tradingsymbol\n1,\xff\xfe\n", "cannot read"),
        (b"instrument_token,tradingsymbol\n1,A\x00B\n", "cannot read|control characters"),
        (b"instrument_token,tradingsymbol\n1," + b"x" * 300_000 + b"\n", "cannot read|at most"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused_naming_the_place(
    tape: Tape, tmp_path: Path, text: bytes, match: str
) -> None:
    with pytest.raises(ImportInvalid, match=match):
        import_instruments(tape, _file(tmp_path, text))
    assert tape.aliases() == []


def test_a_file_cut_short_and_one_that_is_missing_are_refused(tape: Tape, tmp_path: Path) -> None:
    packed = gzip.compress((HEAD + ROWS * 1000).encode())
    for path in (_file(tmp_path, packed[:-20], "cut.csv.gz"), tmp_path / "none.csv", tmp_path):
        with pytest.raises(ImportInvalid, match=r"cannot read|line"):
            import_instruments(tape, path, symbol=NAMED, many_to_one=True)
    assert tape.aliases() == []


def test_a_symbol_that_is_its_own_token_is_left_out(tape: Tape, tmp_path: Path) -> None:
    done = import_instruments(tape, _file(tmp_path, "instrument_token,tradingsymbol\nA,A\n1,B\n"))
    assert (done.added, done.left_out) == (1, 1)
