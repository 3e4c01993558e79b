"""Files of QuantConnect Lean: the tape answers what the raw files say, and hostile ones leave nothing behind."""

from __future__ import annotations

import csv
import io
import shutil
import zipfile
from collections import defaultdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

import onetape
from onetape.errors import ConfigInvalid, ImportInvalid
from onetape.importing import lean_path
from onetape.importing.formats import Imported, Options, detect, files_in, import_file

EPOCH = datetime(1970, 1, 1, tzinfo=ZoneInfo("UTC"))
_LENGTHS = {"second": "1s", "minute": "1min", "hour": "1h", "daily": "1d"}
_FIELDS = ["ts_event_ns", "price", "size", "bid", "bid_size", "ask", "ask_size", "flags", "source"]
#: By hand, from the folder's READMEs and the hours that its files cover.
_ZONES = {
    "equity/usa": "America/New_York",
    "equity/india": "Asia/Kolkata",
    "index/india": "Asia/Kolkata",
    "forex/fxcm": "Etc/GMT+5",
}


@pytest.fixture
def tape(tmp_path: Path) -> Any:
    with onetape.open(tmp_path / "tape.db", retention_days=None) as opened:
        yield opened


def _zip(path: Path, members: dict[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


def _trades(tmp_path: Path, text: str, day: str = "20131007", name: str = "") -> Path:
    place = tmp_path / "equity" / "usa" / "tick" / "aig"
    return _zip(place / f"{day}_trade.zip", {name or f"{day}_aig_Trade_Tick.csv": text})


def _stored(results: list[Imported]) -> int:
    return sum(one.stored for one in results)


# --- what the raw files say, read with nothing but csv ----------------------------------------------------------------


def _ns(moment: datetime, extra_ns: int = 0) -> int:
    return int((moment.astimezone(ZoneInfo("UTC")) - EPOCH) / timedelta(microseconds=1)) * 1000 + extra_ns


def _from_midnight(day: str, text: str, zone: str) -> int:
    whole, _, fraction = text.partition(".")
    ms = int(whole)
    wall = datetime.strptime(day, "%Y%m%d") + timedelta(milliseconds=ms)
    return _ns(wall.replace(tzinfo=ZoneInfo(zone)), int(fraction.ljust(6, "0")[:6] or 0))


def _number(text: str) -> float | None:
    return float(text) if text else None


def _expected(
    root: Path, skip: set[str]
) -> tuple[dict[str, list[Any]], dict[tuple[str, str, str], dict[int, Any]], int]:
    """Return ticks by symbol in file order, bars by symbol and interval, and how many values of open interest."""
    ticks: dict[str, list[Any]] = defaultdict(list)
    bars: dict[tuple[str, str, str], dict[int, Any]] = defaultdict(dict)
    interest = 0
    for path in sorted(root.rglob("*.zip")):
        kind, market, resolution, *rest = path.relative_to(root).parts
        zone = _ZONES.get(f"{kind}/{market}", "UTC")
        scale = 10_000 if kind == "equity" else 1
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                if member in skip:
                    continue
                rows = list(csv.reader(io.TextIOWrapper(archive.open(member))))
                symbol = (rest[0] if len(rest) > 1 else rest[0].split(".")[0].split("_")[0]).upper()
                if kind == "future":
                    symbol += member.rsplit("_", 1)[1].removesuffix(".csv")
                if kind in ("forex", "cfd", "crypto"):
                    symbol += "." + market
                if "openinterest" in path.name:
                    interest += len(rows)
                    continue
                if resolution == "tick":
                    ticks[symbol] += [_tick(row, path.stem, market, zone, scale) for row in rows]
                    continue
                for row in rows:
                    if resolution in ("hour", "daily"):
                        wall = datetime.strptime(row[0], "%Y%m%d %H:%M")
                        start = _ns(wall.replace(tzinfo=ZoneInfo("UTC" if resolution == "daily" else zone)))
                    else:
                        start = _from_midnight(path.stem.split("_")[0], row[0], zone)
                    length = _LENGTHS[resolution]
                    if "quote" in path.name:
                        for side, cells in ((":bid", row[1:6]), (":ask", row[6:11])):
                            if cells[0]:
                                bars[symbol + side, length, market][start] = [float(c) / scale for c in cells[:4]] + [
                                    float(cells[4])
                                ]
                    else:
                        prices = [float(cell) / scale for cell in row[1:5]]
                        bars[symbol, length, market][start] = [*prices, float(row[5])]
    return ticks, bars, interest


def _tick(row: list[str], stem: str, market: str, zone: str, scale: int) -> dict[str, Any]:
    day, kind = stem.split("_")
    made: dict[str, Any] = {"ts_event_ns": _from_midnight(day, row[0], zone), "source": market, "flags": 0}
    if kind == "trade":
        made |= {"price": float(row[1]) / scale, "size": float(row[2])}
        marks = row[3:]
    elif len(row) == 3:
        made |= {"bid": float(row[1]), "ask": float(row[2])}
        marks = []
    else:
        for name, price, size in (("bid", row[1], row[2]), ("ask", row[3], row[4])):
            if price != "0" or size != "0":
                made |= {name: float(price) / scale, f"{name}_size": float(size)}
        marks = row[5:]
    if marks:
        made["source"] = f"{market}:{marks[0]}"
        made["flags"] = int(marks[1] or "0", 16) | (int(marks[2]) << 31)
    return made


@pytest.mark.slow
def test_a_folder_of_lean_reads_back_as_its_raw_files_say(sample_data: Path, tape: onetape.Tape) -> None:
    root = sample_data / "lean"
    if not root.is_dir():
        pytest.skip("no sample data of Lean")
    repeated = "20190102_nifty_minute_trade.csv"
    results: list[Imported] = []
    for path in files_in(root):
        results += import_file(tape, path, options=Options(repeats="once"))
    assert [one.file.split("!")[1] for one in results if one.repeats] == [repeated]
    ticks, bars, interest = _expected(root, {repeated})
    assert sum(sum(one.skipped.values()) for one in results) == interest > 0
    for symbol, wanted in ticks.items():
        told = sorted(wanted, key=lambda one: one["ts_event_ns"])  # stable: the file's order where times are equal
        if symbol == "IBM":  # of two files, trades and quotes
            told.sort(key=lambda one: (one["ts_event_ns"], "price" in one))
        found = tape.read(symbol, columns=_FIELDS)
        kept = [{name: value for name, value in row.items() if value is not None} for row in found.to_pylist()]
        assert len(kept) == len(told), symbol
        assert kept == told, symbol
    for (symbol, length, market), wanted_bars in bars.items():
        table = tape.bars(symbol, length, source=market)
        given = {
            row["ts_start_ns"]: [row[name] for name in ("open", "high", "low", "close", "volume")]
            for row in table.to_pylist()
        }
        assert given == wanted_bars, (symbol, length)
    head = tape.stats().head
    for path in files_in(root):
        assert _stored(import_file(tape, path, options=Options(repeats="once"))) == 0
    assert tape.stats().head == head


# --- time zones -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("day", "utc_hour"), [("20140307", 14), ("20140310", 13), ("20141031", 13), ("20141103", 14)])
def test_the_opening_bell_is_exact_on_both_sides_of_a_clock_change(
    tmp_path: Path, tape: onetape.Tape, day: str, utc_hour: int
) -> None:
    import_file(tape, _trades(tmp_path, "34200000,491800,300,P,0,0\n", day))
    latest = tape.latest("AIG")
    assert latest is not None
    wanted = datetime.strptime(day, "%Y%m%d").replace(hour=utc_hour, minute=30, tzinfo=ZoneInfo("UTC"))
    assert latest.ts_event_ns == _ns(wanted)
    assert latest.price == 49.18


def test_midnight_counts_on_the_clock_of_a_day_that_is_23_hours_long(tmp_path: Path, tape: onetape.Tape) -> None:
    """09:30 is 34,200,000 ms after midnight in Lean's files, whether the night had an hour less or not."""
    import_file(tape, _trades(tmp_path, "34200000,491800,300,P,0,0\n", "20140309"))
    latest = tape.latest("AIG")
    assert latest is not None
    assert latest.ts_event_ns == _ns(datetime(2014, 3, 9, 13, 30, tzinfo=ZoneInfo("UTC")))


def test_a_time_that_the_clocks_show_twice_or_never_is_refused_by_line(tmp_path: Path, tape: onetape.Tape) -> None:
    for day, ms in (("20141102", 5_400_000), ("20140309", 9_000_000)):
        with pytest.raises(ImportInvalid, match=f"line 2, time: '{ms}': the clocks of America/New_York"):
            import_file(tape, _trades(tmp_path, f"1000,491800,300,P,0,0\n{ms},491800,300,P,0,0\n", day))
    assert tape.stats().head == 0


def test_the_folders_own_market_hours_decide_the_zone(tmp_path: Path, tape: onetape.Tape) -> None:
    database = tmp_path / "market-hours" / "market-hours-database.json"
    database.parent.mkdir()
    database.write_text(
        '{"entries": {"Equity-usa-[*]": {"dataTimeZone": "UTC"}, "Equity-usa-AIG": {"dataTimeZone": "Asia/Tokyo"}}}'
    )
    result = import_file(tape, _trades(tmp_path, "0,491800,300,P,0,0\n"))[0]
    assert result.ts_first_ns == _ns(datetime(2013, 10, 7, tzinfo=ZoneInfo("Asia/Tokyo")))


def test_a_market_that_nobody_knows_needs_a_zone(tmp_path: Path, tape: onetape.Tape) -> None:
    path = _zip(tmp_path / "equity/mars/daily/abc.zip", {"abc.csv": "20131007 00:00,1,2,1,2,5\n"})
    with pytest.raises(ImportInvalid, match=r"time zone of equity/mars is not known.*--timezone"):
        import_file(tape, path)
    assert import_file(tape, path, options=Options(timezone="UTC"))[0].stored == 1
    with pytest.raises(ImportInvalid, match="--timezone Nowhere: not known"):
        import_file(tape, path, options=Options(timezone="Nowhere"))


def test_fixed_offsets_are_the_other_way_round_in_iana() -> None:
    assert lean_path.iana("UTC-05") == "Etc/GMT+5"
    assert lean_path.iana("UTC+08") == "Etc/GMT-8"
    assert lean_path.iana("UTC+00") == "UTC"


# --- what the path says -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("Data/equity/usa/minute/aig/20131007_trade.zip", ("equity", "usa", "minute", "aig", "trade")),
        ("x/forex/oanda/hour/eurusd.zip", ("forex", "oanda", "hour", "eurusd", "quote")),
        ("x/crypto/binance/hour/btcusdt_trade.zip", ("crypto", "binance", "hour", "btcusdt", "trade")),
        ("x/option/usa/minute/aapl/20140606_trade_american.zip", ("option", "usa", "minute", "aapl", "trade")),
    ],
)
def test_a_path_of_lean_says_what_it_holds(path: str, wanted: tuple[str, ...]) -> None:
    found = lean_path.place(Path(path))
    assert found is not None
    assert (found.type, found.market, found.resolution, found.ticker, found.kind) == wanted


