"""The screen of `onetape migrate watch`: a view as something that rich can draw, and as one line for a log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onetape.cli.output import duration, plain

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from onetape.migrate.watching.view import View

_NAMED = 5
_BAR = 30


def screen(view: View) -> RenderableType:
    """Return a view as a page of about 20 lines, 80 to 120 wide."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [_head(view), _phases(view)]
    if view.state is not None:
        parts.append(_state(view))
    if view.trouble:
        parts.append(Text(plain(view.trouble), style="bold red"))
    parts.append(Text(""))
    if view.progress is not None:
        parts += [*_progress(view), Text("")]
    if view.steps:
        parts += [_table(view), Text("")]
    parts += [line for line in (_mirror(view), _reads(view), *_clients(view)) if line is not None]
    return Group(*parts)


def line(view: View) -> str:
    """Return a view as one line of a log."""
    parts = [view.phase]
    at = view.progress
    if at is not None:
        share = f" of {at.total:,}" if at.total else ""
        parts.append(f"{at.command} {at.step}: {at.done:,}{share} keys, {at.rate_per_s:,.0f}/s")
        if at.reason:
            parts.append(f"slowed: {at.reason}")
    if view.steps:
        parts.append(" ".join(f"{name} {number:,}" for name, number in view.outcomes.items() if number))
    if view.mirror is not None:
        parts.append(f"mirror lag {_ms(view.mirror.get('lag_ms'))}, queue {view.mirror.get('queue')}")
    if view.late:
        parts.append(f"{len(view.late)} clients late")
    if view.diverged:
        parts.append(f"{view.diverged:,} diverged")
    if view.trouble:
        parts.append(view.trouble)
    return plain(" | ".join(parts))


def _head(view: View) -> Text:
    from rich.text import Text

    from onetape.clock import to_text

    place = f"{view.address}, into database {view.target_db}" if view.address else "server away"
    head = Text.assemble((plain(view.plan), "bold"), f"  {place}", style="")
    return head.append(f"  {to_text(view.at_ms // 1000 * 1_000_000_000)[11:19]} UTC", style="dim")


def _phases(view: View) -> Text:
    from rich.text import Text

    text = Text()
    here = view.phases.index(view.phase) if view.phase in view.phases else 0
    for place, phase in enumerate(view.phases):
        if place:
            text.append(" > ", style="dim")
        name = phase.replace("_", " ")
        if place == here:
            text.append(f"[{name}]", style="bold reverse")
        else:
            text.append(name, style="green" if place < here else "dim")
    return text


def _state(view: View) -> Text:
    from rich.text import Text

    state = view.state
    assert state is not None
    age_s = max(0, view.at_ms - state.changed_ms) / 1000
    told = f"version {state.version}, since {duration(age_s)}"
    if state.changed_by:
        told += f", by {plain(state.changed_by)}"
    if state.reason:
        told += f": {plain(state.reason)}"
    text = Text(told, style="dim")
    if state.read_share or state.shadow_share:
        text.append(f"; {state.read_share:.0%} of reads new first, {state.shadow_share:.0%} compared")
    for name, on in (("paused", state.paused), ("cutover postponed", state.postponed)):
        if on:
            text.append(f"  {name.upper()}", style="bold yellow not dim")
    if view.operator is not None:
        text.append(f"\nat work: {plain(str(view.operator.get('command', '?')))}", style="not dim")
        text.append(f", by {plain(str(view.operator.get('by', '?')))}")
    return text


def _progress(view: View) -> list[RenderableType]:
    from rich.text import Text

    at = view.progress
    assert at is not None
    share = min(1.0, at.done / at.total) if at.total else 0.0
    filled = round(share * _BAR)
    text = Text.assemble((f"{at.command} {plain(at.step)}".strip() + "  ", "bold"))
    text.append("━" * filled, style="cyan").append("━" * (_BAR - filled), style="bright_black")
    text.append(f"  {share:.0%}  {at.done:,} of {at.total:,} keys  {at.rate_per_s:,.0f}/s")
    if at.left_s is not None:
        text.append(f"  {duration(at.left_s)} left")
    lines: list[RenderableType] = [text]
    waited = ", ".join(f"{plain(why)} {duration(seconds)}" for why, seconds in at.waited.items())
    if at.reason:
        lines.append(Text(f"slowed: {plain(at.reason)}" + (f"  (so far: {waited})" if waited else ""), style="yellow"))
    elif waited:
        lines.append(Text(f"waited so far: {waited}", style="dim"))
    return lines


