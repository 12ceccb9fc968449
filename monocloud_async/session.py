"""The session: connections to one tenant, single calls, and bulk runs."""

import asyncio
import os
import warnings
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from enum import Enum, auto
from functools import partial
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TypeVar

import aiohttp
from aiohttp.http import HttpProcessingError

import monocloud_async  # for BulkRun, which hints name by its path: it is loaded later
from monocloud_async import config, user_list
from monocloud_async.bulk import MAX_OUTAGE, OnOutcome, OnSkippedMany, UserIds
from monocloud_async.bulk.lookup import Lookup
from monocloud_async.endpoint import (
    DISABLE,
    DISABLE_AND_REVOKE_SESSIONS,
    ENABLE,
    GET_USER,
    LIST_GROUP,
    LIST_USERS,
    BulkOperation,
    Operation,
    list_path,
)
from monocloud_async.errors import (
    ConfigurationError,
    InvalidResponseError,
    InvalidUserIdError,
    MonoCloudError,
    NotFoundError,
    RateLimitedError,
    RequestTimeoutError,
)
from monocloud_async.journal import Journal
from monocloud_async.models import User
from monocloud_async.outcome import BulkReport
from monocloud_async.ratelimit.admission_queue import AdmissionQueue, closed_error, record_failure
from monocloud_async.ratelimit.limiter import RateLimiter
from monocloud_async.response import UserPage
from monocloud_async.retry import (
    RetryBudget,
    RetryPolicy,
    checked_policy,
    note_unanswered,
    retry_call,
)
from monocloud_async.telemetry.calls import Call, CallOfRun, SessionTelemetry
from monocloud_async.transport import Transport
from monocloud_async.transport.error_translation import (
    expired_error,
    timeout_error,
    transport_error,
    unusable_client_error,
)
from monocloud_async.transport.standard import (
    ClosedBeforeSentError,
    ClosedError,
    StandardTransport,
)
from monocloud_async.transport.time_slice import TimeSlice
from monocloud_async.user_id import exact_id
from monocloud_async.user_list import UserList

if TYPE_CHECKING:  # loaded later, see below
    from monocloud_async.transport.fast import FastTransport

T = TypeVar("T")

DEFAULT_RETRY = RetryPolicy()
# Loaded with the first session, so that to import this module is quick. Not when a call needs them:
# where there are no file descriptors left, the import would fail in the place of the call.
_LATER: Final = (
    "tenacity",
    "monocloud_async.bulk.run",
    "monocloud_async.lenient_json",
    "monocloud_async.transport.fast",
)


_forks = 0  # that led to this process


def _count_fork() -> None:
    global _forks  # noqa: PLW0603  there is one count for each process
    _forks += 1


if hasattr(os, "register_at_fork"):  # to ask for the process number would be a system call
    os.register_at_fork(after_in_child=_count_fork)


class _SessionState(Enum):
    """OPEN ── close() ──▶ CLOSING ── all calls ended, or the time is over ──▶ CLOSED."""

    OPEN = auto()
    CLOSING = auto()  # no new calls and runs; those in progress may still send requests
    CLOSED = auto()


