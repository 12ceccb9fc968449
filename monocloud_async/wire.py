"""`POST /api/users/{user_id}/enable` as pure functions: an id in, a path out; bytes in, a user out.

The contract is MonoCloud's page "Enable a user".
No I/O happens here: `session` sends and receives, this module says what it means.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import Any
from urllib.parse import quote

import msgspec

from monocloud_async.errors import (
    IdentityFault,
    IdentityValidationError,
    InvalidResponseError,
    InvalidUserIdError,
    KeyValidationError,
    StatusError,
    TransportError,
    status_class,
)
from monocloud_async.models import ProblemDetails, User
from monocloud_async.texts import clean, origin
from monocloud_async.version import __version__

Headers = Mapping[str, str]

ACCEPT = "application/json, application/problem+json"
USER_AGENT = f"monocloud-async/{__version__}"
# Bytes, decompressed: the user of the documented page has 2,000, and a problem 300. Not more,
# because JSON takes up to 24 times its size in memory once it is read: "[[],[],[], ...".
MAX_USER, MAX_REFUSAL = 1 << 18, 1 << 16

_MAX_ID_BYTES = 1024  # servers refuse a request line of about 8 KiB; quoting triples the length
_MAX_FAULTS = 20  # of one refusal, and texts of one fault: an error may live as long as its run
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_PATH_IN_MESSAGE = re.compile(r" - at `(?P<path>[^`]*)`$")
_DELAY_SECONDS = re.compile(r"[0-9]{1,9}")
_CALLERS_MAPS = frozenset({"claims", "public_data", "private_data"})
_OK, _MULTIPLE_CHOICES, _BAD_REQUEST, _UNPROCESSABLE, _LAST = 200, 300, 400, 422, 600

_user = msgspec.json.Decoder(User)
_anything = msgspec.json.Decoder()


def check_user_id(user_id: str) -> None:
    """Nothing when the id can be one path segment; else raises `InvalidUserIdError`.

    Refused: what is no string, the empty one, `.` and `..` (servers and proxies resolve them, so
    an admin key would be aimed at another path), control characters, lone surrogates,
    surrounding white space, and more than 1,024 bytes.
    """
    if not isinstance(user_id, str):
        raise InvalidUserIdError(f"a user id is a str, not {type(user_id).__name__}")
    if _is_plain(user_id):
        return
    fault = _fault_of_id(user_id)
    if fault:
        raise InvalidUserIdError(f"this id {fault}; nothing was sent", user_id=user_id[:80])


def _is_plain(user_id: str) -> bool:
    """Whether it can be a segment as it is; nearly all of them can."""
    return user_id.isalnum() and user_id.isascii() and len(user_id) <= _MAX_ID_BYTES


def _fault_of_id(user_id: str) -> str | None:
    if not user_id:
        return "is empty"
    if user_id in {".", ".."}:
        return "is a dot segment, which would address another path"
    if _CONTROL.search(user_id):
        return "has control characters"
    if user_id != user_id.strip():
        return "has white space around it"
    try:
        length = len(user_id.encode())
    except UnicodeEncodeError:
        return "is not valid Unicode (a lone surrogate)"
    return f"is longer than {_MAX_ID_BYTES} bytes" if length > _MAX_ID_BYTES else None


def enable_path(user_id: str) -> str:
    """The path that enables this user, percent-encoded: the id is exactly one segment of it.

    Raises:
        InvalidUserIdError: the id cannot be one segment (see `check_user_id`).
    """
    if isinstance(user_id, str) and _is_plain(user_id):
        return f"/api/users/{user_id}/enable"
    check_user_id(user_id)
    return f"/api/users/{quote(user_id, safe='')}/enable"


def plainly_user(user_id: str, body: bytes) -> User | None:
    """The user, where the body of a 200 is exactly this one; `read_answer` knows all the rest."""
    try:
        user = _decoded(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return user if user.user_id == user_id else None


def longest(status: int) -> int:
    """How many bytes of an answer with this status are worth reading."""
    return MAX_USER if status == _OK else MAX_REFUSAL


def read_answer(user_id: str, status: int, headers: Headers, body: bytes) -> User:
    """The user that the tenant answered with.

    Classified by the HTTP status alone: a problem's own `status` may be absent, or a gateway's.

    Raises:
        StatusError: the status is a 4xx or 5xx.
        TransportError: the user was cut short.
        InvalidResponseError: anything else that is not a 200 with this very user.
    """
    if status == _OK:
        return _read_user(user_id, headers, body)
    if _BAD_REQUEST <= status < _LAST:
        raise _refusal(user_id, status, headers, body)
    what = f"status {status} instead of 200"
    if _MULTIPLE_CHOICES <= status < _BAD_REQUEST:
        what = f"a redirect ({status}) to {origin(headers.get('Location'))}, not followed"
    raise InvalidResponseError(
        f"the answer was {what}", user_id=user_id, status=status, foreign=True
    )


def retry_after(headers: Headers, now: float) -> float | None:
    """Seconds that the server asked to wait, or None where it asked nothing that makes sense.

    RFC 9110, section 10.2.3: a number of seconds or an HTTP date.
    A date is measured against the response's own `Date`, where it has one, so that a wrong clock
    on this machine does no harm; `now` is epoch seconds.
    """
    value = headers.get("Retry-After", "").strip()
    if _DELAY_SECONDS.fullmatch(value):
        return float(value)
    moment = _http_date(value)
    if moment is None:
        return None
    sent = _http_date(headers.get("Date", ""))
    return max(0.0, moment - (now if sent is None else sent))


def _http_date(value: str) -> float | None:
    try:
        moment = parsedate_to_datetime(value)
        if moment.tzinfo is None:  # the asctime form of RFC 9110 has no zone, and means UTC
            moment = moment.replace(tzinfo=UTC)
        return moment.timestamp()
    except (ValueError, OverflowError, IndexError, TypeError):
        return None


def _read_user(user_id: str, headers: Headers, body: bytes) -> User:
    user: User | None = None
    fault, foreign, cut = "", False, False
    try:
        if len(body) > MAX_USER:
            fault = f"longer than {MAX_USER} bytes"
        else:
            user = _decoded(body)
    except msgspec.ValidationError as error:
        fault = _misfit(error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        fault, foreign = f"not JSON{_described(headers, body)}", True
        cut = body.lstrip().startswith(b"{") and "truncated" in str(error)
    if cut:
        # Whatever its length header says: a gateway measures what has come to it.
        raise TransportError("the answer was cut short", user_id=user_id)
    if user is None:
        # Outside the `except`: a decoder's error would stay attached, and it may quote the body.
        raise InvalidResponseError(
            f"the answer was {fault}", user_id=user_id, status=_OK, foreign=foreign
        )
    if user.user_id != user_id:
        raise InvalidResponseError("the answer was another user", user_id=user_id, status=_OK)
    return user


def _decoded(body: bytes) -> User:
    try:
        return _user.decode(body)
    except msgspec.ValidationError:
        # Perhaps a list or a map is null. To allow that in the models would cost everybody a look
        # at each of them, for every user.
        return msgspec.convert(_without_nulls(_anything.decode(body)), User)


def _without_nulls(value: Any) -> Any:
    """The same without the members that are null; what the caller keeps in a map stays whole."""
    if isinstance(value, dict):
        return {
            name: member if name in _CALLERS_MAPS else _without_nulls(member)
            for name, member in value.items()
            if member is not None
        }
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _misfit(error: msgspec.ValidationError) -> str:
    text = str(error)
    found = _PATH_IN_MESSAGE.search(text)
    if found is None:
        return f"not a user: {text}"
    return f"a user whose member {found['path']} has the wrong type ({text[: found.start()]})"


def _described(headers: Headers, body: bytes) -> str:
    if not body:
        return " (it was empty)"
    kind = clean(headers.get("Content-Type", "")).partition(";")[0]
    return f" (its type: {kind}; {len(body)} bytes)" if kind else f" ({len(body)} bytes)"


def _refusal(user_id: str, status: int, headers: Headers, body: bytes) -> StatusError:
    members = _read_problem(body)
    problem = ProblemDetails(
        type=_text(members.get("type")),
        title=_text(members.get("title")),
        status=members["status"] if type(members.get("status")) is int else None,
        detail=_text(members.get("detail")),
        instance=_text(members.get("instance")),
        trace_id=_text(members.get("trace_id")) or _text(members.get("traceId")),
        error_code=_text(members.get("error_code")),
    )
    wait = retry_after(headers, datetime.now(UTC).timestamp())
    kind = status_class(status)
    faults = members.get("errors")
    if status == _UNPROCESSABLE and isinstance(faults, list):
        objects = (fault for fault in faults if isinstance(fault, dict))
        found = tuple(map(_identity_fault, islice(objects, _MAX_FAULTS)))
        refused = IdentityValidationError(
            _with_faults(status, problem, [f.description or f.code or "" for f in found]),
            status=status,
            user_id=user_id,
            problem=problem,
            retry_after=wait,
        )
        refused.faults = found
        return refused
    if status == _UNPROCESSABLE and isinstance(faults, dict):
        named = islice(faults.items(), _MAX_FAULTS)
        by_member = {clean(name): _texts(said) for name, said in named}
        malformed = KeyValidationError(
            _with_faults(status, problem, [f"{k}: {', '.join(v)}" for k, v in by_member.items()]),
            status=status,
            user_id=user_id,
            problem=problem,
            retry_after=wait,
        )
        malformed.faults = by_member
        return malformed
    return kind(status=status, user_id=user_id, problem=problem, retry_after=wait)


def _with_faults(status: int, problem: ProblemDetails, faults: list[str]) -> str:
    said = "; ".join(fault.rstrip(".") for fault in faults if fault) or problem.detail or ""
    trace = f" [trace {problem.trace_id}]" if problem.trace_id else ""
    return clean(f"{status} {problem.title or 'Unprocessable Entity'}: {said}").rstrip(": ") + trace


def _read_problem(body: bytes) -> dict[str, Any]:
    if len(body) > MAX_REFUSAL:
        return {}
    try:
        members = _anything.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}  # a gateway's page, or half a body: the status alone must do
    return members if isinstance(members, dict) else {}


def _identity_fault(fault: dict[str, Any]) -> IdentityFault:
    return IdentityFault(
        code=_text(fault.get("code")),
        description=_text(fault.get("description")),
        field=_text(fault.get("field")),
    )


def _texts(said: object) -> tuple[str, ...]:
    values = said[:_MAX_FAULTS] if isinstance(said, list) else [said]
    return tuple(clean(value) for value in values if isinstance(value, str))


def _text(value: object) -> str | None:
    return clean(value) if isinstance(value, str) else None
