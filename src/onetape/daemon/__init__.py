"""The daemon: the tape, the sources, the services and the page as one process that is started, watched and ended."""

from onetape.daemon.daemon import Daemon

__all__ = ["Daemon"]
