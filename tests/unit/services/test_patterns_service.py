from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

import onetape
from onetape import ConfigInvalid, Tape, Tick
from onetape.record import BUY, MINUTE_NS
from onetape.services import registry as services
from onetape.services.patterns import PREFIX, Detection, PatternService, registry
from onetape.services.patterns.bars import from_table
from onetape.services.patterns.learned import Learned
from onetape.steady import SteadyTape

START_NS = 1_700_000_040_000_000_000 // MINUTE_NS * MINUTE_NS


@pytest.fixture
def tape(tmp_path: Path) -> Iterator[Tape]:
    with onetape.open(tmp_path / "t.db", retention_days=None) as made:
        yield made


class Until:
    """Runs a service in an event loop of its own until a condition holds."""

    def __init__(self, tape: Tape, **options: object) -> None:
        options = {"detectors": ["breakout"], "history_s": 1e9, **options}
        self.service = PatternService(tape, **options)  # type: ignore[arg-type]

    def __call__(self, condition: Callable[[PatternService], object], deadline_s: float = 60) -> PatternService:
        async def run() -> None:
            await self.service.start()
            try:
                end = time.monotonic() + deadline_s
                while not condition(self.service):
                    assert time.monotonic() < end, self.service.status()
                    await asyncio.sleep(0.01)
            finally:
                await self.service.stop()

        asyncio.run(run())
        return self.service


def minute(number: int, *prices: float, symbol: str = "ES", size: float = 1) -> list[Tick]:
    begin = START_NS + number * MINUTE_NS
    return [Tick(symbol, begin + k * 1_000_000_000, price, size, side=BUY) for k, price in enumerate(prices)]


def quiet(count: int, begin: int = 0, symbol: str = "ES") -> list[Tick]:
    return [tick for n in range(begin, begin + count) for tick in minute(n, 100, 101, 99, 100, symbol=symbol)]


def broken_out(after: int = 30, rise: float = 2.0, symbol: str = "ES") -> list[Tick]:
    """Quiet minutes, one that closes above them, and 12 that go on rising; the last of them is not over."""
    ticks = quiet(after, symbol=symbol)
    return ticks + [
        tick for n in range(13) for tick in minute(after + n, 102 + rise * n, 103 + rise * n, symbol=symbol)
    ]


def standing(tape: Tape, symbol: str = "ES") -> list[Tick]:
    return tape.recent(PREFIX + symbol, 1000)


def test_a_breakout_is_written_onto_the_tape_as_a_quote(tape: Tape) -> None:
    tape.append(broken_out())
    service = Until(tape)(lambda s: s.recent())
    (tick,) = standing(tape)
    (detection,) = service.recent()
    assert detection == Detection.from_tick(tick)
    assert (tick.price, tick.bid, tick.side, tick.flags, tick.source) == (None, 103.0, 1, 1, "breakout")
    assert tick.ts_event_ns == START_NS + 30 * MINUTE_NS
    assert detection.known_ns == tick.ts_event_ns + MINUTE_NS
    assert tick.bid_size == 0.5, "nothing is learned yet"
    assert not tape.bar_list(PREFIX + "ES"), "no bar is made of a detection"


def test_a_live_bar_is_judged_when_a_later_trade_completes_it(tape: Tape) -> None:
    ticks = broken_out()
    behind = next(k for k, tick in enumerate(ticks) if tick.ts_event_ns >= START_NS + 31 * MINUTE_NS)
    tape.append(ticks[:behind])
    heard: list[Detection] = []
    until = Until(tape)
    until.service.subscribe(heard.append)

    def step(service: PatternService) -> bool:
        if service.status()["judged"] and len(standing(tape)) == 0 and not step_done:
            step_done.append(True)
            tape.append(ticks[behind : behind + 1])
        return bool(heard)

    step_done: list[bool] = []
    until(step)
    assert [(d.name, d.ts_ns) for d in heard] == [("breakout", START_NS + 30 * MINUTE_NS)]


