"""Runs without HTTP: a function replaces the tenant."""

import asyncio
from collections.abc import Callable

from monocloud_async import BulkReport, BulkRun, Outcome, RateLimitedError, RetryPolicy, User
from monocloud_async.bulk import OnSkippedMany, UserIds
from monocloud_async.bulk.attempts import Send
from monocloud_async.endpoint import ENABLE
from monocloud_async.journal import Journal
from monocloud_async.ratelimit.admission_queue import AdmissionQueue
from monocloud_async.ratelimit.limiter import RateLimiter

__all__ = ["Send", "adds_up", "bulk", "enable", "throttling"]


def adds_up(report: BulkReport) -> bool:
    counts = report.enabled + report.failed + report.unknown
    return counts + report.not_attempted + report.already_enabled == report.total


def bulk(
    user_ids: UserIds,
    send: Send,
    *,
    policy: RetryPolicy | None = None,
    concurrency: int = 10,
    max_rate: float | None = None,
    max_outage: float = 300.0,
    max_same_failures: int | None = None,
    on_outcome: Callable[[Outcome], None] | None = None,
    limiter: RateLimiter | None = None,
    journal: Journal | None = None,
    on_skipped_many: OnSkippedMany | None = None,
) -> BulkRun:
    """Return a run without HTTP: `send` replaces the tenant."""
    return BulkRun(
        ENABLE,
        user_ids,
        send,
        policy=policy or RetryPolicy(),
        queue=AdmissionQueue(limiter or RateLimiter(seed=1)),
        concurrency=concurrency,
        max_rate=max_rate,
        max_outage=max_outage,
        max_same_failures=max_same_failures,
        on_outcome=on_outcome,
        journal=journal,
        on_skipped_many=on_skipped_many,
    )


async def enable(user_id: str, _seconds: float) -> User:
    await asyncio.sleep(0.02)
    return User(user_id=user_id)


def throttling(waits: dict[str, list[float | None]]) -> tuple[Send, list[tuple[float, str]]]:
    """A tenant that answers these users 429, as often as they have waits; and what it was sent."""
    sent: list[tuple[float, str]] = []

    async def send(user_id: str, seconds: float) -> User:
        sent.append((asyncio.get_running_loop().time(), user_id))
        await asyncio.sleep(0.02)
        if waits.get(user_id):
            raise RateLimitedError(status=429, retry_after=waits[user_id].pop(0))
        return User(user_id=user_id)

    return send, sent
