"""Exact sums: what floats add up to without any rounding, so that the order of adding cannot matter.

A sum is a Python int that counts UNITs; every float64 is a whole number of them. Money is compared as these ints.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_BITS = 1126  # the mantissa's 53 bits below the least exponent that frexp() gives
#: So many units are 1.
UNIT = 1 << _BITS


def sums(values: NDArray[np.float64], groups: NDArray[np.int64]) -> dict[int, int]:
    """Return group → exact sum of its values, in units. Values are finite; at most 2**31 of them."""
    if not len(values):
        return {}
    fractions, exponents = np.frexp(values)
    mantissas = (fractions * 2.0**53).astype(np.int64)
    order = np.lexsort((exponents, groups))
    groups, exponents, mantissas = groups[order], exponents[order], mantissas[order]
    changes = (groups[1:] != groups[:-1]) | (exponents[1:] != exponents[:-1])
    starts = np.concatenate(([0], np.flatnonzero(changes) + 1))
    # In two halves, so that 64 bits hold the sum of each.
    high = np.add.reduceat(mantissas >> 26, starts).tolist()
    low = np.add.reduceat(mantissas & (2**26 - 1), starts).tolist()
    found: dict[int, int] = {}
    places = zip(groups[starts].tolist(), exponents[starts].tolist(), high, low, strict=True)
    for group, exponent, one, other in places:
        found[group] = found.get(group, 0) + (((one << 26) + other) << (exponent - 53 + _BITS))
    return found


def units(value: float) -> int:
    """Return one finite float in units."""
    above, below = float(value).as_integer_ratio()
    return above * UNIT // below


def number(total: int) -> Any:
    """Return a sum as JSON holds it: an int where it is whole and has 64 bits, else the nearest float, else text."""
    whole, rest = divmod(total, UNIT)
    if not rest and abs(whole) < 2**63:
        return whole
    try:
        return total / UNIT
    except OverflowError:
        return str(whole)


__all__ = ["UNIT", "number", "sums", "units"]
