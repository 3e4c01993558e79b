"""Every rule by which a legacy system's fields become a tick, one by one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from onetape.errors import ConfigInvalid
from onetape.migrate.fields.tick_fields import Decoded, TickDecoder
from onetape.migrate.fields.tick_names import COUNTS, EVENT_TIMES, NUMBERS, normal
from onetape.migrate.fields.tick_times import TimeReader

MS = 1_731_472_800_123
NS = MS * 1_000_000


def decode(
    *entries: dict[Any, Any], symbol: str = "NSE:INFY", default_ns: int | None = NS, zone: str = "Asia/Kolkata"
) -> Decoded:
    page = [
        [
            part
            for name, value in entry.items()
            for part in (
                name if isinstance(name, bytes) else name.encode(),
                value if isinstance(value, bytes) else str(value).encode(),
            )
        ]
        for entry in entries
    ]
    return TickDecoder(zone).decode(page, [symbol] * len(page), [default_ns] * len(page))


def one(entry: dict[Any, Any], **options: Any) -> dict[str, Any]:
    decoded = decode(entry, **options)
    assert decoded.rejected == {}
    return {name: values[0] for name, values in decoded.columns.items()}


def reason(entry: dict[Any, Any], **options: Any) -> str:
    decoded = decode(entry, **options)
    assert list(decoded.rejected) == [0]
    assert "\n" not in decoded.rejected[0]
    assert len(decoded.rejected[0]) < 200
    return decoded.rejected[0]


@pytest.mark.parametrize(("column", "name"), [(c, n) for c, names in NUMBERS.items() for n in names])
def test_every_known_name_of_a_number_is_read(column: str, name: str) -> None:
    other = "ask" if column == "bid" else "bid"
    assert one({other: "1", name: "12.5"})[column] == 12.5


@pytest.mark.parametrize(("column", "names"), NUMBERS.items())
def test_the_first_name_of_a_column_wins_and_an_empty_one_gives_way(column: str, names: tuple[str, ...]) -> None:
    entry = {"ask": "1", **{name: str(i + 10) for i, name in reversed(list(enumerate(names)))}}
    assert one(entry)[column] == 10
    if len(names) > 1:
        entry[names[0]] = ""
        assert one(entry)[column] == 11


@pytest.mark.parametrize("name", [n for names in COUNTS.values() for n in names])
def test_counts_are_whole_numbers(name: str) -> None:
    assert 7 in one({"price": 1, name: "7"}).values()
    assert "7.5" in reason({"price": 1, name: "7.5"})


@pytest.mark.parametrize("name", EVENT_TIMES)
def test_every_known_name_of_a_time_is_read(name: str) -> None:
    assert one({"price": 1, name: MS}, default_ns=None)["ts_event_ns"] == NS


def test_the_exchange_time_comes_before_the_feed_and_the_feed_before_the_last_trade() -> None:
    entry = {"price": 1, "last_trade_time": MS, "timestamp": MS + 1, "exchange_timestamp": MS + 2}
    assert one(entry)["ts_event_ns"] == NS + 2_000_000
    entry["exchange_timestamp"] = "0"
    assert one(entry)["ts_event_ns"] == NS + 1_000_000
    entry["timestamp"] = "soon"
    assert one(entry)["ts_event_ns"] == NS


def test_without_a_time_of_its_own_an_entry_has_that_of_its_id_or_key() -> None:
    assert one({"price": 1})["ts_event_ns"] == NS
    assert "no time" in reason({"price": 1}, default_ns=None)


@pytest.mark.parametrize(
    ("written", "ns"),
    [
        ("1731472800", 1_731_472_800 * 10**9),
        ("1731472800.123456789", 1_731_472_800_123_456_789),
        ("1731472800.5", 1_731_472_800_500_000_000),
        ("1731472800123", NS),
        ("1731472800123.25", NS + 250_000),
        ("1731472800123456", 1_731_472_800_123_456_000),
        ("1731472800123456789", 1_731_472_800_123_456_789),
        ("1.7314728e9", 1_731_472_800 * 10**9),
        ("2024-11-13T04:40:00.123Z", NS),
        ("2024-11-13T10:10:00.123+05:30", NS),
        ("2024-11-13T10:10:00+0530", 1_731_472_800 * 10**9),
        ("2024-11-13 10:10:00.123", NS),  # naive: in Kolkata
        ("2024-11-13 10:10:00.1234567", NS + 456_700),
        (" 2024-11-13 10:10:00 ", 1_731_472_800 * 10**9),
    ],
)
def test_times_are_read_in_every_unit_and_shape(written: str, ns: int) -> None:
    assert one({"price": 1, "timestamp": written})["ts_event_ns"] == ns


@pytest.mark.parametrize("written", ["93005", "20241113101000", "-5", "nan", "9e30", "13/11/2024 10:10", "soon"])
def test_what_is_no_time_is_a_reason_and_never_a_guess(written: str) -> None:
    assert reason({"price": 1, "timestamp": written})


def test_a_naive_time_twice_on_the_clock_is_the_first() -> None:
    new_york = TimeReader("America/New_York")
    assert new_york.read("2024-11-03 01:30:00") == new_york.read("2024-11-03T05:30:00Z")


def test_an_unknown_zone_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="Mars"):
        TimeReader("Mars/Olympus")


def test_a_receive_time_is_kept_and_an_unreadable_one_left_out() -> None:
    assert one({"price": 1, "received_at": MS})["ts_recv_ns"] == NS
    assert one({"price": 1, "received_at": "?"})["ts_recv_ns"] is None


def test_prices_come_back_bit_for_bit() -> None:
    for text in ("0.1", "1e-320", "123456789.123456789", "2.2250738585072011e-308", "-37.63"):
        price = one({"price": text})["price"]
        assert math.copysign(1, price) == math.copysign(1, float(text))
        assert price == float(text)


def test_the_volume_of_a_tick_is_the_session_and_close_is_yesterday() -> None:
    tick = one({"ltp": 10, "volume": 5000, "ltq": 25, "close": 9})
    assert (tick["price"], tick["volume"], tick["size"]) == (10, 5000, 25)
    assert "close" in reason({"close": 9, "volume": 3})


def test_the_best_of_a_depth_and_the_ohlc_are_opened() -> None:
    depth = {"buy": [{"price": 9.5, "quantity": 3}], "sell": [{"price": 10.5, "quantity": 4}]}
    ohlc = {"open": 1, "high": 3, "low": 0.5, "close": 2}
    tick = one({"last_price": 10, "depth": json.dumps(depth), "ohlc": json.dumps(ohlc)})
    assert [tick[n] for n in ("bid", "bid_size", "ask", "ask_size")] == [9.5, 3, 10.5, 4]
    assert [tick[n] for n in ("open", "high", "low")] == [1, 3, 0.5]
    tick = one({"bids": "[[9.5, 3]]", "asks": "[]"})
    assert (tick["bid"], tick["bid_size"], tick["ask"]) == (9.5, 3, None)


def test_an_empty_side_of_the_book_filled_with_zeros_is_no_quote() -> None:
    depth = {"buy": [{"price": 0, "quantity": 0, "orders": 0}], "sell": [{"price": 10.5, "quantity": 4}]}
    assert one({"depth": json.dumps(depth)})["bid"] is None


@pytest.mark.parametrize("name", ["data", "payload", "tick", "json"])
def test_a_whole_tick_as_json_is_opened_and_what_is_around_it_counts_for_less(name: str) -> None:
    inner = {"last_price": 10.25, "last_quantity": 5, "timestamp": "2024-11-13 10:10:00.123", "oi": None}
    tick = one({"symbol": "OUTER", name: json.dumps(inner), "oi": "7"})
    assert (tick["price"], tick["size"], tick["ts_event_ns"], tick["symbol"]) == (10.25, 5, NS, "OUTER")


@pytest.mark.parametrize("text", ["", "[1]", "12", "{", "\xff"])
def test_a_payload_that_is_no_object_is_a_reason(text: str) -> None:
    assert "data" in reason({"data": text.encode("latin-1")})


def test_the_symbol_is_that_of_the_entry_unless_the_key_has_it_with_its_exchange() -> None:
    assert one({"price": 1})["symbol"] == "NSE:INFY"
    assert one({"price": 1, "tradingsymbol": "INFY"})["symbol"] == "NSE:INFY"
    assert one({"price": 1, "symbol": "BSE:TCS"})["symbol"] == "BSE:TCS"
    assert one({"price": 1, "symbol": ""})["symbol"] == "NSE:INFY"
    assert "control" in reason({"price": 1, "symbol": "A\x07B"})
    assert "255" in reason({"price": 1, "symbol": "A" * 300})
    assert "UTF-8" in reason({"price": 1, "symbol": b"\xff"})


@pytest.mark.parametrize(
    ("fields", "side"),
    [
        ({"side": "BUY"}, 1),
        ({"aggressor": "s"}, -1),
        ({"trade_side": "-1"}, -1),
        ({"side": "both"}, 0),
        ({"is_buyer_maker": "true"}, -1),
        ({"is_buyer_maker": "false"}, 1),
    ],
)
def test_the_aggressor_side(fields: dict[str, str], side: int) -> None:
    assert one({"price": 1, **fields})["side"] == side


@pytest.mark.parametrize("name", ["lastPrice", "LAST_PRICE", "last-price", "Last Price", " last.price "])
def test_names_are_compared_in_one_spelling(name: str) -> None:
    assert normal(name) == "last_price"


@pytest.mark.parametrize("absent", ["", "null", "None", "N/A", "-", " "])
def test_words_for_nothing_are_nothing(absent: str) -> None:
    assert one({"price": 5, "oi": absent})["open_interest"] is None


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"price": "nan"}, "finite"),
        ({"price": "inf"}, "finite"),
        ({"price": 1, "oi": "-inf"}, "finite"),
        ({"price": 1, "size": -1}, "negative"),
        ({"price": 1, "volume": -1}, "negative"),
    ],
)
def test_invalid_values_are_told_and_kept_for_quarantine(fields: dict[str, Any], why: str) -> None:
    decoded = decode(fields, {"price": 2})
    assert why in decoded.rejected[0]
    assert decoded.rows == [0, 1]
    assert decoded.valid().rows == [1]
    assert decoded.valid().columns["price"] == [2]


@pytest.mark.parametrize("fields", [{}, {"volume": 5}, {"price": ""}, {"price": "1_000"}, {"price": "12,5"}])
def test_what_is_no_tick_is_told_and_in_no_column(fields: dict[str, Any]) -> None:
    decoded = decode({"price": 1}, fields, {"bid": 2})
    assert list(decoded.rejected) == [1]
    assert decoded.rows == [0, 2]


def test_zero_sizes_crossed_and_one_sided_quotes_are_ordinary() -> None:
    tick = one({"bid": 11, "ask": 10, "bid_size": 0})
    assert (tick["bid"], tick["ask"], tick["bid_size"]) == (11, 10, 0)
    assert one({"ask": 10})["ask"] == 10


def test_mixed_layouts_keep_the_order_of_the_page() -> None:
    decoded = decode({"price": 1}, {"bid": 2, "ask": 3}, {"ltp": 4, "side": "buy"}, {"x": 1}, {"price": 5})
    assert decoded.rows == [0, 1, 2, 4]
    assert decoded.columns["price"] == [1, None, 4, 5]
    assert decoded.columns["bid"] == [None, 2, None, None]
    assert decoded.columns["side"] == [0, 0, 1, 0]
    assert len({len(values) for values in decoded.columns.values()}) == 1


def test_real_quotes_of_an_indian_broker(sample_data: Path) -> None:
    quotes = json.loads((sample_data / "kite" / "pykiteconnect2018_quote.json").read_text())["data"]
    for symbol, quote in quotes.items():
        as_json = one({"data": json.dumps(quote)}, symbol=symbol)
        as_fields = one({k: json.dumps(v) if isinstance(v, dict) else v for k, v in quote.items()}, symbol=symbol)
        assert as_json == as_fields
        assert as_json["price"] == 1074.8
        assert as_json["size"] == 55
        assert as_json["volume"] == 1_368_065
        assert as_json["vwap"] == 1077.03
        assert (as_json["bid"], as_json["ask"], as_json["open"]) == (1074.8, 1074.85, 1085.8)
        assert as_json["ts_event_ns"] == TimeReader("UTC").read("2018-01-12T05:10:29Z")
