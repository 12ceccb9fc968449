"""The messages between the parts of a fleet: every payload that Temporal carries and stores.

None contains a key or a body, and only failures contain user ids. Ids travel as a byte range of
their file, and outcomes as positions within that range.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal

from msgspec import Struct, field, json

from monocloud_async.endpoint import DoneCounts, bulk_operation
from monocloud_async.fleet.id_file import IdFile, without_query
from monocloud_async.journal.schema import USER_COLUMNS
from monocloud_async.journal.store import Rows

MAX_FAILURES = 1000
_MAX_BYTES = 1 << 19  # of failures: a payload has at most 2 MB
_NOT_ALL = 0.999  # the highest share of a run that is not complete

How = Literal["finished", "cancelled"]


class Span(Struct, frozen=True, array_like=True):
    """A byte range of the source: the lines that begin at `start` or later, and before `end`."""

    start: int
    end: int


class Plan(Struct, frozen=True, kw_only=True):
    """The task of a run.

    Attributes:
        tenant: the address of the tenant.
        source: the file of ids.
        journal: the name of the journal, in the coordinator's folder.
        max_rate: requests per second at most, over the whole fleet; None if the tenant alone
            decides.
        max_outage: seconds that a worker waits for a tenant that is down before the run pauses.
        operation: the name of the operation; payloads from before there were others have none.
        journal_id: the identity of the journal, once a coordinator has opened it. From then on, no
            other journal is the run's.
        recorded: bytes of ids that the run knows to be in its journal; one with less is an older
            copy.
    """

    tenant: str
    source: IdFile
    journal: str
    max_rate: float | None
    max_outage: float
    operation: str = "enable"
    journal_id: str | None = None
    recorded: int = 0


class Pace(Struct, frozen=True, kw_only=True):
    """What all sessions of the fleet keep to, from one 429 to the next.

    Attributes:
        run: the run; it keeps this identity in each new history.
        epoch: how many pauses came before.
        rates: seconds of sending since the epoch began, and the requests per second of the whole
            fleet from then on; empty if no limit was seen.
        known: whether they are measured, and not still searched for.
        burst: requests that the tenant grants at once after a rest.
        lanes: among how many chunks the rate is divided.
        paused: whether a session was refused.
        prober: the worker whose session asks the tenant again.
        alone: the worker whose session alone looks for the rate; empty when that is known.
        wait: seconds of the pause, from its begin.
        max_rate: the highest requests per second of the whole fleet; None if there is none.
        joins: whether a session that had the only chunk may not have heard of the others yet.
    """

    run: str = ""
    epoch: int = 0
    rates: list[tuple[float, float]] = []
    known: bool = False
    burst: float = 0.0
    lanes: int = 1
    paused: bool = False
    prober: str = ""
    alone: str = ""
    wait: float = 0.0
    max_rate: float | None = None
    joins: bool = False


class Throttled(Struct, frozen=True, kw_only=True):
    """A worker's session was answered 429."""

    worker: str
    epoch: int
    wait: float


class Sent(Struct, frozen=True, kw_only=True):
    """The requests of a session until the tenant refused: a `MeasurementInterval` on its way.

    Times are in seconds before now, and requests are counted for the whole fleet.

    Attributes:
        rate: of the first one that was refused; None where nothing held it back.
        paused: when the pause began.
        resumed: when the request was sent that was granted after it.
    """

    rate: float | None
    paused: float
    resumed: float
    began: float
    answered: float | None
    latency: float | None
    first_refused: float
    last_refused: float
    sent: float
    refused: float
    end: float
    unheld: float
    weight: float
    marks: list[tuple[float, float]]


class Granted(Struct, frozen=True, kw_only=True):
    """The tenant grants a worker's session requests again.

    Attributes:
        sent: what the session sent until it was refused; None if it was another one's.
    """

    worker: str
    epoch: int
    sent: Sent | None = None


