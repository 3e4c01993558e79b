"""The commands `onetape alias`: further names of symbols."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onetape.cli import output
from onetape.cli.options import Json, TapePath, open_tape
from onetape.errors import ConfigInvalid

alias = typer.Typer(
    help="Further names of symbols: a broker's token, a vendor's spelling. All of them are one symbol.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Source = Annotated[str | None, typer.Option(help="Only in records of this source.")]
Replace = Annotated[bool, typer.Option("--replace", help="Also where the name is an alias of another symbol now.")]


@alias.command("add")
def add(
    name: Annotated[str, typer.Argument(help="The further name.")],
    symbol: Annotated[str, typer.Argument(help="The symbol it stands for, or an alias of it.")],
    source: Source = None,
    replace: Replace = False,
    rename: Annotated[
        str | None, typer.Option(metavar="NEW", help="NAME is a symbol with records: call that one NEW from now on.")
    ] = None,
    tape: TapePath = None,
) -> None:
    """Let a name stand for a symbol, in every process that uses the tape."""
    with open_tape(tape, "rw") as opened:
        target = opened.alias(name, symbol, source=source, replace=replace, rename=rename)
    typer.echo(f"{name} stands for {target}" + (f" in records of {source}" if source else ""))


@alias.command("remove")
def remove(
    name: Annotated[str, typer.Argument(help="The alias.")],
    source: Source = None,
    execute: Annotated[bool, typer.Option("--execute", help="Do it; without, only say what would be done.")] = False,
    tape: TapePath = None,
) -> None:
    """Let a name stand for nothing any more. Records stay, under the symbol's own name."""
    with open_tape(tape, "rw" if execute else "r") as opened:
        found = [one for one in opened.aliases() if (one.name, one.source) == (name, source)]
        if execute or not found:
            typer.echo(f"{name} stood for {opened.remove_alias(name, source=source)}")
            return
    typer.echo(f"{name} stands for {found[0].symbol}; --execute removes it, and records stay where they are")


@alias.command("list")
def listing(
    symbol: Annotated[str | None, typer.Argument(metavar="[SYMBOL]", help="Only the aliases of this symbol.")] = None,
    json: Json = False,
    tape: TapePath = None,
) -> None:
    """List aliases, and what they stand for."""
    with open_tape(tape) as opened:
        found = opened.aliases(symbol)
    if json:
        for one in found:
            typer.echo(output.json_line(one))
    elif found:
        rows = [[one.name, one.symbol, one.source or ""] for one in found]
        output.print_table(["alias", "symbol", "source"], rows, ("alias", "symbol", "source"))
    else:
        output.note("there are no aliases" if symbol is None else f"{symbol} has no aliases")


@alias.command("import")
def import_list(
    file: Annotated[Path, typer.Argument(help="A CSV file with a header line, plain or .gz.")],
    token: Annotated[str, typer.Option(metavar="COLUMN", help="The column of further names.")] = "instrument_token",
    symbol: Annotated[
        str, typer.Option(metavar="COLUMN", help="The column of symbols, or a template: '{exchange}:{tradingsymbol}'.")
    ] = "tradingsymbol",
    source: Source = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=VALUE", help="Only rows with this value; may be repeated.")
    ] = None,
    many_to_one: Annotated[
        bool, typer.Option("--many-to-one", help="Rows of the file with one symbol and several tokens are one symbol.")
    ] = False,
    replace: Replace = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the file, store nothing.")] = False,
    json: Json = False,
    tape: TapePath = None,
) -> None:
    """Make aliases of a broker's instrument list: all of it, or nothing if a row is refused."""
    from onetape.importing.instruments import import_instruments

    wanted = {}
    for text in only or []:
        column, equals, value = text.partition("=")
        if not equals or not column:
            raise ConfigInvalid(f"--only {text}", hint="write it as exchange=NSE")
        wanted[column] = value

    if dry_run:
        done = import_instruments(None, file, token=token, symbol=symbol, only=wanted, many_to_one=many_to_one)
    else:
        with open_tape(tape, "rw") as opened:
            done = import_instruments(
                opened,
                file,
                token=token,
                symbol=symbol,
                source=source,
                only=wanted,
                many_to_one=many_to_one,
                replace=replace,
            )
    if json:
        typer.echo(output.json_line(done))
        return
    act = "can be added" if dry_run else "added"
    known = f", {done.known:,} were there already" if done.known else ""
    left = f"; {done.left_out:,} of {done.rows:,} rows left out" if done.left_out else ""
    typer.echo(f"{file}: {done.added:,} alias{'' if done.added == 1 else 'es'} {act}{known}{left}")