@pytest.mark.parametrize(
    "path",
    [
        "20131007_trade.zip",
        "minute/aig/20131007_trade.zip",
        "equity/usa/minute/aig/2013100_trade.zip",
        "equity/usa/minute/aig/20131307_trade.zip",
        "equity/usa/minute/aig/20131007_universe.zip",
        "equity/usa/minute/20131007_trade.zip",
        "equity/usa/daily/sub/aig.zip",
    ],
)
def test_other_paths_say_nothing(path: str) -> None:
    assert lean_path.place(Path(path)) is None


def test_a_file_without_its_folder_needs_to_be_told(tmp_path: Path, tape: onetape.Tape) -> None:
    there = _trades(tmp_path, "1000,491800,300,P,0,0\n")
    assert import_file(tape, there)[0].stored == 1
    lone = shutil.copy(there, tmp_path / "copy.zip")
    assert detect(Path(lone)) is not None  # the name in the zip is Lean's
    with pytest.raises(ImportInvalid, match=r"does not say what the file holds.*--as equity/usa"):
        import_file(tape, lone)
    told = Options(as_path="equity/usa/tick/aig/20131007_trade.zip")
    again = import_file(tape, lone, options=told)[0]
    assert (again.stored, again.known) == (0, 1)  # moved and renamed, it is the same file