class Sign(Struct, frozen=True, kw_only=True):
    """What a worker says about a chunk in progress, beside its results.

    Attributes:
        users: how many users of the chunk the worker has to do, those who are done included.
        worker: the name of the worker.
        rate: requests per second in the last seconds, over all chunks of the worker.
        seconds: over how many seconds that was measured; by default, those of a worker of an
            earlier version, which does not say.
        learnt: the part of the worker in the requests per second that the tenant grants; None if
            they are not known.
        pause_left: seconds that the tenant asks to wait.
        outage: seconds since the tenant is down, or 0.
        moment: when it says so, in seconds since 1970 by its own clock.
    """

    users: int
    rate: float
    seconds: float = 5.0
    worker: str = ""
    learnt: float | None = None
    pause_left: float = 0.0
    outage: float = 0.0
    moment: float = 0.0


class ChunkResult(Struct, kw_only=True):
    """The result of a chunk so far, without what is already in the journal.

    Attributes:
        rows: rows for the journal, without ids, with positions within the chunk.
        bad_lines: lines without exactly one valid id.
        requests, retries, throttled, paused: as in `BulkReport`, paused in seconds.
        done: whether every id of the chunk has an outcome.
        why: why the worker cannot go on, or None.
        worker: the worker that leaves the run for this reason. Workers of earlier versions do not
            leave, and are not named.
        digest: of the bytes of the chunk, as the coordinator read them.
        sign: of a worker, in heartbeats and at the end.
    """

    rows: Rows = field(default_factory=lambda: Rows([], []))
    bad_lines: int = 0
    requests: int = 0
    retries: int = 0
    throttled: int = 0
    paused: float = 0.0
    done: bool = False
    why: str | None = None
    worker: str = ""
    digest: str = ""
    sign: Sign | None = None


class Chunk(Struct, frozen=True, kw_only=True):
    """Work for one lane of the fleet: the ids of a span, except those in `so_far`.

    Attributes:
        proved: whether the tenant has done this run's operation for a user, so the key is valid.
    """

    span: Span
    so_far: ChunkResult = field(default_factory=ChunkResult)
    proved: bool = False


class Failure(Struct, frozen=True, kw_only=True):
    """A user for whom the operation was not done, with the reason.

    Attributes:
        user_id, position: the id, and its position in the input, from 0.
        outcome: "failed" or "unknown", as in `Outcome`.
        error: the class name of the error; None for a cancelled call.
        status, title, trace_id: from the tenant's response, if there was one.
    """

    user_id: str
    position: int
    outcome: Literal["failed", "unknown"]
    error: str | None = None
    status: int | None = None
    title: str | None = None
    trace_id: str | None = None


class Counts(DoneCounts, kw_only=True):
    """The users and requests of a run so far.

    Attributes:
        operation: the name of the operation of the run.
        enabled, disabled, failed, unknown: users by `Outcome.status`.
        bad_lines: lines without exactly one valid id.
        requests, retries, throttled: as in `BulkReport`; of this run alone, even if the journal
            also has users of an earlier run.
    """

    operation: str = "enable"
    failed: int = 0
    unknown: int = 0
    bad_lines: int = 0
    requests: int = 0
    retries: int = 0
    throttled: int = 0

    @property
    def users_done(self) -> int:
        """How many users the operation was done for."""
        return int(getattr(self, bulk_operation(self.operation).done))

    @users_done.setter
    def users_done(self, count: int) -> None:
        setattr(self, bulk_operation(self.operation).done, count)

    def set_users(self, remaining: "Remaining") -> None:
        """Set the counts of users and bad lines to those in the journal."""
        self.users_done, self.failed = remaining.users_done, remaining.failed
        self.unknown, self.bad_lines = remaining.unknown, remaining.bad_lines

    def counts(self) -> dict[str, Any]:
        """Return the members that every kind of counts has."""
        return {name: getattr(self, name) for name in Counts.__struct_fields__}


