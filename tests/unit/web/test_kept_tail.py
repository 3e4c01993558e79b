"""A follower's connection that keeps the decoded tail of the journal reads what one that decodes it anew reads."""

import numpy as np

import onetape
from onetape import Tick
from onetape.store import query

T0 = 1_700_000_040_000_000_000


def same(kept, plain):
    assert kept.keys() == plain.keys()
    for kind in plain:
        assert kept[kind].keys() == plain[kind].keys()
        for name, column in plain[kind].items():
            assert np.array_equal(kept[kind][name], column, equal_nan=column.dtype.kind == "f"), name


def test_what_is_kept_is_what_is_read_anew_over_appends_seals_and_corrections(tmp_path):
    with onetape.open(tmp_path / "t.db", retention_days=None) as tape:
        tape.append(Tick("A", T0, price=1.0))
        with tape.follow() as one, tape.follow() as other:
            query.keep_tail(one._connection)
            for step in range(40):
                if step % 3 == 0:
                    tape.append(Tick("A", T0 + step, price=float(step), size=1.0))
                elif step % 3 == 1:
                    tape.append([Tick("B", T0 + step, bid=1.0, ask=2.0), Tick("C", T0 + step, price=3.0)])
                else:
                    tape.cancel(tape.recent("A", 1)[0])
                    tape.append(Tick("A", T0 + step, price=2.0))
                if step % 11 == 10:
                    tape.seal()
                if step % 5:
                    same(query.tail(one._connection), query.tail(other._connection))
