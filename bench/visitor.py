"""The visitor: another client of the server, with 1,000 GETs a second, that would feel a migration.

`python -m bench.visitor PORT` says "ready", and prints the latencies in ms as JSON when its input ends. A request
that waited for the answer to the one before counts from when it was due.
"""

from __future__ import annotations

import json
import select
import sys
import time

from onetape.migrate.endpoint import Endpoint, pack

_GAP_NS = 1_000_000


def main(port: int) -> None:
    """Ask until the input ends."""
    clock = time.perf_counter_ns
    found: list[float] = []
    with Endpoint.connect(f"redis://127.0.0.1:{port}", db=5) as endpoint:
        request = pack("GET", "indicators:NFO:SYM000001:rsi")
        print("ready", flush=True)
        due = clock()
        while not (len(found) % 16 == 0 and select.select([sys.stdin], [], [], 0)[0]):
            due += _GAP_NS
            start = due
            if (wait := due - clock()) > 0:
                time.sleep(wait / 1e9)
                start = clock()
            endpoint.exchange(request, 1)
            found.append((clock() - start) / 1e6)
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]))
