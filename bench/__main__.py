"""Run the benchmark: `python -m bench [TOPIC ...] [--quick] [--full] [--json FILE]` from the repository's folder."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from bench import (
    append,
    beside,
    bulk,
    bystander,
    client,
    disk,
    dual,
    follow,
    growth,
    history,
    lookup,
    machine,
    memory,
    migration,
    patterns,
    reads,
    remote,
    scid,
    single,
    slices,
    switched,
    system,
    table,
    web,
)
from bench.measure import Line, Setting
from bench.peers import field
from bench.peers.field import PeerFailed

_TOPICS: dict[str, Callable[[Setting], list[Line]]] = {
    "single": single.measure,
    "bulk": bulk.measure,
    "lookup": lookup.measure,
    "follow": follow.measure,
    "reads": reads.measure,
    "append": append.measure,
    "disk": disk.measure,
    "history": history.measure,
    "beside": beside.measure,
    "memory": memory.measure,
    "growth": growth.measure,
    "migration": migration.measure,
    "remote": remote.measure,
    "bystander": bystander.measure,
    "slices": slices.measure,
    "dual": dual.measure,
    "switched": switched.measure,
    "client": client.measure,
    "scid": scid.measure,
    "system": system.measure,
    "patterns": patterns.measure,
    "web": web.measure,
}


def main(arguments: list[str]) -> int:
    """Measure, print one table, and return 0 whether or not a target is reached; 1 where one did not end."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help=f"of {', '.join(_TOPICS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="a smoke run: shows that it works, measures nothing")
    parser.add_argument("--full", action="store_true", help="also a tape of 100 million ticks and a million keys")
    parser.add_argument("--runs", type=int, default=0, help="whole runs of each way; 5 by default")
    parser.add_argument("--dir", type=Path, help="where files go; a real disk (default: the temporary folder)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write facts and lines, with every run")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.topics) - set(_TOPICS))
    if unknown:
        parser.error(f"no topic {', '.join(unknown)}; there are {', '.join(_TOPICS)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    runs = options.runs or (2 if options.quick else 5)
    where = options.dir or machine.disk_folder()
    facts = machine.facts(where)
    print("  ".join(f"{name}: {value}" for name, value in facts.items()), flush=True)
    lines: list[Line] = []
    failed = False
    with tempfile.TemporaryDirectory(prefix="onetape-bench-", dir=where) as directory:
        setting = Setting(Path(directory), runs, options.quick, options.full)
        try:
            for name in options.topics or _TOPICS:
                started = time.monotonic()
                try:
                    lines += _TOPICS[name](setting)
                except PeerFailed as error:  # the other topics' figures are not lost for it
                    failed = True
                    print(f"{name} ended early: {error}", file=sys.stderr, flush=True)
                print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        except KeyboardInterrupt:  # what is measured is told
            failed = True
            print("interrupted", file=sys.stderr, flush=True)
        finally:
            field.close(setting)
    print(table.render(lines))
    if options.json is not None:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode({"facts": facts, "lines": lines}), indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