class MonoCloudSession:
    """A client for one tenant, for the life of the application and any number of tasks.

    ```python
    async with MonoCloudSession("acme.eu.monocloud.com", api_key) as session:
        user = await session.enable_user("UOtBaOybB6dTpIJNrnkRw")
    ```

    Args:
        domain: the tenant's domain, with or without `https://`. Default: the environment's
            `MONOCLOUD_MANAGEMENT_DOMAIN`. Plain `http://` is only for loopback addresses.
        api_key: the API key. Default: the environment's `MONOCLOUD_MANAGEMENT_API_KEY`.
        timeout: seconds for one request including its response; connecting may take nine tenths of
            this time. Default: the environment's `MONOCLOUD_MANAGEMENT_TIMEOUT` (milliseconds), or
            10.
        retry: the limits for retries; see `RetryPolicy`.
        max_rate: maximum requests per second of the whole session. Default: the rate that the
            tenant allows, which the session learns.
        burst: requests that `max_rate` allows at once after an idle time.
        compression: whether to ask for responses in gzip. It saves about 1,400 bytes per user and
            costs CPU time (docs/performance.md).
        client_session: an `aiohttp.ClientSession` to borrow, with its proxy, TLS, tracing and
            middlewares. It is never closed here. Use a `monocloud_async.connector.Connector` for
            it, which never uses unsolicited data as a response. By default, the session opens its
            own connections, as many as there are concurrent calls, so that a timeout never includes
            a wait for a connection; it ignores cookies, `.netrc` and proxies of the environment.

    Raises:
        ConfigurationError: the domain or the key is missing, or cannot be used. Nothing is sent.
    """

    # A traceback with locals also prints sessions whose constructor has failed.
    _base_url = "of no tenant yet"
    _state = _SessionState.OPEN
    _connected: AsyncGenerator[None, None] | None = None

    def __init__(
        self,
        domain: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float | None = None,
        retry: RetryPolicy = DEFAULT_RETRY,
        max_rate: float | None = None,
        burst: float = 1,
        compression: bool = False,
        client_session: aiohttp.ClientSession | None = None,
    ) -> None:
        api_key = config.mask_key(api_key)  # so that no traceback can show it
        self._base_url = config.base_url(domain)
        self._credentials = config.credentials(api_key, compression=compression)
        self._timeout = config.timeout(timeout)
        self._retry = checked_policy(retry)
        if client_session is not None and not isinstance(client_session, aiohttp.ClientSession):
            raise ConfigurationError(
                f"client_session must be an aiohttp.ClientSession, not {type(client_session)!r}"
            )
        self._borrowed = client_session
        self._proxy_checked = False
        self._standard: StandardTransport | None = None  # until the first request
        self._fast: FastTransport | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # until the first call
        self._forks = 0  # before that call
        self._calls = 0  # single calls in progress
        self._runs: set[monocloud_async.BulkRun] = set()  # in progress
        self._idle = asyncio.Event()  # set once nothing is in progress, and nothing can begin
        if max_rate is not None:
            config.positive("max_rate", max_rate)
        if not config.positive("burst", burst) >= 1:
            raise ConfigurationError(f"burst must be 1 or more, not {burst!r}")
        self._limiter = RateLimiter(max_rate, burst=burst, tenant=self._base_url)
        self._queue = AdmissionQueue(self._limiter)
        self._budget = RetryBudget()
        self._time_slice = TimeSlice()
        self._telemetry = SessionTelemetry(self._limiter, self._budget, self._retry.budget)
        for module in _LATER:
            import_module(module)

    @property
    def tenant(self) -> str:
        """The address of the tenant."""
        return self._base_url

    @property
    def pace(self) -> RateLimiter:
        """The rate limiter: `state`, `rate`, `pause_left`, `down`, `waiting`, `throttled`."""
        return self._limiter

    def __repr__(self) -> str:
        closed = ", closed" if self._state is _SessionState.CLOSED else ""
        return f"<MonoCloudSession {self._base_url}{closed}>"

    def __del__(self) -> None:
        if self._connected is not None and self._state is not _SessionState.CLOSED:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=1, source=self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self, *, drain: float = 0.0) -> None:
        """Close the session's own connections; a borrowed `ClientSession` stays open.

        New calls and runs are refused from now on. Single calls in progress may go on for `drain`
        seconds, with their retries; runs start no more calls, and those in flight may finish. Then
        everything that is left ends at once. When this returns, nothing is in progress any more.

        A call that sent a request raises its last error, or a `TransportError` if no response
        arrived; one that sent nothing raises a `ConfigurationError` (through a `client_session`, a
        call that was still connecting counts as sent). A run that did not reach its end raises a
        `RunStoppedError`, with the true outcomes in its report and its journal.

        A second `close()` ends the wait of the first one. In a process that was forked after the
        first call, it closes no connection, because the parent uses them.

        Args:
            drain: seconds that calls in progress may go on.

        Raises:
            ConfigurationError: the session is in use on the event loop of another thread; close it
                there. If its event loop does not run any more, it closes with that.
        """
        config.not_negative("drain", drain)
        if self._is_forked:
            self._state = _SessionState.CLOSED  # nothing more: the connections are in use elsewhere
            return
        if self._loop is not None and self._loop is not config.event_loop():
            if self._loop.is_running():
                raise ConfigurationError(
                    "this session is in use on the event loop of another thread; close it there"
                )
            self._end_calls()
            return
        if self._state is _SessionState.OPEN:
            self._state = _SessionState.CLOSING
        for run in self._runs:
            run.session_closed()
        self._note_end()
        try:
            if drain and not self._idle.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._idle.wait(), drain)
        finally:
            self._end_calls()
            try:
                await self._idle.wait()
            finally:
                connected, self._connected = self._connected, None
                if connected is not None:
                    await connected.aclose()

    def _end_calls(self) -> None:
        """End everything that is in progress, now."""
        self._state = _SessionState.CLOSED
        self._telemetry.end()
        if self._loop is None or self._loop.is_closed():
            return  # nobody waits
        for run in self._runs:
            run.session_closed()
            run.cancel()
        self._queue.close()
        for transport in (self._standard, self._fast):
            if transport is not None:
                transport.close()

    def _begin(self) -> asyncio.AbstractEventLoop:
        """Let a call or a run begin, and return the event loop.

        Raises:
            ConfigurationError: the session is closed, or belongs to another event loop or process,
                or this runs in no event loop of asyncio.
        """
        loop = config.event_loop()
        self._check_usable(loop)
        self._loop, self._forks = loop, _forks
        return loop

    def _check_usable(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Raise `ConfigurationError` if the session is closed, or belongs to somebody else."""
        if self._state is not _SessionState.OPEN:
            raise closed_error()
        if self._is_forked:
            # Its connections are shared: one process would read the responses of another.
            raise ConfigurationError("this session belongs to another process; open one here")
        if loop is not None and self._loop is not None and self._loop is not loop:
            raise ConfigurationError("this session belongs to another event loop; open one here")

    @property
    def _is_forked(self) -> bool:
        """Whether the session was used before this process was forked, and so in another one."""
        return self._loop is not None and self._forks != _forks

    def _note_end(self) -> None:
        """Note that a call or a run has ended, if the session is being closed."""
        if self._state is not _SessionState.OPEN and not self._calls and not self._runs:
            self._idle.set()

    @contextmanager
    def _in_progress(self, run: "monocloud_async.BulkRun") -> Iterator[None]:
        """Count a run as in progress; raises as `_begin` does."""
        self._begin()
        self._telemetry.run_begins()
        self._runs.add(run)
        try:
            yield
        finally:
            self._runs.discard(run)
            self._note_end()

    async def enable_user(
        self, user_id: str, *, timeout: float | None = None, retry: RetryPolicy | None = None
    ) -> User:
        """Enable a user, and return the user. Enabling an enabled user changes nothing.

        All requests of the session wait in one queue, where single calls overtake bulk runs. A 429
        uses no attempt: the call queues again. Retries share a budget, so that a web backend does
        not multiply its load on a broken tenant. For a deadline, pass a `retry` with a `total`: if
        you cancel the call instead, the rate limiter learns nothing about the tenant.

        Args:
            user_id: sent unchanged, or refused before any request.
            timeout: seconds for one request, instead of the session's.
            retry: the limits for retries, instead of the session's.

        Raises:
            InvalidUserIdError: the id is not valid; nothing was sent.
            StatusError: the tenant refused; see its subclasses. `RateLimitedError` at once, with
                `retry_after`, if the call would have to queue for longer than its `total`, or pause
                for longer than `max_retry_after`; `ServerError` at once while the tenant is down.
            TransportError: no complete response arrived (`RequestTimeoutError`: in time). The user
                may or may not be enabled; calling again is safe.
            InvalidResponseError: the response was not this user.
        """
        return await self._call(ENABLE, user_id, timeout, retry)

    async def disable_user(
        self,
        user_id: str,
        *,
        revoke_sessions: bool = False,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> User:
        """Disable a user, and return the user. Disabling a disabled user changes nothing.

        Args:
            user_id: as for `enable_user`.
            revoke_sessions: also end the current sessions of the user.
            timeout: as for `enable_user`.
            retry: as for `enable_user`.

        Raises:
            MonoCloudError: as from `enable_user`.
        """
        return await self._call(_disable(revoke_sessions), user_id, timeout, retry)

    async def get_user(
        self, user_id: str, *, timeout: float | None = None, retry: RetryPolicy | None = None
    ) -> User:
        """Return the user; changes nothing.

        Args:
            user_id: as for `enable_user`.
            timeout: as for `enable_user`.
            retry: as for `enable_user`.

        Raises:
            MonoCloudError: as from `enable_user`; `NotFoundError` if the user does not exist.
        """
        return await self._call(GET_USER, user_id, timeout, retry)

    def list_users(
        self,
        *,
        filter: str | None = None,  # noqa: A002  the API's name for it
        sort: str | None = None,
        group: str | None = None,
        page_size: int = 50,
        retry: RetryPolicy | None = None,
    ) -> UserList:
        """Return the users of the tenant, as an async iterator; each comes once.

        ```python
        async for user in session.list_users():
            if user.disabled:
                ...
        ```

        A user of a list lacks `public_data`, `private_data` and the claims of providers. Whether a
        user is disabled is in the user: the API documents no filter for it.

        Pages are requested one at a time, like single calls, but by default with patience: a page
        waits up to five minutes for a tenant that is down or asks for a pause. They are counted
        against the tenant's own count, and read again if they shifted, so that nobody is left out
        unnoticed. With `filter` or `group`, more than one page is read at least twice: older users
        may join while it is read.

        Args:
            filter: an expression for the API, sent as it is. MonoCloud documents only that it is
                like Lucene's, for example `bob`.
            sort: a field and 1 or -1, for example "last_updated:-1". The users come in this order,
                and those who change during the list may be missed unnoticed. Default: no order,
                and everybody.
            group: the id of a group, for its members alone.
            page_size: the maximum number of users on a page; the tenant may allow fewer.
            retry: the retries of a page. Default: those of the session, for five minutes.

        Raises:
            IncompleteListError: (from the iterator, at its end) the list changed so much while it
                was read that someone may be missing.
            InvalidResponseError: (from the iterator) the response is not a list, or contradicts its
                own header.
            MonoCloudError: (from the iterator) as from `get_user`.
        """
        return self._list_users(
            filter=filter, sort=sort, group=group, page_size=page_size, retry=retry
        )

    def _list_users(
        self,
        *,
        filter: str | None = None,  # noqa: A002  the API's name for it
        sort: str | None = None,
        group: str | None = None,
        page_size: int = 50,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
        report: BulkReport | None = None,
    ) -> UserList:
        """Return the users of the tenant.

        A request for a page takes `timeout` seconds at most, and counts in `report`, if given.
        """
        if not isinstance(page_size, int) or page_size < 1:
            raise ConfigurationError(f"page_size must be 1 or more, not {page_size!r}")
        for name, text in (("filter", filter), ("sort", sort)):
            if text is not None and not isinstance(text, str):
                raise ConfigurationError(f"{name} must be a str, not {text!r}")
        size = page_size
        policy = self._retry.patient(MAX_OUTAGE) if retry is None else checked_policy(retry)
        order = user_list.STABLE_SORT if sort is None else sort
        operation = LIST_USERS if group is None else LIST_GROUP
        try:
            list_path(1, size, query=filter, sort=order, group=group)
        except InvalidUserIdError as error:
            raise InvalidUserIdError(f"group {group!r:.80}: {error.args[0]}") from None
        except UnicodeEncodeError:
            raise ConfigurationError("filter and sort must be valid Unicode") from None

        async def fetch(number: int, size: int) -> UserPage:
            path = list_path(number, size, query=filter, sort=order, group=group)
            of_run = None if report is None else CallOfRun(report)
            try:
                return await self._call(operation, path, timeout, policy, of_run)
            except MonoCloudError as error:
                error.user_id = None  # what was asked for is no user
                if isinstance(error, NotFoundError):
                    error.advice = (
                        "Check the domain, and that it is a tenant of MonoCloud's"
                        if group is None
                        else "Check the id of the group, and that it belongs to this tenant"
                    )
                raise

        return UserList(
            fetch,
            page_size=size,
            ordered=sort is not None,
            selected=(filter, group) != (None, None),
        )

    async def _call(
        self,
        operation: Operation[T],
        target: str,
        timeout: float | None,
        retry: RetryPolicy | None,
        of_run: CallOfRun | None = None,
    ) -> T:
        """Do one operation, with retries, and return its result."""
        config.event_loop()  # before anything needs it
        with of_run or self._telemetry.call(operation) as observed:
            limit = self._timeout if timeout is None else config.positive("timeout", timeout)
            policy = self._retry if retry is None else checked_policy(retry)
            target = exact_id(target)
            operation.path(target)  # refuses an id that is not valid
            clock = self._begin().time
            began = clock()
            deadline = began + policy.total
            attempt = partial(self._attempt, operation, target, limit, policy, observed=observed)
            self._budget.count_call(clock())
            self._calls += 1
            try:
                try:
                    return await attempt(policy.total, again=False)
                except MonoCloudError as error:
                    first = error
                    if self._is_final(error, policy):
                        raise
                # Outside the `except`, or later errors would carry this one as `__context__`.
                return await retry_call(
                    policy,
                    first,
                    attempt,
                    deadline=deadline,
                    may_retry=partial(self._may_retry, policy),
                    clock=clock,
                    sleep=observed.sleeps(self._queue.sleep),
                )
            except RequestTimeoutError as error:
                if error.attempts > 1:  # its text has the time of the last attempt alone
                    in_all = f"; {clock() - began:.3g} s in all"
                    error.args = (f"{error.args[0]}{in_all}",)
                raise
            finally:
                self._calls -= 1
                self._note_end()

    async def _attempt(
        self,
        operation: Operation[T],
        target: str,
        limit: float,
        policy: RetryPolicy,
        time_left: float,
        *,
        observed: Call,
        again: bool = True,
    ) -> T:
        """Return the result of one request, which is repeated after a 429 or in an outage.

        `again` is whether the call has sent a request before. The `attempts` of an error are the
        requests that were sent here, and so is the `sent` of a `TransportError`.
        """
        limiter, clock = self._limiter, asyncio.get_running_loop().time
        deadline = clock() + time_left
        refused, last, sent, unanswered = None, None, 0, False
        while True:
            observed.queues(self._queue)
            try:
                ticket = await self._queue.admit_call(
                    target, policy, deadline, refused, again=again or last is not None
                )
            except ConfigurationError as closed:
                raise last or closed from None
            except MonoCloudError as refusal:
                refusal.attempts = sent
                raise
            observed.sends()
            seconds = min(limit, deadline - clock())
            try:
                result = await self._send(operation, target, seconds)
            except BaseException as error:
                usual = min(limit, policy.total)
                record_failure(
                    limiter, ticket, target, error, clock(), seconds=seconds, usual=usual
                )
                observed.failed(error)
                if last is not None and isinstance(error, ConfigurationError):
                    raise last from None
                if isinstance(error, MonoCloudError):
                    sent += not error.refusal
                    error.attempts = sent
                    unanswered = note_unanswered(error, before=unanswered)
                is_throttled = isinstance(error, RateLimitedError)
                queues_again = is_throttled or (policy.wait_if_down and limiter.down)
                if policy.attempts == 1 or not policy.allows(error) or not queues_again:
                    raise
                refused, last = ticket if is_throttled else None, error
            else:
                limiter.granted(ticket, clock())
                return result

    def _is_final(self, error: MonoCloudError, policy: RetryPolicy) -> bool:
        """Whether the call cannot go again: the queue would refuse it, or the session is closed."""
        is_down = self._limiter.down and not policy.wait_if_down
        is_closed = self._state is _SessionState.CLOSED
        return is_closed or is_down or isinstance(error, RateLimitedError)

    def _may_retry(self, policy: RetryPolicy, error: MonoCloudError) -> bool:
        """Whether a single call may be tried again; the error says so where it is over budget."""
        if self._is_final(error, policy):
            return False
        if self._budget.spend(policy.budget, asyncio.get_running_loop().time()):
            return True
        error.args = (f"{error.args[0]}; not tried again: the session's retry budget is spent",)
        return False

    def bulk_enable(
        self,
        user_ids: UserIds,
        *,
        concurrency: int = 100,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
        max_rate: float | None = None,
        max_outage: float = MAX_OUTAGE,
        max_same_failures: int | None = None,
        check: bool = False,
        limit: int | None = None,
        on_outcome: OnOutcome | None = None,
        journal: str | os.PathLike[str] | Journal | None = None,
    ) -> "monocloud_async.BulkRun":
        """Return a run over many users: `await` it for the report, or iterate over its outcomes.

        One user's failure is a value in the report, never the end of the run. A 429 pauses all
        calls for as long as the tenant asks, and uses no attempt. The first request is sent alone,
        so a wrong key costs one. A duplicate id is sent twice, which is harmless.

        Args:
            user_ids: any iterable or async iterable; it is read as workers become free, so memory
                does not grow with it. An exception in it is raised after the calls in flight end.
            concurrency: maximum requests in flight. With a borrowed `ClientSession`, no more than
                the limit of its connector.
            timeout: seconds for one request, instead of the session's.
            retry: the limits for retries, instead of the session's.
            max_rate: maximum requests per second of this run.
            max_outage: seconds that the run waits for a tenant that is down.
            max_same_failures: the run stops if so many users, from the first one on, all fail in
                the same way, as with a file of something else than ids. Default: no limit.
            check: look first, and leave out who is enabled already. A journal then has what was
                before. Users are looked up one by one, or in the list of all users if that takes
                fewer requests (only where the number of ids is known before they are read).
                `max_rate` does not hold for the pages of the list.
            limit: the number of users after which the run ends, without those who are enabled
                according to the journal.
            on_outcome: called with every `Outcome`, in the order in which they finish.
            journal: a file from which the same call with the same ids can resume the run after a
                crash: users who are enabled there are "already_enabled" and not sent again. An
                outcome is on disk within 50 ms of its response, or no more calls start until it is.
                Ids may be added at the end; any other change is refused. Or an object with the two
                methods of `monocloud_async.journal.Journal`. Default: none.

        Raises:
            RunStoppedError: (from the run) the key was refused, something other than MonoCloud
                answered, the first `max_same_failures` users failed alike, the tenant was down
                for longer than `max_outage` or answered only 429 for 15 minutes, or the journal
                cannot be written. Its `report` has the results, and the rest of the ids stays
                unread.
            ConfigurationError: the session is closed, or belongs to another event loop or process.
                Or (from the run) the journal is in use, or of another tenant, another input or a
                newer version; or `user_ids` is a set or has no stable order for another reason, so
                that no journal can resume it.
        """
        return self.bulk(
            ENABLE,
            user_ids,
            concurrency=concurrency,
            timeout=timeout,
            retry=retry,
            max_rate=max_rate,
            max_outage=max_outage,
            max_same_failures=max_same_failures,
            check=check,
            limit=limit,
            on_outcome=on_outcome,
            journal=journal,
        )

    def bulk_disable(
        self,
        user_ids: UserIds,
        *,
        revoke_sessions: bool = False,
        concurrency: int = 100,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
        max_rate: float | None = None,
        max_outage: float = MAX_OUTAGE,
        max_same_failures: int | None = None,
        check: bool = False,
        limit: int | None = None,
        on_outcome: OnOutcome | None = None,
        journal: str | os.PathLike[str] | Journal | None = None,
    ) -> "monocloud_async.BulkRun":
        """Return a run that disables many users; it works like `bulk_enable`.

        Outcomes are "disabled", or "already_disabled" according to the journal. A journal belongs
        to one operation: that of a `bulk_enable` is refused.

        Args:
            user_ids: as for `bulk_enable`.
            revoke_sessions: also end the current sessions of each user.
            concurrency: as for `bulk_enable`.
            timeout: as for `bulk_enable`.
            retry: as for `bulk_enable`.
            max_rate: as for `bulk_enable`.
            max_outage: as for `bulk_enable`.
            max_same_failures: as for `bulk_enable`.
            check: look first, and leave out who is disabled already; not with `revoke_sessions`,
                because their sessions would stay open.
            limit: as for `bulk_enable`.
            on_outcome: as for `bulk_enable`.
            journal: as for `bulk_enable`.

        Raises:
            MonoCloudError: as from `bulk_enable`.
        """
        return self.bulk(
            _disable(revoke_sessions),
            user_ids,
            concurrency=concurrency,
            timeout=timeout,
            retry=retry,
            max_rate=max_rate,
            max_outage=max_outage,
            max_same_failures=max_same_failures,
            check=check,
            limit=limit,
            on_outcome=on_outcome,
            journal=journal,
        )

    def bulk(
        self,
        operation: BulkOperation,
        user_ids: UserIds,
        *,
        concurrency: int = 100,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
        max_rate: float | None = None,
        max_outage: float = MAX_OUTAGE,
        max_same_failures: int | None = None,
        check: bool = False,
        limit: int | None = None,
        on_outcome: OnOutcome | None = None,
        journal: str | os.PathLike[str] | Journal | None = None,
        count: int | None = None,
        on_skipped_many: OnSkippedMany | None = None,
    ) -> "monocloud_async.BulkRun":
        """Return a run of this operation, for callers that have it as a value.

        `count` is about how many ids there are, if `user_ids` does not tell. `on_skipped_many` is
        called with the positions of users whom the journal records as done, many at once; there are
        no outcomes for them then, so that a resume is quick.
        """
        from monocloud_async.bulk.run import BulkRun  # noqa: PLC0415  loaded later

        loop = None  # a run may also be made before there is one
        with suppress(RuntimeError):
            loop = asyncio.get_running_loop()
        self._check_usable(loop)
        if check and operation is DISABLE_AND_REVOKE_SESSIONS:
            raise ConfigurationError(
                "check=True would leave the sessions open of users who are disabled already:"
                " leave check or revoke_sessions out"
            )
        seconds = self._timeout if timeout is None else config.positive("timeout", timeout)
        if isinstance(journal, str | os.PathLike):
            from monocloud_async.journal.file import JournalFile  # noqa: PLC0415  SQLite, threads

            journal = JournalFile(journal, self._base_url, operation=operation)
        report = BulkReport()
        return BulkRun(
            operation,
            user_ids,
            lambda user_id, left: self._send(
                operation, user_id, min(seconds, left), self._time_slice
            ),
            policy=self._retry if retry is None else checked_policy(retry),
            queue=self._queue,
            in_progress=self._in_progress,
            concurrency=self._connections(concurrency),
            max_rate=None if max_rate is None else config.positive("max_rate", max_rate),
            max_outage=config.positive("max_outage", max_outage),
            max_same_failures=max_same_failures,
            on_outcome=on_outcome,
            journal=journal,
            lookup=self.lookup(seconds, report) if check else None,
            limit=limit,
            count=count,
            on_skipped_many=on_skipped_many,
            report=report,
        )

    def lookup(self, seconds: float | None = None, report: BulkReport | None = None) -> Lookup:
        """Return a `Lookup`.

        Args:
            seconds: for one request; default: the session's.
            report: counts the requests for pages of the list, if they are a run's.
        """
        limit = self._timeout if seconds is None else seconds
        return Lookup(
            lambda user_id, left: self._send(GET_USER, user_id, min(limit, left), self._time_slice),
            self._list_users(timeout=limit, report=report),
        )

    async def _send(
        self,
        operation: Operation[T],
        target: str,
        timeout: float,
        time_slice: TimeSlice | None = None,
    ) -> T:
        """Send one request, and return its result; the only place where errors are translated."""
        transport = self._transport()
        if timeout <= 0:  # aiohttp would treat this as no timeout
            raise expired_error(target)
        try:
            response = await transport.send(operation, target, timeout, time_slice)
        except TimeoutError as error:
            fault: MonoCloudError = timeout_error(error, target, timeout)
        except ClosedBeforeSentError:
            fault = closed_error()
        except aiohttp.InvalidURL as error:
            fault = unusable_client_error(error, target, borrowed=self._borrowed is not None)
        except (aiohttp.ClientError, HttpProcessingError, OSError) as error:
            closed = self._borrowed is not None and self._borrowed.closed
            fault = transport_error(ClosedError() if closed else error, target)
        except (RuntimeError, ValueError, AssertionError, TypeError) as error:
            # aiohttp's assertion that it found a way to connect is a TypeError under `python -O`.
            fault = unusable_client_error(error, target, borrowed=self._borrowed is not None)
        else:
            self._limiter.read_hint(response)
            try:
                return operation.read(target, response)
            except InvalidResponseError:
                response.end()  # it may be another request's response, and so may the next one
                raise
        # Outside the `except`, and not chained: aiohttp's errors hold the request's headers.
        raise fault

    def _transport(self) -> Transport:
        """Return the transport to use now."""
        if self._state is _SessionState.CLOSED:
            raise closed_error()
        return self._choose_transport()

    def _choose_transport(self) -> Transport:
        if self._borrowed is not None:
            if self._borrowed.closed:
                raise ConfigurationError("the borrowed client_session is closed")
            # The environment may change, and plain HTTP would expose the key to a new proxy.
            if not self._proxy_checked or self._base_url.startswith("http://"):
                config.check_proxy(self._borrowed, self._base_url)
                self._proxy_checked = True
            if self._standard is None:
                self._standard = StandardTransport(
                    self._borrowed, self._base_url, self._credentials
                )
            return self._standard
        if self._standard is None:
            from monocloud_async.transport.fast import (  # noqa: PLC0415  loaded later
                FastConnector,
                FastTransport,
            )

            client = aiohttp.ClientSession(
                connector=FastConnector(tls=self._base_url.startswith("https")),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
            self._standard = StandardTransport(client, self._base_url, self._credentials)
            self._fast = FastTransport.for_client(client, self._base_url, self._credentials)
            self._connected = _close_at_end(client, self._standard, self._fast)
            with suppress(StopIteration):
                self._connected.__anext__().send(None)  # now the event loop knows it
        fast = self._fast
        return fast if fast is not None and fast.is_usable() else self._standard

    def _connections(self, wanted: int) -> int:
        connector = None if self._borrowed is None else self._borrowed.connector
        limits = [] if connector is None else [connector.limit, connector.limit_per_host]
        return min([wanted, *filter(None, limits)])


def _disable(revoke_sessions: bool) -> BulkOperation:  # noqa: FBT001  the one thing it is about
    return DISABLE_AND_REVOKE_SESSIONS if revoke_sessions else DISABLE


async def _close_at_end(
    client: aiohttp.ClientSession, *transports: "StandardTransport | FastTransport | None"
) -> AsyncGenerator[None, None]:
    """Close these on their own event loop, at the latest when it shuts down.

    Event loops close their async generators before they end, and when nobody has them any more.
    """
    try:
        yield
    finally:
        for transport in transports:
            if transport is not None:
                transport.close()
        await client.close()
