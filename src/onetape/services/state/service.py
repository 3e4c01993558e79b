"""The service of state: positions, risk, what the system may do, and profit and loss at the prices of the tape."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from onetape.clock import now_ns
from onetape.errors import ConfigInvalid, OnetapeError, StateUnusable
from onetape.services.state.day import TradingDay
from onetape.services.state.file import StateFile
from onetape.services.state.marks import Mark, ahead, mark
from onetape.services.state.position import ZERO, Fill, Position, decimal, exact
from onetape.services.state.risk import Account, Breach, RiskParameters, check_account, check_order
from onetape.services.state.subscribers import Callback, Subscriber
from onetape.services.state.valued import ProfitLoss, Valued, row

if TYPE_CHECKING:
    from onetape.steady import SteadyTape
    from onetape.tape import Tape

_log = logging.getLogger("onetape.state")

MODES = ("paper", "live", "replay")
#: What the system is until somebody says otherwise: nothing may be opened, and no real money is meant.
_SYSTEM: dict[str, Any] = {"trading_enabled": False, "mode": "paper"}
#: How often other processes' changes are looked for, s; and how far back a trade is looked for behind quotes.
_LOOK_S, _TICKS = 0.25, 200
#: How long subscribers may take for what waits for them at the end, all together, s.
_FINISH_S = 5.0


class StateService:
    """Keeps the state in a file of its own; prices are the tape's. Any thread may call, any process have one as well.

    The file is opened by the first use or by start(), and again by a forked process, which has no subscribers.
    day_starts: when a trading day begins, "HH:MM Zone".
    Raises ConfigInvalid, and StateUnusable where the file cannot be used; the tape being away raises nothing.
    """

    name = "state"

    def __init__(
        self,
        tape: SteadyTape | Tape,
        path: Path | str,
        *,
        day_starts: str = "00:00 UTC",
        clock: Callable[[], int] = now_ns,
    ) -> None:
        self._tape, self._path, self._clock = tape, Path(path), clock
        self._day = TradingDay.of(day_starts)
        self._kept: StateFile | None = None
        self._lock = threading.RLock()
        self._subscribers: list[Subscriber] = []
        self._thread: threading.Thread | None = None
        self._stopping, self._changed = threading.Event(), threading.Event()
        self._told = 0
        self._trouble: str | None = None
        self._pid = os.getpid()
        self._inherited: list[StateFile | None] = []

    async def start(self) -> None:
        """Open the file. Raises StateUnusable."""
        await asyncio.to_thread(lambda: self._file)

    async def stop(self) -> None:
        """Tell subscribers what is left, end their threads and close the file."""
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """As stop(), for callers without an event loop. A subscriber that hangs is waited for 5 s at most."""
        self._stopping.set()
        self._changed.set()
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(5)
        with self._lock:
            with contextlib.suppress(StateUnusable):
                self._tell_new()
            subscribers, self._subscribers = self._subscribers, []
            if self._kept is not None:
                self._kept.close()
                self._kept = None
        for subscriber in subscribers:
            subscriber.finish()
        until_s = time.monotonic() + _FINISH_S
        for subscriber in subscribers:
            subscriber.wait(until_s - time.monotonic())

    def status(self) -> dict[str, Any]:
        """Return how it is, as plain data."""
        found: dict[str, Any] = {
            "path": str(self._path),
            "subscribers": [
                {"delivered": one.delivered, "errors": one.errors, "dropped": one.dropped} for one in self._subscribers
            ],
        }
        try:
            found["positions"] = len(self.positions())
            found |= {name: value for name, value in self.system().items() if name in _SYSTEM}
        except OnetapeError as error:
            found["trouble"] = str(error)
        if self._trouble:
            found.setdefault("trouble", self._trouble)
        return found

    def fill(
        self, fill_id: str, symbol: str, quantity: Any, price: Any, *, fee: Any = 0, ts_ns: int | None = None
    ) -> tuple[Position, Decimal, bool]:
        """Take one execution: return the position after it, what it realized before fees, and whether it was new.

        quantity is signed. The same id again changes nothing; with other content it raises FillConflict. A fill
        happened, so no limit refuses it: `breaches()` says what it broke. Durable on return.
        """
        amount = decimal("quantity", quantity)
        if not amount:
            raise ConfigInvalid("quantity = 0 is no fill", hint="bought is above zero, sold below")
        found = self._file.fill(self._made(fill_id, symbol, amount, price, fee, ts_ns))
        self._changed.set()
        return found

    def flatten(
        self, fill_id: str, symbol: str, price: Any, *, fee: Any = 0, ts_ns: int | None = None
    ) -> tuple[Position, Decimal, bool]:
        """As fill(), of one execution that closed all that was held: two at once close it once.

        Of a flat position it is no execution: nothing is stored, and it was not new.
        """
        found = self._file.flatten(self._made(fill_id, symbol, ZERO, price, fee, ts_ns))
        self._changed.set()
        return found

    def _made(self, fill_id: str, symbol: str, quantity: Decimal, price: Any, fee: Any, ts_ns: int | None) -> Fill:
        if not _is_text(fill_id):
            raise ConfigInvalid(f"fill_id = {fill_id!r}", hint="give the execution's own id, 1 to 255 bytes")
        at = self._clock() if ts_ns is None else ts_ns
        if isinstance(at, bool) or not isinstance(at, int) or not 0 <= at < 2**63:
            raise ConfigInvalid(f"ts_ns = {ts_ns!r}", hint="give ns since 1970, UTC")
        return Fill(
            fill_id=fill_id,
            symbol=_symbol(symbol),
            quantity=quantity,
            price=decimal("price", price),
            fee=decimal("fee", fee),
            ts_ns=at,
        )

    def set_contract(self, symbol: str, multiplier: Any) -> None:
        """Set what one point of one contract is worth; 1 where it was never set. Only while the symbol is flat."""
        found = decimal("multiplier", multiplier)
        if found <= 0:
            raise ConfigInvalid(f"multiplier = {multiplier!r}", hint="above zero: 50 for the big S&P future")
        self._file.contract(_symbol(symbol), found)
        self._changed.set()

    def position(self, symbol: str) -> Position:
        """Return a symbol's position; a flat one where there never was any."""
        return self._file.position(symbol)

    def positions(self, *, flat: bool = False) -> dict[str, Position]:
        """Return what is held, by symbol; flat: what was held before as well."""
        return {name: one for name, one in self._file.positions().items() if flat or one.quantity}

    def fills(self, limit: int = 100) -> list[Fill]:
        """Return the newest fills, ascending in time."""
        return self._file.fills(limit)

    def valued(self) -> dict[str, Valued]:
        """Return what is held at the prices now, by symbol."""
        return self._valued(self.positions())

    def _valued(self, positions: dict[str, Position]) -> dict[str, Valued]:
        stale_ns, now, found = self._stale_ns(), self._clock(), {}
        for symbol, position in positions.items():
            at = self._mark(symbol, now, stale_ns)
            found[symbol] = Valued(
                position=position,
                mark=at,
                unrealized=None if at is None else position.unrealized(at.price),
                stale=at is None or at.stale,
            )
        return found

    def profit_loss(self) -> ProfitLoss:
        """Return what was made: in all, today, and what is open."""
        file = self._file
        with file.moment():
            everything, today = file.positions(), file.made(*self._day.at(self._clock()))
        held = self._valued({symbol: one for symbol, one in everything.items() if one.quantity})
        with exact():
            opened = [one.unrealized for one in held.values()]
            known = [one for one in opened if one is not None]
            unrealized = sum(known, ZERO) if len(known) == len(opened) else None
            return ProfitLoss(
                realized=sum((one.realized for one in everything.values()), ZERO),
                fees=sum((one.fees for one in everything.values()), ZERO),
                realized_today=today,
                unrealized=unrealized,
                day=None if unrealized is None else today + unrealized,
                stale=sorted(symbol for symbol, one in held.items() if one.stale),
            )

    def risk(self) -> RiskParameters:
        """Return the limits."""
        return RiskParameters.of(self._file.setting("risk"))

    def set_risk(self, **parameters: Any) -> RiskParameters:
        """Change some limits and return all; None takes one away. Raises ConfigInvalid; then none is changed."""

        def changed(before: dict[str, Any]) -> dict[str, Any]:
            return dict(msgspec.to_builtins(RiskParameters.of({**before, **parameters})))

        found = self._file.change("risk", changed)
        self._changed.set()
        return RiskParameters.of(found)

    def check(self, symbol: str, quantity: Any) -> list[Breach]:
        """Return every reason against an order of this signed quantity now; none: it is within all limits."""
        amount, file = decimal("quantity", quantity), self._file
        with file.moment():
            risk, enabled, account = self.risk(), bool(self.system()["trading_enabled"]), self._booked(_symbol(symbol))
        return check_order(risk, self._account(*account), symbol, amount, trading_enabled=enabled)

    def breaches(self) -> list[Breach]:
        """Return every limit that is broken by what is held."""
        with self._file.moment():
            risk, account = self.risk(), self._booked(None)
        return check_account(risk, self._account(*account))

    def system(self) -> dict[str, Any]:
        """Return the state of the system: trading_enabled (False at first), mode ("paper"), and what else was set."""
        return {**_SYSTEM, **self._file.setting("system")}

    def set_system(self, **values: Any) -> dict[str, Any]:
        """Change some of it and return all. trading_enabled is a bool, mode one of MODES; others are plain data."""
        if not isinstance(values.get("trading_enabled", False), bool):
            raise ConfigInvalid(f"trading_enabled = {values['trading_enabled']!r}", hint="give True or False")
        if values.get("mode", MODES[0]) not in MODES:
            raise ConfigInvalid(f"mode = {values['mode']!r}", hint=f"one of {', '.join(MODES)}")
        try:
            plain = msgspec.json.decode(msgspec.json.encode(values))
        except (TypeError, ValueError) as error:
            raise ConfigInvalid(f"not plain data: {error}", hint="numbers, text, lists and dicts are kept") from error
        found = self._file.change("system", lambda before: {**before, **plain})
        self._changed.set()
        return {**_SYSTEM, **found}

    def subscribe(self, callback: Callback) -> Subscriber:
        """Call `callback(event)` for every change from now on, by any process, once and in order; see close().

        Each subscriber has a thread of its own; a coroutine is awaited on the event loop that subscribed it.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        with self._lock:
            file = self._file
            if self._thread is None:
                self._told = file.last_event()
                self._stopping.clear()
                self._thread = threading.Thread(target=self._tell, name="state-events", daemon=True)
                self._thread.start()
            else:
                self._tell_new()  # what happened before it subscribed is not for it
            subscriber = Subscriber(callback, loop)
            self._subscribers.append(subscriber)
            return subscriber

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Call it no more."""
        with self._lock:
            self._subscribers = [one for one in self._subscribers if one is not subscriber]
        subscriber.close()

    def snapshot(self) -> dict[str, Any]:
        """Return all of it as plain data for a page: money as numbers, times as ms. Exact values: the other methods."""
        money = self.profit_loss()
        return {
            "at_ms": self._clock() // 1_000_000,
            "positions": [row(one) for one in self.valued().values()],
            "risk": {
                name: float(value) if isinstance(value, Decimal) else value
                for name, value in msgspec.structs.asdict(self.risk()).items()
                if not isinstance(value, dict)
            },
            "breaches": [msgspec.structs.asdict(one) for one in self.breaches()],
            "system": self.system(),
            "profit_loss": {
                name: float(value) if isinstance(value, Decimal) else value
                for name, value in msgspec.structs.asdict(money).items()
            },
        }

    @property
    def _file(self) -> StateFile:
        if self._pid != os.getpid():  # forked: another process's connection must not be used, and not be closed
            self._inherited.append(self._kept)
            self._pid, self._kept, self._lock = os.getpid(), None, threading.RLock()
            self._subscribers, self._thread, self._changed = [], None, threading.Event()
        with self._lock:
            if self._kept is None:
                self._kept = StateFile(self._path)
            return self._kept

    def _stale_ns(self) -> int:
        return round(self.risk().stale_price_s * 1e9)

    def _mark(self, symbol: str, now: int, stale_ns: int) -> Mark | None:
        try:
            newest = self._tape.latest(symbol)
            ticks = [] if newest is None else [newest]
            if newest is not None and (newest.price is None or ahead(newest, now, stale_ns)):
                ticks = self._tape.recent(symbol, _TICKS)
        except OnetapeError as error:  # the tape is away: there is no price, and whoever asks is told so
            _log.warning("no price of %s: %s", symbol, error)
            return None
        return mark(ticks, now, stale_ns)

    def _booked(self, also: str | None) -> tuple[dict[str, Position], Decimal]:
        """Return what is held, and of one more symbol; and what the day realized."""
        positions = self.positions()
        if also is not None and also not in positions:
            positions[also] = self.position(also)
        return positions, self._file.made(*self._day.at(self._clock()))

    def _account(self, positions: dict[str, Position], made: Decimal) -> Account:
        valued = self._valued(positions)
        value: dict[str, Decimal | None] = {}
        day: Decimal | None = made
        with exact():
            for symbol, one in valued.items():
                fresh = None if one.mark is None or one.stale else one.mark.price
                value[symbol] = None if fresh is None else fresh * one.position.multiplier
                if one.position.quantity:
                    day = None if day is None or fresh is None or one.unrealized is None else day + one.unrealized
        return Account({symbol: one.quantity for symbol, one in positions.items()}, value, day)

    def _tell(self) -> None:
        while not self._stopping.is_set():
            self._changed.wait(_LOOK_S)
            self._changed.clear()
            try:
                self._tell_new()
                self._trouble = None
            except StateUnusable as error:  # told again at the next look; no event is passed over
                if self._trouble is None:
                    _log.warning("%s", error)
                self._trouble = str(error)

    def _tell_new(self) -> None:
        with self._lock:
            if self._kept is None:
                return
            while events := self._kept.events(self._told):
                for subscriber in self._subscribers:
                    subscriber.dropped += events[0].event_id - self._told - 1  # so far behind that they are gone
                for event in events:
                    for subscriber in self._subscribers:
                        subscriber.put(event)
                    self._told = event.event_id


def _symbol(symbol: str) -> str:
    if not _is_text(symbol):
        raise ConfigInvalid(f"symbol = {symbol!r}", hint="1 to 255 bytes of text")
    return symbol


def _is_text(value: object) -> bool:
    """Return whether it is 1 to 255 bytes of text."""
    try:
        return isinstance(value, str) and 0 < len(value.encode()) <= 255
    except UnicodeEncodeError:
        return False
