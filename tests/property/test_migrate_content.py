"""Content is equal exactly where the data is, whatever the order, the encoding and the way it came about."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onetape.embedded import EmbeddedServer, server_binaries
from onetape.migrate.keys import content
from onetape.migrate.wire.endpoint import Endpoint

blobs = st.binary(max_size=12)
scores = st.floats(allow_nan=False)
values = st.one_of(
    st.tuples(st.just("string"), blobs),
    st.tuples(st.just("list"), st.lists(blobs, min_size=1, max_size=20)),
    st.tuples(st.just("set"), st.sets(blobs, min_size=1, max_size=20)),
    st.tuples(st.just("zset"), st.dictionaries(blobs, scores, min_size=1, max_size=20)),
    st.tuples(st.just("hash"), st.dictionaries(blobs, blobs, min_size=1, max_size=20)),
    st.tuples(st.just("stream"), st.lists(st.tuples(blobs, blobs), min_size=1, max_size=20)),
)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    if not server_binaries():
        pytest.skip("no Redis-compatible server on this machine")
    # Small limits, so that small examples reach the encodings of big keys.
    options = {"set-max-listpack-entries": "3", "hash-max-listpack-entries": "3", "zset-max-listpack-entries": "3"}
    with EmbeddedServer(None, options) as server, Endpoint.connect(server.url) as endpoint:
        yield endpoint


def write(endpoint: Endpoint, key: str, kind: str, value: Any, backwards: bool = False) -> None:
    items = list(value.items()) if isinstance(value, dict) else value
    if kind in ("set", "zset", "hash"):
        items = sorted(items, key=repr, reverse=backwards)
    if kind == "string":
        endpoint.call("SET", key, value)
    elif kind == "list":
        endpoint.call("RPUSH", key, *items)
    elif kind == "set":
        endpoint.call("SADD", key, *items)
        if backwards:  # grown and shrunk again, it keeps the encoding of a big set
            endpoint.call("SADD", key, *(f"grown {i}" for i in range(10)))
            endpoint.call("SREM", key, *(f"grown {i}" for i in range(10)))
    elif kind == "zset":
        endpoint.call("ZADD", key, *(part for member, score in items for part in (repr(score), member)))
    elif kind == "hash":
        endpoint.call("HSET", key, *(part for pair in items for part in pair))
    else:
        for i, (name, text) in enumerate(items):
            endpoint.call("XADD", key, f"{i + 1}-0", name, text)


def same(one: tuple[str, Any], other: tuple[str, Any]) -> bool:
    def bits(value: Any) -> Any:
        return {name: repr(score) for name, score in value.items()} if isinstance(value, dict) else value

    return one[0] == other[0] and bits(one[1]) == bits(other[1])


@given(one=values, other=values)
def test_contents_are_equal_where_the_data_is(endpoint: Endpoint, one: tuple[str, Any], other: tuple[str, Any]) -> None:
    endpoint.call("FLUSHALL")
    write(endpoint, "one", *one)
    write(endpoint, "again", *one, backwards=True)
    write(endpoint, "other", *other)
    found = [content.read_content(endpoint, key) for key in (b"one", b"again", b"other")]
    assert found[0] is not None
    assert found[0] == found[1]
    assert (found[0] == found[2]) == same(one, other)
    assert (content.differences(found[0], found[2]) == "") == same(one, other)
    assert content.first_difference(endpoint, (0, b"one"), (0, b"again")) == ""
    if one[0] == other[0] and not same(one, other):
        assert content.first_difference(endpoint, (0, b"one"), (0, b"other"))
