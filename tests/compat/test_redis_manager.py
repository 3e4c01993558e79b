"""UnifiedRedisManager: one pool a process name and database, at both of its addresses."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest

from onetape import ConfigInvalid
from onetape.embedded import EmbeddedServer
from trading_system.storage.redis_manager import UnifiedRedisManager


@pytest.fixture
def manager(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[UnifiedRedisManager]]:
    monkeypatch.setenv("REDIS_HOST", "127.0.0.1")
    monkeypatch.setenv("REDIS_PORT", str(server.port))
    yield UnifiedRedisManager
    UnifiedRedisManager.cleanup()


def test_the_signature_and_both_addresses() -> None:
    from redis_files import redis_client

    assert redis_client.UnifiedRedisManager is UnifiedRedisManager
    parameters = inspect.signature(UnifiedRedisManager.get_client).parameters
    assert list(parameters) == ["process_name", "db", "kwargs"]
    assert parameters["db"].default == 1


def test_clients_of_one_name_share_a_pool_and_others_do_not(manager: type[UnifiedRedisManager]) -> None:
    one = manager.get_client("feed")
    assert manager.get_client("feed").connection_pool is one.connection_pool
    assert manager.get_client(process_name="feed", db=1).connection_pool is one.connection_pool
    assert manager.get_client("analyser").connection_pool is not one.connection_pool
    assert manager.get_client("feed", db=2).connection_pool is not one.connection_pool
    assert manager.get_client("feed", decode_responses=False).connection_pool is not one.connection_pool


def test_a_client_is_on_its_database_and_speaks_text(manager: type[UnifiedRedisManager]) -> None:
    manager.get_client("feed").set("price", "7.5")
    assert manager.get_client("feed").get("price") == "7.5"
    assert manager.get_client("feed", decode_responses=False).get("price") == b"7.5"
    assert manager.get_client("feed", db=2).get("price") is None
    assert manager().get_client("feed", 1).get("price") == "7.5"


def test_cleanup_closes_the_connections_and_clients_still_work(
    manager: type[UnifiedRedisManager], server: EmbeddedServer
) -> None:
    watcher = manager.get_client("watcher", client_name="watcher")
    feed = manager.get_client("feed", client_name="the-feed")
    feed.ping()
    pool = feed.connection_pool
    manager.cleanup()
    import redis

    with redis.Redis(port=server.port) as plain:
        assert "the-feed" not in [client["name"] for client in plain.client_list()]
    assert watcher.ping()
    assert manager.get_client("feed").connection_pool is not pool
    watcher.connection_pool.disconnect()


def test_a_port_that_is_no_number_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_PORT", "six")
    with pytest.raises(ConfigInvalid, match="'six'"):
        UnifiedRedisManager.get_client("feed")
