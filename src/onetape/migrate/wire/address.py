"""The address: what a server's URL says, and the socket that it leads to.

redis://[USER:PASSWORD@]HOST[:PORT]          one server
rediss://...?ca=FILE | ?insecure=1           the same over TLS; ?cert=FILE&key=FILE shows a certificate of ours
unix://[USER:PASSWORD@]/PATH                 a Unix socket
sentinel://[USER:PASSWORD@]HOST:PORT[,HOST:PORT...]/SERVICE[?tls=1][&sentinel_password=P]
                                             the master of a service, asked for anew with every connection
cluster://[USER:PASSWORD@]HOST:PORT[,HOST:PORT...][?tls=1]
                                             a Redis Cluster, by any of its nodes; only as a target
"""

from __future__ import annotations

import os
import socket
import ssl
from typing import NoReturn
from urllib.parse import parse_qs, unquote, urlsplit

import hiredis
import msgspec

from onetape.errors import ConfigInvalid, EndpointError

_SCHEMES = ("redis", "rediss", "unix", "sentinel", "cluster")
_EXAMPLES = "redis://HOST:PORT, rediss://HOST:PORT, unix:///PATH, sentinel://HOST:PORT/SERVICE or cluster://HOST:PORT"
_OPTIONS = frozenset({"ca", "cert", "key", "insecure", "tls", "sentinel_user", "sentinel_password"})
_SENTINEL_PORT = 26379

Host = tuple[str, int]


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed URL. `hosts` are (host, port), of a sentinel:// the sentinels; `path` is that of a Unix socket."""

    scheme: str
    hosts: tuple[Host, ...] = ()
    path: str = ""
    service: str = ""
    user: str | None = None
    password: str | None = None
    options: dict[str, str] = {}

    @classmethod
    def parse(cls, url: str) -> Address:
        """Return what the URL says. Raises ConfigInvalid, which never shows a password."""
        try:
            parts = urlsplit(url)
        except ValueError:  # it may show a part of the password
            raise ConfigInvalid(f"{masked(url)!r} is not a Redis URL", hint=_EXAMPLES) from None
        if parts.scheme not in _SCHEMES:
            raise ConfigInvalid(f"{masked(url)!r} is not a Redis URL", hint=_EXAMPLES)
        options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        if unknown := sorted(options.keys() - _OPTIONS):
            raise ConfigInvalid(
                f"{masked(url)!r}: option {unknown[0]!r} is not known", hint="known are " + ", ".join(sorted(_OPTIONS))
            )
        credentials, at, hosts = parts.netloc.rpartition("@")
        user, _colon, password = credentials.partition(":")
        service = unquote(parts.path.strip("/")) if parts.scheme == "sentinel" else ""
        if parts.scheme == "sentinel" and not service:
            raise ConfigInvalid(f"{masked(url)!r} names no service", hint="sentinel://HOST:PORT/SERVICE")
        port = _SENTINEL_PORT if parts.scheme == "sentinel" else 6379
        return cls(
            scheme=parts.scheme,
            hosts=() if parts.scheme == "unix" else tuple(_host(one, port, url) for one in hosts.split(",")),
            path=unquote(parts.path) if parts.scheme == "unix" else "",
            service=service,
            user=unquote(user) or None,
            password=unquote(password) if at and ":" in credentials else None,
            options=options,
        )

    @property
    def name(self) -> str:
        """Return how the server is called in messages and in the ledger: never with a password."""
        if self.scheme == "unix":
            return self.path
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts)
        if self.scheme == "sentinel":
            return f"{self.service} by {hosts}"
        return f"cluster {hosts}" if self.scheme == "cluster" else hosts

    @property
    def tls(self) -> bool:
        """Return whether the servers are spoken to over TLS."""
        return self.scheme == "rediss" or self.options.get("tls") == "1"

    def node(self, host: str, port: int) -> Address:
        """Return the address of one server of this cluster or service, with the same user and options."""
        return msgspec.structs.replace(
            self, scheme="rediss" if self.tls else "redis", hosts=((host, port),), service=""
        )

    def open(self, timeout_s: float) -> tuple[socket.socket, str]:
        """Connect, and return the socket and the name of the server it leads to. Raises EndpointError."""
        if self.scheme == "sentinel":
            host, port = self._master(timeout_s)
            sock, name = self.node(host, port).open(timeout_s)
            return sock, f"{self.name} ({name})"
        try:
            return self._open(timeout_s), self.name
        except (OSError, ValueError) as error:  # ValueError: a name that no host or file can have
            _raise_unreachable(self.name, error)

    def _open(self, timeout_s: float) -> socket.socket:
        if self.scheme == "unix":
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(timeout_s)
            try:
                sock.connect(os.fsencode(self.path))
            except BaseException:
                sock.close()
                raise
            return sock
        sock = socket.create_connection(self.hosts[0], timeout=timeout_s)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            return self._wrapped(sock, self.hosts[0][0]) if self.tls else sock
        except BaseException:
            sock.close()
            raise

    def _wrapped(self, sock: socket.socket, host: str) -> socket.socket:
        context = ssl.create_default_context(cafile=self.options.get("ca"))
        if self.options.get("insecure") == "1":
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if "cert" in self.options:
            context.load_cert_chain(self.options["cert"], self.options.get("key"))
        return context.wrap_socket(sock, server_hostname=host)

    def _master(self, timeout_s: float) -> Host:
        """Ask the sentinels, one after the other, who the master is. Raises EndpointError."""
        told = ""
        for host, port in self.hosts:
            sentinel = self.node(host, port)
            try:
                with sentinel._open(min(timeout_s, 2.0)) as sock:
                    master = _ask(sock, self.service, self.options)
            except (OSError, ValueError, hiredis.HiredisError) as error:
                told = f"{host}:{port}: {_reason(error)}"
                continue
            if isinstance(master, tuple):
                return master
            told = f"{host}:{port}: {master}"
        raise EndpointError(
            f"no sentinel tells the master of {self.service!r}: {told}",
            hint="see that the sentinels run and that the service is called so",
            code="UNREACHABLE",
        )


