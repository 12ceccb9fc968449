"""What a fleet's parts say to each other: every payload that Temporal carries and keeps.

None has a key, a body or, but for failures, a user id: ids travel as a range of their file, and
what became of them as numbers that count within it.
"""

from typing import Literal

from msgspec import Struct, field

from monocloud_async.fleet.id_file import IdFile
from monocloud_async.journal.store import Rows

MAX_FAILURES = 1000

How = Literal["finished", "cancelled"]


class Span(Struct, frozen=True, array_like=True):
    """Bytes of the source: those lines that begin from `start` up to, and without, `end`."""

    start: int
    end: int


class Plan(Struct, frozen=True, kw_only=True):
    """What a run is to do.

    Attributes:
        tenant: its address.
        source: the ids.
        journal: the file that the coordinator writes, by its path there.
        max_rate: requests a second, over the whole fleet.
        max_outage: seconds that a worker waits for a tenant that is down before the run pauses.
    """

    tenant: str
    source: IdFile
    journal: str
    max_rate: float
    max_outage: float


class ChunkResult(Struct, kw_only=True):
    """What became of a chunk, so far.

    Attributes:
        rows: the journal's, with places in the chunk for positions, and no ids.
        bad_lines: those without exactly one usable id.
        requests, retries, throttled, paused: as in `BulkReport`, paused in seconds.
        done: whether that is every id of it.
        why: why the run had better pause, or None.
    """

    rows: Rows = field(default_factory=lambda: Rows([], []))
    bad_lines: int = 0
    requests: int = 0
    retries: int = 0
    throttled: int = 0
    paused: float = 0.0
    done: bool = False
    why: str | None = None


class Chunk(Struct, frozen=True, kw_only=True):
    """Work for one lane of the fleet: the ids of a span, without those that `so_far` has.

    Attributes:
        proved: whether the tenant enabled somebody in this run, so that its key is good.
    """

    span: Span
    so_far: ChunkResult = field(default_factory=ChunkResult)
    proved: bool = False


class Failure(Struct, frozen=True, kw_only=True):
    """A user who is not enabled: "failed" or "unknown", as in `Outcome`, and what was the answer.

    Attributes:
        user_id, position: who, and the place in the input, from 0.
        outcome: "failed" or "unknown".
        error: the name of the error's class, None for a call that was cut off.
        status, title, trace_id: of the tenant's answer, if there was one.
    """

    user_id: str
    position: int
    outcome: Literal["failed", "unknown"]
    error: str | None = None
    status: int | None = None
    title: str | None = None
    trace_id: str | None = None


class Counts(Struct, kw_only=True):
    """Users and requests of a run, so far.

    Attributes:
        enabled, failed, unknown: users by `Outcome.status`.
        bad_lines: lines without exactly one usable id.
        requests, retries, throttled: as in `BulkReport`; of this run alone, where its journal
            has an earlier one's users too.
    """

    enabled: int = 0
    failed: int = 0
    unknown: int = 0
    bad_lines: int = 0
    requests: int = 0
    retries: int = 0
    throttled: int = 0


class Left(Struct, kw_only=True):
    """What the journal says of the source.

    Attributes:
        gaps: spans that it has nothing of.
        unfinished: chunks that were begun, and handed back when a run was cancelled.
        enabled, failed, unknown: users who are there.
        bad_lines: in chunks that are there.
    """

    gaps: list[Span]
    unfinished: list[Chunk] = field(name="rests")
    enabled: int
    failed: int
    unknown: int
    bad_lines: int


class Progress(Counts, kw_only=True):
    """How a run stands.

    Attributes:
        tenant, source: whose users, and where their ids are.
        size: bytes of ids in all.
        expected: about how many ids that are, from a look at the first ones.
        done: bytes whose users are in the journal.
        max_rate: requests a second, over the whole fleet.
        chunks: those that are handed out.
        waiting: those of them that no worker has taken yet.
        paused: why the run is paused, or None.
        trouble: what is tried again and again, such as a journal on a full disk.
    """

    tenant: str
    source: str
    size: int
    expected: int
    max_rate: float
    done: int = 0
    chunks: int = 0
    waiting: int = 0
    paused: str | None = None
    trouble: list[str] = []


class FleetReport(Counts, kw_only=True):
    """What a run came to, as its journal has it.

    Attributes:
        how: "finished" or "cancelled".
        gaps: spans of the source whose users are not all in the journal: none when finished.
        failures: the first thousand.
        trouble: what could not be written down, and why.
    """

    how: How
    gaps: list[Span]
    failures: list[Failure]
    trouble: list[str] = []

    def __repr__(self) -> str:
        names = [name for name in self.__struct_fields__ if name != "failures"]
        told = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"FleetReport({told}, failures=<{len(self.failures)}>)"


class State(Struct, kw_only=True):
    """A run, as far as it has come: what one workflow execution leaves to the next.

    Attributes:
        plan: what it is to do.
        progress: what is told of it.
        gaps: spans that are still to be cut into chunks; None before the journal was asked.
        unfinished: chunks that were begun and handed back.
        failures: the first thousand.
    """

    plan: Plan
    progress: Progress
    gaps: list[Span] | None = None
    unfinished: list[Chunk] = field(default_factory=list, name="rests")
    failures: list[Failure] = []

    def go_on(self, left: Left) -> None:
        """Begin with what the journal says."""
        self.gaps, self.unfinished = left.gaps, left.unfinished
        progress = self.progress
        progress.enabled, progress.failed = left.enabled, left.failed
        progress.unknown, progress.bad_lines = left.unknown, left.bad_lines
        for chunk in left.unfinished:  # counted when it is whole
            progress.enabled -= chunk.so_far.rows.users_done
            progress.failed -= chunk.so_far.rows.count("failed")
            progress.unknown -= chunk.so_far.rows.count("unknown")
        spans = [*left.gaps, *(chunk.span for chunk in left.unfinished)]
        progress.done = progress.size - sum(span.end - span.start for span in spans)

    def report(self, how: How) -> FleetReport:
        """What the run came to, where its journal cannot be asked."""
        known = {name: getattr(self.progress, name) for name in Counts.__struct_fields__}
        whole = [Span(self.plan.source.begin, self.plan.source.size)]
        gaps = (
            whole if self.gaps is None else [*self.gaps, *(chunk.span for chunk in self.unfinished)]
        )
        return FleetReport(how=how, gaps=gaps, failures=self.failures, **known)


def new_state(plan: Plan) -> State:
    """A run of which nothing is done."""
    source = plan.source
    size = source.size - source.begin
    progress = Progress(
        tenant=plan.tenant,
        source=source.where,
        size=size,
        expected=round(size / source.line),
        max_rate=plan.max_rate,
    )
    return State(plan=plan, progress=progress)


def add_result(counts: Counts, result: ChunkResult) -> None:
    """Add what became of a chunk."""
    counts.enabled += result.rows.users_done
    counts.failed += result.rows.count("failed")
    counts.unknown += result.rows.count("unknown")
    counts.bad_lines += result.bad_lines
    counts.requests += result.requests
    counts.retries += result.retries
    counts.throttled += result.throttled
