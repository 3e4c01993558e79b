"""Databento's files: the tape answers what their own library says, and cut or damaged ones leave nothing behind."""

from __future__ import annotations

import builtins
import datetime
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

import onetape
from onetape.errors import ConfigInvalid, ImportInvalid
from onetape.importing.formats import Options, detect, files_in, import_file

dbn = pytest.importorskip("databento_dbn")

T0 = 1_700_000_000_000_000_000
CUT = Options(allow_cut=True)


@pytest.fixture
def tape(tmp_path: Path) -> Any:
    with onetape.open(tmp_path / "tape.db", retention_days=None) as opened:
        yield opened


def _trade(at: int, *, instrument: int = 5, price: int = 100_250_000_000, side: str = "B", **more: Any) -> Any:
    values = {"publisher_id": 1, "size": 3, "action": dbn.Action.TRADE, "depth": 0, "ts_recv": T0 + at + 7} | more
    return dbn.TradeMsg(instrument_id=instrument, ts_event=T0 + at, price=price, side=dbn.Side.from_str(side), **values)


def _metadata(schema: str | None = "trades", mappings: Any = (), **more: Any) -> bytes:
    return bytes(
        dbn.Metadata(
            dataset="GLBX.MDP3",
            start=T0,
            stype_in=dbn.SType.RAW_SYMBOL,
            stype_out=dbn.SType.INSTRUMENT_ID,
            schema=dbn.Schema.from_str(schema) if schema else None,
            mappings=list(mappings),
            **more,
        )
    )


def _mapping(symbol: str, *spans: tuple[str, str, str]) -> Any:
    day = datetime.date.fromisoformat
    return SimpleNamespace(
        raw_symbol=symbol,
        intervals=[SimpleNamespace(start_date=day(a), end_date=day(b), symbol=number) for a, b, number in spans],
    )


def _file(path: Path, records: list[Any], head: bytes | None = None, *, packed: bool = False) -> Path:
    content = (_metadata() if head is None else head) + b"".join(map(bytes, records))
    path.write_bytes(pa.compress(content, codec="zstd", asbytes=True) if packed else content)
    return path


def _ticks(tape: onetape.Tape, symbol: str) -> list[dict[str, Any]]:
    rows = tape.read(symbol).to_pylist()
    return [{name: value for name, value in row.items() if value is not None and name != "seq"} for row in rows]


# --- the sample files -------------------------------------------------------------------------------------------------


def _records(path: Path) -> tuple[Any, list[Any]]:
    with pa.OSFile(str(path)) as raw:
        content = (pa.CompressedInputStream(raw, "zstd") if path.suffix == ".zst" else raw).read()
    whole = ".frag" not in path.name
    decoder = dbn.DBNDecoder(has_metadata=whole, input_version=None if whole else int(path.name.split(".v")[1][0]))
    decoder.write(content)
    found = decoder.decode()
    return (found[0], found[1:]) if whole else (None, found)


def _float(value: float) -> float | None:
    return None if math.isnan(value) else value


def _expected(record: Any) -> dict[str, Any] | None:
    """Return the tick that a record is, by the library's own floats."""
    kind = type(record).__name__
    if kind in ("StatMsg", "StatusMsg", "ImbalanceMsg", "InstrumentDefMsg", "OHLCVMsg"):
        return None
    if kind == "MBOMsg" and str(record.action) != "T":
        return None
    interval = kind in ("BBOMsg", "CBBOMsg")
    tick: dict[str, Any] = {
        "ts_event_ns": record.ts_recv if interval else record.ts_event,
        "ts_recv_ns": record.ts_recv,
        "flags": int(record.flags),
        "source": f"GLBX.MDP3:{record.publisher_id}",
        "side": 0,
    }
    if not interval and str(record.action) == "T":
        tick |= {"price": record.pretty_price, "size": float(record.size)}
        tick["side"] = {"A": -1, "B": 1}.get(str(record.side), 0)
    for level in getattr(record, "levels", [])[:1]:
        tick |= {"bid": _float(level.pretty_bid_px), "bid_size": float(level.bid_sz)}
        tick |= {"ask": _float(level.pretty_ask_px), "ask_size": float(level.ask_sz)}
    return tick


