"""onetape migrate."""

import typer

app = typer.Typer()


@app.command()
def plan() -> None:
    """Plan."""
