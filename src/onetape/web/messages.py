"""Messages: what a client of the WebSocket may say, parsed and checked."""

from __future__ import annotations

from typing import Annotated

import msgspec

from onetape.errors import ConfigInvalid, OnetapeError
from onetape.record import TS_MAX_NS
from onetape.web.candles import BARS_MAX


class Subscribe(msgspec.Struct, frozen=True, tag_field="op", tag="subscribe"):
    """Bars of symbols: a snapshot of `history` bars each, then what changes. `from`: the position already seen."""

    symbols: list[str]
    interval: str = "1min"
    history: Annotated[int, msgspec.Meta(ge=0, le=BARS_MAX)] = 300
    from_: Annotated[int, msgspec.Meta(ge=0, le=TS_MAX_NS)] | None = msgspec.field(default=None, name="from")


class Unsubscribe(msgspec.Struct, frozen=True, tag_field="op", tag="unsubscribe"):
    """No more of these symbols."""

    symbols: list[str]


class Ping(msgspec.Struct, frozen=True, tag_field="op", tag="ping"):
    """Are you there?"""


Message = Subscribe | Unsubscribe | Ping

_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


class Refused(OnetapeError):
    """What a client said cannot be done; `code` is a word for programs."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


def parse(text: str | bytes) -> Message:
    """Return what a message says. Raises Refused."""
    try:
        return _decoder.decode(text)
    except msgspec.ValidationError as error:
        told = str(error)
        if "$.op" in told or "`op`" in told:
            raise Refused("op_unknown", f"no such op: {told}", "ops are subscribe, unsubscribe and ping") from error
        raise Refused("invalid", told) from error
    except RecursionError as error:
        raise Refused("not_json", "nested too deeply", "messages are flat JSON objects") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused("not_json", f"not JSON: {error}", "messages are JSON objects") from error


def error_of(error: OnetapeError) -> dict[str, str]:
    """Return an error as the WebSocket tells it."""
    code = error.code if isinstance(error, Refused) else code_of(error)
    return {"op": "error", "code": code, "message": error.message, "hint": error.hint}


def code_of(error: OnetapeError) -> str:
    """Return an error's word for programs, such as tape_busy."""
    if type(error) is ConfigInvalid:
        return "invalid"
    name = type(error).__name__
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
