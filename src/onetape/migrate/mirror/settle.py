"""Settling: pairs of keys made equal, each only if neither side, nor the migration's state, changed since it was read.

    read     WATCH the state, the leaders and the followers; DUMP and PEXPIRETIME of each
    intend   one transaction of the memory: what each follower is about to hold
    act      MULTI, COPY … REPLACE and UNLINK, EXEC
    record   the memory, again in one transaction

A nil EXEC did nothing: the pairs go again, in halves, so that one busy key holds up no other. Big keys, and pairs that
seem to have been written by somebody newer, are looked at closely: by content, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import msgspec

from onetape.errors import EndpointError
from onetape.migrate.copying.decide import SLACK_BEFORE_7_MS
from onetape.migrate.copying.slice_decide import content_digest
from onetape.migrate.keys import content
from onetape.migrate.keys.dump import digest
from onetape.migrate.mirror import streams
from onetape.migrate.mirror.bigs import Bigs, put_in_place
from onetape.migrate.mirror.judge import Act, judge
from onetape.migrate.mirror.memory import OF_DUMP, OF_END, OF_STREAM, Held, Memory, Place, Side, Word
from onetape.migrate.mirror.ways import Pair
from onetape.migrate.wire.endpoint import Argument, Endpoint, ReplyError, is_lost

#: Pairs of one transaction, and the bytes of values read for it at most.
BATCH_PAIRS = 50
BATCH_BYTES = 2 * 1024 * 1024
#: Keys over it are read in slices; hints of them, but for streams, wait for the sweep.
BIG_BYTES = 256 * 1024
#: A pair that changed under us so often in a row has a busy writer: its next hint, or the sweep, gets it.
ATTEMPTS_MAX = 10
CLOSE_ATTEMPTS_MAX = 4

WHY_KEPT = "the follower was written by somebody else since both were equal"
WHY_KEPT_GONE = "the leader is gone, and the follower is not what both were when they were equal"


class FenceMoved(Exception):
    """The migration's state is another one than that under which the pairs were chosen. Nothing was done."""


class Outcome(msgspec.Struct):
    """What became of a pair. `acted`: something was written. `busy`: it kept changing. `error`: why it failed."""

    pair: Pair
    act: Act
    acted: bool = False
    busy: bool = False
    error: str = ""


class Chosen(NamedTuple):
    """What was chosen to be done with a pair: what the follower is to hold then, and what it holds now."""

    pair: Pair
    act: Act
    word: Word | None
    now: Side


class Fence(msgspec.Struct, frozen=True):
    """The key of the migration's state, and the bytes of it that must not change."""

    db: int
    key: bytes
    raw: bytes