def test_every_sample_file_reads_back_as_the_library_says(sample_data: Path, tmp_path: Path) -> None:
    root = sample_data / "databento_dbn"
    paths = sorted(root.glob("*.dbn*")) if root.is_dir() else []
    if not paths:
        pytest.skip("no sample data of Databento")
    assert list(files_in(root)) == paths
    schemas = set()
    for number, path in enumerate(paths):
        with onetape.open(tmp_path / f"{number}.db", retention_days=None) as tape:
            metadata, records = _records(path)
            result = import_file(tape, path)[0]
            ticks = [tick for record in records if (tick := _expected(record)) is not None]
            bars = [record for record in records if type(record).__name__ == "OHLCVMsg"]
            schemas.add(path.name.split(".")[1])
            assert result.stored == len(ticks) + len(bars), path.name
            assert sum(result.skipped.values()) == len(records) - result.stored
            if ticks:
                kept = [{name: v for name, v in row.items() if name != "symbol"} for row in _ticks(tape, "ESH1")]
                assert kept == sorted(ticks, key=lambda one: one["ts_event_ns"]), path.name
            if bars:
                length = {"1m": "1min"}.get(str(metadata.schema)[-2:], str(metadata.schema)[-2:])
                rows = tape.bars("ESH1", length, source="GLBX.MDP3:1").to_pylist()
                names = ("open", "high", "low", "close")
                assert [[row["ts_start_ns"], *(row[n] for n in names), row["volume"]] for row in rows] == [
                    [bar.ts_event, *(getattr(bar, f"pretty_{n}") for n in names), float(bar.volume)] for bar in bars
                ]
            head = tape.stats().head
            again = import_file(tape, path)[0]
            assert (again.stored, again.known, tape.stats().head) == (0, result.stored, head)
    assert len(schemas) == 17


# --- what records become ----------------------------------------------------------------------------------------------


def test_a_file_packed_or_unpacked_is_the_same_file(tmp_path: Path, tape: onetape.Tape) -> None:
    records = [_trade(i) for i in range(10)]
    assert import_file(tape, _file(tmp_path / "a.dbn", records))[0].stored == 10
    again = import_file(tape, _file(tmp_path / "b.dbn.zst", records, packed=True))[0]
    assert (again.stored, again.known) == (0, 10)


def test_symbols_follow_the_mapping_day_by_day(tmp_path: Path, tape: onetape.Tape) -> None:
    mappings = [
        _mapping("ES.c.0", ("2023-11-14", "2023-11-15", "5"), ("2023-11-15", "2023-11-16", "6")),
        _mapping("NQ", ("2023-11-15", "2023-11-16", "5")),
    ]
    day = 86_400_000_000_000
    records = [_trade(0), _trade(day), _trade(day, instrument=6), _trade(2 * day)]
    result = import_file(tape, _file(tmp_path / "a.dbn", records, _metadata(mappings=mappings)))[0]
    assert {symbol: len(_ticks(tape, symbol)) for symbol in ("ES.c.0", "NQ", "5")} == {"ES.c.0": 2, "NQ": 1, "5": 1}
    assert result.notes == ("symbols are instrument ids (5): the file's mapping does not cover them",)


def test_symbols_come_from_mappings_and_definitions_on_the_way(tmp_path: Path, tape: onetape.Tape) -> None:
    told = dbn.SymbolMappingMsg(
        publisher_id=1,
        instrument_id=5,
        ts_event=T0,
        stype_in=dbn.SType.RAW_SYMBOL,
        stype_in_symbol="ES.FUT",
        stype_out=dbn.SType.INSTRUMENT_ID,
        stype_out_symbol="ESH4",
        start_ts=T0,
        end_ts=T0 + 1,
    )
    result = import_file(tape, _file(tmp_path / "a.dbn", [_trade(0), told, _trade(1)], _metadata(None)))[0]
    assert (len(_ticks(tape, "5")), len(_ticks(tape, "ESH4"))) == (1, 1)
    assert result.skipped == {"symbol mappings": 1}


