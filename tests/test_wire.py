import pickle
from urllib.parse import unquote

import pytest
import samples
from hypothesis import given
from hypothesis import strategies as st

import monocloud_async as m
from monocloud_async.texts import clean
from monocloud_async.wire import (
    MAX_REFUSAL,
    MAX_USER,
    check_user_id,
    enable_path,
    read_answer,
    retry_after,
)

TRACE = "00-2e0cd141be28223b233dd3907cbe58b4-2ba9f9375b4b78e0-01"


def refusal(status: int, body: bytes = b"", **headers: str) -> m.StatusError:
    with pytest.raises(m.StatusError) as caught:
        read_answer("u", status, {k.replace("_", "-"): v for k, v in headers.items()}, body)
    return caught.value


def misread(status: int, body: bytes = b"", **headers: str) -> m.InvalidResponseError:
    with pytest.raises(m.InvalidResponseError) as caught:
        read_answer("u", status, {k.replace("_", "-"): v for k, v in headers.items()}, body)
    assert caught.value.status == status
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    return caught.value


STATUSES = [
    (400, m.BadRequestError),
    (401, m.UnauthorizedError),
    (402, m.PaymentRequiredError),
    (403, m.ForbiddenError),
    (404, m.NotFoundError),
    (408, m.StatusError),
    (409, m.ConflictError),
    (418, m.StatusError),
    (422, m.UnprocessableError),
    (429, m.RateLimitedError),
    (500, m.ServerError),
    (502, m.ServerError),
    (503, m.ServerError),
    (504, m.ServerError),
    (520, m.ServerError),
    (599, m.ServerError),
]
BODIES = [
    b"",
    b"<html><h1>Bad gateway</h1></html>",
    b'{"title": "Not Fo',
    b'{"title": "\xff\xfe"}',
    b"[" * 100_000,
    b'{"a":' * 5_000,
    b"[1, 2]",
    b'"text"',
    b"null",
    b'{"status": 200, "title": 5, "detail": [], "trace_id": {}, "traceId": 1}',
    b'{"title": "' + b"x" * MAX_REFUSAL + b'"}',
]


@pytest.mark.parametrize(("status", "kind"), STATUSES)
@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_the_status_alone_decides_the_class(
    status: int, kind: type[m.StatusError], body: bytes
) -> None:
    error = refusal(status, body)
    assert type(error) is kind
    assert (error.status, error.user_id) == (status, "u")
    assert str(status) in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("name", "status"), [("problem-401-newest.json", 401), ("problem-404.json", 404)]
)
def test_both_spellings_of_the_trace_id_are_read(name: str, status: int) -> None:
    error = refusal(status, samples.body(name))
    assert error.trace_id == error.problem.trace_id == TRACE
    assert TRACE in str(error)


def test_a_refusal_says_whom_what_and_what_next_in_one_line() -> None:
    assert str(refusal(404, samples.body("problem-404.json"))) == (
        f"user 'u': 404 Not Found: The user was not found [trace {TRACE}]."
        " Check the id, and that the user belongs to this tenant"
    )


def test_a_problem_without_status_is_read() -> None:
    error = refusal(503, b'{"title": "Busy", "error_code": "x1", "type": "t", "instance": "/i"}')
    assert error.problem == m.ProblemDetails(title="Busy", error_code="x1", type="t", instance="/i")


def test_the_status_of_the_body_is_shown_and_not_believed() -> None:
    error = refusal(503, b'{"status": 404}')
    assert type(error) is m.ServerError
    assert error.problem.status == 404


def test_a_422_with_a_list_tells_its_faults() -> None:
    error = refusal(422, samples.body("problem-422-identity.json"))
    assert isinstance(error, m.IdentityValidationError)
    assert error.faults == (m.IdentityFault(code="UserLocked", description="The user is locked."),)
    assert "The user is locked" in str(error)
    assert "trace 00-cd3f" in str(error)


def test_a_422_with_a_map_tells_its_faults() -> None:
    error = refusal(422, samples.body("problem-422-keyed.json"))
    assert isinstance(error, m.KeyValidationError)
    assert error.faults == {"user_id": ("The user id is malformed.",)}
    assert "user_id: The user id is malformed" in str(error)


