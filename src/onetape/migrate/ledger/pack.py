"""The pack: the keys of one batch as one row of the ledger, for batches whose keys all fared alike. Pure.

A row a key costs more than its copy does. A pack holds names and rules of many keys, and what stands for their
contents once that is known; it becomes entries, one a key, when somebody has to look keys up.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import msgspec

from onetape.migrate.keys.dump import SEAL_BYTES

#: What is known of a key: its seal and its expiry, in ms since the epoch, -1 for none.
Sealed = tuple[bytes, int]

_SEALED = struct.Struct(f"<{SEAL_BYTES}sq")


class Pack(msgspec.Struct, frozen=True):
    """One row: `id` is that of the first key, the others follow it.

    `rules`: two bytes a key. `names`: the lengths of all keys and then of all targets, four bytes each, then all keys
    and all targets. `seals`: see sealed(), None while they are open.
    """

    id: int
    source_db: int
    outcome: int
    rules: bytes
    names: bytes
    seals: bytes | None

    def __len__(self) -> int:
        return len(self.rules) // 2

    def keys(self) -> tuple[list[bytes], list[bytes]]:
        """Return the keys and their targets."""
        number, names = len(self), self.names
        at = 8 * number
        found: list[bytes] = []
        for size in struct.unpack_from(f"<{2 * number}I", names):
            found.append(names[at : at + size])
            at += size
        return found[:number], found[number:]

    def lines(self) -> Iterator[tuple[int, int, bytes, bytes, bytes, int]]:
        """Yield of each key: id, rule, key, target, what stands for its content (b"" while that is open), expiry."""
        keys, targets = self.keys()
        rules = struct.unpack(f"<{len(self)}H", self.rules)
        known: Iterator[Sealed] = iter([(b"", -1)] * len(self))
        if self.seals is not None:
            known = _SEALED.iter_unpack(self.seals)
        for at, (rule, key, target, (seal, expire_ms)) in enumerate(zip(rules, keys, targets, known, strict=True)):
            yield self.id + at, rule, key, target, seal, expire_ms


def packed_rules(rules: Sequence[int]) -> bytes:
    """Return a pack's `rules`."""
    return struct.pack(f"<{len(rules)}H", *rules)


def packed_names(keys: Sequence[bytes], targets: Sequence[bytes]) -> bytes:
    """Return a pack's `names`."""
    lengths = struct.pack(f"<{len(keys) + len(targets)}I", *map(len, keys), *map(len, targets))
    return b"".join([lengths, *keys, *targets])


def sealed(known: Sequence[Sealed]) -> bytes:
    """Return a pack's `seals`."""
    return b"".join([_SEALED.pack(*one) for one in known])