def _ask(sock: socket.socket, service: str, options: dict[str, str]) -> Host | str:
    """Return the master that a sentinel names, or why it names none."""
    reader = hiredis.Reader()
    commands: list[tuple[str, ...]] = [("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service)]
    if "sentinel_password" in options:
        user = (options["sentinel_user"],) if "sentinel_user" in options else ()
        commands.insert(0, ("AUTH", *user, options["sentinel_password"]))
    reply = None
    for command in commands:
        sock.sendall(hiredis.pack_command(command))  # type: ignore[arg-type]
        while (reply := reader.gets()) is False:
            data = sock.recv(4096)
            if not data:
                raise ConnectionResetError("the sentinel closed the connection")
            reader.feed(data)
        if isinstance(reply, Exception):
            return str(reply)
    if not isinstance(reply, list) or len(reply) != 2:
        return f"it knows no service {service!r}"
    return reply[0].decode(), int(reply[1])


def masked(url: str) -> str:
    """Return a URL without user and password."""
    head, at, tail = url.rpartition("@")
    return f"{head.partition('://')[0]}://***@{tail}" if at else url


def _host(text: str, default_port: int, url: str) -> Host:
    try:
        parts = urlsplit(f"//{text}")
        return parts.hostname or "localhost", parts.port or default_port
    except ValueError:  # it may show a part of the password
        raise ConfigInvalid(f"{masked(url)!r} is not a Redis URL", hint=_EXAMPLES) from None


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    reason = str(getattr(error, "strerror", None) or error).partition("\n")[0]
    return reason if isinstance(error, OSError | hiredis.HiredisError) else f"not a name of a host: {reason}"


def _raise_unreachable(name: str, error: Exception) -> NoReturn:
    raise EndpointError(
        f"Redis at {name} cannot be reached: {_reason(error)}",
        hint="see that the server runs and that host and port are right",
        code="UNREACHABLE",
    ) from error
