"""DTC: trades, quotes, order books and history from a server of the DTC protocol, version 8, such as Sierra Chart's.

[[source]]
kind = "dtc"
symbols = ["ESZ6", "NQZ6=NQZ6-CME"]       # a name on the tape, or name=the server's
history = true                            # gaps are filled from port 11098
"""

from __future__ import annotations

import msgspec

from onetape.errors import ConfigInvalid
from onetape.sources.dtc import messages as dtc
from onetape.sources.dtc.history import HistoryServer
from onetape.sources.dtc.source import DtcSource

__all__ = ["DtcSource", "HistoryServer", "Options", "make"]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `[[source]] kind = "dtc"` takes.

    symbols: "NAME", or "NAME=SERVERNAME". exchange: sent with each of them. encoding: binary, vls, json or
    json_compact. heartbeat_s: how often each side says something; twice that in silence counts as lost. depth: levels
    of the order book to ask for, 0 for none. history: whether gaps are filled; history_days: how far back to begin.
    """

    symbols: list[str]
    host: str = "127.0.0.1"
    port: int = dtc.LIVE_PORT
    exchange: str = ""
    user: str = ""
    password: str = ""
    encoding: str = "binary"
    heartbeat_s: int = 10
    connect_s: float = 10.0
    depth: int = 0
    history: bool = False
    history_host: str = ""
    history_port: int = dtc.HISTORY_PORT
    history_days: float = 0.0
    compressed: bool = True


def make(name: str, options: Options) -> DtcSource:
    """Return the source. Raises ConfigInvalid, naming the key."""
    if options.encoding not in dtc.ENCODINGS:
        raise ConfigInvalid(
            f"source {name}: encoding = {options.encoding!r}", hint=f"encodings are {', '.join(dtc.ENCODINGS)}"
        )
    for key, least, most in (
        ("port", 1, 65535),
        ("history_port", 1, 65535),
        ("heartbeat_s", 1, 3600),
        ("depth", 0, 1000),
    ):
        if not least <= getattr(options, key) <= most:
            raise ConfigInvalid(f"source {name}: {key} = {getattr(options, key)}", hint=f"{least} to {most}")
    symbols = {}
    for text in options.symbols:
        ours, equals, theirs = text.partition("=")
        theirs = theirs if equals else ours
        if not ours or not theirs or len(theirs.encode()) > 63 or ours in symbols:
            raise ConfigInvalid(
                f"source {name}: the symbol {text!r}", hint="write NAME or NAME=SERVERNAME, each once, up to 63 bytes"
            )
        symbols[ours] = (theirs, options.exchange)
    encoding = dtc.ENCODINGS[options.encoding]
    history = None
    if options.history:
        history = HistoryServer(
            host=options.history_host or options.host,
            port=options.history_port,
            user=options.user,
            password=options.password,
            encoding=encoding,
            compressed=options.compressed,
            connect_s=options.connect_s,
        )
    return DtcSource(
        name,
        options.host,
        options.port,
        symbols,
        user=options.user,
        password=options.password,
        encoding=encoding,
        heartbeat_s=options.heartbeat_s,
        connect_s=options.connect_s,
        depth=options.depth,
        history=history,
        history_days=options.history_days,
    )
