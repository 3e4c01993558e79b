"""The commands `onetape continuous`: several futures as one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from onetape.cli import output
from onetape.cli.options import Json, TapePath, open_tape
from onetape.errors import ConfigInvalid

if TYPE_CHECKING:
    from onetape.tape.continuous import Continuous

app = typer.Typer(
    help="Several futures as one: which contracts, when it rolls, and what a roll costs.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(help="What it is called: ES.c")]


@app.command("define")
def define(
    name: Name,
    contracts: Annotated[
        list[str], typer.Argument(metavar="SYMBOL=DATE...", help="Contracts with their last trading date.")
    ],
    roll: Annotated[
        str,
        typer.Option(
            metavar="RULE", help="volume, open-interest, 5d or 5bd (days, business days before expiry), or DATE,DATE,…"
        ),
    ],
    timezone: Annotated[str, typer.Option(metavar="ZONE", help="Of the trading day: America/Chicago.")] = "UTC",
    day_start: Annotated[
        str, typer.Option(metavar="HH:MM", help="When it begins; from noon on, on the evening before.")
    ] = "00:00",
    holidays: Annotated[str, typer.Option(metavar="DATE,…", help="No business days.")] = "",
    gap: Annotated[
        list[str] | None,
        typer.Option(metavar="SYMBOL=PRICE", help="What a contract costs more than the one before; may be repeated."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Make it the next version of one that is there.")] = False,
    tape: TapePath = None,
) -> None:
    """Define a continuous future; its name is then read, made bars of and followed like a symbol."""
    chain = [_split(text, "a contract", "ESZ5=2025-12-19") for text in contracts]
    try:
        gaps = {symbol: float(price) for symbol, price in (_split(text, "--gap", "ESH6=12.5") for text in gap or [])}
    except ValueError as error:
        raise ConfigInvalid(f"--gap: {error}", hint="write it as ESH6=12.5") from error
    with open_tape(tape, "rw") as opened:
        made = opened.define_continuous(
            name,
            chain,
            roll,
            timezone=timezone,
            day_start=day_start,
            holidays=[day for day in holidays.split(",") if day.strip()],
            gaps=gaps,
            replace=replace,
        )
    typer.echo(f"{name}: {len(chain)} contracts, {_rule(made)}, version {made.version}")


@app.command("list")
def listing(json: Json = False, tape: TapePath = None) -> None:
    """List continuous futures."""
    with open_tape(tape) as opened:
        found = opened.continuous_futures()
    if json:
        for one in found:
            typer.echo(output.json_line({"version": one.version, "definition": one.definition}))
    elif found:
        rows = [
            [
                one.name,
                str(one.version),
                _rule(one),
                " ".join(contract.symbol for contract in one.definition.contracts),
            ]
            for one in found
        ]
        output.print_table(["name", "version", "roll", "contracts"], rows, ("name", "roll", "contracts"))
    else:
        output.note("there are no continuous futures")


@app.command("show")
def show(
    name: Name,
    version: Annotated[int | None, typer.Option(min=1, help="An older version of its definition.")] = None,
    json: Json = False,
    tape: TapePath = None,
) -> None:
    """Show the rolls of a continuous future, as far as they are decided: when, what decided it, what it cost."""
    from onetape.clock import to_text

    with open_tape(tape) as opened:
        view = opened.continuous(name, version)
        rolls, front = view.rolls(), view.front()
    if json:
        for roll in rolls:
            typer.echo(output.json_line(output.as_dict(roll)))
        return
    contracts = " ".join(f"{one.symbol}={one.expiry}" for one in view.definition.contracts)
    facts = {"contracts": contracts, "roll": _rule(view), "version": str(view.version), "front": front}
    facts["trading day"] = f"from {view.definition.day_start} {view.definition.timezone}"
    output.print_facts(facts)
    if rolls:
        rows = [
            [
                to_text(roll.ts_ns),
                roll.old,
                roll.new,
                "unknown" if roll.gap is None else output.number(roll.gap),
                roll.why,
            ]
            for roll in rolls
        ]
        output.print_table(["time", "old", "new", "gap", "why"], rows, ("time", "old", "new", "why"))
    else:
        output.note("no roll is decided yet")


@app.command("remove")
def remove(
    name: Name,
    execute: Annotated[bool, typer.Option("--execute", help="Do it; without, only say what would be done.")] = False,
    tape: TapePath = None,
) -> None:
    """Forget a continuous future, in all its versions. The contracts' records stay."""
    with open_tape(tape, "rw" if execute else "r") as opened:
        view = opened.continuous(name)
        if execute:
            typer.echo(f"{name}: {opened.remove_continuous(name)} versions forgotten")
            return
    typer.echo(f"{name}: {view.version} versions; --execute forgets them, and records stay where they are")


def _split(text: str, what: str, example: str) -> tuple[str, str]:
    symbol, equals, value = text.rpartition("=")
    if not equals or not symbol or not value:
        raise ConfigInvalid(f"{what}: {text!r}", hint=f"write it as {example}")
    return symbol, value


def _rule(view: Continuous) -> str:
    rule: Any = view.definition.roll
    if hasattr(rule, "dates"):
        return "on " + ", ".join(map(str, rule.dates))
    if hasattr(rule, "days"):
        return f"{rule.days} {'business ' if rule.business else ''}days before expiry"
    return str(rule.__struct_config__.tag).replace("_", " ") + " crossover"
