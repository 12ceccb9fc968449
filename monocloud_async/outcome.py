"""What became of one user, the counts of a run, and how a call turns into its outcome."""

from collections.abc import Callable
from typing import Literal

from msgspec import Struct, field

from monocloud_async.errors import MonoCloudError, RateLimitedError, TransportError
from monocloud_async.models import User

Status = Literal["enabled", "failed", "unknown", "not_attempted", "already_enabled"]


class Outcome(Struct, frozen=True, kw_only=True):
    """What became of one user.

    Attributes:
        user_id: the id as it was read.
        position: its place in the input, from 0.
        status: "enabled"; "failed", for a known reason; "unknown": a request went out and no
            answer came, so the user may or may not be enabled; "not_attempted": the run ended
            before the tenant considered it; "already_enabled": a journal has it as enabled.
        user: the user as the tenant answered, when enabled.
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


class BulkReport(Struct, kw_only=True):
    """The counts of a run, live while it goes on; the counts per status add up to `total`.

    Attributes:
        total: ids read from the input.
        enabled, failed, unknown, not_attempted, already_enabled: users by `Outcome.status`.
        unconfirmed: enabled, but the answer's body still said `disabled: true`.
        requests: requests sent.
        retries: requests sent again after a passing failure.
        throttled: requests that the tenant answered with 429.
        paused_seconds: how long nobody was sent, because the tenant asked for it or was down.
        seconds: how long the run took.
        exhausted: whether the input was read to its end.
        failures: the first thousand outcomes that are failed or unknown.
    """

    total: int = 0
    enabled: int = 0
    failed: int = 0
    unknown: int = 0
    not_attempted: int = 0
    already_enabled: int = 0
    unconfirmed: int = 0
    requests: int = 0
    retries: int = 0
    throttled: int = 0
    paused_seconds: float = 0.0
    seconds: float = 0.0
    exhausted: bool = False
    failures: list[Outcome] = field(default_factory=list)


class Call:
    """One user on the way through a run: what is known so far, and what it makes in the end."""

    __slots__ = (
        "attempts",
        "began",
        "clock",
        "error",
        "in_flight",
        "maybe_done",
        "paused",
        "position",
        "recorded",
        "user_id",
        "waiting",
    )

    def __init__(self, user_id: str, position: int, clock: Callable[[], float]) -> None:
        self.user_id = user_id
        self.position = position
        self.clock = clock
        self.began = clock()
        self.attempts = 0  # requests that were not answered 429
        self.paused = 0.0  # seconds that do not count as retry time
        self.error: MonoCloudError | None = None
        self.maybe_done = False  # a request went out that nobody answered
        self.in_flight = False
        self.waiting = False
        self.recorded = False

    @property
    def was_throttled(self) -> bool:
        """Whether the last answer was a 429."""
        return isinstance(self.error, RateLimitedError)

    def learn(self, error: MonoCloudError) -> None:
        """What an attempt that did not succeed tells."""
        self.error = error
        self.in_flight = False
        self.attempts += not isinstance(error, RateLimitedError)
        self.maybe_done |= isinstance(error, TransportError) and error.sent

    def enabled(self, user: User) -> Outcome:
        """The outcome when the tenant answered with the user."""
        return self._outcome("enabled", user=user)

    def failed(self, error: MonoCloudError) -> Outcome:
        """The outcome when the last attempt ended so."""
        unsure = self.maybe_done and isinstance(error, TransportError)
        # An outcome may live long; the frames of its error's traceback should not.
        return self._outcome("unknown" if unsure else "failed", error=error.with_traceback(None))

    def cut_off(self) -> Outcome:
        """The outcome where the run ended before the call did."""
        if self.in_flight:
            return self._outcome("unknown")
        never_seen = isinstance(self.error, TransportError) and not self.maybe_done
        if self.error is None or self.was_throttled or never_seen:
            return self._outcome("not_attempted", error=self.error)
        return self.failed(self.error)

    def _outcome(
        self, status: Status, *, user: User | None = None, error: MonoCloudError | None = None
    ) -> Outcome:
        return Outcome(
            user_id=self.user_id,
            position=self.position,
            status=status,
            user=user,
            error=error,
            attempts=self.attempts + self.in_flight,
            seconds=self.clock() - self.began,
        )