@pytest.mark.parametrize(
    ("errors", "kind"),
    [
        (b"[]", m.IdentityValidationError),
        (b'[1, null, {"code": 5}]', m.IdentityValidationError),
        (b"{}", m.KeyValidationError),
        (b'{"a": "text", "b": [1, "x"], "c": null}', m.KeyValidationError),
        (b'"text"', m.UnprocessableError),
        (b"null", m.UnprocessableError),
    ],
)
def test_odd_faults_of_a_422_do_no_harm(errors: bytes, kind: type[m.StatusError]) -> None:
    error = refusal(422, b'{"title": "No", "errors": ' + errors + b"}")
    assert type(error) is kind
    assert "422 No" in str(error)


def test_of_many_faults_the_first_are_kept() -> None:
    listed = refusal(422, b'{"errors": [' + b",".join([b'{"code": "c"}'] * 4000) + b"]}")
    assert isinstance(listed, m.IdentityValidationError)
    assert len(listed.faults) == 20
    texts = b"[" + b",".join([b'"x"'] * 1000) + b"]"
    named = b",".join(b'"m%d": %s' % (number, texts) for number in range(15))
    keyed = refusal(422, b'{"errors": {' + named + b"}}")
    assert isinstance(keyed, m.KeyValidationError)
    assert {len(said) for said in keyed.faults.values()} == {20}
    many = b",".join(b'"m%d": "x"' % number for number in range(1000))
    keyed = refusal(422, b'{"errors": {' + many + b"}}")
    assert isinstance(keyed, m.KeyValidationError)
    assert len(keyed.faults) == 20


@pytest.mark.parametrize("status", [100, 101, 201, 202, 204, 206, 299, 301, 302, 304, 307, 308])
def test_a_status_that_is_neither_200_nor_a_refusal_is_no_answer(status: int) -> None:
    error = misread(status, samples.user("u"), Location="https://portal.example:8443/t?token=abc")
    assert error.foreign
    assert str(status) in str(error)
    assert "token" not in str(error)


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("https://a:b@portal.example/x", "https://portal.example,"),
        ("/elsewhere", "another path"),
        ("https://[bad", "unreadable"),
        ("https://h:99999/", "unreadable"),
    ],
)
def test_a_redirect_names_the_origin_only(location: str, shown: str) -> None:
    text = str(misread(302, Location=location))
    assert shown in text
    assert "a:b" not in text


@pytest.mark.parametrize("status", [600, 999])
def test_a_status_out_of_range_is_no_answer(status: int) -> None:
    assert misread(status).foreign


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (b'{"user_id": 5}', "$.user_id"),
        (b'{"user_id": "u", "emails": {"secret": 1}}', "$.emails"),
        (b'{"user_id": "u", "emails": [{"verified": "secret"}]}', "$.emails[0].verified"),
        (b'{"user_id": "u", "creation_time": "secret"}', "$.creation_time"),
        (b'{"user_id": "u", "username": "secret"}', "$.username"),
    ],
)
def test_a_member_of_the_wrong_type_is_named_without_its_value(body: bytes, path: str) -> None:
    error = misread(200, body)
    assert path in str(error)
    assert "secret" not in str(error)
    assert not error.foreign


@pytest.mark.parametrize("upto", range(1, 30))
def test_a_user_that_ends_early_was_cut_short_and_may_be_asked_for_again(upto: int) -> None:
    body = b' {"user_id": "u", "emails": []}'
    with pytest.raises(m.TransportError, match="cut short") as caught:
        read_answer("u", 200, {"Content-Length": str(upto)}, body[: 1 + upto])
    assert caught.value.transient
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


NOT_JSON = [
    *BODIES[:2],
    b'{"user_id": "\xff"}',
    b'{"user_id": "u", "claims": {"a": ' + b"[" * 100_000,
]


@pytest.mark.parametrize("body", NOT_JSON, ids=range(4))
def test_a_200_without_json_is_somebody_elses_answer(body: bytes) -> None:
    assert misread(200, body, Content_Type="text/html").foreign


def test_a_200_without_an_id_or_with_another_users_is_no_success() -> None:
    assert "user_id" in str(misread(200, b"{}"))
    assert "another user" in str(misread(200, samples.user("v")))
    assert "secret" not in str(misread(200, samples.user("secret")))


