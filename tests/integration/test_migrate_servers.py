"""Ways to a server: TLS with a certificate of its own, users with few rights, Unix sockets; on both sides."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from tests.other_servers import ask, binary, wait_for

from onetape.embedded import EmbeddedServer, free_port
from onetape.errors import ConfigInvalid, EndpointError, PreflightRefused
from onetape.migrate import Migration
from onetape.migrate.plans.plan import Plan
from onetape.migrate.remote import connect_target
from onetape.migrate.wire.address import Address
from onetape.migrate.wire.endpoint import Endpoint, connect_again

PLAN = Plan.parse("""
name = "ways"
target_db = 1
timezone = "UTC"
[[rule]]
step = "all"
source_db = 0
pattern = "old:{name}"
target = "new:{name}"
""")


def _fill(port: int, number: int = 300) -> None:
    client = redis.Redis(port=port)
    for i in range(number):
        client.set(f"old:{i}", i, px=3_600_000 if i % 2 else None)


def _moves(url: str, folder: Path, target_url: str | None = None, number: int = 300) -> None:
    migration = Migration(url, target_url=target_url, plan=PLAN, ledger_path=folder / "l")
    assert migration.backfill().totals == {"copied": number}
    assert migration.verify(pause_s=0.05).verdict == "converged"
    assert migration.backfill().totals == {"unchanged": number}


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of our own for 127.0.0.1, which is its own authority."""
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"openssl makes no certificate: {error}")
    return folder


class _TlsServer(EmbeddedServer):
    """A server that speaks TLS beside its plain port."""

    def __init__(self, folder: Path, *, clients: str = "no") -> None:
        self.tls_port = free_port()
        options = {
            "tls-port": str(self.tls_port),
            "tls-cert-file": str(folder / "cert.pem"),
            "tls-key-file": str(folder / "key.pem"),
            "tls-ca-cert-file": str(folder / "cert.pem"),
            "tls-auth-clients": clients,
        }
        super().__init__(binary("redis"), options)

    def tls(self, query: str) -> str:
        return f"rediss://127.0.0.1:{self.tls_port}{query}"


def test_a_migration_over_tls_from_one_server_to_another(certificates: Path, tmp_path: Path) -> None:
    ca = f"?ca={certificates / 'cert.pem'}"
    with _TlsServer(certificates) as source, _TlsServer(certificates) as target:
        _fill(source.port)
        redis.Redis(port=source.port).set("old:big", "x" * 3_000_000)
        _moves(source.tls(ca), tmp_path, target.tls(ca), 301)


def test_a_certificate_that_nobody_vouches_for_is_refused(certificates: Path) -> None:
    with _TlsServer(certificates) as server:
        with pytest.raises(EndpointError, match=r"cannot be reached.*certificate"):
            Endpoint.connect(server.tls(""))
        with Endpoint.connect(server.tls("?insecure=1")) as endpoint:
            assert endpoint.call("PING") == b"PONG"
        with pytest.raises(EndpointError):
            Endpoint.connect(f"redis://127.0.0.1:{server.tls_port}", timeout_s=1)


def test_a_server_that_wants_to_see_our_certificate_gets_it(certificates: Path) -> None:
    ca = f"?ca={certificates / 'cert.pem'}"
    ours = f"{ca}&cert={certificates / 'cert.pem'}&key={certificates / 'key.pem'}"
    with _TlsServer(certificates, clients="yes") as server:
        with Endpoint.connect(server.tls(ours)) as endpoint:
            assert endpoint.call("PING") == b"PONG"
        with pytest.raises(EndpointError):
            Endpoint.connect(server.tls(ca), timeout_s=2)


# Users

_READS = "+dump +pexpiretime +type +watch +unwatch +multi +exec +memory|usage +scan +dbsize +select +info +time"
_LOOKS = "+exists +ttl +get +strlen +getrange +evalsha_ro +eval_ro +script|load"


def _user(server: EmbeddedServer, rules: str) -> str:
    ask(server, "ACL", "SETUSER", "mover", "on", ">secret", "resetkeys", *rules.split())
    return f"redis://mover:secret@127.0.0.1:{server.port}"


def test_a_user_with_just_the_rights_needed_can_migrate(tmp_path: Path) -> None:
    with EmbeddedServer(binary("redis")) as server:
        _fill(server.port)
        url = _user(server, f"~old:* ~new:* ~onetape:* {_READS} {_LOOKS} +copy +get")
        _moves(url, tmp_path)


def test_two_users_with_just_the_rights_needed_can_migrate_to_another_server(tmp_path: Path) -> None:
    with EmbeddedServer(binary("redis")) as source, EmbeddedServer(binary("redis")) as target:
        _fill(source.port)
        reads = _user(source, f"~old:* {_READS} {_LOOKS}")
        writes = _user(target, f"~new:* ~onetape:* {_READS} {_LOOKS} +restore")
        _moves(reads, tmp_path, writes)


