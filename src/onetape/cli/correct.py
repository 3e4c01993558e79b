"""Commands that correct what a tape says, and pack what it holds: cancel, revise, compact."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from onetape.cli import output
from onetape.cli.options import Json, TapePath, open_tape
from onetape.errors import ConfigInvalid, RecordMissing

if TYPE_CHECKING:
    from onetape.record import Tick
    from onetape.tape import Tape

_CHANGED = ("price", "size", "bid", "ask", "bid_size", "ask_size")

Seq = Annotated[int, typer.Argument(metavar="SEQ", min=1, help="The tick's position: column seq of history and tail.")]
Execute = Annotated[bool, typer.Option("--execute", help="Do it; without, only show the tick.")]
Number = float | None


def cancel(seq: Seq, execute: Execute = False, json: Json = False, tape: TapePath = None) -> None:
    """Take a tick back: reading leaves it out from now on, and reading as of an earlier position still has it."""
    with _open(tape, execute) as opened:
        wrong = _tick(opened, seq)
        done = opened.cancel(wrong) if execute else None
    if json:
        said = {"seq": seq, "symbol": wrong.symbol, "cancelled_at": done and done.first, "stored": done and done.stored}
        sys.stdout.write(output.json_line(said) + "\n")
        return
    _show("cancelled" if done else "would cancel", wrong)
    if done is not None and not done.stored:
        output.note(f"it was taken back before, at position {done.first}; nothing was stored")
    elif done is None:
        output.note("nothing was changed; --execute does it")


def revise(
    seq: Seq,
    price: Annotated[Number, typer.Option(help="Price of the trade.")] = None,
    size: Annotated[Number, typer.Option(help="Size of the trade.")] = None,
    bid: Annotated[Number, typer.Option(help="Best bid.")] = None,
    ask: Annotated[Number, typer.Option(help="Best ask.")] = None,
    bid_size: Annotated[Number, typer.Option(help="Size at the best bid.")] = None,
    ask_size: Annotated[Number, typer.Option(help="Size at the best ask.")] = None,
    execute: Execute = False,
    json: Json = False,
    tape: TapePath = None,
) -> None:
    """Put a tick in another's place: with the values given, and all else as it was."""
    given = {"price": price, "size": size, "bid": bid, "ask": ask, "bid_size": bid_size, "ask_size": ask_size}
    changes = {name: value for name, value in given.items() if value is not None}
    if not changes:
        raise ConfigInvalid(
            "nothing to revise", hint=f"give --{', --'.join(name.replace('_', '-') for name in _CHANGED)}"
        )
    with _open(tape, execute) as opened:
        wrong = _tick(opened, seq)
        right = msgspec.structs.replace(wrong, **changes, seq=None)
        done = opened.revise(wrong, right) if execute else None
    if json:
        said = {"seq": seq, "symbol": wrong.symbol, **changes, "revised_at": done and done.last}
        sys.stdout.write(output.json_line(said) + "\n")
        return
    _show("was", wrong)
    _show("is" if done else "would be", right if done is None else msgspec.structs.replace(right, seq=done.last))
    if done is None:
        output.note("nothing was changed; --execute does it")


def compact(json: Json = False, tape: TapePath = None) -> None:
    """Pack all that is on the tape as small as it gets, and give the space back. Others read and write meanwhile."""
    with _open(tape, True) as opened:
        done = opened.compact()
    if json:
        sys.stdout.write(output.json_line(msgspec.structs.asdict(done)) + "\n")
        return
    output.note(
        f"{done.records:,} records of {done.spans:,} spans merged: {done.bytes_before:,} bytes before,"
        f" {done.bytes_after:,} after"
    )


def _open(path: Path | None, writing: bool) -> Tape:
    """Open a tape that is there; none is made by a command that corrects one."""
    opened = open_tape(path)
    if writing:
        opened.close()
        opened = open_tape(path, mode="rw")
    return opened


def _tick(tape: Tape, seq: int) -> Tick:
    found = tape.tick_at(seq)
    if found is None:
        raise RecordMissing(
            f"there is no tick at position {seq}", hint="onetape history SYMBOL shows positions", seq=seq
        )
    return found


def _show(what: str, tick: Tick) -> None:
    fields = output.as_dict(tick)
    told = "  ".join(f"{name} {output.cell(name, value)}" for name, value in fields.items() if name != "ts_event_ns")
    sys.stdout.write(output.plain(f"{what}: {told}") + "\n")
