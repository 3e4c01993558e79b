"""The web API of a served system, asked over the network: every path, and bars that go on live from history."""

import json
import math
import time
import types

import httpx2
import pytest
from tests.serving import Page, Standing, served

import onetape
from onetape import Tick
from onetape.clock import now_ns
from onetape.record import MINUTE_NS
from onetape.services.registry import make
from onetape.services.system import System
from onetape.steady import SteadyTape

T0 = 1_700_000_040_000_000_000 // MINUTE_NS * MINUTE_NS
MS = 1_000_000


def trade(minute, price=10.0, symbol="A", seconds=0.0):
    return Tick(symbol, T0 + minute * MINUTE_NS + int(seconds * 1e9), price=price, size=1.0)


@pytest.fixture
def tape(tmp_path):
    with onetape.open(tmp_path / "t.db", retention_days=None) as opened:
        opened.append([trade(minute, 100.0 + minute % 7) for minute in range(50)])
        opened.append([Tick("B:x", T0, price=5.0, size=2.0, bid=4.0, ask=6.0, open=4.0)])
        yield opened


@pytest.fixture
def system(tape):
    return System(tape=Standing(tape))


@pytest.fixture
def server(system):
    with served(system) as running:
        yield running


@pytest.fixture
def client(server):
    with httpx2.Client(base_url=server.address, timeout=60) as made:
        yield made


