"""The partition of time: whatever is said, in whatever order, it has no hole and no overlap, and follows a model."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

import onetape
from onetape import Tick
from onetape.store.partition import (
    SAID_COVERED,
    SAID_EMPTY,
    SAID_FILLED,
    SAID_MISSING,
    Said,
    merged,
    partition,
    within,
    without,
)

END = 40
pairs = st.tuples(st.integers(-5, END + 5), st.integers(-5, END + 5))
many = st.lists(pairs, max_size=6)


def _times(spans) -> set[int]:
    return {t for low, high in spans for t in range(low, high)}


@given(many, many)
def test_merging_and_taking_away_keep_exactly_the_time_they_should(spans, taken):
    assert _times(merged(spans)) == _times(spans)
    assert all(a[1] < b[0] for a, b in zip(merged(spans), merged(spans)[1:], strict=False))
    left = without(spans, taken)
    assert _times(left) == _times(spans) - _times(taken)
    assert left == sorted(left) and all(a[1] <= b[0] for a, b in itertools.pairwise(left))
    assert _times(within(spans, 3, 9)) == _times(spans) & set(range(3, 9))


@given(
    said=st.lists(st.tuples(st.sampled_from("abc"), pairs, st.sampled_from([1, 2, 3, 4])), max_size=8),
    silent=many,
    still=many,
    closed=many,
    pruned=many,
    begun=st.none() | st.integers(-5, END + 5),
)
def test_the_partition_is_whole_and_follows_the_documented_rules(said, silent, still, closed, pruned, begun):
    words = [Said(source, low, high, state) for source, (low, high), state in said if low < high]
    declared = None if begun is None else (begun, END + 9)
    found = partition("X", 0, END, words, silent=silent, still=still, closed=closed, pruned=pruned, declared=declared)
    assert found[0].start_ns == 0 and found[-1].end_ns == END
    assert all(a.end_ns == b.start_ns for a, b in itertools.pairwise(found))
    assert all(span.start_ns < span.end_ns for span in found)
    told = {t: span for span in found for t in range(span.start_ns, span.end_ns)}
    for t in range(END):
        covering = {w.source for w in words if w.start_ns <= t < w.end_ns and w.state in (SAID_COVERED, SAID_FILLED)}
        missing = {w.source for w in words if w.start_ns <= t < w.end_ns and w.state == SAID_MISSING}
        asked = {w.source for w in words if w.start_ns <= t < w.end_ns and w.state == SAID_EMPTY}
        empty = t in (_times(silent) if covering or missing else _times(still))
        if t in _times(closed) and empty:
            state, by = "closed", set()
        elif t in _times(pruned) and empty:
            state, by = "pruned", set()
        elif covering:
            state, by = ("quiet" if empty else "covered"), covering
        elif missing:
            state, by = "missing", missing
        elif not empty:
            state, by = "covered", set()
        else:
            state, by = ("missing" if begun is not None and t >= begun else "unknown"), set()
        span = told[t]
        assert (span.state, set(span.by)) == (state, by), t
        assert span.inferred == (state == "covered" and not covering)
        assert set(span.asked) == (asked if state in ("missing", "unknown") else set())


WORDS = st.lists(
    st.tuples(st.sampled_from(["cover", "miss", "asked", "beat", "fill"]), st.sampled_from(["a", "b"]), pairs),
    max_size=14,
)


@given(WORDS)
def test_of_one_source_the_last_word_holds_whatever_the_order(tmp_path_factory, words):
    """A dict from (source, time) to its last word is the whole model."""
    path = tmp_path_factory.mktemp("t") / "t.db"
    model: dict[tuple[str, int], str] = {}
    with onetape.open(path) as tape:
        for act, source, (low, high) in words:
            low, high = max(low, 0), max(high, 0)
            if low >= high:
                continue
            if act == "cover":
                tape.cover("X", low, high, source=source)
            elif act == "miss":
                tape.mark_missing("X", low, high, source=source)
            elif act == "asked":
                tape.mark_asked("X", low, high, source=source)
            elif act == "fill":
                tape.fill("X", low, high, [], source=source)
            else:
                beat = tape.heartbeat(source, ["X"], since=low)
                beat.alive((low + high) // 2)
                beat.alive(high)
            model.update(((source, t), act) for t in range(low, high))
        rows = tape._writer_connection.execute(
            "SELECT s.name, c.start_ns, c.end_ns, c.state FROM coverage c JOIN source s ON s.id = c.source_id"
            " ORDER BY c.source_id, c.start_ns"
        ).fetchall()
        states = {"cover": SAID_COVERED, "beat": SAID_COVERED, "miss": SAID_MISSING, "asked": SAID_EMPTY}
        states["fill"] = SAID_FILLED
        held = {(source, t): state for source, low, high, state in rows for t in range(low, high)}
        assert held == {key: states[act] for key, act in model.items()}
        assert sum(high - low for _, low, high, _ in rows) == len(held), "rows of one source overlap"
        for (name, _, end, state), (other, start, _, next_state) in itertools.pairwise(rows):
            assert name != other or end < start or state != next_state, "rows that say the same are one row"
        for span in tape.coverage("X", 0, END) if model else []:
            for t in range(span.start_ns, span.end_ns):
                said = {states[model[key]] for key in (("a", t), ("b", t)) if key in model}
                assert (span.state in ("covered", "quiet")) == bool(said & {SAID_COVERED, SAID_FILLED})
                if SAID_MISSING in said and not said & {SAID_COVERED, SAID_FILLED}:
                    assert span.state == "missing"


@given(
    ticks=st.lists(st.integers(0, 400), max_size=60),
    words=st.lists(
        st.tuples(st.sampled_from(["cover", "miss"]), st.tuples(st.integers(0, 400), st.integers(0, 400))), max_size=5
    ),
    parts=st.lists(st.integers(1, 399), max_size=4, unique=True),
)
def test_what_part_of_time_is_asked_for_changes_no_answer(tmp_path_factory, ticks, words, parts):
    second = 10**9
    with onetape.open(tmp_path_factory.mktemp("t") / "t.db", retention_days=None) as tape:
        if ticks:
            tape.append([Tick("X", t * second, price=1.0) for t in ticks])
        for act, (low, high) in words:
            if low < high:
                (tape.cover if act == "cover" else tape.mark_missing)("X", low * second, high * second, source="a")
        spans = tape.coverage("X", 0, 400 * second, quiet_s=20)
        assert spans[0].start_ns == 0 and spans[-1].end_ns == 400 * second
        assert all(a.end_ns == b.start_ns for a, b in itertools.pairwise(spans))
        gaps = tape.gaps("X", 0, 400 * second)
        assert [(g.start_ns, g.end_ns) for g in gaps] == [
            (s.start_ns, s.end_ns) for s in spans if s.state in ("missing", "unknown")
        ]
        said_missing = [g for g in gaps if g.by]
        holding = [g for g in gaps if any(g.start_ns <= tick * second < g.end_ns for tick in ticks)]
        assert all(g in said_missing for g in holding), "only what a source says it missed may hold ticks"
        if not words:
            return  # without a word the usual spacing is judged by the days around what is asked for
        edges = [0, *sorted(parts), 400]
        whole = tape.coverage("X", 0, 400 * second, quiet_s=20)
        pieces = [
            span
            for low, high in itertools.pairwise(edges)
            for span in tape.coverage("X", low * second, high * second, quiet_s=20)
        ]
        for t in range(0, 400 * second, second // 2):
            one = next(s for s in whole if s.start_ns <= t < s.end_ns)
            other = next(s for s in pieces if s.start_ns <= t < s.end_ns)
            assert one.state == other.state, (t / second, one, other)
