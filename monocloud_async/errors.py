"""Everything that can go wrong, as one tree. Nothing else escapes from this package.

MonoCloudError
├── ConfigurationError            the domain, the key or an option is unusable (also a ValueError)
├── InvalidUserIdError            refused before any request (also a ValueError)
├── TransportError                no complete response arrived
│   └── RequestTimeoutError       ... within the timeout
├── InvalidResponseError          the response is not MonoCloud's, or not about this user
├── IncompleteListError           a list of users changed too much while it was read
├── RunStoppedError               a whole bulk run was stopped; has its `report`
└── StatusError                   the tenant refused: any 4xx or 5xx
    ├── BadRequestError           400
    ├── UnauthorizedError         401
    ├── PaymentRequiredError      402
    ├── ForbiddenError            403
    ├── NotFoundError             404
    ├── ConflictError             409
    ├── UnprocessableError        422
    │   ├── IdentityValidationError   `faults`: a list of codes with descriptions
    │   └── KeyValidationError        `faults`: messages by member of the request
    ├── RateLimitedError          429
    └── ServerError               5xx

`str(error)` is one line: which user, what happened, what the server said, what to do next.
No error holds the API key, request headers or a response body. None is chained to an error of the
HTTP library, because those carry the request's headers.
"""

from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType

from msgspec import Struct

from monocloud_async.models import ProblemDetails

NO_PROBLEM = ProblemDetails()


class MonoCloudError(Exception):
    """Base class of all errors; has the `user_id`, and `attempts`: how many requests were made.

    `attempts` includes requests for which there was no connection, or which got a 429. If a reused
    connection turns out to be closed, its request is repeated over a new one: this repeat is not
    counted, here or in the figures of runs and of OpenTelemetry.

    `refusal` says in a word why the last request was not sent, or is "" if it was: "down", "pause",
    "probe", "slow_start", "rate_limit", "max_rate", "deadline", "closed", "invalid_user_id" or
    "configuration".
    """

    refusal: str = ""
    advice: str = ""  # what to do next
    transient: bool = False  # whether another attempt may succeed

    def __init__(self, message: str, *, user_id: str | None = None) -> None:
        super().__init__(message)
        self.user_id = user_id
        self.attempts = 0

    def __str__(self) -> str:
        whom = "" if self.user_id is None else f"user {self.user_id!r}: "
        tried = f" ({self.attempts} attempts)" if self.attempts > 1 else ""
        advice = f". {self.advice}" if self.advice else ""
        return f"{whom}{self.args[0]}{tried}{advice}"


class ConfigurationError(MonoCloudError, ValueError):
    """The domain, the key or an option cannot be used; nothing was sent."""

    refusal = "configuration"


class InvalidUserIdError(MonoCloudError, ValueError):
    """The user id is not valid; nothing was sent."""

    refusal = "invalid_user_id"


class TransportError(MonoCloudError):
    """No complete response arrived: the connection failed, or the data was cut short or not HTTP.

    `sent` is False if the tenant cannot have seen any request of the call. If it is True, the
    operation may or may not be done, and sending the request again is safe.
    `lasting` is True if an immediate retry cannot help: a certificate, TLS, or an unknown host.
    `stale` is True if the server closed the connection without a response. If the connection had
    been reused, the request was first repeated over a new one, if one could be made.
    `local` is True if the tenant cannot be blamed: this machine could make no more connections,
    most of the time passed before a connection of the `client_session` was free, or a middleware
    or a trace of the `client_session` gave up before the timeout.
    """

    advice = "Check the network and the domain, then try again: asking twice is harmless"
    local: bool = False

    def __init__(
        self,
        message: str,
        *,
        user_id: str | None = None,
        sent: bool = True,
        transient: bool = True,
        lasting: bool = False,
        stale: bool = False,
    ) -> None:
        super().__init__(message, user_id=user_id)
        self.sent = sent
        self.transient = transient
        self.lasting = lasting
        self.stale = stale


class RequestTimeoutError(TransportError):
    """No complete response arrived within the timeout."""

    advice = (
        "Try again, or allow a longer timeout (timeout= or --timeout, in seconds, or"
        " MONOCLOUD_MANAGEMENT_TIMEOUT in milliseconds): asking twice is harmless"
    )


class InvalidResponseError(MonoCloudError):
    """The response is not MonoCloud's, or not about this user; `status` is its HTTP status.

    `foreign` is True if something other than MonoCloud answered: the response is a redirect, or is
    not a JSON object. Unusual values in a user's own data are never foreign.
    """

    advice = "Look the user up in the dashboard: it may well be done"

    def __init__(
        self,
        message: str,
        *,
        user_id: str | None = None,
        status: int | None = None,
        foreign: bool = False,
    ) -> None:
        super().__init__(message, user_id=user_id)
        self.status = status
        self.foreign = foreign
        if foreign:
            self.advice = "Check the domain, and whether a proxy or a guest network answers for it"