def test_a_restart_and_a_second_service_double_nothing_and_know_the_same(tape: Tape, tmp_path: Path) -> None:
    tape.append(broken_out())
    first = Until(tape)(lambda s: s.recent() and s.statistics()["total"])
    before = first.statistics()
    again = Until(tape)
    again(lambda s: s.status()["running"])
    assert again.service.statistics() == before
    (tmp_path / "t.db.patterns").unlink()  # all is judged anew
    relearned = Until(tape)(lambda s: s.statistics()["total"])
    assert relearned.statistics() == before
    assert len(standing(tape)) == 1


def test_two_services_at_once_write_each_detection_once(tape: Tape) -> None:
    one, two = Until(tape), Until(tape)

    async def run() -> None:
        await one.service.start()
        await two.service.start()
        try:
            for n, tick in enumerate(broken_out()):
                tape.append(tick)
                if n % 10 == 0:
                    await asyncio.sleep(0.001)
            end = time.monotonic() + 60
            while one.service.statistics()["total"] < 1 or two.service.statistics()["total"] < 1:
                assert time.monotonic() < end
                await asyncio.sleep(0.01)
        finally:
            await one.service.stop()
            await two.service.stop()

    asyncio.run(run())
    assert len(standing(tape)) == 1
    assert one.service.status()["made"] + two.service.status()["made"] == 1
    assert one.service.statistics()["total"] == 1


@pytest.mark.parametrize(("rise", "won"), [(2.0, 1), (-2.0, 0)])
def test_the_outcome_is_learned_when_the_horizon_has_passed(tape: Tape, rise: float, won: int) -> None:
    tape.append(broken_out(rise=rise))
    service = Until(tape)(lambda s: s.statistics()["total"])
    (row,) = [row for row in service.statistics()["patterns"] if row["direction"] == 1]
    assert (row["name"], row["successes"], row["failures"]) == ("breakout", won, 1 - won)
    assert row["confidence"] == (won + 5) / 11


def test_the_next_detection_carries_what_was_learned(tape: Tape) -> None:
    tape.append(broken_out())
    Until(tape)(lambda s: s.statistics()["total"])
    later = [tick for n in range(43, 80) for tick in minute(n, 130, 131, 129, 130)]
    tape.append([*later, *minute(80, 135, 140), *minute(81, 140)])
    service = Until(tape)(lambda s: len(s.recent()) > 1)
    assert service.recent()[0].confidence == 6 / 11


def test_a_detection_that_a_late_trade_undoes_is_taken_back_and_may_come_again(tape: Tape) -> None:
    tape.append(broken_out())
    Until(tape)(lambda s: s.statistics()["total"])
    tape.append(Tick("ES", START_NS + 30 * MINUTE_NS + 59_000_000_000, 100.0, 1))  # it did not close above after all
    service = Until(tape)(lambda s: not [t for t in standing(tape) if t.ts_event_ns == START_NS + 30 * MINUTE_NS])
    assert service.status()["taken_back"] == 1
    late = next(t for t in tape.recent("ES", 1000) if t.price == 100.0 and t.ts_event_ns > START_NS + 30 * MINUTE_NS)
    tape.cancel(late)
    Until(tape)(lambda s: [t for t in standing(tape) if t.ts_event_ns == START_NS + 30 * MINUTE_NS])
    assert len(standing(tape)) == 1, "and what the revised bar showed instead is gone"


def test_a_late_trade_that_changes_the_outcome_is_counted_instead_not_besides(tape: Tape) -> None:
    tape.append(broken_out(rise=2.0))
    service = Until(tape)(lambda s: s.statistics()["successes"] == 1)
    tape.append(Tick("ES", START_NS + 31 * MINUTE_NS + 500_000_000, 90.0, 1))  # it fell far meanwhile
    service = Until(tape)(lambda s: s.statistics()["successes"] == 0)
    assert service.statistics()["total"] == 1


