"""What every test shares: real servers, each its own, and the real sample data where it is present."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from onetape.embedded import EmbeddedServer, server_binaries

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell's background jobs inherit it: tests press Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")

ROOT = Path(__file__).resolve().parent.parent
SERVERS = server_binaries()


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """The folder of real sample data, or a skip that says it is missing."""
    path = Path(os.environ.get("ONETAPE_SAMPLE_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no sample data at {path}: set ONETAPE_SAMPLE_DATA")
    return path


def _binary(name: str) -> Path:
    if name not in SERVERS:
        pytest.skip(f"no {name} server on this machine")
    return SERVERS[name]


@pytest.fixture(scope="session", params=["valkey", "redis"])
def server_of_session(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(_binary(request.param)) as server:
        yield server


@pytest.fixture
def server(server_of_session: EmbeddedServer) -> EmbeddedServer:
    """An empty server: every test that takes it runs on Valkey and on Redis, where each is present."""
    import redis

    with redis.Redis(port=server_of_session.port) as client:
        # A test before may have left connections that are not collected yet; a census would count them as strangers.
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        client.flushall()
    return server_of_session


@pytest.fixture
def fresh_server() -> Iterator[EmbeddedServer]:
    """A server of this test alone, for tests that kill or configure it."""
    if not SERVERS:
        pytest.skip("no Redis-compatible server on this machine")
    with EmbeddedServer() as server:
        yield server
