"""Sums: the same bytes as adding one by one, whichever way is taken."""

import struct

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onetape.store import sums

exact = st.integers(-(2**30), 2**30).map(lambda i: i / 1024)
values = st.lists(
    st.one_of(exact, st.floats(-1e20, 1e20), st.sampled_from([-0.0, 0.1, 1e300])), min_size=1, max_size=60
)


def one_by_one(numbers, begin):
    out = []
    for start, end in zip(begin, [*begin[1:], len(numbers)], strict=True):
        total = 0.0
        for number in numbers[start:end]:
            total += number
        out.append(total)
    return out


@given(st.one_of(values, st.lists(exact, min_size=1, max_size=60)), st.data())
def test_sums_by_group_are_left_folds_from_zero(numbers, data):
    begin = sorted({0, *data.draw(st.lists(st.integers(0, len(numbers) - 1), max_size=8))})
    found = sums.by_group(np.array(numbers), np.array(begin))
    assert [struct.pack("<d", x) for x in found.tolist()] == [struct.pack("<d", x) for x in one_by_one(numbers, begin)]


def test_what_is_no_number_or_too_great_is_not_added_in_pairs():
    for odd in (float("nan"), float("inf"), 2.0**60, 1 / 2048):
        assert not sums.is_exact(np.array([1.0] * 40 + [odd]))
    assert sums.is_exact(np.array([0.25, 6000.5, 3.0]))
    assert not sums.is_exact(np.array([]))
