"""A simulated tenant on this machine: aiohttp.web with SQLite, and scriptable faults.

`server` handles HTTP, `control` has the messages of the control endpoints, `users` has the table of
users, `people` generates their data, and `answers` has the responses that need no user. The sandbox
shares no code with the client, so a mistake in one cannot hide the same mistake in the other.
"""

from monocloud_async.sandbox.control import SandboxStats
from monocloud_async.sandbox.server import Sandbox

__all__ = ["Sandbox", "SandboxStats"]
