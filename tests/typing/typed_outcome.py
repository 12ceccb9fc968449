"""What outcomes and reports give to type checkers. Nobody runs this; mypy and pyright read it."""
# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from typing import assert_never, assert_type

from monocloud_async import BulkReport, MonoCloudError, Outcome, User
from monocloud_async.outcome import Status


def an_outcome(outcome: Outcome) -> None:
    assert_type(outcome.user_id, str)
    assert_type(outcome.position, int)
    assert_type(outcome.status, Status)
    assert_type(outcome.user, User | None)
    assert_type(outcome.error, MonoCloudError | None)
    assert_type(outcome.attempts, int)
    assert_type(outcome.seconds, float)


def every_status(outcome: Outcome) -> str:
    """The statuses in here are all that there are."""
    match outcome.status:
        case "enabled" | "already_enabled":
            return "can sign in"
        case "disabled" | "already_disabled" | "failed":
            return "cannot"
        case "unknown":
            return "perhaps"
        case "not_attempted":
            return "not yet"
        case _:
            assert_never(outcome.status)


def all_but_one(outcome: Outcome) -> str:
    """A status that is forgotten is an error."""
    match outcome.status:
        case "enabled" | "already_enabled":
            return "can sign in"
        case "failed" | "unknown":
            return "cannot, or perhaps"
        case _:
            assert_never(outcome.status)  # type: ignore[arg-type]  # "not_attempted" comes here


def no_return(outcome: Outcome) -> str:  # type: ignore[return]  # "already_enabled" has no answer
    """The same without a default."""
    match outcome.status:  # pyright: ignore[reportMatchNotExhaustive]  # pyright says it twice
        case "enabled":
            return "can sign in"
        case "failed" | "unknown" | "not_attempted":
            return "cannot, or perhaps"


def a_status_that_is_none(outcome: Outcome) -> bool:
    """A word that no outcome ever has."""
    return outcome.status == "enable"  # type: ignore[comparison-overlap]  # "enabled"


def a_report(report: BulkReport) -> None:
    assert_type(report.total, int)
    assert_type(report.enabled, int)
    assert_type(report.failed, int)
    assert_type(report.unknown, int)
    assert_type(report.not_attempted, int)
    assert_type(report.already_enabled, int)
    assert_type(report.unconfirmed, int)
    assert_type(report.requests, int)
    assert_type(report.retries, int)
    assert_type(report.throttled, int)
    assert_type(report.paused_seconds, float)
    assert_type(report.seconds, float)
    assert_type(report.exhausted, bool)
    assert_type(report.failures, list[Outcome])
