"""Runs one operation for many users: the source of ids, the attempts, and the results."""

from collections.abc import AsyncIterable, Callable, Iterable
from typing import Final

from monocloud_async.outcome import Outcome

UserIds = Iterable[str] | AsyncIterable[str]
OnOutcome = Callable[[Outcome], None]
OnSkippedMany = Callable[[range], None]

MAX_OUTAGE: Final = 300.0  # seconds that a run waits for a tenant that is down
