"""The events: what happens on a desk now and then. Late ticks, corrections, fills; all of the simulated future."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import msgspec

from onetape.clock import now_ns
from onetape.demo.web.exchange import SYMBOL, Exchange
from onetape.errors import OnetapeError
from onetape.record import Tick
from onetape.services.state import StateService
from onetape.steady import SteadyTape

log = logging.getLogger("onetape.demo")

_S = 1_000_000_000
#: Every how many seconds what happens.
LATE_S, REVISED_S, FILL_S = 25, 40, 20
#: How far back a late tick and a correction are, s.
_LATE_BY_S, _REVISED_BACK_S = 150, 80


class Events:
    """Makes them happen from start() to close(), in a thread. `happened` counts each kind."""

    def __init__(
        self, tape: SteadyTape, state: StateService, exchange: Exchange, *, clock: Callable[[], int] = now_ns
    ) -> None:
        self._tape, self._state, self._exchange, self._clock = tape, state, exchange, clock
        self.happened = {"late": 0, "revised": 0, "fills": 0}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="demo-events", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End. May be called twice."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def late(self) -> None:
        """Append a trade that comes minutes late; the bar of its minute is revised."""
        at_ns = self._clock() - _LATE_BY_S * _S
        self._tape.append(Tick(SYMBOL, at_ns, price=self._exchange.price + 2, size=3.0, source="late"))
        self.happened["late"] += 1

    def revise(self) -> None:
        """Put another price in the place of a trade that is more than a minute old, where there is one."""
        tape, until_ns = self._tape.tape, self._clock() - _REVISED_BACK_S * _S
        if tape is None:
            return
        trades = [tick for tick in tape.recent(SYMBOL, 900) if tick.price is not None and tick.seq is not None]
        old = [tick for tick in trades if tick.ts_event_ns <= until_ns]
        if not old:
            return
        wrong = max(old, key=lambda tick: tick.ts_event_ns)
        assert wrong.price is not None
        tape.revise(wrong, msgspec.structs.replace(wrong, price=wrong.price - 1.5, seq=None))
        self.happened["revised"] += 1

    def fill(self) -> None:
        """Buy or sell one contract, in turns, at the market."""
        number = self.happened["fills"]
        self._state.fill(f"demo-{number + 1}", SYMBOL, -1 if number % 2 else 1, self._exchange.price, fee="2.25")
        self.happened["fills"] += 1

    def _run(self) -> None:
        second = 0
        while not self._stopping.wait(1.0):
            second += 1
            for every_s, act in ((LATE_S, self.late), (REVISED_S, self.revise), (FILL_S, self.fill)):
                if second % every_s == 0:
                    try:
                        act()
                    except OnetapeError as error:
                        log.warning("%s", error)  # the tape or the state is away for a moment: the next one
