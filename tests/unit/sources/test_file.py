"""Files as a source: every record in order, on from where the tape is, and no changed file taken for the old one."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import msgspec
import pytest

import onetape
from onetape.errors import ConfigInvalid, ImportInvalid
from onetape.record import Bar, Tick
from onetape.sources import file_reading, registry
from onetape.sources.feed import Feed
from onetape.sources.source import Source

T0 = 1_700_000_000_000_000_000


def source(path: Path, **options: object) -> Source:
    return registry.make({"kind": "file", "path": str(path), **options})


def fed(tape: onetape.Tape, path: Path, **options: object) -> Feed:
    feed = Feed(source(path, **options), tape)
    feed.run()
    return feed


def csv(path: Path, count: int, start: int = 0) -> Path:
    rows = "".join(f"{T0 + n},{n}.5,1\n" for n in range(start, start + count))
    path.write_text("time,price,size\n" + rows)
    return path


def prices(tape: onetape.Tape, symbol: str = "X") -> list[float]:
    return tape.read(symbol, 0, 2**62, ["price"])["price"].to_pylist()


def test_a_csv_file_is_fed_once_however_often(tmp_path: Path) -> None:
    path = csv(tmp_path / "x.csv", 3)
    with onetape.open(tmp_path / "t.db") as tape:
        assert fed(tape, path, symbol="X").stats.stored == 3
        assert fed(tape, path, symbol="X").stats.stored == 0
        path.rename(tmp_path / "renamed.csv")
        assert fed(tape, tmp_path / "renamed.csv", symbol="X").stats.stored == 0
        assert prices(tape) == [0.5, 1.5, 2.5]


def test_a_feed_that_was_ended_within_a_file_goes_on_at_the_next_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_reading, "_LINES", 4)
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(Tick("X", T0 + n, float(n))) + b"\n" for n in range(10)))
    first = source(path)
    given = iter(first)
    with onetape.open(tmp_path / "t.db") as tape:
        one = next(given)
        tape.append(one.records, cursor=(first.cursor_name, None, str(one.cursor)))
        assert len(one.records) == 4
        assert fed(tape, path).stats.stored == 6
        assert prices(tape) == [float(n) for n in range(10)]


def test_json_lines_of_ones_own_come_back_bit_for_bit_and_those_of_others_by_their_usual_names(tmp_path: Path) -> None:
    own = Tick("X", T0, 0.1 + 0.2, 3.0, 1.0, 2.0, side=1, flags=7, source="me", ts_recv_ns=T0 + 5)
    bar = Bar("X", "1min", T0 - T0 % 60_000_000_000, 1.0, 2.0, 0.5, 1.5, 10.0, source="me")
    other = {"instrument": "Y", "symbol": "Y", "last_price": 7.25, "timestamp": T0 / 1e9, "qty": 2}
    path = tmp_path / "x.jsonl.gz"
    lines = [msgspec.json.encode(own), msgspec.json.encode(bar), json.dumps(other).encode(), b"", b"{torn"]
    path.write_bytes(gzip.compress(b"\n".join(lines)))
    with onetape.open(tmp_path / "t.db") as tape:
        feed = fed(tape, path)
        assert feed.stats.stored == 3 and feed.stats.refused == 1
        assert "line 5" in feed.stats.facts["first_refused"]
        assert msgspec.structs.replace(tape.recent("X", 1)[0], seq=None) == own
        assert tape.recent("Y", 1)[0].price == 7.25
        assert tape.bars("X", "1min", 0, 2**62).num_rows == 1


def test_wrong_rows_are_counted_and_kept_in_quarantine(tmp_path: Path) -> None:
    path = csv(tmp_path / "x.csv", 2)
    path.write_text(path.read_text() + f"{T0 + 9},never,1\n")
    with onetape.open(tmp_path / "t.db") as tape:
        feed = fed(tape, path, symbol="X")
        assert (feed.stats.stored, feed.stats.refused, len(tape.quarantined())) == (2, 1, 1)


def test_a_file_added_to_a_folder_is_read_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    csv(folder / "a.csv", 2)
    with onetape.open(tmp_path / "t.db") as tape:
        fed(tape, folder, symbol="X")
        csv(folder / "b.csv", 2, 2)
        assert fed(tape, folder, symbol="X").stats.stored == 2
        csv(folder / "a.csv", 3)
        with pytest.raises(ConfigInvalid, match="is not what was read before"):
            fed(tape, folder, symbol="X")
        assert prices(tape) == [0.5, 1.5, 2.5, 3.5]


def test_a_cut_recording_gives_what_is_whole_and_says_where_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    lines = b"".join(msgspec.json.encode(Tick("X", T0 + n, n * 1.1)) + b"\n" for n in range(50_000))
    path.write_bytes(gzip.compress(lines)[:-20_000])
    with onetape.open(tmp_path / "t.db") as tape:
        with pytest.raises(ImportInvalid, match=r"line \d+: cannot be read"):
            fed(tape, path)
        there = len(prices(tape))
        assert there > 8_000
        feed = fed(tape, path, allow_cut=True)
        assert feed.stats.stored > 0 and prices(tape) == [n * 1.1 for n in range(len(prices(tape)))]


def test_what_is_no_file_and_no_option_is_said(tmp_path: Path) -> None:
    with pytest.raises(ImportInvalid, match="no such file"):
        list(source(tmp_path / "none.csv"))
    with pytest.raises(ConfigInvalid, match="colour"):
        source(tmp_path / "x.csv", colour="red")
    (tmp_path / "x.bin").write_bytes(b"\x00\x01")
    with pytest.raises(ImportInvalid, match="not a format that is known"):
        list(source(tmp_path / "x.bin"))
