"""What became of one user, and the counts of a run."""

from collections.abc import Callable
from typing import Final, Literal

from msgspec import Struct, field

from monocloud_async.errors import MonoCloudError
from monocloud_async.models import User

Status = Literal[
    "enabled",
    "disabled",
    "failed",
    "unknown",
    "not_attempted",
    "already_enabled",
    "already_disabled",
]

DONE: Final = frozenset[Status]({"enabled", "disabled"})  # what a run brings its users to


class Outcome(Struct, frozen=True, kw_only=True):
    """What became of one user.

    Attributes:
        user_id: the id as it was read.
        position: its place in the input, from 0.
        status: "enabled" or "disabled", as the run wanted it; "failed", for a known reason;
            "unknown": a request went out and no answer came, so it may or may not be done;
            "not_attempted": the run ended before the tenant considered it; "already_enabled" or
            "already_disabled": the journal has it as done.
        user: the user as the tenant answered, when it was done.
        error: why not, otherwise; None when the call was cancelled.
        attempts: requests sent for this user, those that were answered 429 not counted.
        seconds: from its start to its end, waits included.
    """

    user_id: str
    position: int
    status: Status
    user: User | None = None
    error: MonoCloudError | None = None
    attempts: int = 0
    seconds: float = 0.0


_MAX_FAILURES: Final = 1000
# Of a report, in the order in which it is told.
REPORT_FIELDS: Final = (
    *("total", "enabled", "disabled", "failed", "unknown", "not_attempted", "already_enabled"),
    *("already_disabled", "unconfirmed", "requests", "retries", "throttled"),
    *("paused_seconds", "seconds", "exhausted"),
)


class Stopwatch(Struct):
    """How long a run takes, and how much of that it stands still.

    Attributes:
        stopped: both in seconds, once the run is over.
        running: what tells both while it goes on.
    """

    stopped: tuple[float, float] = (0.0, 0.0)
    running: Callable[[], tuple[float, float]] | None = None

    def read(self) -> tuple[float, float]:
        """Both in seconds, as of now."""
        return self.stopped if self.running is None else self.running()

    def stop(self) -> None:
        """The run is over."""
        self.stopped, self.running = self.read(), None

    def __reduce__(self) -> tuple[object, ...]:
        return Stopwatch, (self.read(),)  # another process has not got this one's clock


class BulkReport(Struct, kw_only=True):
    """The figures of a run, live while it goes on; the counts per status add up to `total`.

    Attributes:
        total: ids read from the input.
        enabled, disabled, failed, unknown, not_attempted, already_enabled, already_disabled: users
            by `Outcome.status`.
        unconfirmed: done, but the answer's body still said the contrary (`User.disabled`).
        requests: requests sent.
        retries: requests sent again after a passing failure.
        throttled: requests that the tenant answered with 429.
        paused_seconds: how long nobody was sent, because the tenant asked for it or was down.
        seconds: how long the run took, or has taken so far.
        exhausted: whether the input was read to its end.
        failures: the first thousand outcomes that are failed or unknown.
    """

    total: int = 0
    enabled: int = 0
    disabled: int = 0
    failed: int = 0
    unknown: int = 0
    not_attempted: int = 0
    already_enabled: int = 0
    already_disabled: int = 0
    unconfirmed: int = 0
    requests: int = 0
    retries: int = 0
    throttled: int = 0
    exhausted: bool = False
    failures: list[Outcome] = field(default_factory=list)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    @property
    def skipped(self) -> int:
        """Users who were not asked for, because the journal has it as done for them."""
        return self.already_enabled + self.already_disabled

    @property
    def seconds(self) -> float:
        """How long the run took, or has taken so far."""
        return self.stopwatch.read()[0]

    @property
    def paused_seconds(self) -> float:
        """How long nobody was sent, because the tenant asked for it or was down."""
        return self.stopwatch.read()[1]

    def __repr__(self) -> str:
        # A thousand failures are too much for a terminal, and they have people's ids in them.
        told = ", ".join(f"{name}={getattr(self, name)!r}" for name in REPORT_FIELDS)
        return f"BulkReport({told}, failures=<{len(self.failures)}>)"


def add_outcome(report: BulkReport, outcome: Outcome) -> None:
    """Count one more in the report."""
    status, user = outcome.status, outcome.user
    setattr(report, status, getattr(report, status) + 1)
    if user is not None:
        report.unconfirmed += user.disabled is (status == "enabled")
    elif status in {"failed", "unknown"} and len(report.failures) < _MAX_FAILURES:
        report.failures.append(outcome)


class RunStoppedError(MonoCloudError):
    """The run as a whole cannot go on; `report` is what was done until then.

    Its cause (`__cause__`) is the error that decided it.
    """

    def __init__(self, message: str, *, report: BulkReport | None = None) -> None:
        super().__init__(message)
        self._report = report

    @property
    def report(self) -> BulkReport:
        """The counts and failures of the run until it stopped."""
        assert self._report is not None  # noqa: S101  every run that raises this passes its report
        return self._report