class IncompleteListError(MonoCloudError):
    """A list of users changed too much while it was read: someone may be missing.

    `returned` users were read, and the tenant counts `total`.
    """

    advice = "Try again when fewer users change"

    def __init__(self, message: str, *, returned: int = 0, total: int = 0) -> None:
        super().__init__(message)
        self.returned = returned
        self.total = total


class StatusError(MonoCloudError):
    """The tenant refused, with a 4xx or 5xx status.

    Attributes:
        status: the HTTP status of the response, never the `status` of its body.
        problem: the details in the response; members that it lacks are None.
        trace_id: the id that MonoCloud's support asks for, or None.
        retry_after: seconds that the tenant asked to wait, or None.
    """

    advice = "The tenant refused the request; its message says why"

    def __init__(
        self,
        message: str = "",
        *,
        status: int,
        user_id: str | None = None,
        problem: ProblemDetails = NO_PROBLEM,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message or _said(status, problem), user_id=user_id)
        self.status = status
        self.problem = problem
        self.retry_after = retry_after
        if status == HTTPStatus.REQUEST_TIMEOUT:  # transient, but has no class
            self.transient = True

    @property
    def trace_id(self) -> str | None:
        """The trace id that MonoCloud's support asks for, or None."""
        return self.problem.trace_id

    def __reduce__(self) -> tuple[object, ...]:
        # `status` is required, so the default way to copy an exception fails.
        return _rebuild, (type(self), self.args, self.__dict__)


class BadRequestError(StatusError):
    """400: the tenant could not read the request."""


class UnauthorizedError(StatusError):
    """401: the key is missing, is revoked, or belongs to another tenant."""

    advice = "Check that the API key is valid and belongs to this tenant"


class PaymentRequiredError(StatusError):
    """402: the tenant's plan does not allow the call."""

    advice = "Check the tenant's plan in the MonoCloud dashboard"


class ForbiddenError(StatusError):
    """403: the key is not allowed to make this call."""

    advice = "Check what the API key is allowed to do in the MonoCloud dashboard"


class NotFoundError(StatusError):
    """404: the tenant has no such user."""

    advice = "Check the id, and that the user belongs to this tenant"


class ConflictError(StatusError):
    """409: the request conflicts with the user's state."""


class UnprocessableError(StatusError):
    """422: the tenant refused the operation for this user."""


class IdentityFault(Struct, frozen=True):
    """One reason why the tenant refused a user."""

    code: str | None = None
    description: str | None = None
    field: str | None = None


class IdentityValidationError(UnprocessableError):
    """422 with a list of reasons: `faults`."""

    faults: tuple[IdentityFault, ...] = ()


class KeyValidationError(UnprocessableError):
    """422 with messages for members of the request: `faults`."""

    faults: Mapping[str, tuple[str, ...]] = MappingProxyType({})


class RateLimitedError(StatusError):
    """429: too many requests; `retry_after` is the wait that the tenant asked for, or None."""

    transient = True
    advice = "Set max_rate, or wait as long as the tenant asked"


class ServerError(StatusError):
    """5xx: the tenant, or a gateway in front of it, has failed."""

    transient = True
    advice = "The tenant is in trouble; try again later"


_CLASSES: dict[int, type[StatusError]] = {
    400: BadRequestError,
    401: UnauthorizedError,
    402: PaymentRequiredError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    422: UnprocessableError,
    429: RateLimitedError,
}


def status_class(status: int) -> type[StatusError]:
    """Return the error class for a 4xx or 5xx status; `StatusError` for an unknown 4xx."""
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return ServerError
    return _CLASSES.get(status, StatusError)


def _said(status: int, problem: ProblemDetails) -> str:
    title = problem.title or _phrase(status)
    text = f"{status} {title}".rstrip()
    if problem.detail and problem.detail != title:
        text += f": {problem.detail.rstrip('.')}"
    if problem.trace_id:
        text += f" [trace {problem.trace_id}]"
    return text


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _rebuild(
    cls: type[StatusError], args: tuple[object, ...], state: dict[str, object]
) -> StatusError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


def closed_error() -> ConfigurationError:
    """Return the error of a call or a run of a closed session."""
    error = ConfigurationError("this session is closed; open a new one")
    error.refusal = "closed"
    return error