def _table(view: View) -> RenderableType:
    from rich.table import Table

    outcomes = [name for name, number in view.outcomes.items() if number]
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("step")
    for name in (*outcomes, "keys"):
        bad = name in ("failed", "changed_while_copying")
        table.add_column(name.replace("_", " "), justify="right", style="red" if bad else "")
    for step, counts in view.steps.items():
        cells = [f"{counts.get(name, 0):,}" if counts.get(name) else "" for name in outcomes]
        table.add_row(plain(step), *cells, f"{sum(counts.values()):,}")
    sums = view.outcomes
    table.add_row("all", *(f"{sums[name]:,}" for name in outcomes), f"{sum(sums.values()):,}", style="bold")
    if view.verdict:
        table.caption = f"last verify: {view.verdict}"
        table.caption_justify = "left"
    return table


def _mirror(view: View) -> Text | None:
    facts = view.mirror
    if facts is None:
        if view.state is not None and view.state.mirrored:
            return _named("mirror", [("none is at work, though there are writers to follow", "bold red")])
        return None
    sweep_ms, foreign_ms = facts.get("sweep_at_ms"), facts.get("foreign_writes_at_ms")
    parts: list[tuple[str, str]] = [
        (f"lag {_ms(facts.get('lag_ms'))}, {facts.get('queue', 0):,} waiting", ""),
        (f", copied {facts.get('copied', 0):,}, deleted {facts.get('deleted', 0):,}", ""),
        (f", merged {facts.get('merged', 0):,}", ""),
    ]
    for name in ("kept", "failed"):
        if facts.get(name):
            parts.append((f", {name} {facts[name]:,}", "yellow" if name == "kept" else "red"))
    parts.append(("\n", ""))
    if facts.get("sweeping") is not None:
        parts.append((f"sweeping, {facts['sweeping']:.0%}; ", ""))
    if sweep_ms is None:
        parts.append(("no sweep yet", "yellow"))
    else:
        ago = duration(max(0, view.at_ms - sweep_ms) / 1000)
        found = facts.get("sweep_found", 0)
        parts.append((f"last sweep {ago} ago found {found:,} that no hint had told of", ""))
    if foreign_ms is not None:
        parts.append((f"; one side alone was written {duration(max(0, view.at_ms - foreign_ms) / 1000)} ago", ""))
    if facts.get("note"):
        parts.append((f"\n{plain(facts['note'])}", "yellow"))
    if facts.get("last_error"):
        parts.append((f"\n{plain(facts['last_error'])}", "red"))
    return _named("mirror", parts)


def _reads(view: View) -> Text | None:
    reads = view.reads
    if not (reads.new_reads or reads.old_fallbacks or reads.shadow):
        return None
    rate = "none in the last minute" if reads.fallback_rate is None else f"{reads.fallback_rate:.1%} in the last minute"
    parts = [(f"new {reads.new_reads:,}, fell back {reads.old_fallbacks:,} ({rate}), compared {reads.shadow:,}", "")]
    if reads.mismatches:
        parts.append((f", {reads.mismatches:,} differed", "red"))
    return _named("reads", parts)


def _clients(view: View) -> list[Text]:
    lines = []
    if view.clients:
        parts = [(f"{len(view.clients):,}", "")]
        by_id = {client.id: client for client in view.clients}
        for told, ids, style in (("not at this version", view.late, "yellow"), ("not heard of", view.silent, "yellow")):
            if ids:
                named = ", ".join(_client(by_id[one]) for one in ids[:_NAMED])
                more = f" and {len(ids) - _NAMED:,} more" if len(ids) > _NAMED else ""
                parts.append((f"\n{len(ids):,} {told}: {named}{more}", style))
        lines.append(_named("clients", parts))
    if view.diverged:
        lines.append(_named("diverged", [(f"{view.diverged:,} may differ: onetape migrate verify --repair", "yellow")]))
    return lines


def _client(client: Any) -> str:
    silent = "" if client.silent_ms is None else f", for {duration(client.silent_ms / 1000)}"
    return plain(f"{client.name or client.id} (version {client.version}{silent})")


def _named(name: str, parts: list[tuple[str, str]]) -> Text:
    from rich.text import Text

    text = Text(f"{name:<9}", style="")
    text.stylize("bold")
    for told, style in parts:
        text.append(told.replace("\n", "\n" + " " * 9), style=style or "not bold")
    return text


def _ms(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:,.1f} ms" if value < 1000 else duration(value / 1000)
