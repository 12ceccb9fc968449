"""A run yields by time: each iteration of the event loop processes only so many responses."""

import asyncio

import pytest
from virtual_time import run

from monocloud_async.transport.time_slice import SLICE, TimeSlice

COST = SLICE / 4  # of processing one response


class Work:
    """Tasks that wait for a response each, and a clock that shows how long they worked."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slice = TimeSlice(lambda: self.now)
        self.done: list[int] = []
        self.by_iteration: list[int] = []  # how many responses each iteration processed

    async def process(self, number: int) -> None:
        await self.slice.turn()
        self.now += COST
        self.done.append(number)

    async def all(self, count: int) -> list[asyncio.Task[None]]:
        tasks = [asyncio.ensure_future(self.process(number)) for number in range(count)]
        while not all(task.done() for task in tasks):
            before = len(self.done)
            await asyncio.sleep(0)
            self.by_iteration.append(len(self.done) - before)
        return tasks


async def test_a_few_responses_are_processed_at_once() -> None:
    work = Work()
    await work.all(10)
    assert work.by_iteration[0] == 10


async def test_of_many_each_iteration_processes_what_fits_into_a_slice() -> None:
    work = Work()
    await work.all(500)
    assert work.done == list(range(500))
    learnt = [number for number in work.by_iteration if number][3:-1]
    assert set(learnt) <= {3, 4, 5}, work.by_iteration


async def test_a_response_that_takes_long_is_alone_in_its_iteration() -> None:
    work = Work()
    work.slice = TimeSlice(lambda: 50 * work.now)
    await work.all(100)
    assert {number for number in work.by_iteration if number}.issuperset({1})
    assert max(work.by_iteration[5:]) == 1


async def test_who_gave_up_waiting_takes_nobodys_place() -> None:
    work = Work()
    tasks = [asyncio.ensure_future(work.process(number)) for number in range(200)]
    await asyncio.sleep(0)
    for task in tasks[100:150]:
        task.cancel()
    await asyncio.wait(tasks)
    assert work.done == [*range(100), *range(150, 200)]


@pytest.mark.parametrize("count", [1, 29, 30, 31, 1000])
async def test_everybody_is_processed_once_and_in_order(count: int) -> None:
    work = Work()
    await work.all(count)
    assert work.done == list(range(count))


def test_responses_that_take_long_are_few_in_an_iteration_also_when_nobody_waits() -> None:
    async def main() -> None:
        work = Work()
        work.slice = TimeSlice(lambda: 50 * work.now)  # a slice is less than one of them
        for _ in range(10):
            tasks = [asyncio.ensure_future(work.process(number)) for number in range(3)]
            await asyncio.wait(tasks)
            await asyncio.sleep(1)
        work.by_iteration.clear()
        await work.all(3)
        assert max(work.by_iteration) == 1

    run(main(), sockets=False)
