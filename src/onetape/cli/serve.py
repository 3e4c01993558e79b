"""onetape serve: the whole system as one process."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from onetape.cli import output
from onetape.cli.options import TapePath

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from onetape.config import Settings
    from onetape.daemon.daemon import Daemon

#: How long threads of tasks that have ended may go on, s.
_THREADS_S = 10.0


def serve(
    config_file: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Settings. [default: onetape.toml here]")
    ] = None,
    tape: TapePath = None,
    host: Annotated[str | None, typer.Option(help="Address of the page. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port of the page; 0: a free one.")] = None,
    log: Annotated[Literal["plain", "json"] | None, typer.Option(help="Log for people, or JSON lines.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Say what would run, and exit.")] = False,
) -> None:
    """Run sources, services and the web page on one tape, from onetape.toml. SIGTERM or Ctrl-C drains and ends it."""
    settings = _settings(config_file, tape, host, port, log)
    from onetape.daemon import log as logs
    from onetape.daemon.daemon import Daemon

    daemon = Daemon(settings)
    if check:
        output.print_facts(_told(daemon))
        daemon.tape.close()
        return
    logs.set_up(settings.log)
    if not _run(daemon):
        raise typer.Exit(1)


def _run(daemon: Daemon) -> bool:
    import asyncio

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            clean = runner.run(daemon.run())
        except SystemExit:  # a second signal
            clean = False
        if not clean:
            _leave()
        # A thread that an ended task has left behind would be waited for, for ever.
        late = threading.Timer(_THREADS_S, _leave)
        late.daemon = True
        late.start()
    late.cancel()
    return clean


def _leave() -> None:
    """End the process without waiting for threads that hang. What is committed is on the tape."""
    logging.getLogger("onetape.daemon").error("ended without waiting for what still runs")
    logging.shutdown()
    os._exit(1)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's maker of loops where it is there: half of the page's cost a frame is the loop's."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _settings(file: Path | None, tape: Path | None, host: str | None, port: int | None, log: str | None) -> Settings:
    from onetape import config

    if file is not None:
        os.environ[config.PREFIX + "CONFIG"] = str(file)
    settings = config.load(tape=tape, log=log)
    web = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    if not web:
        return settings
    return settings.model_copy(update={"web": settings.web.model_copy(update=web)})


def _told(daemon: Daemon) -> dict[str, str]:
    settings = daemon.settings
    web = settings.web
    token = "with a token" if web.token else "without a token"
    return {
        "tape": str(settings.tape.absolute()),
        "sources": ", ".join(f"{name} ({feed.source.kind})" for name, feed in daemon.feeds.items()) or "none",
        "services": ", ".join(daemon.services) or "none",
        "page": f"http://{web.host}:{web.port}, {token}" if web.enabled else "none",
    }
