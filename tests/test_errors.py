import copy
import pickle
import re

import pytest

import monocloud_async as m
from monocloud_async import errors, outcome


def test_the_tree_drawn_in_the_docstring_is_the_tree() -> None:
    assert errors.__doc__ is not None
    drawn: dict[str, str | None] = {}
    path: list[str] = []
    for line in errors.__doc__.splitlines():
        found = re.match(r"(?P<stem>[│├└─ ]*)(?P<name>\w+Error)\b", line)
        if found:
            depth = len(found["stem"]) // 4
            drawn[found["name"]] = path[depth - 1] if depth else None
            path[depth:] = [found["name"]]
    real = {
        name: None if kind is m.MonoCloudError else kind.__bases__[0].__name__
        for name, kind in {**vars(errors), **vars(outcome)}.items()
        if isinstance(kind, type) and issubclass(kind, m.MonoCloudError)
    }
    assert drawn == real


@pytest.mark.parametrize("kind", [m.ConfigurationError, m.InvalidUserIdError])
def test_bad_input_is_also_a_value_error(kind: type[Exception]) -> None:
    assert issubclass(kind, ValueError)


@pytest.mark.parametrize(
    "error",
    [
        m.MonoCloudError("x", user_id="u"),
        m.TransportError("x", user_id="u", sent=False, transient=False),
        m.RequestTimeoutError("x"),
        m.InvalidResponseError("x", status=200, foreign=True),
        m.NotFoundError(status=404, user_id="u", retry_after=2.0),
        m.RunStoppedError("x", report=m.BulkReport(total=3)),
    ],
)
def test_errors_survive_copy_and_pickle(error: m.MonoCloudError) -> None:
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):  # noqa: S301  our own bytes
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert twin.__dict__ == error.__dict__


def test_attempts_are_told_when_there_were_several() -> None:
    error = m.ServerError(status=503, user_id="u")
    error.attempts = 4
    assert "503 Service Unavailable (4 attempts)." in str(error)


def test_faults_that_nobody_named_are_none() -> None:
    assert not m.KeyValidationError(status=422).faults
    assert not m.IdentityValidationError(status=422).faults