def test_a_file_packed_again_is_the_same_file(tmp_path: Path, tape: onetape.Tape) -> None:
    path = _trades(tmp_path, "1000,491800,300,P,0,0\n" * 3)
    import_file(tape, path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("20131007_aig_Trade_Tick.csv", "1000,491800,300,P,0,0\n" * 3)
    again = import_file(tape, path)[0]
    assert (again.stored, again.known) == (0, 3)


def test_equal_rows_of_a_session_are_all_kept(tmp_path: Path, tape: onetape.Tape) -> None:
    import_file(tape, _trades(tmp_path, "1000,491800,300,P,0,0\n" * 500))
    assert tape.stats().ticks == 500


def test_symbol_and_source_can_be_given(tmp_path: Path, tape: onetape.Tape) -> None:
    options = Options(symbol="{market}:{ticker}", source="lean")
    import_file(tape, _trades(tmp_path, "1000,491800,300,,null,1\n"), options=options)
    latest = tape.latest("usa:AIG")
    assert latest is not None
    assert (latest.source, latest.flags) == ("lean", 1 << 31)


def test_an_option_that_the_format_has_no_use_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="--allow-cut: nothing in the format lean for it"):
        import_file(None, _trades(tmp_path, "1,2,3\n"), options=Options(allow_cut=True))


