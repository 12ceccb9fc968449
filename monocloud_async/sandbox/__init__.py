"""A tenant on this machine: aiohttp.web over SQLite, with scriptable faults.

`server` speaks HTTP, `control` has what its endpoints for tests take and tell, `users` keeps the
table, `people` invents who is in it, and `answers` holds what can be answered without a user.
It shares no code with the client, so a mistake in one cannot hide the same mistake in the other.
"""

from monocloud_async.sandbox.control import SandboxStats
from monocloud_async.sandbox.server import Sandbox

__all__ = ["Sandbox", "SandboxStats"]
