"""Aliases: one symbol under all of its names, whoever appends and whoever reads, in every process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import onetape
from onetape import ConfigInvalid, NameAmbiguous, NameTaken, Tape, Tick

T0 = 1_700_000_000_000_000_000
S = 1_000_000_000


@pytest.fixture
def tape(tmp_path: Path) -> Iterator[Tape]:
    with onetape.open(tmp_path / "t.db", retention_days=None) as opened:
        yield opened


def _tick(symbol: str, at: int = 0, price: float = 1.0, source: str | None = None) -> Tick:
    return Tick(symbol, T0 + at * S, price=price, size=1.0, source=source)


def _prices(tape: Tape, symbol: str) -> list[float]:
    return tape.read(symbol, columns=["price"])["price"].to_pylist()


def test_what_is_appended_under_an_alias_is_the_symbols_and_bears_its_name(tape: Tape) -> None:
    tape.append(_tick("NIFTY 50", 0, 1.0))
    assert tape.alias("256265", "NIFTY 50", source=None) == "NIFTY 50"
    tape.append(_tick("256265", 1, 2.0))
    tape.append(_tick("256265", 2, 3.0))  # the fast path now
    tape.append([_tick("256265", 3, 4.0), _tick("NIFTY 50", 4, 5.0)])
    tape.append_table({"symbol": "256265", "ts_event_ns": np.array([T0 + 5 * S]), "price": np.array([6.0])})
    with tape.writer() as writer:
        writer.append(_tick("256265", 6, 7.0))
    expected = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    for name in ("NIFTY 50", "256265"):
        assert _prices(tape, name) == expected
        assert set(tape.read(name)["symbol"].to_pylist()) == {"NIFTY 50"}
        assert tape.latest(name).symbol == "NIFTY 50" and tape.latest(name).price == 7.0
        assert [t.price for t in tape.recent(name, 3)] == [5.0, 6.0, 7.0]
        assert tape.recent(name, 5000)[0].symbol == "NIFTY 50"
        assert {bar.symbol for bar in tape.bar_list(name, "1d")} == {"NIFTY 50"}
    assert [info.symbol for info in tape.symbols()] == ["NIFTY 50"]
    assert list(tape.latest()) == ["NIFTY 50"]


def test_memory_takes_in_what_is_appended_under_an_alias_on_the_fast_path(tape: Tape) -> None:
    tape.append(_tick("NIFTY 50", 0, 1.0))
    tape.alias("256265", "NIFTY 50")
    tape.append(_tick("256265", 1, 2.0))
    for at in range(2, 200):
        tape.append(_tick("256265", at, float(at)))
        assert tape.latest("NIFTY 50") == tape.latest("256265")
        assert tape.latest("NIFTY 50").price == at and tape.latest("NIFTY 50").symbol == "NIFTY 50"
    assert tape.stats().recent_symbols == 1


def test_a_process_with_an_old_catalog_makes_no_symbol_of_a_fresh_alias(tmp_path: Path) -> None:
    with onetape.open(tmp_path / "t.db") as old, onetape.open(tmp_path / "t.db") as other:
        old.append(_tick("NIFTY 50", 0, 1.0))
        assert old.latest("NIFTY 50").price == 1.0
        other.alias("256265", "NIFTY 50")
        old.append(_tick("256265", 1, 2.0))
        assert [info.symbol for info in other.symbols()] == ["NIFTY 50"]
        assert _prices(other, "256265") == [1.0, 2.0]
        assert old.latest("256265").price == 2.0


def test_another_process_is_told_too(tmp_path: Path) -> None:
    with onetape.open(tmp_path / "t.db") as tape:
        tape.alias("256265", "NIFTY 50")
        code = (
            "import onetape, sys\n"
            "with onetape.open(sys.argv[1]) as tape:\n"
            f"    tape.append(onetape.Tick('256265', {T0}, price=5.0))\n"
        )
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "t.db")], check=True)
        assert _prices(tape, "NIFTY 50") == [5.0]
        assert tape.latest("256265").price == 5.0


def test_an_alias_may_be_given_before_its_symbol_has_records(tape: Tape) -> None:
    tape.alias("408065", "NSE:INFY")
    assert tape.symbols() == [] and tape.latest("408065") is None and tape.read("408065").num_rows == 0
    assert tape.symbol_of("408065") == "NSE:INFY"
    tape.append(_tick("408065", 0, 1074.35))
    assert [info.symbol for info in tape.symbols()] == ["NSE:INFY"]
    tape.append(_tick("408065", 1, 1075.0))
    assert _prices(tape, "408065") == [1074.35, 1075.0]


def test_a_follower_by_alias_gets_the_symbols_records_also_of_an_alias_made_later(tape: Tape) -> None:
    tape.append(_tick("NIFTY 50", 0, 1.0))
    with tape.follow(["256265", "NIFTY 50"], from_seq=0) as both, tape.follow("256265", from_seq=0) as one:
        assert [t.price for t in both.take(1)] == [1.0]
        assert one.take(0) == []
        tape.alias("256265", "NIFTY 50")
        tape.append(_tick("256265", 1, 2.0))
        found = one.take(1)
        assert [(t.symbol, t.price) for t in found] == [("NIFTY 50", 2.0)]
        assert [(t.symbol, t.price) for t in both.take(1)] == [("NIFTY 50", 2.0)]


def test_a_name_with_records_of_its_own_is_refused_until_it_is_said_what_becomes_of_them(tape: Tape) -> None:
    tape.append([_tick("256265", 0, 1.0), _tick("NIFTY 50", 1, 2.0)])
    assert tape.latest("256265").price == 1.0
    with pytest.raises(NameTaken, match="symbol with records") as refused:
        tape.alias("256265", "NIFTY 50")
    assert "rename" in refused.value.hint
    assert _prices(tape, "256265") == [1.0]
    tape.alias("256265", "NIFTY 50", rename="256265 before")
    assert _prices(tape, "256265") == [2.0] and _prices(tape, "256265 before") == [1.0]
    assert tape.latest("256265").price == 2.0 and tape.latest("256265 before").price == 1.0
    tape.append(_tick("256265", 2, 3.0))
    assert tape.latest("256265").price == 3.0 and tape.latest("256265").symbol == "NIFTY 50"
    assert _prices(tape, "NIFTY 50") == [2.0, 3.0] and _prices(tape, "256265 before") == [1.0]


def test_a_rename_onto_a_name_in_use_is_refused_and_changes_nothing(tape: Tape) -> None:
    tape.append([_tick("A", 0), _tick("B", 0), _tick("C", 0)])
    tape.alias("b", "B")
    for new in ("B", "C", "b"):
        with pytest.raises(NameTaken):
            tape.alias("A", "B", rename=new)
    with pytest.raises(ConfigInvalid, match="no symbol"):
        tape.alias("D", "B", rename="E")
    assert [info.symbol for info in tape.symbols()] == ["A", "B", "C"]
    assert [a.name for a in tape.aliases()] == ["b"]


def test_an_alias_of_an_alias_is_one_of_its_symbol_and_there_are_no_cycles(tape: Tape) -> None:
    tape.alias("b", "A")
    assert tape.alias("c", "b") == "A"
    with pytest.raises(ConfigInvalid, match="itself"):
        tape.alias("A", "c")
    with pytest.raises(ConfigInvalid, match="itself"):
        tape.alias("A", "A")
    tape.append(_tick("c"))
    assert [info.symbol for info in tape.symbols()] == ["A"]


def test_aliases_of_a_name_that_becomes_an_alias_follow_it(tape: Tape) -> None:
    tape.alias("token", "INFY")
    tape.alias("INFY", "NSE:INFY")
    assert tape.symbol_of("token") == "NSE:INFY"
    tape.append(_tick("token"))
    assert [info.symbol for info in tape.symbols()] == ["NSE:INFY"]


def test_an_alias_of_another_symbol_is_replaced_only_when_asked(tape: Tape) -> None:
    tape.alias("1", "A")
    tape.append(_tick("1", 0, 1.0))
    with pytest.raises(NameTaken, match="'A' already"):
        tape.alias("1", "B")
    assert tape.alias("1", "A") == "A"  # the same again
    tape.alias("1", "B", replace=True)
    tape.append(_tick("1", 1, 2.0))
    assert _prices(tape, "A") == [1.0] and _prices(tape, "B") == [2.0] and _prices(tape, "1") == [2.0]
    assert tape.latest("1").symbol == "B"


def test_removing_an_alias_keeps_the_records(tape: Tape) -> None:
    tape.alias("1", "A")
    tape.append(_tick("1", 0, 1.0))
    assert tape.latest("1").price == 1.0
    assert tape.remove_alias("1") == "A"
    assert _prices(tape, "A") == [1.0] and tape.read("1").num_rows == 0 and tape.latest("1") is None
    tape.append(_tick("1", 1, 2.0))
    assert [info.symbol for info in tape.symbols()] == ["1", "A"]
    with pytest.raises(ConfigInvalid, match="no alias"):
        tape.remove_alias("1")


def test_a_process_learns_of_a_removed_alias_at_its_next_append_of_several(tmp_path: Path) -> None:
    with onetape.open(tmp_path / "t.db") as old, onetape.open(tmp_path / "t.db") as other:
        old.alias("1", "A")
        old.append(_tick("1", 0))
        other.alias("1", "B", replace=True)
        old.append([_tick("1", 1), _tick("1", 2)])
        old.append(_tick("1", 3))
        counts = {info.symbol: info.ticks for info in other.symbols()}
        assert counts == {"A": 1, "B": 3}


def test_one_token_means_different_symbols_in_records_of_different_sources(tape: Tape) -> None:
    tape.append(_tick("123", 0, 0.5, "third"))  # a symbol that is really called so: it is met again below
    with pytest.raises(NameTaken):
        tape.alias("123", "NSE:INFY", source="kite")
    tape.alias("123", "NSE:INFY", source="kite", rename="third:123")
    tape.alias("123", "NSE:TCS", source="upstox")
    tape.alias("123", "third:123", source="third")
    for at, source in enumerate(("kite", "upstox", "third", "kite", "upstox"), 1):
        tape.append(_tick("123", at, float(at), source))
    tape.append([_tick("123", 6, 6.0, "upstox"), _tick("123", 7, 7.0, "kite"), _tick("123", 8, 8.0, "third")])
    assert _prices(tape, "NSE:INFY") == [1.0, 4.0, 7.0]
    assert _prices(tape, "NSE:TCS") == [2.0, 5.0, 6.0]
    assert _prices(tape, "third:123") == [0.5, 3.0, 8.0]
    assert tape.symbol_of("123", "kite") == "NSE:INFY"
    for ask in (tape.read, tape.latest, tape.symbol_of, tape.bars):
        with pytest.raises(NameAmbiguous, match="'NSE:INFY' of kite"):
            ask("123")
    tape.append(_tick("123", 9, 9.0, "fourth"))  # of none of them: a symbol of its own
    assert _prices(tape, "123") == [9.0]
    tape.append(_tick("123", 10, 10.0, "kite"))
    assert _prices(tape, "NSE:INFY")[-1] == 10.0 and _prices(tape, "123") == [9.0]
    tape.remove_alias("123", source="kite")
    with pytest.raises(ConfigInvalid, match="no alias in records of kite"):
        tape.remove_alias("123", source="kite")


def test_an_alias_that_one_source_uses_is_read_without_naming_the_source(tape: Tape) -> None:
    tape.alias("123", "NSE:INFY", source="kite")
    tape.append(_tick("123", 0, 1.0, "kite"))
    assert _prices(tape, "123") == [1.0] and tape.latest("123").symbol == "NSE:INFY"


def test_a_scoped_alias_of_another_process_is_heeded_by_appends_under_a_known_name(tmp_path: Path) -> None:
    with onetape.open(tmp_path / "t.db") as old, onetape.open(tmp_path / "t.db") as other:
        old.alias("1", "A")
        old.append(_tick("1", 0, 1.0, "kite"))
        other.alias("1", "B", source="kite")
        old.append([_tick("1", 1, 2.0, "kite"), _tick("1", 2, 3.0, "else")])
        old.append(_tick("1", 3, 4.0, "kite"))
        assert _prices(other, "B") == [2.0, 4.0] and _prices(other, "A") == [1.0, 3.0]


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 300, 5, None])
def test_a_name_that_no_symbol_can_have_is_refused(tape: Tape, name: object) -> None:
    with pytest.raises(ConfigInvalid):
        tape.alias(name, "A")  # type: ignore[arg-type]
    with pytest.raises(ConfigInvalid):
        tape.alias("A", name)  # type: ignore[arg-type]
    assert tape.aliases() == []


def test_a_list_is_added_whole_or_not_at_all(tape: Tape) -> None:
    tape.append(_tick("3"))
    with pytest.raises(NameTaken):
        tape.add_aliases([("1", "A"), ("2", "B"), ("3", "C")])
    assert tape.aliases() == []
    assert tape.add_aliases([("1", "A"), ("2", "B")]) == (2, 0)
    assert tape.add_aliases([("1", "A"), ("4", "B")]) == (1, 1)
    assert [(a.name, a.symbol, a.source) for a in tape.aliases("B")] == [("2", "B", None), ("4", "B", None)]


def test_a_long_list_takes_no_memory_until_it_is_used(tape: Tape) -> None:
    tape.add_aliases([(str(n), f"NSE:{n}") for n in range(20_000)])
    tape.append([_tick("77"), _tick("19999")])
    assert [info.symbol for info in tape.symbols()] == ["NSE:19999", "NSE:77"]
    assert len(tape._symbol_ids) == 4


def test_a_refused_append_leaves_no_name_behind(tape: Tape) -> None:
    tape.alias("1", "A")
    with pytest.raises(onetape.InvalidRecord):
        tape.append([_tick("1"), Tick("1", T0)])
    assert tape.symbols() == []
    tape.append(_tick("1"))
    assert [info.symbol for info in tape.symbols()] == ["A"]


def test_a_tape_opened_for_reading_takes_aliases_and_makes_none(tmp_path: Path) -> None:
    with onetape.open(tmp_path / "t.db") as tape:
        tape.alias("1", "A")
        tape.append(_tick("1", 0, 2.0))
        with onetape.open(tmp_path / "t.db", mode="r") as reader:
            assert _prices(reader, "1") == [2.0] and reader.latest("1").symbol == "A"
            with pytest.raises(onetape.TapeReadOnly):
                reader.alias("2", "A")


def test_bars_given_under_an_alias_are_the_symbols(tape: Tape) -> None:
    tape.alias("1", "A")
    tape.append(onetape.Bar("1", "1min", T0 - T0 % (60 * S), 1, 2, 1, 2, source="kite"))
    assert [bar.symbol for bar in tape.bar_list("A", "1min")] == ["A"]


def test_real_quotes_by_token_and_by_name_are_one_symbol(sample_data: Path, tape: Tape) -> None:
    by_call = {
        name: json.loads((sample_data / "kite" / f"pykiteconnect2018_{name}.json").read_text())["data"]
        for name in ("quote", "ohlc", "ltp")
    }
    for found in by_call.values():
        for name, answer in found.items():
            tape.alias(str(answer["instrument_token"]), name, source=None)
    for at, found in enumerate(by_call.values()):
        for name, answer in found.items():
            tape.append(_tick(str(answer["instrument_token"]), at, answer["last_price"]))
            tape.append(_tick(name, at, answer["last_price"]))
    assert [(info.symbol, info.ticks) for info in tape.symbols()] == [("NSE:INFY", 6)]
    assert _prices(tape, "408065") == [1074.8, 1074.8, 1075.0, 1075.0, 1074.35, 1074.35]


def test_a_writer_stores_under_what_a_name_means_for_its_source(tmp_path):
    path = tmp_path / "t.db"
    with onetape.open(path) as here, onetape.open(path) as there:
        for tape in (here, there):
            tape.append(Tick("FOO", T0, price=1.0))
        here.alias("123", "FOO", source="kite")
        here.alias("foo", "FOO")
        for tape in (here, there):
            with tape.writer() as writer:
                writer.append(Tick("123", T0 + 1, price=2.0, source="kite"))
                writer.append(Tick("foo", T0 + 2, price=3.0))
                writer.append(Tick("123", T0 + 3, price=4.0, source="other"))
        assert {info.symbol: info.ticks for info in there.symbols()} == {"123": 2, "FOO": 6}
