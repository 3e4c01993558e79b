"""What vanished: when so many keys of a database are gone at once that nobody deleted them one by one."""

from __future__ import annotations

#: So many keys may be gone in any case,
GONE_FINE = 100
#: and so large a share of those that there were.
GONE_SHARE = 0.5


def most_gone(known: int) -> int:
    """Return how many of `known` keys may be gone before it is taken for a flush, a swap or an empty restart."""
    return max(GONE_FINE, int(GONE_SHARE * known))
