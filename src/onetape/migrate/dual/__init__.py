"""Dual write: clients that keep old and new keys equal while a migration runs."""

from onetape.migrate.dual.aclient import AsyncDualRedis
from onetape.migrate.dual.client import DualRedis
from onetape.migrate.dual.status import DualStatus

__all__ = ["AsyncDualRedis", "DualRedis", "DualStatus"]
