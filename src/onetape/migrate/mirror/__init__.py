"""The mirror: follows writers that cannot be changed, by hints and sweeps."""

from onetape.migrate.mirror.memory import Memory
from onetape.migrate.mirror.mirror import Mirror, Options, fold
from onetape.migrate.mirror.status import MirrorStatus, decode_status

__all__ = ["Memory", "Mirror", "MirrorStatus", "Options", "decode_status", "fold"]
