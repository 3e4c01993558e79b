"""The kinds of sources by name, and a source made from a table of `onetape.toml`.

    [[source]]
    kind = "scid"
    path = "/sierra/Data/ESZ6.scid"
    symbol = "ESZ6"

A kind is a module with `Options` (a frozen struct that forbids unknown fields; they are the keys of the table) and
`make(name, options) -> Source`. It is imported when it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import msgspec

from onetape.errors import ConfigInvalid
from onetape.sources.source import Source

#: Kind → its module.
KINDS = {
    "scid": "onetape.sources.scid",
    "depth": "onetape.sources.depth",
    "dly": "onetape.sources.dly",
    "bridge": "onetape.sources.bridge",
    "dtc": "onetape.sources.dtc",
    "redis_stream": "onetape.sources.redis_stream",
    "redis_pubsub": "onetape.sources.redis_pubsub",
    "file": "onetape.sources.file",
    "replay": "onetape.sources.replay",
}


def make(table: Mapping[str, Any], where: str = "source") -> Source:
    """Return the source that a table describes: `kind`, `name` (else the kind) and what the kind takes.

    Raises ConfigInvalid, naming the table, the key and what is known.
    """
    options = dict(table)
    kind = options.pop("kind", None)
    if kind not in KINDS:
        raise ConfigInvalid(f"{where}: kind = {kind!r}", hint=f"kinds are {', '.join(sorted(KINDS))}")
    name = options.pop("name", kind)
    if not isinstance(name, str) or not name:
        raise ConfigInvalid(f"{where}: name = {name!r}", hint="a name is text")
    module = importlib.import_module(KINDS[kind])
    try:
        taken = msgspec.convert(options, module.Options, strict=False)
    except msgspec.ValidationError as error:
        known = ", ".join(field.name for field in msgspec.structs.fields(module.Options))
        raise ConfigInvalid(f"{where} ({kind}): {error}", hint=f"its keys are kind, name, {known}") from error
    made: Source = module.make(name, taken)
    return made
