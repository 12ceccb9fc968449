"""An asyncio client that enables MonoCloud users: one in a web request, or millions in a run."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monocloud_async.bulk.run import BulkRun
    from monocloud_async.client import MonoCloudClient
    from monocloud_async.errors import (
        BadRequestError,
        ConfigurationError,
        ConflictError,
        ForbiddenError,
        IdentityFault,
        IdentityValidationError,
        IncompleteListError,
        InvalidResponseError,
        InvalidUserIdError,
        KeyValidationError,
        MonoCloudError,
        NotFoundError,
        PaymentRequiredError,
        RateLimitedError,
        RequestTimeoutError,
        ServerError,
        StatusError,
        TransportError,
        UnauthorizedError,
        UnprocessableError,
    )
    from monocloud_async.models import (
        ProblemDetails,
        User,
        UserConnection,
        UserEmail,
        UserExternalProvider,
        UserIdp,
        UserPasskey,
        UserPhone,
        UserUsername,
    )
    from monocloud_async.outcome import BulkReport, Outcome, RunStoppedError, Status
    from monocloud_async.retry import RetryPolicy
    from monocloud_async.session import MonoCloudSession
    from monocloud_async.user_list import UserList
    from monocloud_async.version import __version__

__all__ = [
    "BadRequestError",
    "BulkReport",
    "BulkRun",
    "ConfigurationError",
    "ConflictError",
    "ForbiddenError",
    "IdentityFault",
    "IdentityValidationError",
    "IncompleteListError",
    "InvalidResponseError",
    "InvalidUserIdError",
    "KeyValidationError",
    "MonoCloudClient",
    "MonoCloudError",
    "MonoCloudSession",
    "NotFoundError",
    "Outcome",
    "PaymentRequiredError",
    "ProblemDetails",
    "RateLimitedError",
    "RequestTimeoutError",
    "RetryPolicy",
    "RunStoppedError",
    "ServerError",
    "Status",
    "StatusError",
    "TransportError",
    "UnauthorizedError",
    "UnprocessableError",
    "User",
    "UserConnection",
    "UserEmail",
    "UserExternalProvider",
    "UserIdp",
    "UserList",
    "UserPasskey",
    "UserPhone",
    "UserUsername",
    "__version__",
]

_MODULES = (
    "version",
    "errors",
    "models",
    "outcome",
    "retry",
    "user_list",
    "client",
    "session",
    "bulk.run",
)  # quickest first


if not TYPE_CHECKING:  # a type checker would then accept every name

    def __getattr__(name: str) -> Any:
        """Import a public name when it is first used.

        aiohttp takes a third of a second to import. `monocloud-async --help`, and pytest runs that
        only load the fixtures, should not wait for it.
        """
        if name in __all__:
            for module in _MODULES:
                home = import_module(f"{__name__}.{module}")
                if hasattr(home, name):
                    globals()[name] = value = getattr(home, name)
                    return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
