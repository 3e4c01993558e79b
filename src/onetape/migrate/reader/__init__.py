"""The read switch: clients whose reads go from the old names to the new ones as the migration's state says."""

from onetape.migrate.reader.aclient import AsyncReader, AsyncReaderPipeline, AsyncReaderRedis
from onetape.migrate.reader.client import Reader, ReaderPipeline, ReaderRedis
from onetape.migrate.reader.core import Mismatch, Status
from onetape.migrate.reader.market import MarketReader
from onetape.migrate.reader.switch import Side, falls_back, side_of_read
from onetape.migrate.reader.tally import ReadStats

__all__ = [
    "AsyncReader",
    "AsyncReaderPipeline",
    "AsyncReaderRedis",
    "MarketReader",
    "Mismatch",
    "ReadStats",
    "Reader",
    "ReaderPipeline",
    "ReaderRedis",
    "Side",
    "Status",
    "falls_back",
    "side_of_read",
]
