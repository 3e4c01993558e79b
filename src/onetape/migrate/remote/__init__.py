"""Other servers: a migration whose target is another server, a service behind sentinels, or a Redis Cluster."""

from onetape.migrate.remote.bridge import OTHER_SERVER, Bridge, away
from onetape.migrate.remote.cluster import Cluster
from onetape.migrate.remote.connect import connect_both, connect_target

__all__ = ["OTHER_SERVER", "Bridge", "Cluster", "away", "connect_both", "connect_target"]
