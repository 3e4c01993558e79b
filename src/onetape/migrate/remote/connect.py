"""Connections to the target's server, and to both servers of a migration."""

from __future__ import annotations

import time

from onetape.errors import EndpointError
from onetape.migrate.remote.bridge import Bridge
from onetape.migrate.remote.cluster import Cluster
from onetape.migrate.wire.endpoint import AGREEING_ATTEMPTS, Endpoint, connect_again, is_lost, pause_s


def connect_target(url: str, *, db: int = 0, writable: bool = True, timeout_s: float = 10.0) -> Endpoint:
    """Connect to a server of any kind (see address.py), trying again for a while where it is away.

    Returns a Cluster for cluster://. Raises ConfigInvalid, EndpointError.
    """
    if not url.startswith("cluster:"):
        return connect_again(url, db=db, writable=writable, timeout_s=timeout_s)
    for attempt in range(AGREEING_ATTEMPTS):
        try:
            return Cluster.connect(url, db=db, writable=writable, timeout_s=timeout_s)
        except EndpointError as error:
            if not is_lost(error) or attempt == AGREEING_ATTEMPTS - 1:
                raise
        time.sleep(pause_s(attempt, AGREEING_ATTEMPTS))
    raise AssertionError("unreachable")


def connect_both(source: str, target: str, *, writable: bool, timeout_s: float = 10.0) -> Bridge:
    """Connect to both servers of a migration. The source is never written: its connection refuses to."""
    here = connect_again(source, writable=False, timeout_s=timeout_s)
    try:
        return Bridge(here, connect_target(target, writable=writable, timeout_s=timeout_s))
    except BaseException:
        here.close()
        raise
