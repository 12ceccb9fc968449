"""Everything that can go wrong, as one tree. Nothing else escapes from this package.

MonoCloudError
├── ConfigurationError            the domain, the key or an option is unusable (also a ValueError)
├── InvalidUserIdError            refused before any request (also a ValueError)
├── TransportError                no complete answer came
│   └── RequestTimeoutError       ... within the timeout
├── InvalidResponseError          an answer came, and it is not MonoCloud's or not this user
├── RunStoppedError               a whole bulk run was stopped; has its `report`
└── StatusError                   the tenant refused: any 4xx or 5xx
    ├── BadRequestError           400
    ├── UnauthorizedError         401
    ├── PaymentRequiredError      402
    ├── ForbiddenError            403
    ├── NotFoundError             404
    ├── ConflictError             409
    ├── UnprocessableError        422
    │   ├── IdentityValidationError   `faults`: a list of code and description
    │   └── KeyValidationError        `faults`: a map of member to messages
    ├── RateLimitedError          429
    └── ServerError               5xx

`str(error)` is one line: which user, what happened, what the server said, what to do next.
No error holds the API key, request headers or a response body, and none is chained to an error
of the HTTP library: those carry the request's headers.
"""

from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType

from msgspec import Struct

from monocloud_async.models import ProblemDetails

NO_PROBLEM = ProblemDetails()


class MonoCloudError(Exception):
    """What every error of this package is; `user_id` tells for whom, `attempts` how often."""

    advice: str = ""  # what to do next
    transient: bool = False  # whether another attempt may well succeed

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


class InvalidUserIdError(MonoCloudError, ValueError):
    """The id cannot be one user of a tenant; nothing was sent."""


class TransportError(MonoCloudError):
    """No complete answer came: refused, reset, cut short, or not HTTP.

    `sent` is False when the tenant cannot have seen the request.
    Where it is True, it may or may not be done; asking again is safe.
    `lasting` is True when trying again at once is in vain: a certificate, TLS, or an unknown host.
    `stale` is True when the connection was closed instead of an answer. Where that was an idle one,
    used again, the request went out once more over a new one before this error came.
    """

    advice = "Check the network and the domain, then try again: asking twice is harmless"

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
    """No complete answer came within the timeout."""

    advice = "Try again, or allow a longer timeout: asking twice is harmless"


class InvalidResponseError(MonoCloudError):
    """An answer came that is not MonoCloud's, or not this user's; `status` is its HTTP status.

    `foreign` is True when something else answered in MonoCloud's place: a redirect, or what is no
    JSON object. What is odd in a user's own data is that user's alone, and never foreign.
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


class StatusError(MonoCloudError):
    """The tenant refused, with a 4xx or 5xx status.

    Attributes:
        status: the HTTP status of the response, never the `status` of its body.
        problem: what the tenant said; its members are None where it said nothing.
        trace_id: what MonoCloud's support asks for, or None.
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
        if status == HTTPStatus.REQUEST_TIMEOUT:  # the one 4xx without a class that may pass
            self.transient = True

    @property
    def trace_id(self) -> str | None:
        """What MonoCloud's support asks for, or None."""
        return self.problem.trace_id

    def __reduce__(self) -> tuple[object, ...]:
        # `status` is required, so the default way to copy an exception cannot rebuild this one.
        return _rebuild, (type(self), self.args, self.__dict__)


class BadRequestError(StatusError):
    """400: the tenant could not read the request."""


class UnauthorizedError(StatusError):
    """401: the key is missing, revoked, or another tenant's."""

    advice = "Check that the API key is valid and belongs to this tenant"


class PaymentRequiredError(StatusError):
    """402: the tenant's plan does not allow it."""

    advice = "Check the tenant's plan in the MonoCloud dashboard"


class ForbiddenError(StatusError):
    """403: the key may not do this."""

    advice = "Check what the API key is allowed to do in the MonoCloud dashboard"


class NotFoundError(StatusError):
    """404: the tenant has no such user."""

    advice = "Check the id, and that the user belongs to this tenant"


class ConflictError(StatusError):
    """409: the request conflicts with the user's state."""


class UnprocessableError(StatusError):
    """422: the tenant refused to do this for this user."""


class IdentityFault(Struct, frozen=True):
    """One reason why the tenant refused a user."""

    code: str | None = None
    description: str | None = None
    field: str | None = None


class IdentityValidationError(UnprocessableError):
    """422 with a list of reasons: `faults`."""

    faults: tuple[IdentityFault, ...] = ()


class KeyValidationError(UnprocessableError):
    """422 with messages by member of the request: `faults`."""

    faults: Mapping[str, tuple[str, ...]] = MappingProxyType({})


class RateLimitedError(StatusError):
    """429: the tenant asks to slow down; `retry_after` says for how long, if it said so."""

    transient = True
    advice = "Set max_rate, or wait as long as the tenant asked"


class ServerError(StatusError):
    """5xx: the tenant, or a gateway before it, is in trouble."""

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
    """The class for a 4xx or 5xx status; an unknown one gets the nearest."""
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
