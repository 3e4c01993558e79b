"""What bad input and bad clients get from the web server, and that everything else goes on meanwhile."""

import contextlib
import json
import socket
import struct
import threading
import time

import httpx2
import pytest
import websockets.sync.client
from tests.serving import PATIENCE_S, Page, Standing, served
from websockets.exceptions import ConnectionClosed, InvalidStatus

import onetape
from onetape import Tick
from onetape.config import WebSettings
from onetape.errors import ConfigInvalid
from onetape.record import MINUTE_NS
from onetape.services.system import System
from onetape.steady import SteadyTape
from onetape.web.reading import Reading
from onetape.web.server import check

T0 = 1_700_000_040_000_000_000 // MINUTE_NS * MINUTE_NS
TOKEN = "a-token-of-sixteen-or-more"


def trade(minute, price=10.0, symbol="A", seconds=0.0):
    return Tick(symbol, T0 + minute * MINUTE_NS + int(seconds * 1e9), price=price, size=1.0)


@pytest.fixture
def tape(tmp_path):
    with onetape.open(tmp_path / "t.db", retention_days=None) as opened:
        opened.append([trade(minute) for minute in range(10)])
        yield opened


@pytest.fixture
def server(tape):
    with served(System(tape=Standing(tape))) as running:
        yield running


@pytest.fixture
def guarded(tape):
    with served(System(tape=Standing(tape)), token=TOKEN) as running:
        yield running


def port_of(server):
    return int(server.address.rsplit(":", 1)[1])


def raw(server, text):
    """Send bytes as they are; return what is answered until the end."""
    with socket.create_connection(("127.0.0.1", port_of(server)), PATIENCE_S) as made:
        made.sendall(text)
        found = b""
        while chunk := made.recv(65536):
            found += chunk
        return found


def goes_on(server, tape, page):
    """Assert that a well-behaved client is still told, and the API answers."""
    minute = 10 + len(tape.bar_list("A"))
    tape.append(trade(minute))
    while (T0 + minute * MINUTE_NS) // 1_000_000 not in page.bars["A"]:
        page.hear()
    assert httpx2.get(server.address + "/healthz").status_code == 200


@pytest.fixture
def page(server):
    with Page(server) as made:
        made.subscribe("A")
        made.until("snapshot")
        yield made


# Too much


def test_a_client_that_asks_for_100_000_symbols_is_told_why_not(server, tape, page):
    with Page(server) as greedy:
        greedy.say(op="subscribe", symbols=[f"S{number}" for number in range(100_000)])
        assert greedy.closed()[0] == 1009
    with Page(server) as greedy:
        greedy.say(op="subscribe", symbols=[f"S{number}" for number in range(5_000)])
        assert greedy.until("error")["code"] == "too_many_symbols"
        greedy.subscribe("A")  # and may still ask for what there is
        greedy.until("snapshot")
    goes_on(server, tape, page)


def test_a_message_of_10_mb_closes_its_connection_with_the_reason(server, tape, page):
    with Page(server) as big:
        with contextlib.suppress(ConnectionClosed):
            big.socket.send("x" * 10_000_000)
        code, reason = big.closed()
        assert code == 1009 and "65536" in reason
    goes_on(server, tape, page)


def test_a_body_of_10_mb_is_refused(server, tape, page):
    head = b"POST /api/v1/replay/x HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    assert raw(server, head + b"Content-Length: 10000000\r\n\r\n").startswith(b"HTTP/1.1 413")
    goes_on(server, tape, page)


def test_a_client_that_never_reads_slows_nobody_keeps_little_and_is_cut_off(server, tape, page):
    server.hub.stalled_s = 3.0
    deaf = [deaf_client(server) for _ in range(5)]
    stop = threading.Event()

    def feed():
        at = 0
        while not stop.is_set():
            at += 1
            tape.append([trade(20 + at, 100.0 + n % 9, seconds=n / 10) for n in range(200)])
            stop.wait(0.01)

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        while server.hub.fanout.counts.stalled < 5:
            before = page.frames
            page.hear()
            assert page.frames >= before
            waiting = [client._protocol.waiting_bytes for client in list(server.hub.clients)]
            assert max(waiting) < 2_000_000
        assert page.frames > 20
    finally:
        stop.set()
        feeder.join()
        for one in deaf:
            one.close()
    goes_on(server, tape, page)


