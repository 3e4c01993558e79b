"""Redis channels as a source. What is published while nobody listens is gone: every reconnect is a gap that is said.

[[source]]
kind = "redis_pubsub"
url = "redis://localhost:6379"
channels = ["ticks:{symbol}"]
fields = { price = "ltp", size = "qty" }
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import msgspec
import redis

from onetape.clock import now_ns
from onetape.errors import ConfigInvalid, SourceRefused
from onetape.migrate.fields.tick_fields import TickDecoder
from onetape.migrate.landing.hash_ticks import columns_for_tape
from onetape.record import Tick
from onetape.sources.file_reading import log
from onetape.sources.source import Delivery, Reconnecting

_WAIT_S = 0.5
#: Messages taken into one delivery where more are there.
_AT_ONCE, _BYTES_AT_ONCE = 1_000, 16 << 20
#: A server silent for this long is asked, and taken for lost without an answer until then.
_ASK_NS, _LOST_NS = 1_000_000_000, 5_000_000_000
_SPECIAL = re.compile(r"\{symbol\}|[*?\[]")


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of a source of kind "redis_pubsub".

    channels: names, or patterns: * and ? as in Redis, {symbol} for the part that is the symbol. format: of a message,
    an object or a list of them; "auto" tells JSON from msgpack by its first byte. fields: field of a Tick → name in
    the message, where it is not found by its usual names. symbol: where neither channel nor message says it.
    A message without a time has the time of its arrival.
    """

    channels: tuple[str, ...]
    url: str = "redis://localhost:6379"
    format: Literal["auto", "json", "msgpack"] = "auto"
    fields: dict[str, str] = msgspec.field(default_factory=dict)
    symbol: str | None = None
    timezone: str = "UTC"
    source: str = "redis"