def test_types_that_take_turns_keep_the_order_of_the_file(tmp_path: Path, tape: onetape.Tape) -> None:
    def quote(at: int, size: int) -> Any:
        level = dbn.BidAskPair(10**9, 2 * 10**9, size, size)
        return dbn.MBP1Msg(1, 5, T0 + at, 0, 0, dbn.Action.ADD, dbn.Side.BID, 0, T0 + at, levels=level)

    told = dbn.SymbolMappingMsg(1, 5, T0, dbn.SType.RAW_SYMBOL, "X", dbn.SType.INSTRUMENT_ID, "ESH4", T0, T0 + 1)
    bar = dbn.OHLCVMsg(32, 1, 5, T0, 10**9, 2 * 10**9, 10**9, 2 * 10**9, 7)
    records = [made for i in range(3000) for made in (_trade(i // 50, size=i), quote(i // 50, i), bar)]
    records[4500:4500] = [told]
    result = import_file(tape, _file(tmp_path / "a.dbn", records, _metadata(None)))[0]
    assert (result.kind, result.stored) == ("records", 9000)
    rows = _ticks(tape, "5") + _ticks(tape, "ESH4")
    assert [row.get("size", row.get("bid_size")) for row in rows] == [float(i // 2) for i in range(6000)]
    assert [("price" in row) for row in rows] == [True, False] * 3000
    assert len(_ticks(tape, "ESH4")) == 3000


def test_a_fragment_of_trades_has_instrument_ids_for_symbols(tmp_path: Path, tape: onetape.Tape) -> None:
    path = _file(tmp_path / "a.dbn.frag", [_trade(0), _trade(1, side="A")], b"")
    assert import_file(tape, path)[0].symbols == ("5",)
    assert [row["side"] for row in _ticks(tape, "5")] == [1, -1]
    assert import_file(tape, path, options=Options(symbol="ES", source="me"))[0].symbols == ("ES",)
    assert {row["source"] for row in _ticks(tape, "ES")} == {"me:1"}


def test_one_symbol_for_several_instruments_is_refused(tmp_path: Path, tape: onetape.Tape) -> None:
    path = _file(tmp_path / "a.dbn", [_trade(0), _trade(1, instrument=6)])
    with pytest.raises(ImportInvalid, match="two instruments"):
        import_file(tape, path, options=Options(symbol="ES"))
    assert tape.stats().head == 0


def test_prices_are_the_librarys_own_floats(tmp_path: Path, tape: onetape.Tape) -> None:
    prices = [1, 333_333_333, 123_456_789_012_345_678, 9_007_199_254_740_993, -5_250_000_000, 2**63 - 2]
    records = [_trade(i, price=price) for i, price in enumerate(prices)]
    import_file(tape, _file(tmp_path / "a.dbn", records))
    assert [row["price"] for row in _ticks(tape, "5")] == [record.pretty_price for record in records]


def test_what_is_undefined_is_absent(tmp_path: Path, tape: onetape.Tape) -> None:
    book = dbn.MBP1Msg(
        publisher_id=1,
        instrument_id=5,
        ts_event=T0,
        price=dbn.UNDEF_PRICE,
        size=9,
        action=dbn.Action.ADD,
        side=dbn.Side.BID,
        depth=0,
        ts_recv=dbn.UNDEF_TIMESTAMP,
        levels=dbn.BidAskPair(bid_px=1_000_000_000, bid_sz=4),
    )
    empty = dbn.MBP1Msg(1, 5, T0, 5, 9, dbn.Action.CLEAR, dbn.Side.NONE, 0, T0, levels=dbn.BidAskPair())
    result = import_file(tape, _file(tmp_path / "a.dbn", [book, empty], _metadata("mbp-1")))[0]
    assert result.skipped == {"updates that leave neither a bid nor an ask": 1}
    row = _ticks(tape, "5")[0]
    assert {"price", "size", "ask", "ask_size", "ts_recv_ns"}.isdisjoint(row)
    assert (row["bid"], row["bid_size"], row["side"]) == (1.0, 4.0, 0)


def test_a_trade_without_a_price_is_refused_by_its_number(tmp_path: Path, tape: onetape.Tape) -> None:
    path = _file(tmp_path / "a.dbn", [_trade(0), _trade(1, price=dbn.UNDEF_PRICE), _trade(2)])
    with pytest.raises(ImportInvalid, match="record 2, price: None: a tick has a price"):
        import_file(tape, path)
    assert tape.stats().head == 0
    result = import_file(tape, path, options=Options(on_invalid="quarantine"))[0]
    assert (result.stored, result.refused, len(tape.quarantined())) == (2, 1, 1)


def test_orders_are_no_ticks_but_their_trades_are(tmp_path: Path, tape: onetape.Tape) -> None:
    def order(action: str) -> Any:
        return dbn.MBOMsg(1, 5, T0, 77, 5_000_000_000, 2, dbn.Action.from_str(action), dbn.Side.ASK, T0)

    records = [order(action) for action in ("A", "T", "F", "C", "M", "R", "N")]
    result = import_file(tape, _file(tmp_path / "a.dbn", records, _metadata("mbo")))[0]
    assert (result.stored, sum(result.skipped.values())) == (1, 6)
    assert _ticks(tape, "5")[0] | {"price": 5.0, "size": 2.0, "side": -1} == _ticks(tape, "5")[0]


def test_snapshots_that_repeat_the_last_trade_make_no_trades(tmp_path: Path, tape: onetape.Tape) -> None:
    records = [
        dbn.BBOMsg(
            195,
            1,
            5,
            T0,
            7_000_000_000,
            4,
            dbn.Side.BID,
            T0 + second * 10**9,
            levels=dbn.BidAskPair(10**9, 2 * 10**9, 1, 1),
        )
        for second in (1, 2, 3)
    ]
    import_file(tape, _file(tmp_path / "a.dbn", records, _metadata("bbo-1s")))
    assert [row["ts_event_ns"] - T0 for row in _ticks(tape, "5")] == [10**9, 2 * 10**9, 3 * 10**9]
    assert tape.bars("5").num_rows == 0


# --- cut, damaged and hostile files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_a_cut_file_says_how_many_records_are_whole_and_stores_nothing(
    tmp_path: Path, tape: onetape.Tape, packed: bool
) -> None:
    records = [_trade(i, price=i * 1_234_567 + 10**9, size=i % 97) for i in range(20_000)]
    path = _file(tmp_path / "a.dbn.zst", records, packed=packed)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3 + 5])
    with pytest.raises(ImportInvalid, match=r"cut short.*records before it are whole.*--allow-cut") as caught:
        import_file(tape, path)
    good = caught.value.facts["records"]
    assert caught.value.facts["cut"]
    assert 5_000 < good < 15_000
    assert tape.stats().head == 0
    taken = import_file(tape, path, options=CUT)[0]
    assert taken.stored == good
    assert "cut short" in taken.notes[-1]
    again = import_file(tape, path, options=CUT)[0]
    assert (again.stored, tape.stats().head) == (0, good)
    path.write_bytes(whole)  # the whole file turns up after all: it adds the rest, and nothing twice
    rest = import_file(tape, path)[0]
    assert rest.stored == 20_000 - good
    assert rest.skipped == {"records that are on the tape from a cut copy of this file": good}
    assert [row["price"] for row in _ticks(tape, "5")] == [record.pretty_price for record in records]
    assert import_file(tape, path)[0].stored == 0


def test_every_length_of_a_small_cut_file_is_told_from_a_whole_one(tmp_path: Path) -> None:
    records = [_trade(i) for i in range(3)]
    whole = _file(tmp_path / "a.dbn", records).read_bytes()
    packed = pa.compress(whole, codec="zstd", asbytes=True)
    ends = {len(whole) - 48 * i for i in range(4)}
    for length in range(len(whole)):
        (tmp_path / "a.dbn").write_bytes(whole[:length])
        if length in ends:  # a plain file that ends after a record looks whole
            assert import_file(None, tmp_path / "a.dbn")[0].rows == 3 - (len(whole) - length) // 48
            continue
        with pytest.raises(ImportInvalid):
            import_file(None, tmp_path / "a.dbn", "dbn")
    for length in range(len(packed)):
        (tmp_path / "b.dbn.zst").write_bytes(packed[:length])
        with pytest.raises(ImportInvalid, match="cut short" if length > 8 else None):
            import_file(None, tmp_path / "b.dbn.zst", "dbn")


def test_a_damaged_record_is_named_and_nothing_is_stored(tmp_path: Path, tape: onetape.Tape) -> None:
    head = _metadata()
    body = bytearray(b"".join(bytes(_trade(i)) for i in range(100)))
    for at, byte, message in ((48 * 41 + 1, 0xB5, "record 42: "), (48 * 41, 0, "record 42: a length of 0 bytes")):
        damaged = bytearray(body)
        damaged[at] = byte
        (tmp_path / "a.dbn").write_bytes(head + damaged)
        for options in (Options(), CUT):
            with pytest.raises(ImportInvalid, match=message):
                import_file(tape, tmp_path / "a.dbn", options=options)
    assert tape.stats().head == 0


def test_flipped_bits_never_end_in_anything_but_an_error_that_names_the_file(tmp_path: Path) -> None:
    whole = _file(
        tmp_path / "a.dbn", [_trade(0)], _metadata(mappings=[_mapping("ES", ("2023-11-14", "2023-11-15", "5"))])
    ).read_bytes()
    for at in range(len(whole)):
        for bit in (0, 6, 7):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << bit
            (tmp_path / "a.dbn").write_bytes(damaged)
            try:
                import_file(None, tmp_path / "a.dbn", "dbn")
            except ImportInvalid as error:
                assert "a.dbn" in str(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not with DBN"),
        (b"PK\x03\x04 something else", "it begins with .*not with DBN"),
        (b"DBN\x03\xff\xff\xff\xff" + bytes(100), "its metadata would have 4,294,967,303 bytes"),
        (b"DBN\x03\x00\x00\x00\x00", "its metadata cannot be read"),
        (b"DBN\xee" + _metadata()[4:], "its metadata cannot be read|record 1"),
        (b"\x28\xb5\x2f\xfd" + b"\xff" * 50, "cannot be unpacked|ends too early"),
    ],
)
def test_what_is_no_dbn_is_refused(tmp_path: Path, tape: onetape.Tape, content: bytes, message: str) -> None:
    (tmp_path / "a.dbn").write_bytes(content + (bytes(_trade(0)) if content[3:4] == b"\xee" else b""))
    with pytest.raises(ImportInvalid, match=message):
        import_file(tape, tmp_path / "a.dbn", "dbn")
    assert tape.stats().head == 0


def test_garbage_after_the_compressed_stream_is_refused(tmp_path: Path) -> None:
    path = _file(tmp_path / "a.dbn.zst", [_trade(0)], packed=True)
    path.write_bytes(path.read_bytes() + b"garbage after the end")
    with pytest.raises(ImportInvalid, match="cannot be unpacked"):
        import_file(None, path)


def test_a_bomb_is_read_in_bounded_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = _file(tmp_path / "a.dbn.zst", [_trade(0)] * 150_000, packed=True)
    assert path.stat().st_size < 20_000
    tracemalloc.start()
    assert import_file(None, path)[0].rows == 150_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80_000_000


def test_without_the_library_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *more: Any, **named: Any) -> Any:
        if name.startswith("databento_dbn"):
            raise ImportError(name)
        return real(name, *more, **named)

    path = _file(tmp_path / "a.dbn", [_trade(0)])
    monkeypatch.setattr(builtins, "__import__", without)
    found = detect(path)
    assert found is not None and found.name == "dbn"
    with pytest.raises(ConfigInvalid, match="pip install 'onetape"):
        import_file(None, path)
