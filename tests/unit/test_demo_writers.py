"""The writers' count: whenever they stop, what they say they wrote is what was sent."""

from __future__ import annotations

from onetape.demo.writers import Desk, Orders


def test_at_every_beat_the_tally_names_just_the_keys_that_were_written() -> None:
    orders = Orders("redis://nowhere", 1, 1, [(f"S{n}", 0) for n in range(8)], ["H1", "H2"], ["I1", "I2", "I3"])
    desk = Desk(orders)
    written: set[str] = set()
    for number in range(400):
        for command in desk.beat(number):
            if command[0] in ("XADD", "HSET", "SET") and not str(command[1]).startswith("lock:"):
                written.add(str(command[1]))
        tally = desk.tally
        assert set(tally.created) <= written
        assert {*tally.streams, *tally.hashes, *tally.indicators} == written
    assert sum(key.startswith("ticks:") for key in desk.tally.created) == 4


def test_what_a_beat_deleted_is_written_again_before_the_end() -> None:
    desk = Desk(Orders("redis://nowhere", 1, 1, [("S", 0)], ["H"], ["I"]))
    deleted: set[str] = set()
    for number in range(8):  # the last of them deletes an indicator
        deleted = {str(c[1]) for c in desk.beat(number) if c[0] == "DEL" and str(c[1]).startswith("indicators:")}
    assert deleted
    assert deleted <= {str(command[1]) for command in desk.last() if command[0] == "SET"}