def test_bars_of_quotes_do_not_pose_as_bars_of_trades(tmp_path: Path, tape: onetape.Tape) -> None:
    place = tmp_path / "future" / "cme" / "minute" / "es"
    rows = "0,1,2,1,2,5,3,4,3,4,6\n60000,,,,,0,3,4,3,4,7\n120000,,,,,0,,,,,0\n"
    result = import_file(tape, _zip(place / "20131007_quote.zip", {"20131007_es_minute_quote_201312.csv": rows}))[0]
    assert (result.rows, result.stored) == (3, 3)
    assert result.skipped == {"quotes with neither a bid nor an ask": 1}
    assert tape.bars("ES201312").num_rows == 0
    assert tape.bars("ES201312:bid")["volume"].to_pylist() == [5.0]
    assert tape.bars("ES201312:ask")["volume"].to_pylist() == [6.0, 7.0]


# --- sessions that come twice -----------------------------------------------------------------------------------------

SESSION = "".join(f"{34_200_000 + i * 1000},{491_800 + i},100,P,0,0\n" for i in range(40))


def test_a_session_under_the_next_days_name_is_refused_with_both_names(tmp_path: Path, tape: onetape.Tape) -> None:
    import_file(tape, _trades(tmp_path, SESSION, "20131007"))
    second = _trades(tmp_path, SESSION, "20131008")
    with pytest.raises(
        ImportInvalid, match=r"20131008_aig.*2013-10-08 is, row for row, that of 2013-10-07 \(.*20131007"
    ):
        import_file(tape, second)
    assert tape.stats().ticks == 40
    once = import_file(tape, second, options=Options(repeats="once"))[0]
    assert once.stored == 0
    assert once.repeats is not None and "20131007_trade.zip" in once.repeats
    assert import_file(tape, second, options=Options(repeats="keep"))[0].stored == 40


def test_a_session_twice_in_one_zip_is_imported_once_under_the_zips_day(tmp_path: Path, tape: onetape.Tape) -> None:
    path = tmp_path / "index" / "india" / "minute" / "nifty50" / "20190101_trade.zip"
    rows = "".join(f"{33_300_000 + i * 60_000},5,6,5,6,0\n" for i in range(40))
    _zip(path, {"20190102_nifty_minute_trade.csv": rows, "20190101_nifty_minute_trade.csv": rows})
    with pytest.raises(ImportInvalid, match="2019-01-02 is, row for row, that of 2019-01-01"):
        import_file(tape, path)
    with pytest.raises(ImportInvalid, match="row for row"):
        import_file(None, path)
    assert tape.stats().head == 0
    results = import_file(tape, path, options=Options(repeats="once"))
    assert [(one.stored, bool(one.repeats)) for one in results] == [(40, False), (0, True)]
    assert results[0].ts_first_ns == _ns(datetime(2019, 1, 1, 9, 15, tzinfo=ZoneInfo("Asia/Kolkata")))


def test_two_quiet_days_that_look_alike_are_two_days(tmp_path: Path, tape: onetape.Tape) -> None:
    for day in ("20131007", "20131008"):
        assert import_file(tape, _trades(tmp_path, "1000,491800,300,P,0,0\n" * 3, day))[0].stored == 3


