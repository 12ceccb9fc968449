import json
import pickle

import pytest
import samples
from hypothesis import given
from hypothesis import strategies as st

import monocloud_async as m
from monocloud_async.bulk.results import _held_by
from monocloud_async.response import MAX_PROBLEM, MAX_USER, read_response, retry_after
from monocloud_async.sanitize import clean

TRACE = "00-2e0cd141be28223b233dd3907cbe58b4-2ba9f9375b4b78e0-01"


def refusal(status: int, body: bytes = b"", **headers: str) -> m.StatusError:
    with pytest.raises(m.StatusError) as caught:
        read_response("u", status, {k.replace("_", "-"): v for k, v in headers.items()}, body)
    return caught.value


def misread(status: int, body: bytes = b"", **headers: str) -> m.InvalidResponseError:
    with pytest.raises(m.InvalidResponseError) as caught:
        read_response("u", status, {k.replace("_", "-"): v for k, v in headers.items()}, body)
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
    b'{"title": "' + b"x" * MAX_PROBLEM + b'"}',
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


@pytest.mark.parametrize("body", [b"", b"<h1>Not Found</h1>", b"{}"])
def test_a_404_that_any_server_may_send_names_the_domain_too(body: bytes) -> None:
    assert str(refusal(404, body)).endswith(
        "404 Not Found. Check the id, that the user belongs to this tenant, and the domain"
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
    assert len(keyed.faults["m0"]) == 20
    assert sum(map(len, keyed.faults.values())) < 150
    many = b",".join(b'"m%d": "x"' % number for number in range(1000))
    keyed = refusal(422, b'{"errors": {' + many + b"}}")
    assert isinstance(keyed, m.KeyValidationError)
    assert len(keyed.faults) == 20


EMOJI = "\U0001f600" + "x" * 499


@pytest.mark.parametrize(
    "errors",
    [
        {f"k{number:02}{EMOJI}": [EMOJI] * 20 for number in range(20)},
        {f"k{number}": [""] * 20 for number in range(20)},
        [dict.fromkeys(("code", "description", "field"), EMOJI)] * 20,
        None,
    ],
)
def test_what_a_refusal_says_takes_at_most_32_kib(errors: object) -> None:
    members = dict.fromkeys(
        ("title", "detail", "trace_id", "traceId", "type", "instance", "error_code"), EMOJI
    )
    said = {**members, "errors": errors, "status": 10**4000}
    error = refusal(422, json.dumps(said, ensure_ascii=False).encode()[:MAX_PROBLEM])
    assert _held_by(error.with_traceback(None)) < 32 * 1024


@pytest.mark.parametrize(
    "detail", [b'"half \\ud83d"', b'"J\xf6rg"', b'"a\nb"', b'"a", "n": NaN', b'"a", "n": 1e999']
)
def test_a_refusal_with_odd_texts_is_read(detail: bytes) -> None:
    error = refusal(404, b'{"title": "Gone", "trace_id": "t-1", "detail": ' + detail + b"}")
    assert (error.problem.title, error.trace_id) == ("Gone", "t-1")
    assert error.problem.detail is not None


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


@pytest.mark.parametrize("body", [b"{}", b'{"user_id": 5}', b" {}", b'{"user_id": 1e999}'])
def test_json_without_an_id_is_no_success_and_not_foreign(body: bytes) -> None:
    error = misread(200, body)
    assert "no user" in str(error)
    assert not error.foreign


@pytest.mark.parametrize(
    "odd",
    [
        b'"emails": {"address": 1}',
        b'"emails": [{"verified": "yes"}]',
        b'"creation_time": "yesterday"',
        b'"creation_time": 1.5',
        b'"creation_time": 1e999',
        b'"creation_time": 1%s' % (b"0" * 5000),
        b'"username": "ada"',
        b'"username": null, "emails": null, "claims": null',
    ],
)
def test_a_member_of_another_type_is_left_out(odd: bytes) -> None:
    body = b'{"user_id": "u", %s, "has_password": true, "public_data": {"a": null}}' % odd
    user = read_response("u", 200, {}, body)
    assert user == m.User(user_id="u", has_password=True, public_data={"a": None})


@pytest.mark.parametrize(
    ("odd", "read"),
    [
        (rb'"Ada \ud83d"', "Ada \ufffd"),
        (rb'"Ada \ud83d and more"', "Ada \ufffd and more"),
        (rb'"\ude00\ud83d"', "\ufffd\ufffd"),
        (rb'"\ud83d\u0041"', "\ufffdA"),
        (rb'"\ud83d\ude00"', "\U0001f600"),
        (rb'"\\ud83d"', r"\ud83d"),
        (rb'"\u12 \x"', "\ufffd12 \ufffd"),
        (b'"J\xf6rg"', "J\ufffdrg"),
        (b'"\xed\xa0\x80"', "\ufffd\ufffd\ufffd"),
        (b'"one\ntwo\x00"', "one\ntwo\x00"),
        (b"NaN", None),
        (b"-Infinity", None),
        (b"1e999", None),
        (b"-1" + b"0" * 5000, None),
        (b"1" + b"0" * 400, 10**400),
        (b"undefined", None),
        (b'{"a": [NaN, 2]}', {"a": [None, 2]}),
        (rb'{"\ud83d": 1, "\ud83d": 2}', {"\ufffd": 2}),
    ],
)
def test_odd_data_is_read_as_far_as_it_can_be(odd: bytes, read: object) -> None:
    user = read_response("u", 200, {}, b'{"user_id":"u","claims":{"x":%s},"failure_count":3}' % odd)
    assert user == m.User(user_id="u", claims={"x": read}, failure_count=3)


@pytest.mark.parametrize("brackets", [b"[]", b"{}"])
def test_no_depth_is_too_much(brackets: bytes) -> None:
    opened = brackets[:1] + (b'"a":' if brackets == b"{}" else b"")
    deep = opened * 20_000 + b"1" + brackets[1:] * 20_000
    user = read_response("u", 200, {}, b'{"private_data":{"x":%s},"user_id":"u"}' % deep)
    assert repr(user).count(brackets[:1].decode()) < 200


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_in_another_coding_is_json(coding: str) -> None:
    assert read_response("\xfc", 200, {}, samples.user("\xfc").decode().encode(coding))


@pytest.mark.parametrize("came", [rb'"a\ud83d"', b'"a\xff"', rb'"a\x"'])
def test_an_id_that_cannot_be_read_is_nobodys(came: bytes) -> None:
    with pytest.raises(m.InvalidResponseError) as caught:
        read_response("a\ufffd", 200, {}, b'{"user_id": %s}' % came)
    assert not caught.value.foreign


MALFORMED = [
    b'{"user_id":"u","claims":{"a":"say "hi""}}',
    b'{"user_id":"u","claims":{"a":"say "hi}}',
    b'{"user_id":"u" "x":1}',
    b'{"user_id":"u",}',
    b'{"user_id":"u","x":[1,]}',
    b'{"user_id":"u","x":[1}}',
    b'{"user_id":"u"}}',
    b'{"user_id":"u"} {"user_id":"u"}',
    b'{"user_id":"u"}<!-- served by proxy-7 -->',
    b'{"user_id":"u", "x"}',
]


@pytest.mark.parametrize("body", MALFORMED)
def test_a_user_in_malformed_json_is_that_users_failure_alone(body: bytes) -> None:
    error = misread(200, body)
    assert "malformed" in str(error)
    assert not error.foreign
    assert not error.transient


@pytest.mark.parametrize("upto", range(1, 30))
def test_a_user_that_ends_early_was_cut_short_and_may_be_asked_for_again(upto: int) -> None:
    body = b' {"user_id": "u", "emails": []}'
    with pytest.raises(m.TransportError, match="cut short") as caught:
        read_response("u", 200, {"Content-Length": str(upto)}, body[: 1 + upto])
    assert caught.value.transient
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


NO_OBJECT = [
    *BODIES[:2],
    *(b"[]", b"null", b'"OK"', b" true", b"0", b"NaN", b'[{"user_id": "u"}]'),
    b"OK",
    b"{user_id: 'u'}",
    b"{{ user }}",
    b"[[[",
    b"[error] no upstream",
    b'"u',
    b"\x00" * 100,
    b"\x1f\x8b\x08\x00{",
    b" " * (MAX_USER + 1),
]


@pytest.mark.parametrize("body", NO_OBJECT, ids=range(len(NO_OBJECT)))
def test_a_200_without_a_json_object_is_somebody_elses_answer(body: bytes) -> None:
    assert misread(200, body, Content_Type="text/html").foreign


def test_a_200_with_another_users_is_no_success() -> None:
    assert "another user" in str(misread(200, samples.user("v")))
    assert "secret" not in str(misread(200, samples.user("secret")))


def test_a_user_at_the_bound_is_read_and_one_over_it_refused() -> None:
    shell = len(samples.user("u", x=""))
    assert read_response("u", 200, {}, samples.user("u", x="y" * (MAX_USER - shell))).user_id == "u"
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


@given(st.integers(100, 999), st.binary() | st.text().map(str.encode))
def test_whatever_comes_is_a_user_or_an_error_of_ours(status: int, body: bytes) -> None:
    try:
        assert read_response("u", status, {}, body).user_id == "u"
    except m.MonoCloudError as error:
        assert "\n" not in str(error)
        assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301  our own bytes
