"""The list of symbols: the change of the day, whatever comes late."""

import onetape
from onetape import Tick
from onetape.services.system import System
from onetape.steady import SteadyTape
from onetape.web import views
from onetape.web.candles import Known

DAY = 86_400_000_000_000
T0 = 20_000 * DAY + 14 * 3_600_000_000_000


def test_a_late_first_trade_of_the_day_moves_the_change_and_a_price_below_zero_rises_upwards(tmp_path, monkeypatch):
    onetape.open(tmp_path / "t.db", retention_days=None).close()
    with SteadyTape(tmp_path / "t.db", retention_days=None) as tape:
        shown = views.Views(System(tape=tape), Known(tape))

        def listed():
            monkeypatch.setattr(views, "OPEN_S", -1.0)  # a minute has passed
            return {row["symbol"]: (row["change"], row["change_pct"]) for row in shown.symbols("", 10)["symbols"]}

        tape.append([Tick("A", T0, 100.0), Tick("A", T0 + 1, 110.0), Tick("B", T0, -4.0), Tick("B", T0 + 1, -3.0)])
        assert listed() == {"A": (10.0, 10.0), "B": (1.0, 25.0)}
        tape.append(Tick("A", T0 - 3_600_000_000_000, 80.0))
        assert listed()["A"] == (30.0, 37.5)
