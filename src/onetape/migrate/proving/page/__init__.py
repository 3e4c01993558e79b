"""The page: a proof as one HTML file that needs nothing else: no script, no other file, nothing from a network.

It is a pure function of the proof's content, so that whoever has the JSON can make it again and compare. Every text is
escaped (see text.py), and the page forbids itself to load or run anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from onetape.migrate.proving.page import charts, conserved
from onetape.migrate.proving.page.charts import duration
from onetape.migrate.proving.page.table import Cell, bad, facts, key, table, word
from onetape.migrate.proving.page.text import number, shown

_LISTED = 100
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_TONES = {"proven": "good", "proven, with listed skips": "warn"}


def render(content: Mapping[str, Any], sha256: str) -> str:
    """Return the page of a proof. Equal content gives equal bytes."""
    plan = content["plan"]
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en" xmlns="http://www.w3.org/1999/xhtml"><head><meta charset="utf-8"/>',
        f'<meta http-equiv="Content-Security-Policy" content="{shown(_POLICY)}"/>',
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
        f"<title>Migration {shown(plan['name'])}: {shown(content['verdict'])}</title>",
        f"<style>{_style()}</style></head><body><main>",
        f"<h1>Migration of {shown(plan['name'])}</h1>",
        f'<p class="soft">A report by onetape {shown(content["onetape"])}, made {shown(content["made"])}</p>',
        _verdict(content),
        _summary(content),
        _section("Phases", _phases(content)),
        _section("Keys", _keys(content)),
        _section("Verification", _verification(content["verification"], plan["steps"])),
        _section("Conservation: old keys, new keys and tape", conserved.render(content["conservation"])),
        _section("Reads, writers and pace", _live(content)),
        _section("Runs", _runs(content["runs"])),
        _section("Notes", "".join(f"<p>{shown(note)}</p>" for note in content["notes"])),
        _section("Signature", _signature(content, sha256)),
        "</main></body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


@cache
def _style() -> str:
    return (resources.files("onetape.migrate.proving.page") / "style.css").read_text("utf-8").strip()


def _section(title: str, inside: str) -> str:
    return f"<section><h2>{shown(title)}</h2>{inside}</section>" if inside else ""


def _list(lines: Iterable[Any]) -> str:
    inside = "".join(f"<li>{shown(line)}</li>" for line in lines)
    return f"<ul>{inside}</ul>" if inside else ""


def _verdict(content: Mapping[str, Any]) -> str:
    verdict = str(content["verdict"])
    tone = _TONES.get(verdict, "bad")
    return (
        f'<div class="verdict {tone}"><strong>{shown(verdict.capitalize())}</strong>{_list(content["reasons"])}</div>'
    )


def _summary(content: Mapping[str, Any]) -> str:
    plan, server = content["plan"], content["server"]
    totals: dict[str, int] = {}
    for counts in content["steps"].values():
        for outcome, count in counts.items():
            totals[outcome] = totals.get(outcome, 0) + count
    signed = content["signed"]
    found = [
        ("Phase", shown(str(content["phase"]).replace("_", " "))),
        ("Keys of the plan", number(sum(totals.values()))),
        ("Ticks in old keys", number(_ticks(content["conservation"], "old"))),
        ("Ticks on the tape", number(_ticks(content["conservation"], "tape"))),
        ("Server", f"{shown(server['server'])} {shown(server['version'])} at {shown(server['address'])}"),
        ("Target database", number(plan["target_db"])),
        ("Plan", f"{number(plan['rules'])} rules, <code>{shown(plan['hash'][:16])}</code>"),
        ("Signed by", shown(signed["by"]) if signed else "nobody yet"),
    ]
    if content["target"]:
        found.insert(5, ("Target server", shown(content["target"]["address"])))
    return facts(found)


def _ticks(conservation: Mapping[str, Any] | None, side: str) -> int | None:
    totals = (conservation or {}).get("totals", {})
    return totals[side]["ticks"] if side in totals else None


def _phases(content: Mapping[str, Any]) -> str:
    chart = charts.phases(content["phases"], content["made"])
    inside = f"<figure>{chart}</figure>" if chart else "<p>Nothing was begun.</p>"
    rows = [
        [
            word(str(one["before"]).replace("_", " ")),
            word(str(one["after"]).replace("_", " ")),
            word(one["command"]),
            word(one["at"]),
            word(one["by"]),
            bad("forced") if one["forced"] else word(""),
            word("; ".join(part for part in (one["outcome"], one["reason"]) if part)),
        ]
        for one in content["transitions"]
    ]
    head = ("From", "To", "Command", "At", "By", "", "Outcome")
    return inside + table(head, rows, _LISTED)


def _keys(content: Mapping[str, Any]) -> str:
    steps = _in_order(content["steps"], content["plan"]["steps"])
    if not steps:
        return "<p>The ledger has no keys.</p>"
    names = [name for name in charts.OUTCOMES if any(counts.get(name) for counts in steps.values())]
    names += sorted({name for counts in steps.values() for name in counts} - set(charts.OUTCOMES))
    rows = [[word(step), *(Cell(number(counts.get(name, 0)), "n") for name in names)] for step, counts in steps.items()]
    inside = f"<figure>{charts.outcomes(steps)}</figure>"
    inside += table(["Step", *(name.replace("_", " ") for name in names)], rows, _LISTED)
    backfill = content["backfill"]
    if backfill.get("seconds"):
        rate = number(round(backfill["keys_per_s"] or 0))
        inside += f"<p>The last backfill took {duration(backfill['seconds'])}: {rate} keys/s.</p>"
    chart = charts.progress([(seconds, keys) for seconds, keys in content["progress"]])
    inside += f"<h3>Keys done over time</h3><figure>{chart}</figure>" if chart else ""
    for name, title in (("errors", "Keys that failed"), ("notes", "Keys that are over, but hold what no tape can")):
        told = backfill.get(name) or {}
        if told.get("count"):
            inside += f"<h3>{title}: {number(told['count'])}</h3>" + table(
                ("Step", "Database", "Key", "Why"),
                [[word(e["step"]), Cell(number(e["source_db"]), "n"), key(e["key"]), word(e["error"])]
                 for e in told["first"]],
                _LISTED,
                told["count"],
            )  # fmt: skip
    unmatched = backfill.get("unmatched") or {}
    if unmatched.get("count"):
        rows = [
            [Cell(number(int(db)), "n"), key(name)]
            for db, found in unmatched["by_database"].items()
            for name in found["first"]
        ]
        inside += f"<h3>Keys that no rule takes: {number(unmatched['count'])}</h3>"
        inside += table(("Database", "Key"), rows, _LISTED, unmatched["count"])
    warnings = _list(backfill.get("warnings") or ())
    return inside + (f"<h3>Warnings</h3>{warnings}" if warnings else "")


def _in_order(steps: Mapping[str, Any], order: Sequence[str]) -> dict[str, Any]:
    """Return what is said by step in the order of the plan, whatever order a file keeps it in."""
    return {step: steps[step] for step in [*order, *sorted(set(steps) - set(order))] if step in steps}


def _verification(verified: Mapping[str, Any] | None, order: Sequence[str]) -> str:
    if verified is None:
        return '<p class="bad-word">No verify has been made of all keys.</p>'
    told = f"<p>{shown(str(verified['verdict']).capitalize())}"
    told += f", {shown(verified['at'])}." if verified.get("at") else "."
    told += f" {shown(verified['note'])}</p>" if verified.get("note") else "</p>"
    if "counts" not in verified:
        return told
    counts = _in_order(verified["counts"], order)
    names = sorted({name for found in counts.values() for name, count in found.items() if count})
    rows = [[word(step), *(Cell(number(found.get(name, 0)), "n") for name in names)] for step, found in counts.items()]
    told += (
        f"<p>{number(verified['checked'])} source keys and {number(verified['target_keys'])} target keys looked at, "
    )
    rounds = f"{number(verified['rounds'])} round{'' if verified['rounds'] == 1 else 's'}"
    told += f"{rounds}, {duration(verified['seconds'])}.</p>"
    told += table(["Step", *(name.replace("_", " ") for name in names)], rows, _LISTED)
    for name, title in (("differences", "Differences"), ("skips", "Listed skips")):
        lines: Sequence[str] = verified.get(name) or ()
        if lines:
            inside = _list(lines[:_LISTED])
            told += f"<details><summary>{title}: {number(len(lines))}</summary>{inside}</details>"
    if verified.get("unlisted"):
        told += f"<p>{number(verified['unlisted'])} more are not listed: see onetape migrate why.</p>"
    return told


def _live(content: Mapping[str, Any]) -> str:
    found = [("Keys recorded as diverged", number(content["diverged"]))]
    reads = content["reads"]
    if reads:
        found += [
            ("Clients that read", number(reads["clients"])),
            ("Reads of new keys", number(reads["new_reads"])),
            ("Fell back to old keys", f"{number(reads['old_fallbacks'])} ({reads['fallback_rate']:.3%})"),
        ]
    if content["writers"]:
        found.append(("Foreign connections on old databases", number(len(content["writers"]))))
    inside = facts(found) + _list(content["writers"][:_LISTED])
    chart = charts.seconds_by_reason(content["throttle"])
    return inside + (f"<h3>Copying stood still for</h3><figure>{chart}</figure>" if chart else "")


def _runs(runs: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            Cell(number(run["id"]), "n"),
            word(run["command"]),
            word(run["started"]),
            word(run["ended"]) if run["ended"] else bad("did not come to its end"),
            key(run["report"] or ""),
        ]
        for run in runs
    ]
    return table(("Run", "Command", "Started", "Ended", "Report"), rows, _LISTED)


def _signature(content: Mapping[str, Any], sha256: str) -> str:
    signed = content["signed"]
    if signed:
        told = f'<p class="name">{shown(signed["by"])}</p><p>{shown(signed["at"])}</p>'
    else:
        told = "<p>Nobody has signed this report.</p>"
    told += f"<p>sha256 of the report: <code>{shown(sha256)}</code></p>"
    told += (
        '<p class="soft">Check it with <code>onetape migrate report --check FILE</code>: an altered report says so.</p>'
    )
    return f'<div class="signed">{told}</div>'


__all__ = ["render"]