def deaf_client(server):
    """Return a socket that has subscribed and reads nothing more, with the least of buffers."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.connect(("127.0.0.1", port_of(server)))
    made.sendall(
        b"GET /ws/v1 HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    assert made.recv(12) == b"HTTP/1.1 101"
    message = json.dumps({"op": "subscribe", "symbols": ["A"], "interval": "1s", "history": 5000}).encode()
    made.sendall(struct.pack("!BBI", 0x81, 0x80 | len(message), 0) + message)
    return made


def test_a_client_that_asks_without_end_and_reads_nothing_is_not_answered_into_memory(server, tape, page):
    tape.append([trade(minute, 50.0) for minute in range(100, 5000)])
    deaf = deaf_client(server)
    message = json.dumps({"op": "subscribe", "symbols": ["A"], "history": 5000}).encode()
    frame = struct.pack("!BBI", 0x81, 0x80 | len(message), 0) + message
    deaf.settimeout(2)
    with contextlib.suppress(TimeoutError, OSError):
        for _ in range(5000):
            deaf.sendall(frame)
    assert max(client._protocol.waiting_bytes for client in list(server.hub.clients)) < 2_000_000
    deaf.close()
    goes_on(server, tape, page)


def test_more_clients_than_allowed_are_asked_to_come_later(tape):
    with served(System(tape=Standing(tape)), clients_max=1) as server, Page(server) as page:
        page.subscribe("A")
        page.until("snapshot")
        with Page(server) as late:
            assert late.closed() == (1013, "too many clients; try again later")
        goes_on(server, tape, page)


def test_who_asks_too_often_waits_and_others_do_not(tape):
    with served(System(tape=Standing(tape)), requests_per_s=2) as server:
        with httpx2.Client(base_url=server.address) as client:
            answers = [client.get("/api/v1/symbols") for _ in range(12)]
            assert answers[0].status_code == 200 and answers[-1].status_code == 429
            assert answers[-1].json()["error"]["code"] == "too_many_requests"
            assert int(answers[-1].headers["retry-after"]) >= 1
        other = httpx2.Client(base_url=server.address, transport=httpx2.HTTPTransport(local_address="127.0.0.2"))
        with other:
            assert other.get("/api/v1/symbols").status_code == 200


def test_mistakes_without_end_end_the_connection(server, tape, page):
    with Page(server) as wrong:
        for _ in range(25):
            with contextlib.suppress(ConnectionClosed):
                wrong.say(op="explode")
        assert wrong.closed() == (1008, "too many mistakes")
    goes_on(server, tape, page)


# Who may


def test_a_wrong_token_gets_nowhere_and_the_right_one_everywhere(guarded):
    path = "/api/v1/symbols"
    with httpx2.Client(base_url=guarded.address) as client:
        answer = client.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "token_missing")
        for headers in (
            {"authorization": "Bearer wrong"},
            {"authorization": f"Basic {TOKEN}"},
            {"cookie": f"onetape={TOKEN}"},
            {"authorization": "Bearer \xe9"},
        ):
            raw_headers = {name: value.encode("latin-1") for name, value in headers.items()}
            answer = client.get(path, headers=raw_headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "token_wrong"), headers
        assert client.get(path + f"?token={TOKEN}").status_code == 401  # in an address it would stay in logs
        assert client.get(path, headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert client.get("/metrics").status_code == 401
        assert client.get("/healthz").status_code == 200
        assert "text/html" in client.get("/", headers={"accept": "text/html"}).headers["content-type"]


def test_a_browser_shows_the_token_once_and_has_a_cookie_then(guarded):
    with httpx2.Client(base_url=guarded.address) as browser:
        answer = browser.get("/", params={"token": TOKEN})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and TOKEN not in cookie
        assert browser.get("/api/v1/symbols").status_code == 200
    with httpx2.Client(base_url=guarded.address) as browser:
        assert browser.get("/", params={"token": "wrong"}).status_code == 401


def test_a_websocket_needs_the_token_too(guarded):
    for more, headers in (("", {}), ("?token=wrong", {}), ("", {"Authorization": "Bearer wrong"})):
        with pytest.raises(InvalidStatus) as refused:
            connect(guarded, more, headers)
        assert refused.value.response.status_code == 401
        assert json.loads(refused.value.response.body)["error"]["code"].startswith("token_")
    connect(guarded, f"?token={TOKEN}")
    connect(guarded, "", {"Authorization": f"Bearer {TOKEN}"})


def test_the_token_is_in_no_log_and_a_path_cannot_forge_a_line(guarded, caplog):
    caplog.set_level("DEBUG")
    connect(guarded, f"?token={TOKEN}")
    httpx2.get(guarded.address + f"/?token={TOKEN}")
    httpx2.get(guarded.address + "/x%0a2026-01-01%20forged")
    told = [record.getMessage() for record in caplog.records if record.name.startswith(("onetape", "uvicorn"))]
    assert any("/ws/v1" in line for line in told) and any("forged" in line for line in told)
    assert not any(TOKEN in line or "\n" in line for line in told)


def connect(server, query="", headers=None, **more):
    url = server.address.replace("http", "ws") + "/ws/v1" + query
    with websockets.sync.client.connect(url, additional_headers=headers or {}, **more) as made:
        made.send('{"op":"ping"}')
        assert json.loads(made.recv(PATIENCE_S))["op"] in ("pong", "status")


def test_pages_of_other_places_may_not_ask_unless_they_are_listed(tape):
    with served(System(tape=Standing(tape)), origins=("https://desk.example",)) as server:
        own = server.address
        with httpx2.Client(base_url=own) as client:
            for origin, status in (
                (own, 200),
                ("https://desk.example", 200),
                ("https://evil.example", 403),
                ("null", 403),
                (own.replace("http", "ftp"), 403),
                ("http://127.0.0.1:1", 403),
            ):
                assert client.get("/api/v1/symbols", headers={"origin": origin}).status_code == status, origin
            answer = client.get("/api/v1/symbols", headers={"origin": "https://desk.example"})
            assert answer.headers["access-control-allow-origin"] == "https://desk.example"
            answer = client.request("OPTIONS", "/api/v1/symbols", headers={"origin": "https://desk.example"})
            assert answer.status_code == 204 and "GET" in answer.headers["access-control-allow-methods"]
            assert client.get("/api/v1/symbols").status_code == 200  # a program, which has no origin
        with pytest.raises(InvalidStatus) as refused:
            connect(server, origin="https://evil.example")
        assert refused.value.response.status_code == 403
        connect(server, origin="https://desk.example")
        connect(server, origin=own)


def test_a_name_that_somebody_lets_point_here_is_not_answered(server):
    for host, status in (
        ("evil.example", 421),
        ("evil.example:80", 421),
        ("localhost.evil.example", 421),
        ("", 421),
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:80", 200),
    ):
        found = raw(server, f"GET /healthz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        assert found.startswith(f"HTTP/1.1 {status}".encode()), (host, found[:100])


def test_an_address_that_others_reach_needs_a_token():
    for host in ("0.0.0.0", "::", "192.168.1.5", "desk.example"):
        with pytest.raises(ConfigInvalid, match="no token"):
            check(WebSettings(host=host))
        check(WebSettings(host=host, token=TOKEN))
    for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9"):
        check(WebSettings(host=host))


def test_no_path_climbs_out(server):
    for path in (
        "/../../etc/passwd",
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/%252e%252e/app.py",
        "/static/..%2fapp.py",
        "/static/..%5capp.py",
        "/static/%00",
        "//etc/passwd",
        "/static//etc/passwd",
    ):
        found = raw(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert found.startswith(b"HTTP/1.1 404"), (path, found[:80])
        assert b"root:" not in found and b"make_app" not in found


def test_nonsense_instead_of_http_is_refused_and_the_rest_goes_on(server, tape, page):
    assert raw(server, b"\x00\xff\xfe nonsense\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert raw(server, b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert b"404" in raw(server, b"GET /ws/v1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    goes_on(server, tape, page)


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "])
def test_who_does_not_say_what_it_wants_is_cut_off_and_clients_stay(server, tape, page, monkeypatch, said):
    monkeypatch.setattr(Reading, "request_s", 0.3)
    assert raw(server, said) == b""  # it ends, without an answer
    assert b"200 OK" in raw(server, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    body = b"POST /api/v1/replay/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60\r\n\r\n{"
    assert b"200 OK" not in raw(server, body)
    again = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert raw(server, again + b"GET / HTTP/1.1\r\nX: ").count(b"200 OK") == 1  # a later request as well
    goes_on(server, tape, page)


def test_binary_and_broken_messages_are_answered(server, tape, page):
    with Page(server) as odd:
        odd.socket.send(b"\x00\xff")
        assert odd.until("error")["code"] == "not_json"
        odd.socket.send(json.dumps({"op": "ping"}).encode())
        odd.until("pong")
        odd.socket.send("[" * 60_000)
        assert odd.until("error")["code"] in ("not_json", "invalid")
        odd.socket.send('{"op": "ping", "x": ' + "[" * 60_000)
        assert odd.until("error")["code"] == "not_json"
        odd.socket.send('{"op": "ping"}')
        odd.until("pong")
    goes_on(server, tape, page)


# What breaks


def test_connections_that_are_cut_leave_nothing_behind(server, tape, page):
    for _ in range(20):
        cut = deaf_client(server)
        cut.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        cut.close()
    deadline = time.monotonic() + PATIENCE_S
    while len(server.hub.clients) > 1 or len(server.hub.fanout.channels) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert server.hub.fanout.groups == 1
    assert server.hub._pump._wanted == {"1min": {"A"}}
    goes_on(server, tape, page)


def test_a_client_comes_back_to_a_server_that_was_restarted_and_misses_nothing(tape):
    system = System(tape=Standing(tape))
    with served(system) as server, Page(server) as page:
        page.subscribe("A")
        page.until("snapshot")
        kept, position = page.bars, page.position
    tape.append([trade(minute, 33.0) for minute in range(10, 20)])
    with served(system) as server, Page(server) as page:
        page.bars = kept
        page.subscribe("A", **{"from": position})
        page.until("delta")
        expected = [bar.ts_start_ns // 1_000_000 for bar in tape.bar_list("A")]
        assert sorted(page.bars["A"]) == expected


def test_a_port_that_is_taken_is_said_so(server, tape):
    with pytest.raises(ConfigInvalid, match="cannot be listened on"), served_on(tape, port_of(server)):
        pass


def served_on(tape, port):
    from tests.serving import Served

    @contextlib.contextmanager
    def run():
        made = Served(System(tape=Standing(tape)), WebSettings(port=port))
        try:
            yield made
        finally:
            made.stop()

    return run()


# The tape goes away


def test_bars_go_on_while_the_tape_is_away_and_are_the_tapes_when_it_is_back(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    with SteadyTape(folder / "t.db", retry_s=0.05, retention_days=None) as steady:
        steady.append([trade(minute) for minute in range(10)])
        with served(System(tape=steady)) as server, Page(server) as page:
            page.subscribe("A")
            page.until("snapshot")
            position = page.position
            folder.rename(tmp_path / "gone")
            held = 0
            while not held:  # until it is noticed, it goes to the file that was renamed
                steady.append(trade(10, 7.0))
                held = steady.status.held
                time.sleep(0.05)
            steady.append(trade(11, 5.0))
            while (T0 + 11 * MINUTE_NS) // 1_000_000 not in page.bars["A"]:
                page.hear()
            while page.until("status")["steady"]["on_tape"]:
                pass
            assert httpx2.get(server.address + "/readyz").status_code == 503
            assert httpx2.get(server.address + "/healthz").status_code == 200
            with httpx2.Client(base_url=server.address) as client:
                assert client.get("/api/v1/candles?symbol=A").json()["bars"]
                assert client.get("/api/v1/tape").json()["stats"] is None
                assert "onetape_tape_up 0.0" in client.get("/metrics").text
            (tmp_path / "gone").rename(folder)
            while not page.until("status")["steady"]["on_tape"]:
                pass
            steady.append(trade(12, 6.0))
            expected = [
                [bar.ts_start_ns // 1_000_000, bar.open, bar.high, bar.low, bar.close, bar.volume, 0, bar.complete]
                for bar in steady.bar_list("A")
            ]
            assert len(expected) == 13
            while [[*row[:6], 0, row[7]] for _, row in sorted(page.bars["A"].items())] != expected:
                page.hear()
            assert page.position is None or page.position > position


def test_a_server_that_starts_without_its_tape_begins_when_it_is_there(tmp_path):
    folder = tmp_path / "later"
    with SteadyTape(folder / "t.db", retry_s=0.05, retention_days=None) as steady:
        steady.append(trade(0))
        with served(System(tape=steady)) as server, Page(server) as page:
            page.subscribe("A")
            assert page.until("snapshot", "error")["position"] is None
            steady.append(trade(1))
            while len(page.bars["A"]) < 2:
                page.hear()
            folder.mkdir()
            while not page.until("status")["steady"]["on_tape"]:
                pass
            steady.append(trade(2))
            while len(page.bars["A"]) < 3 or page.position is None:
                page.hear()
            assert [row[1] for _, row in sorted(page.bars["A"].items())] == [10.0, 10.0, 10.0]
