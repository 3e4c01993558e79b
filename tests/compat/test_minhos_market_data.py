"""minhos.services.market_data: the old ports and paths, and nobody who listens badly harms another."""

import asyncio
import json
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path

import msgspec
import pytest
import websockets.asyncio.client as ws
from websockets.exceptions import ConnectionClosed, InvalidStatus

from minhos.core.market_data_adapter import MarketDataAdapter
from minhos.core.market_data_store import MarketDataConfig, MarketDataStore
from minhos.models.market import MarketData
from minhos.services.market_data import MarketDataService
from onetape import ConfigInvalid
from onetape.services import listener
from onetape.services.market_data import MarketDataService as New

T = 1_763_740_800.25


@pytest.fixture
def store(tmp_path: Path):
    made = MarketDataStore(MarketDataConfig(tmp_path / "data" / "market_data.db"))
    yield made
    made.close()


def made(symbol="ESZ6", at=T, price=6000.25, **more):
    return MarketData(symbol, at, price, **more)


def served(store, story):
    async def run():
        service = MarketDataService(0, 0, adapter=MarketDataAdapter(store))
        await service.start()
        try:
            async with asyncio.timeout(60):
                await story(service)
        finally:
            await service.stop()

    asyncio.run(run())


async def get(service, path, **headers):
    def ask():
        request = urllib.request.Request(f"http://127.0.0.1:{service.http_port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    return await asyncio.to_thread(ask)


def test_the_old_ports_are_the_default(store):
    service = MarketDataService(adapter=MarketDataAdapter(store))
    assert (service.ws_port, service.http_port) == (9001, 9002)


def test_the_four_paths_answer(store):
    store.add_now(made(bid=6000.0, ask=6000.5, last_size=2, volume=100))
    store.add_now(made("NQZ6", price=21000.0))

    async def story(service):
        status, health = await get(service, "/health")
        assert (status, health["status"]) == (200, "healthy")
        assert await get(service, "/api/symbols") == (200, ["ESZ6", "NQZ6"])
        _, latest = await get(service, "/api/market_data")
        assert latest == {name: found.to_dict() for name, found in store.get_latest().items()}
        assert await get(service, "/api/market_data?symbol=NQZ6") == (200, {"NQZ6": latest["NQZ6"]})
        assert await get(service, "/api/market_data?symbol=no") == (200, {"no": None})
        _, stats = await get(service, "/api/stats")
        assert (stats["total_symbols"], stats["total_records"]) == (2, 2)
        status, told = await get(service, "/api/../etc/passwd")
        assert status == 404 and "/api/symbols" in told["paths"]

    served(store, story)


def test_the_stream_begins_with_the_latest_and_goes_on_with_every_record(store):
    store.add_now(made())

    async def story(service):
        async with ws.connect(f"ws://127.0.0.1:{service.ws_port}") as client:
            assert MarketData.from_dict(json.loads(await client.recv())) == made()
            for i in range(50):
                await service.process_market_data(made(at=T + i, price=6000.0 + i, last_size=i))
            got = [json.loads(await client.recv()) for _ in range(50)]
            assert [data["close"] for data in got] == [6000.0 + i for i in range(50)]
            assert got[7] == made(at=T + 7, price=6007.0, last_size=7).to_dict()

    served(store, story)


def test_records_of_other_processes_are_streamed_and_symbols_can_be_chosen(store):
    async def story(service):
        async with ws.connect(f"ws://127.0.0.1:{service.ws_port}") as client:
            await client.send('{"symbols": ["NQZ6"]}')
            await client.send("what?")
            assert "error" in json.loads(await client.recv())
            other = MarketDataStore(MarketDataConfig(store.config.db_path))
            other.add_now(made())
            other.add_now(made("NQZ6", price=21000.0))
            other.close()
            assert json.loads(await client.recv())["symbol"] == "NQZ6"

    served(store, story)


def test_one_that_never_reads_delays_nobody(store):
    async def story(service):
        async with ws.connect(f"ws://127.0.0.1:{service.ws_port}") as good:
            deaf = socket.create_connection(("127.0.0.1", service.ws_port))
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.sendall(
                b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            while service.service.status()["clients"] < 2:
                await asyncio.sleep(0.01)
            number = 20_000
            ticks = [made(at=T + i / 100, price=float(i), source="x" * 200).to_tick() for i in range(number)]
            for at in range(0, number, 500):
                await asyncio.to_thread(store.tape.append, ticks[at : at + 500])
                last = 0.0
                while last < ticks[at + 499].price:
                    last = json.loads(await good.recv())["close"]
            assert service.service.conflated > 0
            deaf.close()

    served(store, story)


def test_bad_clients_get_a_reason(store):
    async def story(service):
        url = f"ws://127.0.0.1:{service.ws_port}"
        async with ws.connect(url) as client:
            await client.send("x" * 100_000)  # 64 KiB are allowed
            with pytest.raises(ConnectionClosed) as closed:
                await client.recv()
            assert closed.value.rcvd.code == 1009
        async with ws.connect(url, origin="https://elsewhere.example") as client:
            with pytest.raises(ConnectionClosed) as closed:
                await client.recv()
            assert closed.value.rcvd.code == 1008
        assert (await get(service, "/api/symbols", Origin="https://elsewhere.example"))[0] == 403
        assert (await get(service, "/api/symbols", Host="elsewhere.example"))[0] == 403
        with pytest.raises(InvalidStatus):
            await ws.connect(f"ws://127.0.0.1:{service.http_port}/nothing")
        assert (await get(service, "/health"))[0] == 200

    served(store, story)


def test_it_goes_on_without_the_store_and_says_so(tmp_path):
    store = MarketDataStore(MarketDataConfig(tmp_path / "data" / "market_data.db"))
    kept = tmp_path / "kept.db"
    store.add_now(made())

    async def story(service):
        store.tape.path.rename(kept)
        async with ws.connect(f"ws://127.0.0.1:{service.ws_port}") as client:
            await client.recv()
            await service.process_market_data(made(at=T + 1, price=6001.0))
            assert json.loads(await client.recv())["close"] == 6001.0
            _, health = await get(service, "/health")
            assert health["status"] == "degraded" and health["fallback"]["held"] == 1
            assert service.get_market_data("ESZ6").price == 6001.0
            assert service.get_stats()["fallback"]["held"] == 1
            kept.rename(store.tape.path)
            while not store.tape.status.on_tape:
                await asyncio.sleep(0.01)
            assert (await get(service, "/health"))[1]["status"] == "healthy"
            assert [data.price for data in service.get_historical_data("ESZ6")] == [6000.25, 6001.0]

    served(store, story)
    store.close()


def test_a_port_that_is_taken_and_an_address_of_others_are_refused(store):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        service = New(store.tape, ws_port=taken.getsockname()[1], http_port=0)
        with pytest.raises(ConfigInvalid, match="ws_port"):
            asyncio.run(service.start())
    with pytest.raises(ConfigInvalid, match="token"):
        New(store.tape, host="0.0.0.0")


@pytest.mark.parametrize(("read_first", "told"), [(True, [6000.25, 6001.0, 6002.0]), (False, [6001.0, 6002.0])])
def test_what_comes_while_the_latest_are_asked_for_comes_behind_them_and_once(store, monkeypatch, read_first, told):
    store.add_now(made())

    async def story(service):
        tape = service.service.tape
        latest = tape.latest

        def slow(symbol=None):
            found = latest(symbol)
            store.add_now(made(at=T + 1, price=6001.0))
            time.sleep(0.3)  # it is streamed meanwhile
            return found if read_first else latest(symbol)

        monkeypatch.setattr(tape, "latest", slow)
        async with ws.connect(f"ws://127.0.0.1:{service.ws_port}") as client:
            got = [json.loads(await client.recv())["close"]]
            monkeypatch.undo()
            await service.process_market_data(made(at=T + 2, price=6002.0))
            while got[-1] != 6002.0:
                got.append(json.loads(await client.recv())["close"])
            assert got == told

    served(store, story)


def test_a_record_that_is_streamed_after_it_was_among_the_latest_is_told_once():
    async def run():
        one = listener.Listener(None)
        tick = made(price=6001.0).to_tick()
        one.begin({"ESZ6": msgspec.structs.replace(tick, seq=7)})
        for seq in (6, 7, 8, 9):  # those up to 7 were on the tape before the latest were asked for
            one.live(msgspec.structs.replace(tick, seq=seq), str(seq))
        return [told for _, told in one._queue[1:]]

    assert asyncio.run(run()) == ["8", "9"]


def test_a_slow_client_of_many_symbols_has_the_newest_of_each_without_much_ado(store):
    async def run():
        one = listener.Listener(None)
        one.begin({})
        for turn in range(3):
            for number in range(2_000):
                one.offer(str(number), f"{turn}" * 100)
        assert 2_000 <= len(one._queue) <= 6_000 and dict(one._queue) == {str(n): "2" * 100 for n in range(2_000)}
        return one

    calls = []
    whole = listener.Listener._conflate
    listener.Listener._conflate = lambda self: (calls.append(1), whole(self))
    try:
        asyncio.run(run())
    finally:
        listener.Listener._conflate = whole
    assert len(calls) < 20
