"""Starting again: after a way back to the start, what was written or deleted under old names alone is carried over.

The way back put down what both sides of each pair held. Where the new side still holds just that, it is nobody's but
the migration's: it follows its old side, be it changed or gone. Without this a key that was deleted meanwhile would
come to life again with the switch of reads. All else is left to the backfill and to verify.
"""

from __future__ import annotations

from collections.abc import Callable

from onetape.migrate.phases.helm import Helm
from onetape.migrate.phases.history import History
from onetape.migrate.phases.phase import Phase
from onetape.migrate.steps.force import Fence, Forcer, Order
from onetape.migrate.steps.mend import Mended, differing
from onetape.migrate.verifying import sides as sides_file
from onetape.migrate.verifying.side import Side
from onetape.migrate.verifying.sides import Sides
from onetape.migrate.verifying.twins import Twin, Twins
from onetape.migrate.wire.endpoint import Endpoint

FOLLOWED = "changed under its old name while that alone was written"
GONE = "was deleted under its old name while that alone was written"


def due(helm: Helm) -> bool:
    """Return whether there are pairs of an earlier time of dual writing that were not followed yet."""
    path = sides_file.path_of(helm.ledger_path)
    if not path.exists():
        return False
    with Sides(path) as sides:
        return sides.about("pending") is None  # else it was put down after a cutover, on a way back that was not made


def follow(helm: Helm, endpoint: Endpoint, history: History, check: Callable[[], None]) -> Mended:
    """Make new keys of an earlier time what their old ones are now. Under DUAL_WRITING; killed, it is given again."""
    result, path = Mended(), sides_file.path_of(helm.ledger_path)
    with helm.connect(writable=False) as reader, Sides(path) as sides:
        twins = Twins(reader, helm.plan)
        fence = Fence(helm.names, Phase.DUAL_WRITING)
        forcer = Forcer(endpoint, reader, history, "start", fence, discard=True, at=helm.at)
        for page in differing(twins):
            for twin in page:
                check()
                if (held := sides.find(twin.old)) is not None:
                    result.add(str(twin), forcer.force(twin.old, twin.new, _ordered(twin, held), lambda side: None))
        result.met = twins.met
    sides_file.remove(path)
    helm.at("followed")
    return result


def _ordered(twin: Twin, held: sides_file.Held) -> Callable[[Side | None, Side | None], Order]:
    def ordered(old: Side | None, new: Side | None) -> Order:
        if twin.joined or new is None or not new.is_what(*held):
            return Order("leave")
        return Order("remove", GONE, ours=True) if old is None else Order("copy", FOLLOWED, ours=True)

    return ordered


__all__ = ["due", "follow"]
