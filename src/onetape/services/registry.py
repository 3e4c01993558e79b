"""The services by name, and a service made from a table of `onetape.toml`.

    [services.market_data]
    ws_port = 9001

A service's module has `Options` (a frozen struct that forbids unknown fields: the keys of its table) and
`make(tape, options) -> Service`. It is imported when it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from onetape.errors import ConfigInvalid
from onetape.services.service import Service

if TYPE_CHECKING:
    from onetape.steady import SteadyTape

#: Name → its module, in the order in which they are started.
KINDS = {
    "state": "onetape.services.state",
    "patterns": "onetape.services.patterns",
    "charts": "onetape.services.charts",
    "market_data": "onetape.services.market_data",
}


def make(name: str, table: Mapping[str, Any], tape: SteadyTape) -> Service:
    """Return the service of this name with what its table says. Raises ConfigInvalid, naming table and key."""
    if name not in KINDS:
        raise ConfigInvalid(f"[services.{name}]: there is no such service", hint=f"services are {', '.join(KINDS)}")
    module = importlib.import_module(KINDS[name])
    try:
        options = msgspec.convert(dict(table), module.Options, strict=False)
    except msgspec.ValidationError as error:
        known = ", ".join(field.name for field in msgspec.structs.fields(module.Options)) or "none"
        raise ConfigInvalid(f"[services.{name}]: {error}", hint=f"its keys: {known}") from error
    made: Service = module.make(tape, options)
    return made
