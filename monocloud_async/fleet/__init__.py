"""A run spread over machines, on Temporal: the same calls, pace and journal as on one.

`FleetRun` starts, watches and steers a run; `run_coordinator` hosts it and writes its journal;
`run_worker`, on as many machines as wanted, makes its calls. Needs the extra `temporal`.
"""

try:
    import temporalio  # noqa: F401
except ImportError:
    raise ImportError(
        "a fleet needs Temporal's client: pip install 'monocloud-async[temporal]'"
    ) from None

from monocloud_async.fleet.client import FleetRun
from monocloud_async.fleet.coordinator import run_coordinator
from monocloud_async.fleet.messages import Failure, FleetReport, Progress, Span
from monocloud_async.fleet.temporal import FleetError, connect
from monocloud_async.fleet.worker import run_worker

__all__ = [
    "Failure",
    "FleetError",
    "FleetReport",
    "FleetRun",
    "Progress",
    "Span",
    "connect",
    "run_coordinator",
    "run_worker",
]