class Settler:
    """Settles pairs through one connection. `earlier`: what the migration's ledger says of pairs the memory lacks.

    `fence` is set before settle() is called.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        memory: Memory,
        earlier: Callable[[Sequence[Place]], dict[Place, Held]],
        *,
        is_merged_into: Callable[[bytes], bool],
        bigs: Bigs,
        at: Callable[[str], None] = lambda point: None,
    ) -> None:
        self._endpoint = endpoint
        self._memory = memory
        self._earlier = earlier
        self._is_merged_into = is_merged_into
        self._bigs = bigs
        self._at = at
        self._slack_ms = 0 if endpoint.has_expire_time else SLACK_BEFORE_7_MS
        self.fence: Fence | None = None

    def settle(self, pairs: Sequence[Pair], gone: frozenset[Place], *, sweeping: bool) -> list[Outcome]:
        """Make pairs equal where that is safe, and return what became of each, in no order.

        `gone`: places whose leader is known to have been deleted. `sweeping`: big keys too. Raises FenceMoved,
        EndpointError when the connection is lost.
        """
        outcomes: list[Outcome] = []
        by_dbs = sorted(dict.fromkeys(pairs), key=_dbs)
        for _, group in groupby(by_dbs, key=_dbs):
            small, big = self._by_size(list(group))
            for batch in small:
                outcomes += self._exchange(batch, gone, sweeping)
            for pair, is_stream in big:
                if is_stream:
                    outcomes.append(self._stream(pair, gone, sweeping))
                elif sweeping:
                    outcomes.append(self._closely(pair, gone))
                else:
                    outcomes.append(Outcome(pair, Act.LEAVE))
        return outcomes

    def _by_size(self, pairs: list[Pair]) -> tuple[list[list[Pair]], list[tuple[Pair, bool]]]:
        sides = []
        for db, keys in (
            (pairs[0].from_db, [pair.from_key for pair in pairs]),
            (pairs[0].to_db, [pair.to_key for pair in pairs]),
        ):
            replies = self._endpoint.pipeline(
                [("SELECT", db), *(("MEMORY", "USAGE", key, "SAMPLES", 1) for key in keys)]
            )
            sides.append([size if isinstance(size, int) else 0 for size in replies[1:]])
        sizes = [max(both) for both in zip(*sides, strict=True)]
        apart = [
            pair
            for pair, size in zip(pairs, sizes, strict=True)
            if size > BIG_BYTES or (size and self._is_merged_into(pair.new_key))
        ]
        kinds = self._kinds(apart)
        batches: list[list[Pair]] = [[]]
        held = 0
        big: list[tuple[Pair, bool]] = []
        for pair, size in zip(pairs, sizes, strict=True):
            kind = kinds.get(pair.place)
            if kind == b"stream" or size > BIG_BYTES:
                big.append((pair, kind == b"stream"))
                continue
            if len(batches[-1]) == BATCH_PAIRS or held + size > BATCH_BYTES:
                batches.append([])
                held = 0
            batches[-1].append(pair)
            held += 2 * size
        return [batch for batch in batches if batch], big

    def _kinds(self, pairs: list[Pair]) -> dict[Place, bytes]:
        """Return the types of these pairs: that of the leader, or of the follower where the leader is gone."""
        kinds: dict[Place, bytes] = {}
        if pairs:
            for leading in (False, True):
                db = pairs[0].from_db if leading else pairs[0].to_db
                keys = [pair.from_key if leading else pair.to_key for pair in pairs]
                replies = self._endpoint.pipeline([("SELECT", db), *(("TYPE", key) for key in keys)])[1:]
                for pair, kind in zip(pairs, replies, strict=True):
                    if kind != b"none" and isinstance(kind, bytes):
                        kinds[pair.place] = kind
        return kinds

    # Small keys, in batches

    def _exchange(
        self, pairs: list[Pair], gone: frozenset[Place], sweeping: bool, attempt: int = 0
    ) -> Iterator[Outcome]:
        sources = self._read(pairs[0].from_db, [pair.from_key for pair in pairs], fenced=True)
        targets = self._read(pairs[0].to_db, [pair.to_key for pair in pairs])
        known = self._known(pairs)
        acts: list[Chosen] = []
        equal: list[Word] = []
        nothing: list[Place] = []
        doubtful: list[Pair] = []
        for pair, source, target in zip(pairs, sources, targets, strict=True):
            if isinstance(source, ReplyError) or isinstance(target, ReplyError):
                error = source if isinstance(source, ReplyError) else target
                assert isinstance(error, ReplyError)
                yield Outcome(pair, Act.KEEP, error=error.message)
                continue
            held = known.get(pair.place)
            act = judge(source, target, held, gone=pair.place in gone, slack_ms=self._slack_ms)
            if act is Act.EQUAL and source is not None:
                if held is None or not held.fresh or held.next_digest or not held.holds(*source, self._slack_ms):
                    equal.append(_word(pair, *source))
                yield Outcome(pair, act)
            elif act is Act.NOTHING:
                nothing.append(pair.place)
                yield Outcome(pair, act)
            elif act is Act.KEEP:
                doubtful.append(pair)
            elif act is Act.LEAVE:
                yield Outcome(pair, act)
            else:
                word = None if source is None else _word(pair, *source)
                acts.append(Chosen(pair, act, word, target))
        self._memory.remember(equal)
        self._memory.forget([place for place in nothing if place in known])
        if acts:
            yield from self._act(acts, gone, sweeping, attempt)
        else:
            self._endpoint.call("UNWATCH")
        for pair in doubtful:
            yield self._closely(pair, gone)

    def _act(self, acts: list[Chosen], gone: frozenset[Place], sweeping: bool, attempt: int) -> Iterator[Outcome]:
        self._at("read")
        self._memory.intend([(one.word, one.now) for one in acts if one.word is not None])
        self._at("intended")
        result = self._commit([(one.pair, one.act) for one in acts])
        self._at("acted")
        if result is None:
            yield from self._again([one.pair for one in acts], gone, sweeping, attempt)
            return
        done: list[Word] = []
        deleted: list[Place] = []
        again: list[Pair] = []
        guilty = any(isinstance(reply, ReplyError) and reply.code != "EXECABORT" for reply in result)
        for (pair, act, word, _), reply in zip(acts, result, strict=True):
            if isinstance(reply, ReplyError) and reply.code == "EXECABORT" and guilty:
                again.append(pair)  # it was refused for the sake of another
            elif isinstance(reply, ReplyError):
                yield Outcome(pair, act, error=reply.message)
            elif word is None:
                deleted.append(pair.place)
                yield Outcome(pair, act, acted=True)
            elif reply == 1:
                done.append(word)
                yield Outcome(pair, act, acted=True)
            else:
                again.append(pair)  # it expired in that instant
        self._memory.remember(done)
        self._memory.forget(deleted)
        self._at("recorded")
        if again:
            yield from self._again(again, gone, sweeping, attempt)

    def _again(self, pairs: list[Pair], gone: frozenset[Place], sweeping: bool, attempt: int) -> Iterator[Outcome]:
        if len(pairs) > 1:
            half = len(pairs) // 2
            for part in (pairs[:half], pairs[half:]):
                yield from self._exchange(part, gone, sweeping)
        elif attempt + 1 < ATTEMPTS_MAX:
            yield from self._exchange(pairs, gone, sweeping, attempt + 1)
        else:
            yield Outcome(pairs[0], Act.LEAVE, busy=True)

    def _commit(self, acts: Sequence[tuple[Pair, Act]]) -> list[Any] | None:
        """Carry out acts on pairs of the same databases; None if anything watched changed. One reply an act."""
        pair = acts[0][0]
        commands: list[Sequence[Argument]] = [("SELECT", pair.from_db), ("MULTI",)]
        places: list[int] = []
        queued = 0
        for one, act in acts:
            if act is not Act.DELETE:
                over = ("REPLACE",) if act is Act.REPLACE else ()
                commands.append(("COPY", one.from_key, one.to_key, "DB", one.to_db, *over))
                queued += 1
        if queued < len(acts):
            commands.append(("SELECT", pair.to_db))
            commands += [("UNLINK", one.to_key) for one, act in acts if act is Act.DELETE]
        replies = self._endpoint.pipeline([*commands, ("EXEC",)])
        result = replies[-1]
        if result is None:
            return None
        copies, deletions = 0, queued + 1
        for _, act in acts:  # where each act's reply is
            if act is Act.DELETE:
                places.append(deletions)
                deletions += 1
            else:
                places.append(copies)
                copies += 1
        if isinstance(result, ReplyError):  # nothing was done: those that could not be queued are to blame
            blame = replies[2:-1]
            return [blame[at] if isinstance(blame[at], ReplyError) else result for at in places]
        return [result[at] for at in places]

    # One key, closely

    def _closely(self, pair: Pair, gone: frozenset[Place]) -> Outcome:
        """Settle one pair by its content, however big it is."""
        for _attempt in range(CLOSE_ATTEMPTS_MAX):
            try:
                outcome = self._by_content(pair, gone)
            except EndpointError as error:
                if is_lost(error):
                    raise
                self._endpoint.call("UNWATCH")
                if content.is_changed(error):
                    continue
                return Outcome(pair, Act.KEEP, error=error.message)
            if outcome is not None:
                return outcome
        return Outcome(pair, Act.LEAVE, busy=True)

    def _by_content(self, pair: Pair, gone: frozenset[Place]) -> Outcome | None:
        self._watch([(pair.from_db, pair.from_key), (pair.to_db, pair.to_key)])
        self._endpoint.select(pair.from_db)
        source = content.read_content(self._endpoint, pair.from_key)
        self._endpoint.select(pair.to_db)
        target = content.read_content(self._endpoint, pair.to_key)
        held, ours = self._recognised(pair, _side(target))
        wanted = _side(source)
        if source is not None and target is not None and source.same(target):
            wanted = None if ours is None else (ours[0], -1 if source.expires_ms is None else source.expires_ms)
        act = judge(wanted, ours, held, gone=pair.place in gone, slack_ms=self._slack_ms)
        if act in (Act.EQUAL, Act.KEEP, Act.LEAVE, Act.NOTHING):
            if self._endpoint.pipeline([("MULTI",), ("EXEC",)])[1] is None:
                return None
            if act is Act.EQUAL and ours is not None:
                self._memory.remember([_word(pair, *ours)])
            elif act is Act.NOTHING and held is not None:
                self._memory.forget([pair.place])
            return Outcome(pair, act)
        word = None if source is None else _word(pair, content_digest(source), _expiry(source))
        return self._act_alone(Chosen(pair, act, word, ours))

    def _act_alone(self, chosen: Chosen) -> Outcome | None:
        pair, act, word, now = chosen
        kind = None if word is None else self._bigs.wants(self._endpoint, pair)
        temporary = b"" if kind is None else self._bigs.written(pair, kind)
        if temporary is None:
            return None
        if word is not None:
            self._memory.intend([(word, now)])
        self._at("intended")
        if temporary and word is not None:
            result = self._put_in_place(pair, act, temporary, word.expire_ms)
        else:
            result = self._commit([(pair, act)])
        self._at("acted")
        if result is None or (word is not None and result[0] == 0):
            return None
        if isinstance(result[0], ReplyError):
            return Outcome(pair, act, error=result[0].message)
        if word is None:
            self._memory.forget([pair.place])
        else:
            self._memory.remember([word])
        self._at("recorded")
        return Outcome(pair, act, acted=True)

    def _put_in_place(self, pair: Pair, act: Act, temporary: bytes, expire_ms: int) -> list[Any] | None:
        replies = self._endpoint.pipeline(put_in_place(pair, temporary, expire_ms, over=act is Act.REPLACE))
        result = replies[-1]
        errors = [reply for reply in (*replies, *(result or ())) if isinstance(reply, ReplyError)]
        if result is None or errors:
            self._bigs.drop(temporary)
        return errors[:1] or (None if result is None else [1])

    def _small_dump(self, pair: Pair) -> bytes | None:
        size = self._endpoint.pipeline([("MEMORY", "USAGE", pair.to_key, "SAMPLES", 1)])[0]
        if not isinstance(size, int) or size > 4 * BIG_BYTES:
            return None
        payload = self._endpoint.pipeline([("DUMP", pair.to_key)])[0]
        return payload if isinstance(payload, bytes) else None

    # Streams: what was added is added

    def _stream(self, pair: Pair, gone: frozenset[Place], sweeping: bool) -> Outcome:
        acted = False
        for _attempt in range(10 * ATTEMPTS_MAX):
            try:
                outcome = self._stream_once(pair, gone, sweeping)
            except EndpointError as error:
                if is_lost(error):
                    raise
                self._endpoint.call("UNWATCH")
                if error.facts.get("code") == "WRONGTYPE":  # the other side is no stream
                    return self._closely(pair, gone) if sweeping else Outcome(pair, Act.LEAVE, acted=acted)
                if content.is_changed(error):
                    continue
                return Outcome(pair, Act.KEEP, error=error.message)
            if outcome is not None and outcome.busy and outcome.acted:
                acted = True  # a part of it: there is more
                continue
            if outcome is not None:
                outcome.acted = outcome.acted or acted
                return outcome
        return Outcome(pair, Act.LEAVE, acted=acted, busy=True)

    def _stream_once(self, pair: Pair, gone: frozenset[Place], sweeping: bool) -> Outcome | None:
        self._watch([(pair.from_db, pair.from_key), (pair.to_db, pair.to_key)])
        source = streams.look(self._endpoint, pair.from_db, pair.from_key)
        target = streams.look(self._endpoint, pair.to_db, pair.to_key)
        merged = self._is_merged_into(pair.new_key)
        words = self._words(pair)
        held = words[0] if words else None
        if source is None and merged:
            self._endpoint.call("UNWATCH")
            return Outcome(pair, Act.NOTHING)  # what was merged into it is nowhere else
        ours = None if target is None else (OF_STREAM + target.summary, target.expire_ms)
        wanted = None if source is None else (OF_STREAM + source.summary, source.expire_ms)
        is_ours = target is not None and any(self._is_ours(pair, one, target) for one in words)
        if source is None or target is None:
            if is_ours and ours is not None:
                held = Held(pair.new_key, *ours)
            act = judge(wanted, ours, held, gone=pair.place in gone, slack_ms=self._slack_ms)
            word = None if source is None else _word(pair, OF_STREAM + source.summary, source.expire_ms)
            if act in (Act.COPY, Act.DELETE):
                return self._act_alone(Chosen(pair, act, word, ours))
            self._endpoint.call("UNWATCH")
            return Outcome(pair, act)
        if wanted == ours and ours is not None:
            if held is None or not held.fresh or not held.holds(*ours, self._slack_ms):
                self._memory.remember([_word(pair, *ours)])
            self._endpoint.call("UNWATCH")
            return Outcome(pair, Act.EQUAL)
        step = streams.next_step(self._endpoint, pair, source, target, merged=merged, may_trim=is_ours)
        if step.commands:
            self._memory.intend([(_word(pair, OF_END + step.end, step.expire_ms), ours if is_ours else None)])
            self._at("intended")
            result = self._endpoint.pipeline(step.commands)[-1]
            if result is None:
                return None
            errors = [result] if isinstance(result, ReplyError) else [r for r in result if isinstance(r, ReplyError)]
            if errors:
                return Outcome(pair, Act.REPLACE, error=errors[0].message)
            self._at("acted")
            after = streams.look(self._endpoint, pair.to_db, pair.to_key)
            if after is not None:
                self._memory.remember([_word(pair, OF_STREAM + after.summary, after.expire_ms)])
            return Outcome(pair, Act.REPLACE, acted=True, busy=step.more)
        if step.equal:
            self._endpoint.call("UNWATCH")
            return Outcome(pair, Act.EQUAL)
        if is_ours and not merged:
            if sweeping:
                word = _word(pair, OF_STREAM + source.summary, source.expire_ms)
                return self._act_alone(Chosen(pair, Act.REPLACE, word, ours))
            self._endpoint.call("UNWATCH")
            return Outcome(pair, Act.LEAVE)
        self._endpoint.call("UNWATCH")
        return Outcome(pair, Act.KEEP)

    def _is_ours(self, pair: Pair, held: Held, target: streams.Look) -> bool:
        for digest_of in (OF_STREAM + target.summary, OF_END + target.end):
            if held.holds(digest_of, target.expire_ms, self._slack_ms):
                return True
        if OF_DUMP in (held.digest or b"")[:1] + (held.next_digest or b"")[:1]:  # remembered while it was small
            self._endpoint.select(pair.to_db)
            payload = self._small_dump(pair)
            return payload is not None and held.holds(OF_DUMP + digest(payload), target.expire_ms, self._slack_ms)
        return False

    # Reading

    def _known(self, pairs: Sequence[Pair]) -> dict[Place, Held]:
        """Return what is known of these pairs; a name that the plan no longer gives is not known."""
        known = self._memory.find([pair.place for pair in pairs])
        unknown = [pair.place for pair in pairs if pair.place not in known]
        if unknown:
            known.update(self._earlier(unknown))
        names = {pair.place: pair.new_key for pair in pairs}
        return {place: held for place, held in known.items() if held.new_key == names[place]}

    def _words(self, pair: Pair) -> list[Held]:
        """Return what is known of a pair: by the memory, and by the ledger, where a backfill may have been at work."""
        known = self._known([pair]).get(pair.place)
        words = [] if known is None else [known]
        told = self._earlier([pair.place]).get(pair.place)
        if told is not None and told.new_key == pair.new_key and told != known:
            words.append(told)
        return words

    def _recognised(self, pair: Pair, ours: Side) -> tuple[Held | None, Side]:
        """Return what is known of a pair, and its follower: those of all that is known which fit, if any do.

        A follower may have been remembered by its dump, while it was small. The follower's database is selected.
        """
        words = self._words(pair)
        if ours is not None and words:
            for held in words:
                if held.holds(*ours, self._slack_ms):
                    return held, ours
            payload = self._small_dump(pair)
            dumped = ours if payload is None else (OF_DUMP + digest(payload), ours[1])
            for held in words:
                if held.holds(*dumped, self._slack_ms):
                    return held, dumped
        return (words[0] if words else None), ours

    def _watch(self, places: Sequence[tuple[int, bytes]]) -> None:
        self._check_fence(self._endpoint.pipeline(self._fence_commands()))
        for db, key in places:
            self._endpoint.pipeline([("SELECT", db), ("WATCH", key)])

    def _fence_commands(self) -> list[Sequence[Argument]]:
        assert self.fence is not None
        return [("UNWATCH",), ("SELECT", self.fence.db), ("WATCH", self.fence.key), ("GET", self.fence.key)]

    def _check_fence(self, replies: Sequence[Any]) -> None:
        assert self.fence is not None
        if replies[3] != self.fence.raw:
            self._endpoint.call("UNWATCH")
            raise FenceMoved

    def _read(self, db: int, keys: list[bytes], *, fenced: bool = False) -> list[Side | ReplyError]:
        """Watch and read keys of one database: digest and absolute expiry of each."""
        absolute = self._endpoint.has_expire_time
        commands = self._fence_commands() if fenced else []
        begin = len(commands)
        commands += [("SELECT", db), ("WATCH", *keys)]
        if not absolute:
            commands.append(("TIME",))
        told = "PEXPIRETIME" if absolute else "PTTL"
        for key in keys:
            commands += [("DUMP", key), (told, key)]
        replies = self._endpoint.pipeline(commands)
        if fenced:
            self._check_fence(replies)
        heads = replies[begin : begin + (2 if absolute else 3)]
        refused = next((reply for reply in heads if isinstance(reply, ReplyError)), None)
        if refused is not None:
            return [refused] * len(keys)
        now_ms = 0 if absolute else int(heads[2][0]) * 1000 + int(heads[2][1]) // 1000
        body = replies[begin + len(heads) :]
        return [_read_side(body[at], body[at + 1], now_ms) for at in range(0, len(body), 2)]


def _read_side(payload: Any, expire: Any, now_ms: int) -> Side | ReplyError:
    if isinstance(payload, ReplyError):
        return payload
    if isinstance(expire, ReplyError):
        return expire
    if payload is None:
        return None
    return OF_DUMP + digest(payload), now_ms + expire if expire >= 0 else -1


def _dbs(pair: Pair) -> tuple[int, int]:
    return pair.from_db, pair.to_db


def _word(pair: Pair, held: bytes, expire_ms: int) -> Word:
    return Word(*pair.place, pair.new_key, pair.rule, held, expire_ms)


def _expiry(found: content.Content) -> int:
    return -1 if found.expires_ms is None else found.expires_ms


def _side(found: content.Content | None) -> Side:
    return None if found is None else (content_digest(found), _expiry(found))
