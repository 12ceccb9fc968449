"""The outcome for one user, and the report of a run."""

from collections.abc import Callable
from typing import Final, Literal, get_args

from msgspec import Struct, field

from monocloud_async.endpoint import BulkOperation, Done, DoneBefore, DoneBeforeCounts
from monocloud_async.errors import MonoCloudError
from monocloud_async.models import User

Status = Literal[Done, "failed", "unknown", "not_attempted", DoneBefore]

DONE: Final[tuple[Done, ...]] = get_args(Done)
DONE_BEFORE: Final[tuple[DoneBefore, ...]] = get_args(DoneBefore)


class Outcome(Struct, frozen=True, kw_only=True):
    """The outcome for one user.

    Attributes:
        user_id: the id as it was read.
        position: the position of the id in the input, from 0.
        status: "enabled" or "disabled", as the run wanted; "failed", for a known reason;
            "unknown": a request was sent and no response arrived, so it may or may not be done;
            "not_attempted": the run ended before the tenant processed a request;
            "already_enabled" or "already_disabled": according to the journal, or when the run
            looked the user up first.
        user: the user in the tenant's response, if it was done.
        error: why it was not done; None if the call was cancelled.
        attempts: requests sent for this user, without those answered 429.
        seconds: from the start of the call to its end, waits included.
    """

    user_id: str
    position: int
    status: Status
    user: User | None = None
    error: MonoCloudError | None = None
    attempts: int = 0
    seconds: float = 0.0


_MAX_FAILURES: Final = 1000
# The fields of a report, in the order in which they are shown.
REPORT_FIELDS: Final = (
    *("total", *DONE, "failed", "unknown", "not_attempted", *DONE_BEFORE, "unconfirmed"),
    *("requests", "retries", "throttled", "paused_seconds", "seconds", "exhausted"),
)


class Stopwatch(Struct):
    """The duration of a run, and how much of it was spent paused, both in seconds.

    Attributes:
        stopped: both values after the end of the run.
        running: returns both values during the run.
    """

    stopped: tuple[float, float] = (0.0, 0.0)
    running: Callable[[], tuple[float, float]] | None = None

    def read(self) -> tuple[float, float]:
        """Return both values as of now."""
        return self.stopped if self.running is None else self.running()

    def stop(self) -> None:
        """Keep the current values: the run has ended."""
        self.stopped, self.running = self.read(), None

    def __reduce__(self) -> tuple[object, ...]:
        return Stopwatch, (self.read(),)  # a clock means nothing in another process


class BulkReport(DoneBeforeCounts, kw_only=True):
    """The figures of a run, up to date during it; the counts per status add up to `total`.

    Attributes:
        total: ids read from the input.
        enabled, disabled, failed, unknown, not_attempted, already_enabled, already_disabled: users
            by `Outcome.status`.
        unconfirmed: done, although the response still said the contrary (`User.disabled`).
        requests: requests sent, without repeats over a new connection (`MonoCloudError`).
        retries: requests sent again after a transient failure.
        throttled: requests that the tenant answered with 429.
        paused_seconds: how long no request was sent, because the tenant asked for it or was down.
        seconds: how long the run took, or has taken so far.
        exhausted: whether the input was read to its end.
        failures: the first thousand outcomes with status "failed" or "unknown".
    """

    total: int = 0
    failed: int = 0
    unknown: int = 0
    not_attempted: int = 0
    unconfirmed: int = 0
    requests: int = 0
    retries: int = 0
    throttled: int = 0
    exhausted: bool = False
    failures: list[Outcome] = field(default_factory=list)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    @property
    def skipped(self) -> int:
        """How many users were skipped: done before, by the journal or when they were looked up."""
        return sum(getattr(self, status) for status in DONE_BEFORE)

    @property
    def seconds(self) -> float:
        """How long the run took, or has taken so far."""
        return self.stopwatch.read()[0]

    @property
    def paused_seconds(self) -> float:
        """How long no request was sent, because the tenant asked for it or was down."""
        return self.stopwatch.read()[1]

    def __repr__(self) -> str:
        # A thousand failures are too long for a terminal, and contain user ids.
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in REPORT_FIELDS)
        return f"BulkReport({shown}, failures=<{len(self.failures)}>)"


def add_outcome(report: BulkReport, outcome: Outcome, operation: BulkOperation) -> None:
    """Count this outcome of an operation in the report."""
    status, user = outcome.status, outcome.user
    setattr(report, status, getattr(report, status) + 1)
    if user is not None:
        report.unconfirmed += operation.contradicted_by(user)
    elif status in {"failed", "unknown"} and len(report.failures) < _MAX_FAILURES:
        report.failures.append(outcome)


class RunStoppedError(MonoCloudError):
    """The whole run was stopped; `report` is its report until then.

    `__cause__` is the error that stopped the run.
    """

    def __init__(self, message: str, *, report: BulkReport | None = None) -> None:
        super().__init__(message)
        self._report = report

    @property
    def report(self) -> BulkReport:
        """The counts and failures until the run stopped."""
        assert self._report is not None  # noqa: S101  every run that raises this passes its report
        return self._report
