"""Runs one operation for many users: the source of ids, the attempts, and the results."""

from typing import Final

MAX_OUTAGE: Final = 300.0  # seconds that a run waits for a tenant that is down