def test_a_user_at_the_bound_is_read_and_one_over_it_refused() -> None:
    shell = len(samples.user("u", x=""))
    assert read_answer("u", 200, {}, samples.user("u", x="y" * (MAX_USER - shell))).user_id == "u"
    assert "longer" in str(misread(200, samples.user("u", x="y" * (MAX_USER - shell + 1))))


def test_texts_from_outside_are_short_and_harmless() -> None:
    error = refusal(404, b'{"detail": "a\\u001b[31m\\n\\u202eb", "title": "t"}')
    assert error.problem.detail == "a [31m b"
    assert len(clean("x" * 10_000)) == 500


DATE = "Mon, 23 Nov 2026 10:00:00 GMT"
NOW = 1795428000.0  # the same moment


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("5", 5.0),
        (" 7 ", 7.0),
        ("999999999", 999999999.0),
        ("Mon, 23 Nov 2026 10:00:30 GMT", 30.0),
        ("Monday, 23-Nov-26 10:00:30 GMT", 30.0),
        ("Mon Nov 23 10:00:30 2026", 30.0),
        ("Mon, 23 Nov 2026 09:00:00 GMT", 0.0),
        ("Mon, 23 Nov 2026 11:00:30 +0100", 30.0),
        *[
            (value, None)
            for value in (
                *("", "-5", "+5", "1.5", "1_000", "\uff17", "١٢", "1e3", "nan", "inf", "1e999"),
                *("99999999999999999999", "0x10", "soon", "5 s", "5, 6", "Mon, 99 Nov 2026"),
                *("Mon, 23 Nov 99999 10:00:30 GMT", "\x00"),
            )
        ],
    ],
)
def test_retry_after_is_seconds_or_a_date_or_nothing(value: str, seconds: float | None) -> None:
    assert retry_after({"Retry-After": value}, NOW) == seconds


def test_a_retry_after_date_is_measured_against_the_servers_clock() -> None:
    headers = {"Retry-After": "Mon, 23 Nov 2026 10:00:30 GMT", "Date": DATE}
    assert retry_after(headers, NOW + 86_400) == 30.0
    assert retry_after({**headers, "Date": "nonsense"}, NOW) == 30.0
    assert refusal(429, Retry_After="3").retry_after == 3.0


@given(st.text())
def test_retry_after_is_never_nonsense(value: str) -> None:
    seconds = retry_after({"Retry-After": value}, NOW)
    assert seconds is None or 0 <= seconds < float("inf")


BAD_IDS = [
    "",
    ".",
    "..",
    "a\nb",
    "a\tb",
    "\x00",
    "a\x7f",
    "a\x85",
    "a\ud800b",
    " a",
    "a ",
    "a" * 1025,
]
GOOD_IDS = ["a/b", "a%2Fb", "a?b", "a#b", "a b", "é", "e\u0301", "…", "%2e%2e", "...", "{x}", "a+b"]


@pytest.mark.parametrize("user_id", BAD_IDS)
def test_an_id_that_cannot_be_one_segment_is_refused(user_id: str) -> None:
    with pytest.raises(m.InvalidUserIdError, match="nothing was sent") as caught:
        enable_path(user_id)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("user_id", [None, 5, b"a"])
def test_an_id_that_is_no_string_is_refused(user_id: str) -> None:
    with pytest.raises(m.InvalidUserIdError):
        check_user_id(user_id)


@pytest.mark.parametrize("user_id", GOOD_IDS)
def test_every_other_id_is_exactly_one_segment(user_id: str) -> None:
    segments = enable_path(user_id).split("/")
    assert len(segments) == 5
    assert unquote(segments[3]) == user_id
    assert not set(segments[3]) & set("?# ")


@given(st.text())
def test_an_id_goes_out_as_itself_or_not_at_all(user_id: str) -> None:
    try:
        path = enable_path(user_id)
    except m.InvalidUserIdError:
        return
    assert unquote(path.removeprefix("/api/users/").removesuffix("/enable")) == user_id
    assert path.count("/") == 4
    assert path.isascii()


@given(st.integers(100, 999), st.binary() | st.text().map(str.encode))
def test_whatever_comes_is_a_user_or_an_error_of_ours(status: int, body: bytes) -> None:
    try:
        assert read_answer("u", status, {}, body).user_id == "u"
    except m.MonoCloudError as error:
        assert "\n" not in str(error)
        assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301  our own bytes
