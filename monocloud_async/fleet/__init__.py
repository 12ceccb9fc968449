"""A run over several machines, with Temporal; calls, rate limit and journal work as on one.

`FleetRun` starts, watches and controls a run. `run_coordinator` hosts the run and writes its
journal. `run_worker`, on any number of machines, makes the calls. `UserActivities` are for
workflows of your own. Needs the extra `temporal`.
"""

try:
    import temporalio  # noqa: F401  only to see whether it is there
except ImportError:
    raise ImportError(
        "a fleet needs Temporal's client: pip install 'monocloud-async[temporal]'"
    ) from None

from monocloud_async.fleet.activities import UserActivities
from monocloud_async.fleet.client import FleetRun
from monocloud_async.fleet.codec import EncryptingCodec, SigningCodec
from monocloud_async.fleet.coordinator import run_coordinator
from monocloud_async.fleet.doctor import Finding, check_fleet
from monocloud_async.fleet.messages import Failure, FleetReport, Progress, Span, WorkerProgress
from monocloud_async.fleet.temporal import FleetError, connect
from monocloud_async.fleet.worker import run_worker

__all__ = [
    "EncryptingCodec",
    "Failure",
    "Finding",
    "FleetError",
    "FleetReport",
    "FleetRun",
    "Progress",
    "SigningCodec",
    "Span",
    "UserActivities",
    "WorkerProgress",
    "check_fleet",
    "connect",
    "run_coordinator",
    "run_worker",
]
