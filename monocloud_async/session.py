"""The session: the public face of the package for one tenant."""

import asyncio
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import TracebackType
from typing import Final, Self

import aiohttp

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
    list_path,
)
from monocloud_async.errors import (
    ConfigurationError,
    InvalidUserIdError,
    MonoCloudError,
    NotFoundError,
)
from monocloud_async.journal import Journal
from monocloud_async.lifecycle import Lifecycle, SessionState
from monocloud_async.models import User
from monocloud_async.outcome import BulkReport
from monocloud_async.ratelimit.admission_queue import AdmissionQueue
from monocloud_async.ratelimit.limiter import RateLimiter
from monocloud_async.response import UserPage
from monocloud_async.retry import RetryBudget, RetryPolicy, checked_policy
from monocloud_async.single_calls import SingleCalls
from monocloud_async.telemetry.calls import CallOfRun, SessionTelemetry
from monocloud_async.transport import Transport
from monocloud_async.transport.http_client import HttpClient
from monocloud_async.transport.time_slice import TimeSlice
from monocloud_async.user_list import UserList

DEFAULT_RETRY = RetryPolicy()
# Loaded with the first session, so that to import this module is quick. Not when a call needs them:
# where there are no file descriptors left, the import would fail in the place of the call.
_LATER: Final = (
    "tenacity",
    "monocloud_async.bulk.run",
    "monocloud_async.lenient_json",
    "monocloud_async.transport.fast",
)


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
        self._lifecycle = Lifecycle()
        api_key = config.mask_key(api_key)  # so that no traceback can show it
        self._base_url = config.base_url(domain)
        self._credentials = config.credentials(api_key, compression=compression)
        self._timeout = config.timeout(timeout)
        self._retry = checked_policy(retry)
        if client_session is not None and not isinstance(client_session, aiohttp.ClientSession):
            raise ConfigurationError(
                f"client_session must be an aiohttp.ClientSession, not {type(client_session)!r}"
            )
        if max_rate is not None:
            config.positive("max_rate", max_rate)
        if not config.positive("burst", burst) >= 1:
            raise ConfigurationError(f"burst must be 1 or more, not {burst!r}")
        self._limiter = RateLimiter(max_rate, burst=burst, tenant=self._base_url)
        self._queue = AdmissionQueue(self._limiter)
        self._time_slice = TimeSlice()
        self._runs: set[monocloud_async.BulkRun] = set()  # in progress
        self._http = HttpClient(
            self._base_url,
            self._credentials,
            client_session,
            self._lifecycle,
            on_response=self._limiter.read_hint,
            in_place=self._transport_in_place(),
        )
        budget = RetryBudget()
        self._telemetry = SessionTelemetry(self._limiter, budget, self._retry.budget)
        self._single = SingleCalls(
            self._http,
            self._queue,
            self._lifecycle,
            self._telemetry,
            budget,
            timeout=self._timeout,
            retry=self._retry,
        )
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

    @property
    def _is_closed(self) -> bool:
        lifecycle: Lifecycle | None = vars(self).get("_lifecycle")  # None before the constructor
        return lifecycle is not None and lifecycle.state is SessionState.CLOSED

    def _transport_in_place(self) -> Transport | None:
        """Return the transport to use in place of connections; None but for `FakeMonoCloud`."""
        return None

    def __repr__(self) -> str:
        closed = ", closed" if self._is_closed else ""
        return f"<MonoCloudSession {self._base_url}{closed}>"

    def __del__(self) -> None:
        http: HttpClient | None = vars(self).get("_http")  # None if the constructor has failed
        if http is not None and http.has_connections and not self._is_closed:
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
        lifecycle, idle = self._lifecycle, self._lifecycle.idle
        if lifecycle.is_forked:  # nothing more: the connections are in use elsewhere
            lifecycle.state = SessionState.CLOSED
            return
        if lifecycle.loop is not None and lifecycle.loop is not config.event_loop():
            if lifecycle.loop.is_running():
                raise ConfigurationError(
                    "this session is in use on the event loop of another thread; close it there"
                )
            self._end_calls()
            return
        lifecycle.close()
        for run in self._runs:
            run.session_closed()
        try:
            if drain and not idle.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(idle.wait(), drain)
        finally:
            self._end_calls()
            try:
                await idle.wait()
            finally:
                await self._http.close()

    def _end_calls(self) -> None:
        """End everything that is in progress, now."""
        self._lifecycle.state = SessionState.CLOSED
        self._telemetry.end()
        loop = self._lifecycle.loop
        if loop is None or loop.is_closed():
            return  # nobody waits
        for run in self._runs:
            run.session_closed()
            run.cancel()
        self._queue.close()
        self._http.end_requests()

    @contextmanager
    def _in_progress(self, run: "monocloud_async.BulkRun") -> Iterator[None]:
        """Let a run begin; raises as `Lifecycle.begin` does."""
        self._lifecycle.begin()
        try:
            self._telemetry.run_begins()
            self._runs.add(run)
            yield
        finally:
            self._runs.discard(run)
            self._lifecycle.end()

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
        return await self._single.call(ENABLE, user_id, timeout, retry)

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
        return await self._single.call(_disable(revoke_sessions), user_id, timeout, retry)

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
        return await self._single.call(GET_USER, user_id, timeout, retry)

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
                return await self._single.call(operation, path, timeout, policy, of_run)
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
        self._lifecycle.check_usable(loop)
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
            lambda user_id, left: self._http.send(
                operation, user_id, min(seconds, left), self._time_slice
            ),
            policy=self._retry if retry is None else checked_policy(retry),
            queue=self._queue,
            in_progress=self._in_progress,
            concurrency=self._http.most_connections(concurrency),
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
            lambda user_id, left: self._http.send(
                GET_USER, user_id, min(limit, left), self._time_slice
            ),
            self._list_users(timeout=limit, report=report),
        )


def _disable(revoke_sessions: bool) -> BulkOperation:  # noqa: FBT001  the one thing it is about
    return DISABLE_AND_REVOKE_SESSIONS if revoke_sessions else DISABLE
