"""The bridge: live data and files of a Sierra Chart bridge over HTTP and WebSocket.

[[source]]
kind = "bridge"
symbols = ["ESZ6"]
"""

from __future__ import annotations

import msgspec

from onetape.errors import ConfigInvalid
from onetape.sources.bridge.files import PORT, BridgeFiles, RemoteFile
from onetape.sources.bridge.source import BridgeSource, Transport

__all__ = ["BridgeFiles", "BridgeSource", "Options", "RemoteFile", "make"]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `[[source]] kind = "bridge"` takes.

    transport: "auto" (pushed; polled where the bridge refuses that), "ws" or "http". poll_s: how often it polls, s.
    """

    symbols: list[str]
    host: str = "127.0.0.1"
    port: int = PORT
    transport: Transport = "auto"
    poll_s: float = 0.5
    connect_s: float = 10.0


def make(name: str, options: Options) -> BridgeSource:
    """Return the source. Raises ConfigInvalid, naming the key."""
    for key, least, most in (("port", 1, 65535), ("poll_s", 0.02, 3600), ("connect_s", 0.1, 300)):
        if not least <= getattr(options, key) <= most:
            raise ConfigInvalid(f"source {name}: {key} = {getattr(options, key)}", hint=f"{least} to {most}")
    if len(options.symbols) > 500:
        raise ConfigInvalid(f"source {name}: {len(options.symbols)} symbols", hint="500 at most: each has a connection")
    return BridgeSource(
        name,
        options.host,
        options.port,
        options.symbols,
        transport=options.transport,
        poll_s=options.poll_s,
        connect_s=options.connect_s,
    )
