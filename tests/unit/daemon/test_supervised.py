"""Supervised tasks: what ends is started anew, what fails is said, and an end that is asked for waits for the work."""

import asyncio
import threading

import pytest

from onetape.daemon.supervised import Supervised, in_own_thread
from onetape.errors import ConfigInvalid, TapeBusy
from onetape.sources.source import Backoff


def quickly():
    return Backoff(0.001, 0.002)


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.002)


def test_what_ends_by_itself_is_started_anew_and_counted():
    async def story():
        runs = []

        async def run(up):
            up()
            runs.append(1)
            if len(runs) < 3:
                raise TapeBusy("locked", hint="wait")
            await asyncio.Event().wait()

        task = Supervised("part", run, backoff=quickly())
        task.start()
        await until(lambda: len(runs) == 3)
        assert task.status()["restarts"] == 2 and task.state == "running" and task.trouble is None
        assert await task.stop(5)
        assert task.state == "ended"

    asyncio.run(story())


@pytest.mark.parametrize(
    ("error", "state", "told"),
    [
        (TapeBusy("locked", hint="wait"), "waiting", "locked (wait)"),
        (ConfigInvalid("port = -1"), "failed", "port = -1"),
        (OSError(98, "Address already in use"), "waiting", "Address already in use"),
        (ZeroDivisionError("a defect"), "waiting", "ZeroDivisionError: a defect"),
    ],
)
def test_what_fails_says_why_and_the_start_does_not_hang(error, state, told):
    async def story():
        async def run(up):
            raise error

        task = Supervised("part", run, backoff=Backoff(60, 60))
        task.start()
        assert not await task.settled(60)
        assert task.state == state and told in task.trouble
        assert await task.stop(5)

    asyncio.run(story())


def test_a_plain_end_of_what_runs_once_is_its_end():
    async def story():
        async def run(up):
            up()

        task = Supervised("file", run, once=True)
        task.start()
        assert await task.settled(60)
        await until(lambda: task.state == "ended")
        assert task.restarts == 0

    asyncio.run(story())


def test_a_defect_of_one_part_ends_no_other():
    async def story():
        async def broken(up):
            raise RuntimeError("broken")

        async def good(up):
            up()
            await asyncio.Event().wait()

        one, other = Supervised("one", broken, backoff=quickly()), Supervised("other", good)
        one.start()
        other.start()
        await until(lambda: one.restarts > 3)
        assert other.state == "running"
        assert await one.stop(5) and await other.stop(5)

    asyncio.run(story())


def test_a_stop_waits_until_the_thread_has_stored_what_it_held():
    async def story():
        stopping, stored = threading.Event(), []

        def work():
            stopping.wait(20)
            stored.append("the rest")

        async def run(up):
            up()
            await in_own_thread(work, stopping.set, "worker")

        task = Supervised("source", run)
        task.start()
        assert await task.settled(60)
        assert await task.stop(60)
        assert stored == ["the rest"]

    asyncio.run(story())


def test_what_does_not_end_is_left_behind_and_said():
    async def story():
        never = threading.Event()

        async def run(up):
            up()
            await in_own_thread(lambda: never.wait(60), lambda: None, "stuck")

        task = Supervised("stuck", run)
        task.start()
        assert await task.settled(60)
        assert not await task.stop(0.05)
        assert "did not end" in task.trouble
        never.set()

    asyncio.run(story())


def test_an_error_of_the_thread_is_raised_in_the_task():
    def work():
        raise TapeBusy("locked")

    with pytest.raises(TapeBusy):
        asyncio.run(in_own_thread(work, lambda: None, "worker"))