@pytest.mark.parametrize("lacking", ["copy", "dump", "pexpiretime", "watch", "exec", "scan"])
def test_a_right_that_lacks_is_named_before_anything_is_written(tmp_path: Path, lacking: str) -> None:
    with EmbeddedServer(binary("redis")) as server:
        _fill(server.port, 5)
        url = _user(server, f"~* +@all -{lacking}")
        with pytest.raises(PreflightRefused, match=f"(?i){lacking} is not allowed to this user"):
            Migration(url, plan=PLAN, ledger_path=tmp_path / "l").backfill()
        assert redis.Redis(port=server.port, db=1).dbsize() == 0


@pytest.mark.parametrize(("side", "lacking"), [("source", "dump"), ("target", "restore"), ("target", "dump")])
def test_a_right_that_lacks_on_another_server_is_named_with_its_side(tmp_path: Path, side: str, lacking: str) -> None:
    with EmbeddedServer(binary("redis")) as source, EmbeddedServer(binary("valkey")) as target:
        _fill(source.port, 5)
        urls = {"source": source.url, "target": target.url}
        urls[side] = _user(source if side == "source" else target, f"~* +@all -{lacking}")
        with pytest.raises(PreflightRefused, match=f"{side}: rights: {lacking.upper()} is not allowed"):
            Migration(urls["source"], target_url=urls["target"], plan=PLAN, ledger_path=tmp_path / "l").backfill()
        assert redis.Redis(port=target.port, db=1).dbsize() == 0


def test_values_that_an_acl_hides_are_named_before_anything_is_written(tmp_path: Path) -> None:
    """The user sees all names, and may read those of the probe's form, but not all values."""
    with EmbeddedServer(binary("redis")) as server, EmbeddedServer(binary("redis")) as other:
        _fill(server.port, 20)
        redis.Redis(port=server.port).set("old:secret", "1")
        visible = "~old:onetape* ~old:1* ~old:2* ~new:* ~onetape:*"
        url = _user(server, f"{visible} +@all")
        for target in (None, other.url):
            with pytest.raises(PreflightRefused, match="are hidden from this user") as caught:
                Migration(url, target_url=target, plan=PLAN, ledger_path=tmp_path / "l").backfill()
            assert "8 of the keys" in caught.value.message or "9 of the keys" in caught.value.message
        assert redis.Redis(port=server.port, db=1).dbsize() == redis.Redis(port=other.port, db=1).dbsize() == 0


def test_a_wrong_password_is_told_without_showing_it() -> None:
    with EmbeddedServer(binary("redis")) as server:
        _user(server, "~* +@all")
        with pytest.raises(EndpointError) as caught:
            Endpoint.connect(f"redis://mover:hunter2@127.0.0.1:{server.port}")
        assert caught.value.facts["code"] == "WRONGPASS" and "hunter2" not in str(caught.value)


# Sockets and names


@pytest.mark.parametrize("name", ["redis", "valkey"])
def test_a_migration_through_unix_sockets(tmp_path: Path, name: str) -> None:
    with EmbeddedServer(binary(name)) as first:
        options = {"unixsocket": str(first.directory / "two.sock"), "unixsocketperm": "700"}
        here = {**options, "unixsocket": str(first.directory / "one.sock")}
        with EmbeddedServer(binary(name), here) as source, EmbeddedServer(binary(name), options):
            _fill(source.port)
            wait_for(lambda: Path(options["unixsocket"]).exists(), "the socket is there")
            _moves(f"unix://{here['unixsocket']}", tmp_path, f"unix://{options['unixsocket']}")


def _bad_urls() -> Iterator[str]:
    yield from ("http://h", "redis://h:notaport", "sentinel://h:1", "redis://h?tsl=1", "redis:/x:99999999/", "")


@pytest.mark.parametrize("url", [*_bad_urls()])
def test_a_url_that_is_none_is_refused_without_its_password(url: str) -> None:
    secret = url.replace("://", "://me:hunter2@")
    for text in (url, secret):
        try:
            connect_target(text, timeout_s=0.2) if text.startswith("redis:/x") else Address.parse(text)
        except ConfigInvalid as error:
            assert "hunter2" not in str(error) and error.hint
        except EndpointError as error:
            assert "hunter2" not in str(error)
        else:
            pytest.fail(text)


def test_urls_say_all_that_is_needed_to_connect() -> None:
    where = Address.parse("sentinel://me:p%40ss@one:1,two/prices?tls=1&sentinel_password=x")
    assert where.hosts == (("one", 1), ("two", 26379)) and where.service == "prices"
    assert (where.user, where.password, where.tls) == ("me", "p@ss", True)
    assert where.node("three", 3).scheme == "rediss" and where.node("three", 3).password == "p@ss"
    assert where.name == "prices by one:1,two:26379"
    assert Address.parse("cluster://a:1,b:2").name == "cluster a:1,b:2"
    assert Address.parse("redis://:secret@h").password == "secret" and Address.parse("redis://h").hosts == (
        ("h", 6379),
    )
    assert Address.parse("unix:///run/a%20b.sock").name == "/run/a b.sock"
    with pytest.raises(ConfigInvalid, match="Cluster"):
        Endpoint.connect("cluster://h:1")
    with pytest.raises(EndpointError, match="cannot be reached"):
        connect_again("redis://127.0.0.1:1", attempts=1)
