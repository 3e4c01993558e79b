"""Recordings: broken lines, holes in depth, wrong checksums and cut files are told, and nothing is guessed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import onetape
from onetape.errors import ImportInvalid
from onetape.importing.formats import Imported, Options, import_file

S = 1_723_161_256_000_000_000
MS = S // 10**6


@pytest.fixture
def tape(tmp_path: Path) -> Iterator[onetape.Tape]:
    with onetape.open(tmp_path / "tape.db", retention_days=None) as opened:
        yield opened


def _write(tmp_path: Path, messages: list[Any], name: str = "in.log", end: str = "\n") -> Path:
    lines = [m if isinstance(m, str) else f"{S + i} {json.dumps(m)}" for i, m in enumerate(messages)]
    path = tmp_path / name
    text = ("\n".join(lines) + end).encode()
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return path


def _one(tape: onetape.Tape | None, path: Path, **options: Any) -> Imported:
    (result,) = import_file(tape, path, options=Options(**options))
    return result


def _trade(price: str = "1.5", kind: str = "trade", **more: Any) -> dict[str, Any]:
    data = {"e": kind, "E": MS, "T": MS, "s": "ETHUSDT", "p": price, "q": "2", "m": True, **more}
    return {"stream": f"ethusdt@{kind}", "data": data}


def _depth(first: int, last: int, bids: Any = (), asks: Any = (), **more: Any) -> dict[str, Any]:
    data = {"e": "depthUpdate", "E": MS + last, "s": "ETHUSDT", "U": first, "u": last, "b": bids, "a": asks, **more}
    return {"stream": "ethusdt@depth@100ms", "data": data}


SNAPSHOT = {"lastUpdateId": 10, "bids": [["1.0", "5"], ["0.9", "4"]], "asks": [["1.1", "6"]]}


def test_trades_of_one_millisecond_keep_the_order_of_their_lines(tape: onetape.Tape, tmp_path: Path) -> None:
    _one(tape, _write(tmp_path, [_trade(str(price)) for price in (3, 1, 2, 2)]))
    assert tape.read("ETHUSDT").column("price").to_pylist() == [3, 1, 2, 2]
    assert set(tape.read("ETHUSDT").column("side").to_pylist()) == {-1}


def test_symbols_take_a_prefix_and_records_a_source(tape: onetape.Tape, tmp_path: Path) -> None:
    _one(tape, _write(tmp_path, [_trade()]), symbol="binance:{symbol}", source="feed 1")
    tick = tape.latest("binance:ETHUSDT")
    assert tick is not None
    assert tick.source == "feed 1"
    with pytest.raises(ImportInvalid, match="a recording names its symbols"):
        _one(tape, _write(tmp_path, [_trade()]), symbol="X")


@pytest.mark.parametrize(
    "line",
    [
        "x {}",
        f"{S} {{",
        f'{S} {{"stream":"a@trade","data":{{"e":"trade"}}}}',
        f'{S} {{"stream":"a@trade","data":{{"e":"trade","s":"A","T":"x","p":"1","q":"1","m":true}}}}',
        f'{S} {{"stream":"a@trade","data":{{"e":"trade","s":"A","T":1,"p":"one","q":"1","m":true}}}}',
        f'{S} {{"stream":"a@trade","data":{{"e":"trade","s":["A"],"T":1,"p":"1","q":"1","m":true}}}}',
        f'{S} {{"stream":"a@depth","data":{{"e":"depthUpdate","s":"A","E":1}}}}',
        f"{S} [1]",
        f"{S} 7",
    ],
)
def test_a_broken_line_is_named_and_can_go_to_quarantine(tape: onetape.Tape, tmp_path: Path, line: str) -> None:
    path = _write(tmp_path, [_trade(), line, _trade()])
    with pytest.raises(ImportInvalid, match=r"in\.log, line 2"):
        _one(tape, path)
    assert tape.stats().head == 0
    if '["A"]' in line:
        return
    done = _one(tape, path, on_invalid="quarantine")
    assert (done.stored, done.refused) == (2, 1)
    assert done.first_refused[0].place == "line 2"
    assert len(tape.quarantined()) == 1


def test_a_price_the_tape_refuses_is_named_by_line(tape: onetape.Tape, tmp_path: Path) -> None:
    with pytest.raises(ImportInvalid, match=r"line 2, size: -2.0"):
        _one(tape, _write(tmp_path, [_trade(), _trade(q="-2")]))
    with pytest.raises(ImportInvalid, match=r"line 1, price"):
        _one(tape, _write(tmp_path, [_trade("NaN")]))


def test_a_cut_file_is_refused_or_taken_as_far_as_it_is_whole(tape: onetape.Tape, tmp_path: Path) -> None:
    path = _write(tmp_path, [_trade(), _trade(), f'{S} {{"stream":"eth'], end="")
    with pytest.raises(ImportInvalid, match=r"line 3.*cut off"):
        _one(tape, path)
    done = _one(tape, path, allow_cut=True)
    assert (done.stored, done.notes) == (2, ("line 3 is cut off and was left out",))
    zipped = _write(tmp_path, [_trade(str(i * 1.7 % 3)) for i in range(1, 3000)], "in.gz")
    zipped.write_bytes(zipped.read_bytes()[:-400])
    with pytest.raises(ImportInvalid, match=r"in\.gz, line \d+: cannot be read"):
        _one(tape, zipped)
    assert 0 < _one(tape, zipped, allow_cut=True).stored < 3000


def test_depth_begins_with_a_snapshot_and_tells_only_news(tape: onetape.Tape, tmp_path: Path) -> None:
    messages = [
        _depth(5, 9),  # older than the snapshot
        _depth(10, 12, [["1.05", "1"]]),  # waits for it
        SNAPSHOT,
        _depth(13, 13, [["0.5", "1"]]),  # no news
        _depth(14, 15, [["1.05", "0"]], [["1.1", "0"]]),
    ]
    done = _one(tape, _write(tmp_path, messages))
    found = [(tick.bid, tick.bid_size, tick.ask, tick.ask_size) for tick in tape.recent("ETHUSDT")]
    assert found == [(1.05, 1, 1.1, 6), (1.0, 5, None, None)]
    assert done.skipped == {"depth updates older than their snapshot": 1}


def test_after_a_hole_depth_waits_for_the_next_snapshot(tape: onetape.Tape, tmp_path: Path) -> None:
    hole = [_depth(20, 21, [["7", "1"]]), _depth(22, 23, [["8", "1"]])]
    done = _one(tape, _write(tmp_path, [_depth(1, 2), SNAPSHOT, _depth(11, 12, [["1.05", "1"]]), *hole]))
    assert [tick.bid for tick in tape.recent("ETHUSDT")] == [1.0, 1.05]
    assert done.skipped == {"depth updates older than their snapshot": 1, "depth updates after a hole": 2}
    futures = [_depth(1, 12, pu=0), _depth(13, 20, [["2", "1"]], pu=11)]
    done = _one(tape, _write(tmp_path, [SNAPSHOT | {"symbol": "ETHUSDT", "T": MS}, *futures]))
    assert done.skipped == {"depth updates after a hole": 1}


def test_a_snapshot_that_could_be_of_two_symbols_is_of_none(tape: onetape.Tape, tmp_path: Path) -> None:
    other = _depth(1, 2)
    other["data"]["s"] = "BTCUSDT"
    done = _one(tape, _write(tmp_path, [_depth(1, 2), other, SNAPSHOT]))
    assert done.rows == 0
    assert done.skipped == {
        "depth snapshots that do not say of which symbol": 1,
        "depth updates without a snapshot": 2,
    }


def test_aggregated_trades_are_left_out_where_the_single_ones_are_there(tape: onetape.Tape, tmp_path: Path) -> None:
    done = _one(tape, _write(tmp_path, [_trade(kind="aggTrade"), _trade(), _trade(X="INSURANCE_FUND")]))
    assert done.stored == 1
    assert done.skipped == {
        "aggTrade messages of a symbol whose single trades are here": 1,
        "trades of the type INSURANCE_FUND": 1,
    }


def test_a_kraken_book_ends_with_a_wrong_checksum(tape: onetape.Tape, tmp_path: Path) -> None:
    book = {"as": [["5.1", "1.0", "1618678130.5"]], "bs": [["5.0", "2.0", "1618678131.25"]]}
    path = tmp_path / "K"
    path.write_text(
        "wss://ws.kraken.com <-> 1618678132.38\n"
        f'1618678133.1: [1,{json.dumps(book)},"book-10","A/B"]\n'
        '1618678134.1: [1,{"b":[["5.05","1.0","1618678133.9"]],"c":"1"},"book-10","A/B"]\n'
        '1618678135.1: [1,{"b":[["5.06","1.0","1618678134.9"]],"c":"1"},"book-10","A/B"]\n'
    )
    done = _one(tape, path)
    (tick,) = tape.recent("A/B")
    assert (tick.ts_event_ns, tick.ts_recv_ns, tick.bid) == (1_618_678_131_250_000_000, 1_618_678_133_100_000_000, 5.0)
    assert done.skipped["book updates whose checksum did not match"] == 1
    assert done.skipped["book updates after a checksum that did not match"] == 1


def test_bitmex_rows_before_a_partial_or_of_an_unknown_id_are_counted(tape: onetape.Tape, tmp_path: Path) -> None:
    def said(action: str, *rows: dict[str, Any]) -> str:
        body = {
            "table": "orderBookL2",
            "action": action,
            "data": [{"symbol": "XBTUSD", "side": "Buy", **r} for r in rows],
        }
        return f"1626993368.0: {json.dumps(body)}\n"

    path = tmp_path / "B"
    path.write_text(
        "wss://www.bitmex.com/realtime <-> 1626993367.388005\n"
        + said("update", {"id": 1, "size": 3})
        + said("partial", {"id": 1, "size": 3, "price": 7.5})
        + said("delete", {"id": 2})
        + said("update", {"id": 1, "size": 4})
    )
    done = _one(tape, path)
    assert [(tick.bid, tick.bid_size) for tick in tape.recent("XBTUSD")] == [(7.5, 3), (7.5, 4)]
    assert done.skipped["orderBookL2 rows before their partial"] == 1
    assert done.skipped["orderBookL2 rows of an id that is not known"] == 1


def test_batches_of_any_size_store_the_same_and_an_unknown_venue_is_refused(
    tape: onetape.Tape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onetape.importing.format.BATCH_ROWS", 7)
    path = _write(tmp_path, [_trade(str(i), T=MS + i) for i in range(30)])
    done = _one(tape, path)
    assert (done.stored, done.digest) == (30, _one(tape, path).digest)
    assert tape.read("ETHUSDT").column("price").to_pylist() == list(range(30))
    path.write_text("wss://ws.example.org/x <-> 1626993367.388005\n")
    with pytest.raises(ImportInvalid, match=r"line 1: 'ws.example.org' is no venue"):
        _one(tape, path)
