"""A DTC server with a random walk, for any DTC client: `python examples/dtc_server.py ESZ6 NQZ6`.

Serves live data on port 11099 and history on 11098 (0: a free one, told on the first line) until Ctrl-C.
"""

from __future__ import annotations

import argparse
import random
import time

from onetape import BUY, SELL, Tick
from onetape.sources.dtc.messages import HISTORY_PORT, LIVE_PORT
from onetape.sources.dtc.server import DtcServer


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a random walk over DTC.")
    parser.add_argument("symbols", nargs="+")
    parser.add_argument("--port", type=int, default=LIVE_PORT)
    parser.add_argument("--history-port", type=int, default=HISTORY_PORT)
    parser.add_argument("--rate", type=float, default=20.0, help="trades a second, over all symbols")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="how long to serve")
    asked = parser.parse_args()

    prices = {symbol: 4500.0 + 100.0 * number for number, symbol in enumerate(asked.symbols)}
    end = time.monotonic() + asked.seconds
    with DtcServer(port=asked.port, history_port=asked.history_port) as server:
        print(f"live on port {server.port}, history on port {server.history_port}", flush=True)
        try:
            while time.monotonic() < end:
                symbol = random.choice(asked.symbols)
                prices[symbol] += random.choice((-0.25, 0.0, 0.25))
                price, side = prices[symbol], random.choice((BUY, SELL))
                bid, ask = (price - 0.25, price) if side == BUY else (price, price + 0.25)
                size = float(random.randint(1, 9))
                now_ns = time.time_ns()
                server.publish(
                    [
                        Tick(symbol, now_ns, bid=bid, ask=ask, bid_size=10.0, ask_size=10.0),
                        Tick(symbol, now_ns, price=price, size=size, side=side),
                    ]
                )
                server.set_level(symbol, "bid", bid, 10.0)
                server.set_level(symbol, "ask", ask, 10.0)
                time.sleep(1 / asked.rate)
        except KeyboardInterrupt:
            print("ended")


if __name__ == "__main__":
    main()
