"""The command line: parse, call one function of the library, print. One file a command group."""

from onetape.cli.app import main

__all__ = ["main"]
