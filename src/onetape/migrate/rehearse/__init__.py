"""The rehearsal: all of a migration on a private copy of the data, killed at every step, and what it will take."""

from onetape.migrate.rehearse.rehearsal import Done, Options, Rehearsal, rehearse

__all__ = ["Done", "Options", "Rehearsal", "rehearse"]
