"""What errors give to type checkers. Nobody runs this; mypy and pyright read it."""
# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from collections.abc import Mapping
from typing import assert_type

from monocloud_async import (
    BadRequestError,
    BulkReport,
    ConfigurationError,
    ConflictError,
    ForbiddenError,
    IdentityFault,
    IdentityValidationError,
    InvalidResponseError,
    InvalidUserIdError,
    KeyValidationError,
    MonoCloudError,
    MonoCloudSession,
    NotFoundError,
    PaymentRequiredError,
    ProblemDetails,
    RateLimitedError,
    RequestTimeoutError,
    RunStoppedError,
    ServerError,
    StatusError,
    TransportError,
    UnauthorizedError,
    UnprocessableError,
)


async def what_is_caught(session: MonoCloudSession) -> None:
    """The attributes of each class where people meet them."""
    try:
        await session.enable_user("ada")
    except IdentityValidationError as error:
        assert_type(error.faults, tuple[IdentityFault, ...])
        assert_type(error.faults[0].code, str | None)
        assert_type(error.faults[0].description, str | None)
        assert_type(error.faults[0].field, str | None)
    except KeyValidationError as error:
        assert_type(error.faults, Mapping[str, tuple[str, ...]])
    except StatusError as error:
        assert_type(error.status, int)
        assert_type(error.problem, ProblemDetails)
        assert_type(error.problem.title, str | None)
        assert_type(error.problem.detail, str | None)
        assert_type(error.trace_id, str | None)
        assert_type(error.retry_after, float | None)
    except TransportError as error:
        assert_type(error.sent, bool)
        assert_type(error.lasting, bool)
        assert_type(error.stale, bool)
    except InvalidResponseError as error:
        assert_type(error.status, int | None)
        assert_type(error.foreign, bool)
    except MonoCloudError as error:
        assert_type(error.user_id, str | None)
        assert_type(error.attempts, int)
        assert_type(error.transient, bool)
        assert_type(error.advice, str)


async def what_stops_a_run(session: MonoCloudSession) -> None:
    try:
        await session.bulk_enable(["ada"])
    except RunStoppedError as error:
        assert_type(error.report, BulkReport)


def the_tree(
    usage: ConfigurationError | InvalidUserIdError,
    unanswered: RequestTimeoutError,
    invalid: IdentityValidationError | KeyValidationError,
    refused: BadRequestError
    | UnauthorizedError
    | PaymentRequiredError
    | ForbiddenError
    | NotFoundError
    | ConflictError
    | UnprocessableError
    | RateLimitedError
    | ServerError,
) -> tuple[ValueError, MonoCloudError]:
    """Each is what the docstring of `errors` says it is."""
    value_error: ValueError = usage
    transport: TransportError = unanswered
    unprocessable: UnprocessableError = invalid
    status: StatusError = refused
    root: MonoCloudError = usage or transport or unprocessable or status
    return value_error, root