def get(client, path, **query):
    answer = client.get(f"/api/v1/{path}", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def rows_of(tape, symbol="A", interval="1min"):
    return [
        [bar.ts_start_ns // MS, bar.open, bar.high, bar.low, bar.close, bar.volume, bar.revision, bar.complete]
        for bar in tape.bar_list(symbol, interval)
    ]


# What is asked for


def test_symbols_are_found_by_a_part_of_their_name_and_say_where_they_stand(client, tape):
    tape.append(Tick("patterns:A", T0, bid=1.0, bid_size=0.5))
    found = get(client, "symbols")["symbols"]
    assert [one["symbol"] for one in found] == ["A", "B:x"]  # what a service notes is no market
    assert (found[1]["price"], found[1]["change"], found[1]["change_pct"]) == (5.0, 1.0, 25.0)
    assert (found[0]["ticks"], found[0]["first_ms"], found[0]["bid"]) == (50, T0 // MS, None)
    assert found[0]["change"] == 0.0  # the UTC day's first trade was 100, the last is 100
    assert [one["symbol"] for one in get(client, "symbols", q="x")["symbols"]] == ["B:x"]
    assert get(client, "symbols", limit=1)["more"]


def test_candles_are_the_tapes_own_bars_and_scroll_back_window_by_window_to_the_first(client, tape):
    everything = rows_of(tape)
    found, end, asked = [], None, 0
    while True:
        query = {} if end is None else {"end_ms": end}
        window = get(client, "candles", symbol="A", limit=15, **query)
        found = window["bars"] + found
        asked += 1
        if not window["more"]:
            break
        end = window["bars"][0][0]
    assert found == everything and asked == 4
    assert window["position"] == tape.stats().head


def test_candles_of_any_interval_are_the_tapes_own(client, tape):
    for interval in ("1s", "10s", "3min", "1h", "1d"):
        assert get(client, "candles", symbol="A", interval=interval)["bars"] == rows_of(tape, "A", interval)


def test_candles_find_what_lies_far_back_behind_long_silence(client, tape):
    year = 525_600
    tape.append([trade(-year * 3), trade(-year * 3 + 1)])
    window = get(client, "candles", symbol="A", limit=52)
    assert len(window["bars"]) == 52 and not window["more"]
    window = get(client, "candles", symbol="A", limit=52, interval="5s")
    assert len(window["bars"]) == 52 and not window["more"]


def test_gaps_are_told_with_the_candles(client, tape):
    tape.cover("A", T0, T0 + 50 * MINUTE_NS, source="feed")
    tape.mark_missing("A", T0 + 10 * MINUTE_NS, T0 + 12 * MINUTE_NS, source="feed")
    found = get(client, "candles", symbol="A", end_ms=(T0 + 50 * MINUTE_NS) // MS)["gaps"]
    assert found == [[(T0 + 10 * MINUTE_NS) // MS, (T0 + 12 * MINUTE_NS) // MS, "missing"]]


def test_what_a_live_feed_has_not_said_yet_is_no_gap(client, tape):
    now = now_ns()
    tape.append([Tick("L", now - ago * 10**9, price=1.0, size=1.0) for ago in range(600, 0, -1)])
    tape.cover("L", now - 600 * 10**9, now - 10**9, source="feed")
    time.sleep(1.1)  # longer than a gap has to be
    assert get(client, "candles", symbol="L", interval="1s")["gaps"] == []
    assert sum(day["missing"] for day in get(client, "coverage", symbol="L")["days"]) == 0


def test_a_feed_that_is_silent_for_long_is_a_gap_up_to_now(client, tape):
    now = now_ns()
    tape.append([Tick("L", now - ago * 10**9, price=1.0, size=1.0) for ago in range(600, 60, -1)])
    tape.cover("L", now - 600 * 10**9, now - 60 * 10**9, source="feed")
    ((start, end, _),) = get(client, "candles", symbol="L", interval="1s")["gaps"]
    assert end - start >= 59_000 and end >= now // MS


def test_ticks_are_the_newest_ascending_with_exact_times(client, tape):
    found = get(client, "ticks", symbol="A", limit=2)["ticks"]
    assert [tick["t_ns"] for tick in found] == [str(T0 + minute * MINUTE_NS) for minute in (48, 49)]


def test_the_book_is_told_where_a_source_keeps_one(system, client):
    class Book:
        at_ns = T0

        def bids(self):
            return [(99.0, 5.0, 2)]

        def asks(self):
            return [(101.0, 1.0, 1), (102.0, 4.0, 3)]

    class Feed:
        source = types.SimpleNamespace(books={"A": Book()})

    system.feeds["depth"] = Feed()
    try:
        found = get(client, "depth", symbol="A", levels=1)
    finally:
        system.feeds.clear()
    assert found == {"symbol": "A", "at_ms": T0 // MS, "bids": [[99.0, 5.0, 2]], "asks": [[101.0, 1.0, 1]]}
    assert client.get("/api/v1/depth?symbol=A").json()["error"]["code"] == "depth_unknown"


def test_the_tape_says_its_size_counts_memory_and_retention(client, tape):
    found = get(client, "tape")
    assert found["stats"]["ticks"] == 51 and found["stats"]["retention_days"] is None
    assert found["stats"]["file_bytes"] > 0 and found["steady"]["on_tape"]
    assert {one["symbol"]: one["ticks"] for one in found["symbols"]} == {"A": 50, "B:x": 1}


def test_coverage_adds_up_what_is_known_of_each_day(client, tape):
    tape.cover("A", T0, T0 + 50 * MINUTE_NS, source="feed")
    (day, *_) = get(client, "coverage", symbol="A")["days"]
    assert day["ticks"] == 50 and day["date"] == "2023-11-14"
    assert math.isclose(day["covered"] + day["quiet"], 3000)


def test_what_is_not_there_is_said_in_one_shape(client):
    for path, status, code in (
        ("/api/v1/candles?symbol=NO", 404, "symbol_unknown"),
        ("/api/v1/candles?symbol=A&interval=soon", 400, "invalid"),
        ("/api/v1/candles?symbol=A&interval=100tick", 400, "invalid"),
        ("/api/v1/candles?symbol=A&limit=5001", 400, "invalid"),
        ("/api/v1/candles?symbol=A&end_ms=-1", 400, "invalid"),
        ("/api/v1/candles", 400, "invalid"),
        ("/api/v1/patterns", 404, "service_off"),
        ("/api/v1/nothing", 404, "not_found"),
    ):
        answer = client.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), path
    answer = client.post("/api/v1/replay/none", json={"action": "pause"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "source_unknown")
    assert client.post("/api/v1/replay/none", json={"action": "explode"}).status_code == 400


def test_a_replay_is_paused_moved_and_sped_up(system, client):
    class Replay:
        done, speed = [], 1.0

        def pause(self):
            self.done.append("pause")

        def play(self):
            self.done.append("play")

        def seek(self, ts_ns):
            self.done.append(ts_ns)

    class Feed:
        source, stats = Replay(), {"state": "live"}

    system.feeds["again"] = Feed()
    try:
        for action, value in (("pause", None), ("seek", T0 // MS), ("speed", 8), ("play", None)):
            answer = client.post("/api/v1/replay/again", json={"action": action, "value": value})
            assert answer.status_code == 200, answer.text
        assert client.post("/api/v1/replay/again", json={"action": "speed"}).status_code == 400
    finally:
        system.feeds.clear()
    assert Replay.done == ["pause", T0, "play"] and Feed.source.speed == 8


def test_health_is_503_with_its_reasons_when_a_task_has_failed(tape):
    tasks = [{"name": "source:es", "state": "failed", "trouble": "no file", "restarts": 3}]
    with served(System(tape=Standing(tape), tasks=lambda: tasks)) as server:
        answer = httpx2.get(server.address + "/healthz")
        assert (answer.status_code, answer.json()) == (503, {"ok": False, "reasons": ["source:es: no file"]})
        tasks[0].update(state="running", trouble=None)
        assert httpx2.get(server.address + "/healthz").status_code == 200
        assert httpx2.get(server.address + "/readyz").json() == {"ok": True, "reasons": []}


def test_metrics_tell_of_the_tape_and_of_clients(server, client, tape):
    with Page(server) as page:
        page.subscribe("A")
        page.until("snapshot")
        tape.append(trade(50))
        page.until("delta")
        found = dict(
            line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if not line.startswith("#")
        )
    assert float(found["onetape_tape_head"]) == 52 and float(found["onetape_tape_up"]) == 1
    assert float(found["onetape_web_clients"]) == 1 and float(found["onetape_web_frames_total"]) >= 1


def test_the_api_describes_itself_and_its_page_loads_nothing_from_elsewhere(client):
    described = client.get("/api/openapi.json").json()
    assert {"/api/v1/symbols", "/api/v1/candles", "/api/v1/state", "/healthz"} <= described["paths"].keys()
    assert "http" not in client.get("/api/docs").text.replace('<meta http-equiv="', "")
    headers = client.get("/api/v1/symbols").headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"


# Live


def test_bars_go_on_live_from_the_snapshot_and_are_what_history_says(server, tape):
    with Page(server) as page:
        page.subscribe("A", history=10)
        told = page.until("snapshot")
        assert told["bars"] == rows_of(tape)[-10:] and told["more"] and told["position"] == 51
        assert told["last"] == [(T0 + 49 * MINUTE_NS) // MS, 100.0, 1.0, None, None, None, None]
        for minute in range(50, 54):
            tape.append([trade(minute, 99.0), trade(minute, 103.0, seconds=30)])
        page.until_bars("A", rows_of(tape)[-14:])
        while page.last["A"][1] != 103.0:
            page.hear()
        assert page.position is not None


def test_a_late_tick_and_a_correction_revise_their_bars_and_one_taken_back_goes(server, tape):
    with Page(server) as page:
        page.subscribe("A")
        page.until("snapshot")
        tape.append(trade(3, 500.0, seconds=5))
        page.until_bars("A", rows_of(tape))
        assert page.bars["A"][(T0 + 3 * MINUTE_NS) // MS][2] == 500.0
        assert (T0 + 3 * MINUTE_NS) // MS in page.revised
        only = next(tick for tick in tape.recent("A", 51) if tick.ts_event_ns == T0 + 20 * MINUTE_NS)
        tape.cancel(only)
        while (T0 + 20 * MINUTE_NS) // MS in page.bars["A"]:
            page.hear()
        page.until_bars("A", rows_of(tape))


def test_a_client_that_comes_back_gets_what_changed_since_its_position_and_nothing_is_missing(server, tape):
    with Page(server) as page:
        page.subscribe("A")
        page.until("snapshot")
        kept, position = page.bars, page.position
    tape.append([trade(minute, 98.0) for minute in range(50, 60)])
    tape.append(trade(2, 300.0, seconds=3))  # late, while nobody looked
    with Page(server) as page:
        page.bars = kept
        page.subscribe("A", **{"from": position})
        told = page.until("snapshot", "delta")
        assert told["op"] == "delta" and told["position"] == tape.stats().head
        page.until_bars("A", rows_of(tape))
        assert set(page.bars["A"]) == {row[0] for row in rows_of(tape)}
        tape.append(trade(60))
        page.until_bars("A", rows_of(tape))


def test_a_position_that_the_tape_has_not_reached_gets_the_bars_anew(server, tape):
    with Page(server) as page:
        page.subscribe("A", **{"from": 10**9})
        assert page.until("snapshot", "delta")["op"] == "snapshot"


def test_intervals_and_symbols_of_clients_are_their_own(server, tape):
    with Page(server) as one, Page(server) as other:
        one.subscribe("A", interval="5min")
        other.subscribe("A", "B:x")
        one.until("snapshot")
        other.until("snapshot")
        other.until("snapshot")
        tape.append([trade(50, 97.0), Tick("B:x", T0 + MINUTE_NS, price=7.0, size=1.0)])
        one.until_bars("A", rows_of(tape, "A", "5min"))
        other.until_bars("A", rows_of(tape))
        other.until_bars("B:x", rows_of(tape, "B:x"))
        assert "B:x" not in one.bars
        other.say(op="unsubscribe", symbols=["A"])
        other.say(op="ping")
        other.until("pong")
        tape.append([trade(51), Tick("B:x", T0 + 2 * MINUTE_NS, price=8.0, size=1.0)])
        before = dict(other.bars["A"])
        other.until_bars("B:x", rows_of(tape, "B:x"))
        assert other.bars["A"] == before


def test_a_client_gets_at_most_its_frames_a_second_however_fast_ticks_come(tape):
    with served(System(tape=Standing(tape)), frames_per_s=5) as server, Page(server) as page:
        page.subscribe("A")
        page.until("snapshot")
        began = time.monotonic()
        for at in range(400):
            tape.append(trade(50, 100.0 + at, seconds=at / 100))
        page.until_bars("A", rows_of(tape)[-1:])
        passed = time.monotonic() - began
        assert page.frames <= 5 * passed + 2
        assert page.last["A"][1] == 499.0 or page.until("delta")["symbols"]["A"]["last"][1] == 499.0


def test_the_status_comes_every_second_with_how_the_tape_is(server):
    with Page(server) as page:
        told = page.until("status")
        assert told["steady"]["on_tape"] and told["feeds"] == []
        later = page.until("status")
        assert later["now_ms"] > told["now_ms"]


def test_a_symbol_with_a_hostile_name_is_told_as_it_is(server, client, tape):
    name = '<img src=x onerror="alert(1)">'
    tape.append(trade(0, symbol=name))
    with Page(server) as page:
        page.subscribe(name)
        assert page.until("snapshot")["symbol"] == name
        tape.append(trade(1, symbol=name))
        page.until_bars(name, rows_of(tape, name))
    assert get(client, "candles", symbol=name)["symbol"] == name
    assert client.get("/api/v1/symbols").headers["content-type"] == "application/json"


def test_clients_hear_that_the_server_stops(system):
    with served(system) as server:
        page = Page(server)
        page.until("status")
        server.stop()
        assert page.closed()[0] == 1012


def test_what_a_client_says_wrongly_is_answered_and_the_rest_goes_on(server, tape):
    with Page(server) as page:
        page.socket.send("{nonsense")
        assert page.until("error")["code"] == "not_json"
        for message, code in (
            ({"op": "explode"}, "op_unknown"),
            ({"op": "subscribe"}, "invalid"),
            ({"op": "subscribe", "symbols": "A"}, "invalid"),
            ({"op": "subscribe", "symbols": ["A"], "history": 5001}, "invalid"),
            ({"op": "subscribe", "symbols": ["NO"]}, "symbol_unknown"),
            ({"op": "subscribe", "symbols": ["A"], "interval": "soon"}, "invalid"),
            ({"op": "subscribe", "symbols": ["A"], "interval": "100tick"}, "invalid"),
            ([1], "invalid"),
        ):
            page.socket.send(json.dumps(message))
            told = page.until("error")
            assert told["code"] == code and told["message"], message
        page.subscribe("A")
        page.until("snapshot")
        tape.append(trade(50))
        page.until_bars("A", rows_of(tape))


def test_services_answer_through_the_api(tmp_path):
    with SteadyTape(tmp_path / "s.db", retention_days=None) as steady:
        steady.append([trade(minute, 100.0 + minute % 7) for minute in range(30)])
        found = {name: make(name, {}, steady) for name in ("state", "patterns", "charts")}
        with served(System(tape=steady, services=found)) as server, httpx2.Client(base_url=server.address) as client:
            assert get(client, "patterns", symbol="A", limit=5) == {"patterns": []}
            assert isinstance(get(client, "patterns/statistics"), dict)
            assert {"positions", "risk"} <= get(client, "state").keys()
            assert isinstance(get(client, "charts"), dict)
            assert set(get(client, "status")["services"]) == {"state", "patterns", "charts"}
            assert 'onetape_service_running{service="state"}' in client.get("/metrics").text
