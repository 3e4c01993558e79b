"""The fence: server users that may no longer write old names, and their rights before that, to be given back.

An ACL knows no databases and no exceptions: a fenced user may read what it could, and write only what begins like a new
name of the plan. Rules that keep a key's name cannot be fenced. Before Redis 7.0 a fenced user may write nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from onetape.errors import EndpointError, GateRefused
from onetape.migrate.phases.history import History
from onetape.migrate.plans.pattern import Pattern
from onetape.migrate.plans.plan import Plan
from onetape.migrate.wire.endpoint import Endpoint

_SAVED = "fence"
#: What connections of clients that write both sides are called.
_CLIENTS = "onetape-writer-"


class Fenced(msgspec.Struct, frozen=True):
    """A user: `before` its rules as ACL LIST gave them, `after` those while it is fenced."""

    user: str
    before: tuple[str, ...]
    after: tuple[str, ...]


def plan_fence(endpoint: Endpoint, plan: Plan, users: Sequence[str]) -> tuple[list[Fenced], list[str]]:
    """Return what would be done to these users, and warnings. Changes nothing. Raises GateRefused, naming why not."""
    try:
        listed = endpoint.call("ACL", "LIST")
        me = endpoint.call("ACL", "WHOAMI").decode("utf-8", "backslashreplace")
    except EndpointError as error:
        raise _refused([f"this user may not change rights: {error.message}"]) from error
    known = {words[1]: tuple(words[2:]) for line in listed for words in [line.decode("utf-8", "replace").split(" ")]}
    ours = _users_of_ours(endpoint)
    reasons = []
    found = []
    new, same = _new_prefixes(plan)
    selectors = endpoint.server == "valkey" or endpoint.version >= (7, 0)
    for user in dict.fromkeys(users):
        if user not in known:
            reasons.append(f"there is no user {user!r}")
        elif ours.get(user):
            reasons.append(
                f"{user!r} is the user of {ours[user]:,} connections of onetape's clients, which write the old names "
                "behind the new ones: they could not write at all"
            )
        elif user == me:
            reasons.append(f"{user!r} is the user of this command, which could not give the rights back")
        elif any(word.startswith("(") for word in known[user]):
            reasons.append(f"{user!r} has selectors, which are not taken apart: change its rights by hand")
        else:
            after = _without_writes(known[user], new) if selectors else (*known[user], "-@write")
            found.append(Fenced(user, known[user], after))
    if reasons:
        raise _refused(reasons)
    warnings = [f"rules that keep a key's name are not fenced: {', '.join(same)}"] if same and selectors else []
    return found, warnings


def _users_of_ours(endpoint: Endpoint) -> Counter[str]:
    """Return user → connections of our clients. Raises GateRefused where nobody may say."""
    try:
        listed = endpoint.call("CLIENT", "LIST").decode("utf-8", "backslashreplace")
    except EndpointError as error:
        raise _refused([f"nobody may say who is connected: {error.message}"]) from error
    rows = [dict(part.partition("=")[::2] for part in line.split(" ")) for line in listed.splitlines() if line]
    return Counter(row.get("user", "") for row in rows if row.get("name", "").startswith(_CLIENTS))


def _refused(reasons: list[str]) -> GateRefused:
    return GateRefused("the fence cannot be put up: " + "; ".join(reasons), hint="nothing was changed", reasons=reasons)


def _new_prefixes(plan: Plan) -> tuple[list[str], list[str]]:
    """Return what new names begin with, and the patterns of rules whose names stay as they are."""
    new: list[str] = []
    same: list[str] = []
    for rule in plan.rules:
        if rule.skip:
            continue
        targets = [rule.target or rule.pattern, *(case.target for case in rule.case)]
        if rule.kind != "hash_ticks" and (rule.target or rule.pattern) == rule.pattern:
            same.append(rule.pattern)
        new += [text.partition("{")[0] for text in targets]
    old = [Pattern(rule.pattern).prefix.decode() for rule in plan.rules if rule.pattern and not rule.skip]
    apart = [text for text in dict.fromkeys(new) if text and not any(_meet(text, one) for one in old)]
    return apart, list(dict.fromkeys(same))


def _meet(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)


def _without_writes(words: tuple[str, ...], new: list[str]) -> tuple[str, ...]:
    kept: list[str] = []
    for word in words:
        if word in ("~*", "allkeys"):
            kept += ["%R~*", *(f"~{_escaped(text)}*" for text in new)]
        elif word.startswith("~"):
            kept.append(word if word[1:].startswith(tuple(new)) else f"%R{word}")
        elif word.startswith("%"):
            kind, _, pattern = word[1:].partition("~")
            if "R" in kind.upper():
                kept.append(word if pattern.startswith(tuple(new)) else f"%R~{pattern}")
        else:
            kept.append(word)
    return tuple(kept)


def _escaped(text: str) -> str:
    return "".join(f"\\{char}" if char in "\\*?[]^" else char for char in text)


def put_up(endpoint: Endpoint, history: History, fenced: Sequence[Fenced]) -> None:
    """Put the fence up. Rights before it are written down first, so that whoever comes after a kill can give them back.

    Raises EndpointError; then nothing is fenced.
    """
    earlier = {one.user: one for one in saved(history)}
    kept = {**{one.user: one for one in fenced}, **earlier}  # of a user that is fenced already, what was before that
    history.set_values(**{_SAVED: msgspec.json.encode(list(kept.values())).decode()})
    try:
        for one in fenced:
            endpoint.call("ACL", "SETUSER", one.user, "reset", *one.after)
    except EndpointError:
        unfence(endpoint, history)
        raise


def saved(history: History) -> list[Fenced]:
    """Return the users that are fenced, or were about to be."""
    raw = history.value(_SAVED)
    return msgspec.json.decode(raw, type=list[Fenced]) if raw else []


def unfence(endpoint: Endpoint, history: History) -> list[str]:
    """Give fenced users their rights back; return their names. Raises EndpointError; then run it again."""
    users = saved(history)
    for one in users:
        endpoint.call("ACL", "SETUSER", one.user, "reset", *one.before)
    if users:
        history.set_values(**{_SAVED: ""})
    return [one.user for one in users]


__all__ = ["Fenced", "plan_fence", "put_up", "saved", "unfence"]