class RedisPubSubSource(Reconnecting):
    """Listens to channels."""

    kind = "redis_pubsub"
    lost = (OSError, EOFError, redis.ConnectionError, redis.TimeoutError)

    def __init__(self, name: str, options: Options, *, clock: Callable[[], int] = now_ns) -> None:
        super().__init__(name, clock=clock)
        if not options.channels:
            raise ConfigInvalid("channels is empty", hint='such as channels = ["ticks:{symbol}"]')
        unknown = set(options.fields) - set(Tick.__struct_fields__)
        if unknown:
            raise ConfigInvalid(f"fields: {', '.join(sorted(unknown))}: a Tick has none", hint="see onetape.Tick")
        self._options = options
        self._named = {theirs: ours for ours, theirs in options.fields.items()}
        self._patterns = [_regex(text) for text in options.channels]
        self._decoder = TickDecoder(options.timezone)
        self._symbols: dict[str, None] = {}
        self._heard_ns: int | None = None
        self._asked, self._heard_at = False, 0
        self._cut: BaseException | None = None

    def _session(self) -> Iterator[Delivery]:
        options = self._options
        try:
            client = redis.Redis.from_url(options.url, socket_timeout=5, socket_connect_timeout=5, retry=None)
        except ValueError:  # what is wrong with it may be a part of its password
            raise ConfigInvalid(
                f"source {self.name}: url is none of a Redis server",
                hint="redis://[user:password@]host[:port], with / : @ in a password as %2F %3A %40",
            ) from None
        listener: Any = client
        with client, listener.pubsub(ignore_subscribe_messages=False) as hearing:
            try:
                wanted = self._subscribe(hearing)
                confirmed, asked_at = 0, time.monotonic_ns()
                while confirmed < wanted and not self.stopped:  # only then is nothing passed over any more
                    message = hearing.get_message(timeout=_WAIT_S)
                    if message is None:
                        if time.monotonic_ns() - asked_at > _LOST_NS:
                            raise ConnectionError(f"no answer to SUBSCRIBE for {_LOST_NS / 1e9:.0f} s")
                        continue
                    if message["type"] in ("subscribe", "psubscribe"):
                        confirmed += 1
                    elif message["type"] in ("message", "pmessage"):
                        yield self._delivery([message])
                yield self._begun()
                while not self.stopped:
                    delivery = self._delivery(self._messages(hearing))
                    yield msgspec.structs.replace(delivery, heard_ns=self._heard_ns)
                    if self._cut is not None:
                        raise self._cut
            except redis.ResponseError as error:
                raise SourceRefused(
                    f"source {self.name}: {error}", hint="give its user the channels it asks for"
                ) from error
            except redis.RedisError as error:
                if isinstance(error, self.lost):
                    raise
                raise ConnectionError(f"an answer that is none of Redis: {error}") from error

    def _subscribe(self, hearing: Any) -> int:
        plain = [text for text in self._options.channels if not _SPECIAL.search(text)]
        globs = [text.replace("{symbol}", "*") for text in self._options.channels if _SPECIAL.search(text)]
        if plain:
            hearing.subscribe(*plain)
        if globs:
            hearing.psubscribe(*globs)
        return len(set(plain)) + len(set(globs))

    def _begun(self) -> Delivery:
        """Return what is missing since the connection was lost."""
        self._live()
        self._cut, self._asked, self._heard_at = None, False, time.monotonic_ns()
        since, self._heard_ns = self._heard_ns, self._clock()
        if since is None:
            return Delivery()
        log.warning("%s: what was published in %.1f s is gone", self.name, (self._heard_ns - since) / 1e9)
        return Delivery(missing=[(symbol, since, max(self._heard_ns, since + 1)) for symbol in self._symbols])

    def _messages(self, hearing: Any) -> list[dict[str, Any]]:
        """Return what is there. A connection that is lost behind it is raised after it is given."""
        found: list[dict[str, Any]] = []
        try:
            message = hearing.get_message(timeout=_WAIT_S)
            taken = 0
            while message is not None:
                self._heard_ns, self._heard_at, self._asked = self._clock(), time.monotonic_ns(), False
                if message["type"] in ("message", "pmessage"):
                    found.append(message)
                    taken += len(message["data"])
                if len(found) >= _AT_ONCE or taken > _BYTES_AT_ONCE:
                    break
                message = hearing.get_message(timeout=0)
            self._ask(hearing)
        except self.lost as error:
            self._cut = error
        return found

    def _ask(self, hearing: Any) -> None:
        """Ask a silent server whether it is there: a cut that nobody told of looks like silence."""
        silent_ns = time.monotonic_ns() - self._heard_at
        if silent_ns > _LOST_NS:
            raise ConnectionError(f"no answer for {silent_ns / 1e9:.0f} s")
        if silent_ns > _ASK_NS and not self._asked:
            hearing.ping()
            self._asked = True

    def _delivery(self, messages: Sequence[dict[str, Any]]) -> Delivery:
        flat: list[list[Any]] = []
        symbols: list[str] = []
        now = self._clock()
        for message in messages:
            channel = message["channel"]
            try:
                said = self._said(message["data"])
            except (ValueError, RecursionError, msgspec.DecodeError) as error:
                self._refuse(channel, str(error))
                continue
            symbol = self._symbol(channel)
            for one in said:
                flat.append([part for name, value in one.items() for part in (self._named.get(name, name), value)])
                symbols.append(symbol)
        if not flat:
            return Delivery()
        decoded = self._decoder.decode(flat, symbols, [now] * len(flat))
        for at in sorted(set(decoded.rejected) - set(decoded.rows)):
            self._refuse(symbols[at].encode(), decoded.rejected[at])
        if not decoded.rows:
            return Delivery()
        columns = columns_for_tape(decoded, self._options.source)
        if "ts_recv_ns" not in columns:
            columns["ts_recv_ns"] = now
        self._symbols.update(dict.fromkeys(decoded.columns["symbol"]))
        return Delivery(columns=columns)

    def _said(self, data: bytes) -> list[dict[str, Any]]:
        form = self._options.format
        if form == "json" or (form == "auto" and data.lstrip()[:1] in (b"{", b"[")):
            said = msgspec.json.decode(data)
        else:
            said = msgspec.msgpack.decode(data)
        found = said if isinstance(said, list) else [said]
        if not all(isinstance(one, dict) and all(isinstance(name, str) for name in one) for one in found):
            raise ValueError("no object, and no list of objects")
        return found

    def _symbol(self, channel: bytes) -> str:
        for pattern in self._patterns:
            match = pattern.fullmatch(channel)
            if match is not None and "symbol" in match.groupdict():
                return match["symbol"].decode("utf-8", "replace")
        if self._options.symbol is not None:
            return self._options.symbol
        return channel.partition(b":")[2].decode("utf-8", "replace")

    def _refuse(self, channel: bytes, why: str) -> None:
        self._count(refused=1)
        told = f"{channel.decode('utf-8', 'replace')}: {why}"
        if "first_refused" not in self._facts:
            log.warning("%s: no tick: %s", self.name, told)
        self._facts = {"first_refused": told, **self._facts}


def _regex(text: str) -> re.Pattern[bytes]:
    parts = re.split(r"(\{symbol\}|\*|\?)", text)
    kinds = {"{symbol}": b"(?P<symbol>.+)", "*": b".*", "?": b"."}
    return re.compile(b"".join(kinds.get(part) or re.escape(part.encode()) for part in parts), re.DOTALL)


def make(name: str, options: Options) -> RedisPubSubSource:
    """Return the source of these options."""
    return RedisPubSubSource(name, options)