def test_while_the_tape_is_away_it_says_so_and_then_goes_on_where_it_was(tape: Tape) -> None:
    class Away:
        tape: Tape | None = None

        def __init__(self, path: Path) -> None:
            self.path = path

    holder = Away(tape.path)
    until = Until(holder)  # type: ignore[arg-type]
    tape.append(broken_out())

    def step(service: PatternService) -> bool:
        trouble = service.status()["trouble"]
        if holder.tape is None and trouble:
            assert "away" in trouble
            assert service.recent() == []
            holder.tape = tape
        return bool(holder.tape and service.recent())

    service = until(step)
    assert service.status()["trouble"] is None


def test_on_a_steady_tape_it_waits_out_an_outage_and_misses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "away" / "t.db"  # its folder is missing: the tape is away
    with SteadyTape(path, retention_days=None, retry_s=0.05) as steady:
        until = Until(steady)  # type: ignore[arg-type]
        steady.append(broken_out())

        def step(service: PatternService) -> bool:
            if not path.parent.exists() and "away" in (service.status()["trouble"] or ""):
                path.parent.mkdir()
            return bool(service.recent() and service.statistics()["total"])

        found = until(step).recent()
    assert [(d.name, d.ts_ns) for d in found] == [("breakout", START_NS + 30 * MINUTE_NS)]


def test_a_damaged_file_of_what_was_learned_does_not_stop_it(tape: Tape, tmp_path: Path) -> None:
    (tmp_path / "t.db.patterns").write_bytes(b"not a database" * 1000)
    tape.append(broken_out())
    until = Until(tape)
    until(lambda s: s.recent() and "not kept" in (s.status()["trouble"] or ""))


def test_many_symbols_and_intervals_are_kept_apart(tape: Tape) -> None:
    tape.append(broken_out(symbol="ES") + broken_out(symbol="NQ"))
    tape.append(Tick(PREFIX + "ES", START_NS, bid=1))  # a quote of another's
    tape.append(Tick(PREFIX + "ES", START_NS, bid=1, bid_size=1, trades=2**62))
    only = Until(tape, symbols=["NQ"])(lambda s: s.recent())
    assert {(d.symbol, d.interval) for d in only.recent()} == {("NQ", "1min")}
    assert only.recent(symbol="ES") == [] and only.recent(limit=0) == []
    both = Until(tape, intervals=["1min", "20s"])(lambda s: len({(d.symbol, d.interval) for d in s.recent()}) == 4)
    assert {d.interval for d in both.recent(symbol="NQ")} == {"1min", "20s"}
    assert [d.key for d in both.recent()] == sorted((d.key for d in both.recent()), reverse=True)


def test_what_was_pruned_is_counted_for_good(tmp_path: Path) -> None:
    from onetape.services.patterns.learned import KEPT_NS, Outcome

    learned = Learned(tmp_path / "l")
    day = 86_400 * 10**9
    learned.learn("ES", "1min", [Outcome(day, 1, 1, True)], day)
    learned.learn("ES", "1min", [Outcome(KEPT_NS + 3 * day, 1, 1, False)], KEPT_NS + 3 * day)
    learned.learn("ES", "1min", [Outcome(day, 1, 1, False), Outcome(day, 1, 1, None)], KEPT_NS + 3 * day)
    assert learned.counts() == {(1, "1min", 1): (1, 1)}
    learned.close()


def test_unknown_detectors_and_intervals_are_refused_by_name(tape: Tape) -> None:
    with pytest.raises(ConfigInvalid, match="'moon'"):
        PatternService(tape, detectors=["moon"])
    with pytest.raises(ConfigInvalid, match="'100tick'"):
        PatternService(tape, intervals=["100tick"])


def test_numbers_on_tapes_never_change() -> None:
    named = {number: detector.name for number, detector in registry.DETECTORS.items()}
    assert [named[n] for n in range(1, 9)] == [
        "breakout",
        "volume_spike",
        "volatility_expansion",
        "volatility_contraction",
        "trend",
        "moving_average_cross",
        "support",
        "resistance",
    ]
    assert (named[101], named[116], named[119], named[161]) == (
        "CDL2CROWS",
        "CDLDOJI",
        "CDLENGULFING",
        "CDLXSIDEGAP3METHODS",
    )
    assert len(named) == 69


