"""Steady: a tape that goes on. The tape while it can be used, a bounded ring in memory while not, and back again."""

from onetape.steady.tape import SteadyStatus, SteadyTape

__all__ = ["SteadyStatus", "SteadyTape"]
