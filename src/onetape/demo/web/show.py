"""The show: a folder with a past and a recording, a daemon on it, and words on what to look at, until it is ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from onetape import tape as tapes
from onetape.clock import now_ns
from onetape.config import Settings, WebSettings
from onetape.daemon.daemon import Daemon
from onetape.demo.place import LEDGER, TAPE, Place
from onetape.demo.telling import Telling
from onetape.demo.web.events import Events
from onetape.demo.web.exchange import SYMBOL, Exchange
from onetape.demo.web.film import COMING_NS, Film, films, without
from onetape.errors import ConfigInvalid

if TYPE_CHECKING:
    from onetape.services.state import StateService

RECORDING = "recording.db"
_LOOPBACK = "127.0.0.1"
_MINUTE_NS = 60_000_000_000
#: What the demo takes out of an instrument's past, so that there is something missing: from, to, before now.
_HOLE_NS = (9 * _MINUTE_NS, 6 * _MINUTE_NS)
#: At the start bought or sold, where the instrument is there: symbol, quantity, what a point is worth.
_POSITIONS = (("COMEX:GCZ13", 2, 100), ("BINANCE:ETHUSDT", -5, 1), ("IBM", 300, 1))
_PATTERNS = ("breakout", "volume", "volatility", "trend", "levels")  # candlesticks would be most of what is seen
_CHARTS_MAX = 6


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `run` is asked for. keep: the folder that stays; None: a temporary one. for_s: None is until it is ended."""

    samples: Path | None
    keep: Path | None = None
    seed: int = 1
    port: int = 8080
    for_s: float | None = None


def run(options: Options, telling: Telling) -> dict[str, Any]:
    """Show the system until Ctrl-C, SIGTERM or for_s; return what happened. Raises ConfigInvalid for the folder."""
    with _folder(options.keep) as place:
        telling.line("Preparing: reading ticks, writing the past of the tape and what will be played …", "dim")
        shown = _prepare(place, options)
        return _Show(options, telling, place, shown).run()