def test_what_the_service_wrote_is_what_one_look_at_history_finds(tape: Tape) -> None:
    ticks = walk()
    until = Until(tape, detectors=None)
    for begin in range(0, len(ticks), 700):
        tape.append(ticks[begin : begin + 700])
        until(lambda s: s.status()["behind"] == {"1min": 0})
    check_against_history(tape)


def test_a_killed_service_leaves_nothing_double_and_nothing_out(tape: Tape) -> None:
    tape.append(walk())
    begun = (
        "import asyncio, sys, onetape\n"
        "from onetape.services.patterns import PatternService\n"
        "async def run():\n"
        "    service = PatternService(onetape.open(sys.argv[1], retention_days=None), history_s=1e9)\n"
        "    service.subscribe(lambda detection: print(detection.name, flush=True))\n"
        "    await service.start()\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(run())\n"
    )
    child = subprocess.Popen([sys.executable, "-c", begun, str(tape.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None and child.stdout.readline()  # it has written, and not remembered that it has
    finally:
        child.kill()
        child.wait()
        child.stdout.close()  # type: ignore[union-attr]
    assert standing(tape)
    learned = Until(tape, detectors=None)(lambda s: s.status()["behind"] == {"1min": 0}).statistics()
    check_against_history(tape)
    Path(f"{tape.path}.patterns").unlink()
    anew = Until(tape, detectors=None)(lambda s: s.status()["behind"] == {"1min": 0}).statistics()
    assert {**anew} == {**learned} and learned["total"] > 100


def walk() -> list[Tick]:
    """700 minutes of four trades each, of which the last is not over."""
    dice = random.Random(5)
    price, ticks = 100.0, []
    for n in range(700):
        for k in range(4):
            price = round(price + dice.choice((-0.5, -0.25, 0, 0.25, 0.5)), 2)
            ticks.append(Tick("ES", START_NS + n * MINUTE_NS + k * 10**10, price, float(dice.randint(1, 9))))
    return ticks


def check_against_history(tape: Tape) -> None:
    whole = registry.detect(from_table(tape.bars("ES")))
    wanted = [(START_NS + found.place * MINUTE_NS, found.detector.number, found.direction) for found in whole]
    columns = tape.read(PREFIX + "ES", columns=["ts_event_ns", "flags", "side"]).to_pylist()
    assert sorted((row["ts_event_ns"], row["flags"], row["side"]) for row in columns) == sorted(wanted)
    assert len(wanted) > 100


def test_old_times_that_come_live_are_judged_however_short_the_history(tape: Tape) -> None:
    tape.append(quiet(40, symbol="OLD"))  # before the service was there, and out of its history
    until = Until(tape, history_s=60)
    ticks = broken_out()  # a replay: times of years ago

    def step(service: PatternService) -> bool:
        if service.status()["behind"] == {"1min": 0} and ticks:
            tape.append(ticks)
            ticks.clear()
        return bool(service.recent())

    assert until(step).recent()[0].symbol == "ES"
    assert until.service.recent(symbol="OLD") == []


def test_a_table_of_the_settings_makes_the_service(tape: Tape) -> None:
    made = services.make("patterns", {"intervals": ["5min"], "symbols": ["ES"], "detectors": ["levels"]}, tape)  # type: ignore[arg-type]
    assert made.status()["intervals"] == ["5min"] and made.status()["detectors"] == 2
    assert msgspec.json.encode([made.status(), made.statistics()])  # type: ignore[attr-defined]
    with pytest.raises(ConfigInvalid, match=r"services\.patterns"):
        services.make("patterns", {"interval": "5min"}, tape)  # type: ignore[arg-type]


def test_a_service_that_was_off_for_longer_than_ticks_are_kept_goes_on(tape: Tape) -> None:
    tape.append(broken_out())
    tape.seal()
    Until(tape)(lambda s: s.recent() and s.status()["behind"] == {"1min": 0})
    tape.append([tick for n in range(50, 90) for tick in minute(n, 100, 101, 99, 100)])
    tape.seal()
    assert tape.prune(now=time.time_ns() + 40 * 86_400 * 10**9, retention_days=1), "behind where it was, all is gone"
    tape.append([tick for n in range(13) for tick in minute(90 + n, 102 + 2 * n, 103 + 2 * n)])
    again = Until(tape)(lambda s: len(s.recent()) > 1)
    assert [d.ts_ns for d in again.recent()] == [START_NS + n * MINUTE_NS for n in (90, 30)]


def test_a_symbol_beyond_all_measure_keeps_no_other_from_being_judged(tape: Tape) -> None:
    wild = [
        Tick("BAD", START_NS + n * MINUTE_NS + k * 10**9, (-1) ** (n + k) * 1e308, 9.0 if n % 51 else 1e4)
        for n in range(120)
        for k in range(2)
    ]
    wild = [msgspec.structs.replace(tick, size=tick.size + n % 7) for n, tick in enumerate(wild)]  # type: ignore[operator]
    tape.append(wild)
    tape.append(broken_out(symbol="ZZ"))
    service = Until(tape, detectors=None)(lambda s: s.recent(symbol="ZZ") and s.status()["behind"] == {"1min": 0})
    assert service.status()["trouble"] is None and service.recent(symbol="BAD") == []


def test_a_symbol_that_is_added_is_judged_from_before_it_was_asked_for(tape: Tape) -> None:
    tape.append(broken_out())
    tape.append(broken_out(symbol="NQ"))
    one = Until(tape, symbols=["ES"])(lambda s: s.recent() and s.status()["behind"] == {"1min": 0})
    assert one.recent(symbol="NQ") == []
    both = Until(tape, symbols=["ES", "NQ"])(lambda s: s.recent(symbol="NQ"))
    assert len(both.recent(symbol="ES")) == len(both.recent(symbol="NQ")) == 1
    more = Until(tape, symbols=["NQ"], detectors=["breakout", "trend"], history_s=0)
    tape.append([tick for n in range(43, 80) for tick in minute(n, 200 + 2 * n, symbol="NQ")])
    more(lambda s: any(d.name == "trend" for d in s.recent(symbol="NQ")))


def test_what_could_not_be_judged_of_a_symbol_is_judged_once_it_can(
    tape: Tape, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onetape.services.patterns import service as module

    whole = module.judge_bars

    def damaged(tape: Tape, symbol: str, *more: object) -> object:
        if symbol == "ES":
            raise onetape.ChunkCorrupt("a chunk of ES is damaged")
        return whole(tape, symbol, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "judge_bars", damaged)
    tape.append(broken_out())
    tape.append(broken_out(symbol="NQ"))
    off = Until(tape)(lambda s: s.recent(symbol="NQ") and s.status()["behind"] == {"1min": 0})
    assert "a chunk of ES is damaged" in off.status()["trouble"]
    monkeypatch.setattr(module, "judge_bars", whole)  # it was repaired, and there is a bar more
    tape.append([*minute(43, 200), *minute(44, 200)])
    back = Until(tape)(lambda s: s.recent(symbol="ES"))
    assert [d.ts_ns for d in back.recent(symbol="ES")] == [START_NS + 30 * MINUTE_NS]
    assert back.status()["trouble"] is None


def test_a_tick_of_a_wrong_year_does_not_make_the_first_look_long(tape: Tape) -> None:
    tape.append(Tick("AA", START_NS - 30 * 365 * 86_400 * 10**9, 5.0))
    tape.append([Tick("AA", START_NS, 5.0), *broken_out()])
    Until(tape, intervals=["1s", "1min"])(lambda s: s.recent(symbol="ES") and len(s.status()["behind"]) == 2, 20)


def test_a_symbol_may_be_asked_for_by_its_alias(tape: Tape) -> None:
    tape.append(broken_out(symbol="ESZ6"))
    tape.alias("ES", "ESZ6")
    service = Until(tape, symbols=["ES"])(lambda s: s.recent())
    assert [d.symbol for d in service.recent(symbol="ES")] == ["ESZ6"]