class Remaining(Struct, kw_only=True):
    """The work that remains, according to the journal.

    Attributes:
        gaps: spans without a record.
        unfinished: chunks that were begun, and handed back when a run was cancelled.
        users_done: recorded users for whom the operation was done.
        failed, unknown: recorded users by `Outcome.status`.
        bad_lines: bad lines in recorded chunks.
        kinds: recorded users who failed or are unknown, by `kind`.
        journal_id: the identity of the journal.
    """

    gaps: list[Span]
    unfinished: list[Chunk] = field(name="rests")  # as in stored payloads
    users_done: int = field(name="enabled")  # as in stored payloads
    failed: int
    unknown: int
    bad_lines: int
    kinds: dict[str, int] = {}
    journal_id: str | None = None


class WorkerProgress(Struct, frozen=True, kw_only=True):
    """A worker or coordinator that asked Temporal for work in the last minutes.

    Attributes:
        name: its process, host and version.
        role: "worker" or "coordinator".
        seconds: since its last sign of life.
        chunks: how many chunks it has.
    """

    name: str
    role: Literal["worker", "coordinator"]
    seconds: float
    chunks: int = 0


class Progress(Counts, kw_only=True):
    """The progress of a run.

    Attributes:
        tenant, source: the tenant, and the path of the ids, or their URL without its query.
        size: bytes of ids in total.
        expected: about how many ids these are, estimated from samples.
        done: bytes of ids in complete chunks, which are in the journal.
        max_rate: requests per second at most, over the whole fleet, or None.
        results: how many results of workers are counted, those of lost workers included.
        chunks: how many chunks are handed out.
        waiting: how many of them no worker has taken yet.
        paused: why the run is paused, or None.
        trouble: steps that fail and are retried, for example because of a full disk.
        kinds: users who failed or are unknown, by `kind`.
        away: the workers that have left the run, with the reason, until `resume`.
        under_way: users of the chunks that workers have, who are not done.
        signs: of workers whose chunks came back in the last seconds; empty once they are counted.
        rate: requests per second in the last seconds.
        learnt: requests per second that the tenant grants, or None if that is not known.
        pause_left: seconds that the tenant asks to wait.
        outage: seconds since the tenant is down, or 0.
        max_outage: seconds of it after which a worker leaves the run.
        members: the workers and coordinators.
    """

    tenant: str
    source: str
    size: int
    expected: int
    max_rate: float | None
    done: int = 0
    results: int = 0
    chunks: int = 0
    waiting: int = 0
    paused: str | None = None
    trouble: list[str] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)
    away: dict[str, str] = field(default_factory=dict)
    under_way: int = 0
    signs: list[Sign] = field(default_factory=list)
    rate: float = 0.0
    learnt: float | None = None
    pause_left: float = 0.0
    outage: float = 0.0
    max_outage: float = 0.0
    members: list[WorkerProgress] = field(default_factory=list)

    @property
    def processed(self) -> int:
        """How many users have an outcome, and lines that were found bad."""
        return self.users_done + self.failed + self.unknown + self.bad_lines

    @property
    def share(self) -> float:
        """The part of the file that is processed, from 0 to 1; 1 only if all of it is recorded."""
        if self.done >= self.size:
            return 1.0
        # How many users there are is an estimate, so it may be reached too early, or never.
        share = max(self.done / self.size, self.processed / max(1, self.expected))
        return min(share, _NOT_ALL)

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at the rate of the last seconds; None if nothing is sent."""
        if not self.rate:
            return None
        return self.pause_left + max(0, self.expected - self.processed) / self.rate

    def add_signs(self, signs: Collection[Sign]) -> None:
        """Take in what the workers say, of which each says something once."""
        # A worker that has only begun has sent what it says in fewer seconds than the others.
        seconds = max((sign.seconds for sign in signs), default=0.0)
        self.rate = sum(sign.rate * sign.seconds for sign in signs) / seconds if seconds else 0.0
        # Who has begun in the pause of another one does not know when that began.
        waits = [sign.pause_left for sign in signs if sign.pause_left > 0]
        self.pause_left = min(waits, default=0.0)
        self.outage = max((sign.outage for sign in signs), default=0.0)


class FleetReport(Counts, kw_only=True):
    """The result of a run, according to its journal.

    Attributes:
        how: "finished" or "cancelled".
        gaps: spans of the source with users who are not in the journal; empty when finished.
        failures: the first thousand failures.
        trouble: what could not be recorded, and why.
    """

    how: How
    gaps: list[Span]
    failures: list[Failure]
    trouble: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        names = [name for name in self.__struct_fields__ if name != "failures"]
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"FleetReport({shown}, failures=<{len(self.failures)}>)"


class RunState(Struct, kw_only=True):
    """The state of a run, which one workflow execution passes to the next.

    Attributes:
        plan: the task of the run.
        progress: the progress to show.
        gaps: spans to be cut into chunks; None before the journal was read.
        unfinished: chunks that were begun and handed back.
        failures: the first thousand failures.
        pace: what the sessions keep to.
    """

    plan: Plan
    progress: Progress
    gaps: list[Span] | None = None
    unfinished: list[Chunk] = field(default_factory=list, name="rests")  # as in stored payloads
    failures: list[Failure] = []
    pace: Pace = Pace()

    def go_on(self, remaining: Remaining) -> None:
        """Continue from the state of the journal."""
        self.gaps, self.unfinished = remaining.gaps, remaining.unfinished
        progress = self.progress
        progress.set_users(remaining)
        known = Counter(remaining.kinds)
        for chunk in remaining.unfinished:  # counted when the chunk is complete
            known -= kinds(chunk.so_far.rows)
            progress.users_done -= chunk.so_far.rows.users_done
            progress.failed -= chunk.so_far.rows.count("failed")
            progress.unknown -= chunk.so_far.rows.count("unknown")
        progress.kinds = dict(known)
        spans = [*remaining.gaps, *(chunk.span for chunk in remaining.unfinished)]
        progress.done = progress.size - sum(span.end - span.start for span in spans)

    def add_failures(self, failures: list[Failure]) -> None:
        """Keep these failures, as far as a payload has room for them."""
        self.failures += first_failures(failures, self.failures)

    def report(self, how: How) -> FleetReport:
        """Return a report without the journal, for when the journal cannot be read."""
        known = self.progress.counts()
        whole = [Span(self.plan.source.begin, self.plan.source.size)]
        gaps = (
            whole if self.gaps is None else [*self.gaps, *(chunk.span for chunk in self.unfinished)]
        )
        return FleetReport(how=how, gaps=gaps, failures=self.failures, **known)


def new_state(plan: Plan) -> RunState:
    """Return the state of a run that has not begun."""
    source = plan.source
    size = source.size - source.begin
    progress = Progress(
        tenant=plan.tenant,
        source=without_query(source.where),
        size=size,
        expected=round(size / source.line),
        max_rate=plan.max_rate,
        max_outage=plan.max_outage,
        operation=plan.operation,
    )
    return RunState(plan=plan, progress=progress)


def add_result(counts: Counts, result: ChunkResult) -> None:
    """Add the result of a chunk to the counts."""
    counts.users_done += result.rows.users_done
    counts.failed += result.rows.count("failed")
    counts.unknown += result.rows.count("unknown")
    counts.bad_lines += result.bad_lines
    counts.requests += result.requests
    counts.retries += result.retries
    counts.throttled += result.throttled


def first_failures(failures: Iterable[Failure], known: Sequence[Failure] = ()) -> list[Failure]:
    """Return as many of the failures, beside the known ones, as a payload has room for."""
    room, first = _MAX_BYTES - sum(map(_size, known)), list[Failure]()
    for failure in failures:
        room -= _size(failure)
        if room < 0 or len(known) + len(first) == MAX_FAILURES:
            break
        first.append(failure)
    return first


def _size(failure: Failure) -> int:
    return len(json.encode(failure))


def kind(outcome: object, status: object, error: object) -> str:
    """Return what failures are counted by."""
    return " ".join(str(part) for part in (outcome, status, error) if part)


def kinds(rows: Rows) -> Counter[str]:
    """Return how many users of these rows failed or are unknown, by `kind`."""
    columns = [USER_COLUMNS.index(name) for name in ("outcome", "status", "error")]
    return Counter(kind(*(row[column] for column in columns)) for row in rows.others_each())