# --- hostile input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1000,491800,300,P,0,0\n2000,x,300,P,0,0\n", "line 2, price: 'x': not a number"),
        ("1000,491800,300,P,0,0\n86400000,1,300,P,0,0\n", "line 2, time: '86400000': not milliseconds since midnight"),
        ("-1,491800,300,P,0,0\n", "line 1, time: '-1': not milliseconds"),
        ("1000,491800,300,P,zz,0\n", "line 1, conditions: 'zz': not 31 bits"),
        ("1000,491800,300,P,FFFFFFFF,0\n", "line 1, conditions"),
        ("1000,491800,300,P,0,maybe\n", "line 1, suspicious: 'maybe': it is 0 or 1"),
        ("1000,491800,-300,P,0,0\n", "line 1, size: -300.0: a size is not negative"),
        ("1000,,300,P,0,0\n", "line 1, price: None: a tick has a price"),
        ("1000,1,2,3,4,5,6,7,8,9\n", "line 1: 10 columns, a tick trade has 3 or 4 or 6"),
        ("1000,491800,300,P,0,0\n1000,491800\n", "line 2: 2 columns instead of 6"),
        ("1000,491800,300,\xff,0,0\n" * 2, "line 1: not UTF-8"),
        ("x" * 10_000, "line 1: longer than 4096 bytes"),
        ("1000,inf,300,P,0,0\n", "line 1, price: inf: a number is finite"),
    ],
)
def test_a_wrong_row_names_its_place_and_stores_nothing(
    tmp_path: Path, tape: onetape.Tape, rows: str, message: str
) -> None:
    path = tmp_path / "equity" / "usa" / "tick" / "aig" / "20131007_trade.zip"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("20131007_aig_Trade_Tick.csv", rows.encode("latin1"))
    with pytest.raises(ImportInvalid) as caught:
        import_file(tape, path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert tape.stats().head == 0


def test_wrong_rows_go_to_quarantine_and_the_good_ones_are_stored(tmp_path: Path, tape: onetape.Tape) -> None:
    path = _trades(tmp_path, "1000,491800,300,P,0,0\n2000,x,300,P,0,0\ny,491800,300,P,0,0\n4000,1,1,P,0,0\n")
    result = import_file(tape, path, options=Options(on_invalid="quarantine"))[0]
    assert (result.rows, result.stored, result.refused) == (4, 2, 2)
    assert [(one.place, one.value) for one in result.first_refused] == [("line 2", "'x'"), ("line 3", "'y'")]
    assert {one.field for one in tape.quarantined()} == {"price", "ts_event_ns"}
    again = import_file(tape, path, options=Options(on_invalid="quarantine"))[0]
    assert (again.stored, again.known) == (0, 2)
    assert len(tape.quarantined()) == 2


def test_zips_that_are_none_are_refused(tmp_path: Path, tape: onetape.Tape) -> None:
    good = _trades(tmp_path, SESSION).read_bytes()
    place = tmp_path / "equity" / "usa" / "tick" / "aig"
    cases = {
        "20131001_trade.zip": good[:-30],
        "20131002_trade.zip": b"",
        "20131003_trade.zip": b"not a zip at all",
        "20131004_trade.zip": good[:40] + bytes(len(good) - 80) + good[-40:],
    }
    for name, content in cases.items():
        (place / name).write_bytes(content)
        with pytest.raises(ImportInvalid, match=name):
            import_file(tape, place / name, "lean")
    assert tape.stats().head == 0


def test_a_damaged_member_is_found_before_anything_is_stored(tmp_path: Path, tape: onetape.Tape) -> None:
    path = _trades(tmp_path, "".join(f"{i},{491_800 + i * 7 % 977},300,P,0,0\n" for i in range(50_000)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(ImportInvalid):
        import_file(tape, path)
    assert tape.stats().head == 0


def test_members_that_lean_does_not_give_are_refused(tmp_path: Path, tape: onetape.Tape) -> None:
    place = tmp_path / "equity" / "usa" / "tick" / "aig"
    row = "1000,491800,300,P,0,0\n"
    cases = {
        "20131001_trade.zip": {"20131001_aig_Trade_Tick.csv": row, "../../evil.csv": row},
        "20131002_trade.zip": {"20131002_aig_Quote_Tick.csv": row},
        "20131003_trade.zip": {"20131003_aig_minute_trade.csv": row},
        "20131004_trade.zip": {},
    }
    for name, members in cases.items():
        with pytest.raises(ImportInvalid, match=name):
            import_file(tape, _zip(place / name, members), "lean")
    assert tape.stats().head == 0
    assert not (tmp_path / "equity" / "evil.csv").exists()


def test_a_folder_inside_the_zip_does_no_harm(tmp_path: Path, tape: onetape.Tape) -> None:
    path = tmp_path / "equity" / "usa" / "tick" / "aig" / "20131007_trade.zip"
    _zip(path, {"inside/": "", "inside/20131007_aig_Trade_Tick.csv": "1000,491800,300,P,0,0\n", "__MACOSX/x": "junk"})
    assert import_file(tape, path)[0].stored == 1


def test_an_empty_session_is_no_error(tmp_path: Path, tape: onetape.Tape) -> None:
    assert import_file(tape, _trades(tmp_path, ""))[0].rows == 0


def test_a_bomb_without_a_line_is_read_no_further_than_a_line(tmp_path: Path) -> None:
    import tracemalloc

    path = _trades(tmp_path, "0" * 50_000_000)
    tracemalloc.start()
    with pytest.raises(ImportInvalid, match="longer than"):
        import_file(None, path)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_a_bomb_of_rows_is_read_in_bounded_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = _trades(tmp_path, "1000,491800,300,P,0,0\n" * 1_000_000)
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    assert import_file(None, path)[0].rows == 1_000_000
    assert tracemalloc.get_traced_memory()[1] < 60_000_000
    tracemalloc.stop()
