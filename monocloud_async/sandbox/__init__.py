"""A tenant on this machine: aiohttp.web over SQLite, with scriptable faults.

`server` speaks HTTP, `control` is for tests, `users` keeps the table, `people` invents who is in
it, and `answers`
holds everything that can be answered without looking at a user.
It shares no code with the client, so a mistake in one cannot hide the same mistake in the other.
"""

from monocloud_async.sandbox.control import SandboxStats
from monocloud_async.sandbox.server import Sandbox

__all__ = ["Sandbox", "SandboxStats"]
