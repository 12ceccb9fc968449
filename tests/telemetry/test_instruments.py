"""The instruments of a process, which sessions and runs in several threads share."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import pytest
from seen import Seen

from monocloud_async.outcome import BulkReport
from monocloud_async.telemetry import instruments


@pytest.mark.usefixtures("seen")
def test_threads_that_begin_at_once_share_the_instruments(monkeypatch: pytest.MonkeyPatch) -> None:
    second = threading.Event()

    class Slow:
        built = 0

        def __init__(self) -> None:
            Slow.built += 1
            if Slow.built == 2:
                second.set()
            second.wait(0.2)

    monkeypatch.setattr(instruments, "Instruments", Slow)
    monkeypatch.setattr(instruments, "_load", cache(instruments._load.__wrapped__))
    both = threading.Barrier(2)

    def loaded(_: int) -> instruments.Instruments | None:
        both.wait(60)
        return instruments.loaded()

    with ThreadPoolExecutor(2) as threads:
        found = set(threads.map(loaded, range(2)))
    assert len(found) == Slow.built == 1


def test_a_run_begins_under_the_lock(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    assert seen
    shared = instruments.loaded()
    assert shared is not None
    lock = shared._lock

    class Guarded(list[Any]):
        def append(self, run: object) -> None:
            assert lock.locked()  # a run that ends in another thread replaces the list
            super().append(run)

    monkeypatch.setattr(shared, "_runs", Guarded(shared._runs))
    with shared.run("enable", BulkReport(), "https://acme.eu.monocloud.com"):
        assert len(shared._runs) == 1