class _Show:
    def __init__(self, options: Options, telling: Telling, place: Place, shown: Sequence[Film]) -> None:
        self.options, self.telling, self.place, self.shown = options, telling, place, shown
        self.asked_port, self.port = options.port, _free(options.port)
        self.exchange = Exchange(options.seed)
        self.daemon: Daemon | None = None

    def run(self) -> dict[str, Any]:
        try:
            self.daemon = daemon = Daemon(self._settings())
            state = cast("StateService", daemon.system.state)
            events = Events(daemon.tape, state, self.exchange)
            try:
                self._begin(state, daemon)
                self.exchange.start()
                events.start()
                clean = self._live(daemon)
            finally:
                events.close()
        finally:
            self.exchange.close()
        stored = sum(feed.stats.stored for feed in daemon.feeds.values())
        self.telling.line(f"Ended: {stored:,} ticks were played." + ("" if clean else " Not everything ended in time."))
        return {
            "address": daemon.address,
            "instruments": [one.symbol for one in self.shown],
            "real": all(one.origin for one in self.shown),
            "stored": stored,
            **events.happened,
            "clean": clean,
        }

    def _settings(self) -> Settings:
        charts = [{"chart_id": one.symbol, "symbol": one.symbol} for one in self._best()]
        played = {
            "kind": "replay",
            "name": "recording",
            "tape": str(self.place.folder / RECORDING),
            "restamp": True,
            "loop": True,
        }
        # Made without the user's own onetape.toml and environment: the demo is not their system
        return Settings.model_construct(
            tape=self.place.tape,
            retention_days=None,
            source=(played, self.exchange.source()),
            services={
                "state": {},
                "patterns": {"detectors": _PATTERNS, "history_s": 3600},
                "charts": {"charts": charts},
                "market_data": {"ws_port": _free(9001), "http_port": _free(9002)},
            },
            web=WebSettings(port=self.port),
            drain_s=10,
        )

    def _best(self) -> list[Film]:
        return sorted(self.shown, key=lambda one: -len(one.coming))[:_CHARTS_MAX]

    def _begin(self, state: StateService, daemon: Daemon) -> None:
        """Hold a few positions, at the last prices of the past."""
        state.set_contract(SYMBOL, 50)
        state.set_risk(max_position=1000, max_daily_loss=25_000)
        state.set_system(mode="replay")
        wanted = _POSITIONS if self.shown[0].origin else tuple((one.symbol, 75, 1) for one in self.shown[:2])
        for symbol, quantity, worth in wanted:
            ticks = [tick for tick in daemon.tape.recent(symbol, 500) if tick.price is not None]
            if ticks:
                state.set_contract(symbol, worth)
                state.fill(f"demo-begin-{symbol}", symbol, quantity, ticks[-1].price)

    def _live(self, daemon: Daemon) -> bool:
        def ready(_daemon: Daemon) -> None:
            self._tell(daemon)
            if self.options.for_s is not None:
                asyncio.get_running_loop().call_later(self.options.for_s, daemon.stop)

        with _quiet_logs(), asyncio.Runner() as runner:
            return runner.run(daemon.run(on_ready=ready))

    def _tell(self, daemon: Daemon) -> None:
        telling = self.telling
        if daemon.address is None:
            telling.line("The page does not start; the log above says why. It is tried again.", "bold red")
            return
        if self.asked_port not in (0, self.port):
            telling.line(f"Port {self.asked_port} is taken: the page is at another one.", "yellow")
        telling.gap()
        telling.plain(f"Open  {daemon.address}", "bold green")
        telling.gap()
        self._tell_instruments()
        for text in self._hints():
            telling.line(text)
        telling.gap()
        telling.plain("Another view, from a second terminal:")
        telling.plain(f"  onetape top --tape {self.place.tape} --url {daemon.address}")
        telling.plain(f"  curl '{daemon.address}/api/v1/symbols'")
        telling.gap()
        kept = f"{self.place.folder} stays." if self.options.keep else "All of its data is removed then."
        telling.line(f"Ctrl-C ends it. {kept}", "bold")

    def _hints(self) -> Iterator[str]:
        """Yield what to look at."""
        yield (
            f"Chart: {SYMBOL} is simulated, and comes over our own DTC server with its order book. It has late ticks "
            "and corrections (a mark on the bar they revise, every half minute), and its feed breaks for a while, "
            "first after 50 s (shaded)."
        )
        yield f"{self.shown[0].symbol} misses three minutes of its past: shaded, too."
        yield (
            "System: pause the recording, or change its speed. Some instruments are held: profit and loss moves with "
            "their prices. Patterns: what was detected, and how often it came true. Tape: the file, and what it covers."
        )

    def _tell_instruments(self) -> None:
        if not self.shown[0].origin:
            self.telling.line(f"{len(self.shown)} instruments, all SIMULATED: there is no sample data here.", "yellow")
            return
        self.telling.line(
            f"Real ticks, as recorded, moved to now; {COMING_NS // _MINUTE_NS} minutes are played in a loop:"
        )
        for one in self.shown:
            again = f", repeated {one.turns:.0f} times" if one.turns > 2 else ""
            self.telling.plain(f"  {one.symbol:<22} {one.origin}{again}")


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Place]:
    """Give the demo's folder; a temporary one is removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="onetape-demo-")) if keep is None else keep
    try:
        place = Place(folder)
        place.prepare()
        made = [RECORDING, f"{TAPE}.state", f"{TAPE}.patterns", LEDGER]
        place.note(*(folder / f"{name}{suffix}" for name in made for suffix in ("", "-wal", "-shm", ".lock")))
        yield place
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)


def _prepare(place: Place, options: Options) -> list[Film]:
    """Write the tape with its past, and the recording with what is to come; return what is in them."""
    at_ns = now_ns()
    made = films(options.samples, at_ns, options.seed)
    hole = (at_ns - _HOLE_NS[0], at_ns - _HOLE_NS[1])
    with tapes.open(place.tape, retention_days=None) as tape:
        for number, one in enumerate(made):
            tape.append(one.past if number else without(one.past, *hole))
        tape.mark_missing(made[0].symbol, *hole, source="demo")
    with tapes.open(place.folder / RECORDING, retention_days=None) as recording:
        for one in made:
            recording.append(one.coming)
    return made


def _free(port: int) -> int:
    """Return this port if it can be listened on, else a free one."""
    for wanted in (port, 0):
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind((_LOOPBACK, wanted))
            except OSError:
                continue
            found: int = tried.getsockname()[1]
            return found
    raise ConfigInvalid(f"no port of {_LOOPBACK} can be listened on")


@contextlib.contextmanager
def _quiet_logs() -> Iterator[None]:
    """Let the daemon's warnings be read, and nothing below: the screen is the demo's."""
    from onetape.daemon import log

    root = logging.getLogger()
    before: tuple[list[logging.Handler], int] = (list(root.handlers), root.level)
    log.set_up("plain", level=logging.WARNING)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.handlers[:], level = before
        root.setLevel(level)
