"""The move: what a command of the live migration does, or would do, in words and as facts. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from onetape.migrate.report import EXIT_OK


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """What a command does to a live migration.

    `before` and `after` are phases. `executed` False: a dry run, nothing was changed. `changed` False: there was, or
    would be, nothing to change. `lines` say what is done, in order; `warnings` what is worth knowing; `facts` are
    counts and lists by name. `version`: that of the state afterwards (0: there is none).
    """

    command: str
    before: str
    after: str
    executed: bool
    changed: bool
    version: int
    lines: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    facts: dict[str, Any] = {}
    exit_code: int = EXIT_OK

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return msgspec.structs.asdict(self)


__all__ = ["Move"]
