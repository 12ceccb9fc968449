"""A session for tests, which does not retry unless it is asked to."""

from monocloud_async import MonoCloudSession, RetryPolicy

KEY = "sentinel-key-4711"
NEVER = RetryPolicy(attempts=1)


def session_for(
    url: str, retry: RetryPolicy = NEVER, timeout: float | None = None
) -> MonoCloudSession:
    """Return a session for the tenant at this address."""
    return MonoCloudSession(url, KEY, retry=retry, timeout=timeout)
