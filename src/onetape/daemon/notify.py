"""Telling systemd: ready, stopping, alive; by the datagrams of sd_notify(3). Without systemd nothing happens."""

from __future__ import annotations

import os
import socket


def tell(state: str) -> bool:
    """Send a state such as "READY=1" to the service manager; return whether there was one to take it."""
    place = os.environ.get("NOTIFY_SOCKET")
    if not place:
        return False
    address = "\0" + place[1:] if place.startswith("@") else place
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
            to.sendto(state.encode(), address)
    except OSError:
        return False
    return True


def watchdog_s() -> float | None:
    """Return how often the service manager wants to hear that we are alive (half of its patience); None: never."""
    try:
        patience_us = int(os.environ.get("WATCHDOG_USEC", "0"))
        of = int(os.environ.get("WATCHDOG_PID", os.getpid()))
    except ValueError:
        return None
    return patience_us / 2e6 if patience_us > 0 and of == os.getpid() else None
