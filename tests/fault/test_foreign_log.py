"""A log of another tape whose pages fit: both tapes were made the same way, so that nothing but the records differs."""

from __future__ import annotations

import shutil

import pytest

import onetape
from onetape.store import layout

TS = 1_767_225_600_000_000_000


def _twins(tmp_path, append):
    """Two tapes alike but for symbol and prices, the second one's log laid beside the first; the first's prices."""
    mine, other = tmp_path / "mine.db", tmp_path / "other.db"
    for path, symbol, price in ((mine, "MINE", 100.0), (other, "OTHER", 900.0)):
        with onetape.open(path, retention_days=None) as tape:
            append(tape, [onetape.Tick(symbol, TS + i, price=price + i) for i in range(40)])
    with onetape.open(other, retention_days=None) as tape:
        tape.append(onetape.Tick("OTHER", TS + 99, price=999.0))
        shutil.copy(layout.wal_path(other), layout.wal_path(mine))
    return mine, [100.0 + i for i in range(40)]


@pytest.mark.parametrize("how", ["one by one", "at once"])
def test_a_log_whose_pages_fit_never_shows_another_tapes_records(tmp_path, how):
    def append(tape, ticks):
        for part in [[tick] for tick in ticks] if how == "one by one" else [ticks]:
            tape.append(part)

    path, prices = _twins(tmp_path, append)
    for mode in ("rw", "r"):
        with pytest.raises(onetape.TapeDamaged, match="does not belong") as caught:
            onetape.open(path, mode=mode)
        assert "--repair" in caught.value.hint
    assert not onetape.doctor(path).healthy
    assert onetape.repair(path, execute=True).log is not None
    with onetape.open(path, retention_days=None) as tape:
        assert tape.read("MINE")["price"].to_pylist() == prices
        assert [symbol.symbol for symbol in tape.symbols()] == ["MINE"]


def test_a_log_of_ones_own_is_taken_however_much_was_sealed_in_it(tmp_path):
    path, copy = tmp_path / "t.db", tmp_path / "copy.db"
    with onetape.open(path, retention_days=None) as tape:
        tape.append([onetape.Tick("X", TS + i, price=float(i)) for i in range(40)])
    with onetape.open(path, retention_days=None) as tape:
        for step in range(6):
            if step % 2:
                tape.seal()
            else:
                tape.append([onetape.Tick("X", TS + 100 + 10 * step + i, price=1.0) for i in range(10)])
            shutil.copy(path, copy)
            shutil.copy(layout.wal_path(path), layout.wal_path(copy))
            layout.index_path(copy).unlink(missing_ok=True)
            with onetape.open(copy, mode="r") as found:
                assert found.read("X")["seq"].to_pylist() == tape.read("X")["seq"].to_pylist()
