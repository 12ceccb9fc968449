"""What a response says: the user, the page of a list, or the error.

MonoCloud documents the answers with its endpoints; the header of a page is known from the public
source of its own clients.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import msgspec
from multidict import CIMultiDict

from monocloud_async.errors import (
    IdentityFault,
    IdentityValidationError,
    InvalidResponseError,
    KeyValidationError,
    NotFoundError,
    StatusError,
    TransportError,
    status_class,
)
from monocloud_async.models import ProblemDetails, User
from monocloud_async.sanitize import clean, redirect_origin

if TYPE_CHECKING:
    from monocloud_async.lenient_json import Reading

Headers = Mapping[str, str]

# Bytes, decompressed: the documented user has 2,000, and a problem 300. Not more, because decoded
# JSON takes up to 24 times its size in memory: "[[],[],[], ...".
MAX_USER, MAX_PROBLEM = 1 << 18, 1 << 16
MAX_PAGE = 1 << 22  # of fifty users
PAGINATION: Final = "x-pagination"

# Of one refusal. Its error may live as long as the run, and a character may take four bytes.
_MAX_FAULTS, _MAX_CHARACTERS = 20, 3000
_OBJECT_SIZE = 20  # of a string, in characters: even an empty one takes memory
_DELAY_SECONDS = re.compile(r"[0-9]{1,9}")
# How a JSON array begins; "[error] ..." is text.
_LIST = re.compile(rb'(?:\xef\xbb\xbf)?\s*\[\s*[\[\]{"0-9-]')
_UNREADABLE = "\ufffd"  # what lenient_json puts in the place of what cannot be read
_CALLERS_MAPS = frozenset({"claims", "public_data", "private_data"})
_OK, _MULTIPLE_CHOICES, _BAD_REQUEST, _UNPROCESSABLE, _LAST = 200, 300, 400, 422, 600
_NO_STATUS = 1000


class _Pagination(msgspec.Struct, frozen=True):
    """The JSON of the header of a page."""

    total_count: Annotated[int, msgspec.Meta(ge=0)] | None = None
    page_size: Annotated[int, msgspec.Meta(ge=1)] | None = None
    current_page: int | None = None
    has_next: bool | None = None


_user = msgspec.json.Decoder(User)
_users = msgspec.json.Decoder(list[User])
_json = msgspec.json.Decoder()
_members = {member.encode_name: member.type for member in msgspec.structs.fields(User)}
_pagination = msgspec.json.Decoder(_Pagination)
_NOT_READ = (msgspec.MsgspecError, UnicodeError, RecursionError)


class Response(msgspec.Struct, gc=False):
    """An HTTP response, from the tenant or from something else.

    Attributes:
        status: the HTTP status.
        head: the headers, or the bytes of a response that begins with them.
        body: the body, decompressed, cut to the maximum size.
        end: closes the connection, for a response that cannot be this user's: the next response
            could be wrong, too.
    """

    status: int
    head: Headers | bytes
    body: bytes
    end: Callable[[], object]

    @property
    def headers(self) -> Headers:
        """The headers, parsed on first use, because they are rarely needed."""
        if isinstance(self.head, bytes):
            lines, _, _ = self.head.partition(b"\r\n\r\n")
            pairs = (line.partition(":") for line in lines.decode("latin-1").split("\r\n")[1:])
            self.head = CIMultiDict((name, value.strip()) for name, _, value in pairs)
        return self.head


class UserPage(msgspec.Struct):
    """One page of a list of users, and what its header says; None where it says nothing.

    Attributes:
        users: the users of the page.
        total: how many users the whole list has.
        size: the maximum number of users on a page.
        number: the number of the page, from 1.
        has_next: whether another page follows.
    """

    users: list[User]
    total: int | None = None
    size: int | None = None
    number: int | None = None
    has_next: bool | None = None


def read_user(user_id: str, response: Response) -> User:
    """Return the user in the response; raises as `read_response` does."""
    body = response.body
    if response.status == _OK and len(body) <= MAX_USER:  # nearly every response is like this
        try:
            user = _user.decode(body)
        except _NOT_READ:
            pass
        else:
            if user.user_id == user_id:
                return user
    return read_response(user_id, response.status, response.headers, body)


def read_response(user_id: str, status: int, headers: Headers, body: bytes) -> User:
    """Return the user in the response.

    Only the HTTP status decides: the `status` of a problem may be missing, or a gateway's.

    Raises:
        StatusError: the status is a 4xx or 5xx.
        TransportError: the user was cut short.
        InvalidResponseError: anything else that is not a 200 with this user.
    """
    if status != _OK:
        _raise_refusal(user_id, status, headers, body)
    return _read_user(user_id, headers, body)


def read_page(response: Response) -> UserPage:
    """Return the page of a list in the response.

    Members of a user are read as in `read_response`.

    Raises:
        StatusError: the status is a 4xx or 5xx.
        TransportError: the page was cut short.
        InvalidResponseError: anything else that is not a 200 with a list of users.
    """
    headers, body = response.headers, response.body
    if response.status != _OK:
        _raise_refusal(None, response.status, headers, body)
    if len(body) > MAX_PAGE:
        raise _invalid_page(f"longer than {MAX_PAGE} bytes: ask for a smaller page_size")
    try:
        users = _users.decode(body)
    except _NOT_READ:
        users = _users_leniently(headers, body)
    text = headers.get(PAGINATION)
    try:
        where = _Pagination() if text is None else _pagination.decode(text)
    except _NOT_READ:  # a header that cannot be read says nothing
        where = _Pagination()
    return UserPage(users, where.total_count, where.page_size, where.current_page, where.has_next)


def retry_after(headers: Headers, now: float) -> float | None:
    """Return the seconds that the server asked to wait, or None without a valid value.

    RFC 9110, section 10.2.3: a number of seconds or an HTTP date.
    A date is compared with the response's own `Date`, if it has one, so that a wrong clock on this
    machine does not matter; `now` is in seconds since 1970.
    """
    value = headers.get("Retry-After", "").strip()
    if _DELAY_SECONDS.fullmatch(value):
        return float(value)
    moment = _http_date(value)
    if moment is None:
        return None
    sent = _http_date(headers.get("Date", ""))
    return max(0.0, moment - (now if sent is None else sent))


def _read_user(user_id: str, headers: Headers, body: bytes) -> User:
    user, reading = None, None
    if len(body) <= MAX_USER:
        try:
            user = _decoded(body)
        except _NOT_READ:
            reading = _read_leniently(body)
            user = _convert_leniently(reading.value)
            # The replacement character may stand for any character, so the id is unknown.
            user = None if user is None or _UNREADABLE in user.user_id else user
    if user is not None:
        if user.user_id != user_id:
            raise InvalidResponseError("the answer was another user", user_id=user_id, status=_OK)
        return user
    is_object = body.lstrip().startswith(b"{") if reading is None else reading.is_object
    if len(body) > MAX_USER:
        what = f"longer than {MAX_USER} bytes"
    elif not is_object:
        what = f"no JSON object{_described(headers, body)}"
    elif reading is None or reading.end == "whole":
        what = "no user: it has no user_id, or none that can be read"
    elif reading.end == "early":
        # Even if its Content-Length fits: a gateway sets the length of what it received.
        raise TransportError("the answer was cut short", user_id=user_id)
    else:
        what = f"malformed JSON{_described(headers, body)}"
    raise InvalidResponseError(
        f"the answer was {what}", user_id=user_id, status=_OK, foreign=not is_object
    )


def _users_leniently(headers: Headers, body: bytes) -> list[User]:
    """Return the users of a page that a strict decoder refuses, as far as possible."""
    reading = _read_leniently(body)
    if not isinstance(reading.value, list):
        if reading.end == "early" and body.lstrip().startswith(b"["):
            raise TransportError("the list of users was cut short")
        is_json = reading.is_object or _LIST.match(body) is not None
        raise _invalid_page(f"no list of users{_described(headers, body)}", foreign=not is_json)
    users = [_convert_leniently(members) for members in reading.value]
    found = [user for user in users if user and _UNREADABLE not in user.user_id]
    if len(found) < len(users):
        raise _invalid_page("a list with a user who has no user_id, or none that can be read")
    return found


def _invalid_page(what: str, *, foreign: bool = False) -> InvalidResponseError:
    error = InvalidResponseError(f"the answer was {what}", status=_OK, foreign=foreign)
    if not foreign:
        error.advice = "Nobody knows who is missing from this list: try again"
    return error


def _decoded(body: bytes) -> User | None:
    """Return the user in this JSON, or None if it has no id."""
    try:
        return _user.decode(body)
    except msgspec.ValidationError:
        pass
    return _convert_leniently(_json.decode(body))


def _read_leniently(body: bytes) -> "Reading":
    """Read the JSON of a response that a strict decoder refuses."""
    from monocloud_async import lenient_json  # noqa: PLC0415  slow; the session loads it

    return lenient_json.read(body)


def _convert_leniently(members: object) -> User | None:
    """Return the user of these members, without those that are null or of a wrong type.

    The operation is done, so an unusual value in the user's data must not make it an error. To
    allow null in the models would cost a check of each member of every user.
    """
    if not isinstance(members, dict):
        return None
    present: dict[str, Any] = _without_nulls(members)
    with suppress(msgspec.ValidationError):
        return msgspec.convert(present, User)
    fitting: dict[str, Any] = {}
    for name, value in present.items():
        with suppress(KeyError, msgspec.ValidationError):
            fitting[name] = msgspec.convert(value, _members[name])
    return User(**fitting) if "user_id" in fitting else None


def _without_nulls(value: Any) -> Any:
    """Return the value without null members; maps of custom data are not changed."""
    if isinstance(value, dict):
        return {
            name: member if name in _CALLERS_MAPS else _without_nulls(member)
            for name, member in value.items()
            if member is not None
        }
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _described(headers: Headers, body: bytes) -> str:
    if not body:
        return " (it was empty)"
    kind = clean(headers.get("Content-Type", "")).partition(";")[0]
    return f" (its type: {kind}; {len(body)} bytes)" if kind else f" ({len(body)} bytes)"


def _raise_refusal(user_id: str | None, status: int, headers: Headers, body: bytes) -> NoReturn:
    """Raise the error for a response whose status is not 200."""
    if _BAD_REQUEST <= status < _LAST:
        raise _status_error(user_id, status, headers, body)
    what = f"status {status} instead of 200"
    if _MULTIPLE_CHOICES <= status < _BAD_REQUEST:
        what = f"a redirect ({status}) to {redirect_origin(headers.get('Location'))}, not followed"
    raise InvalidResponseError(
        f"the answer was {what}", user_id=user_id, status=status, foreign=True
    )


def _status_error(user_id: str | None, status: int, headers: Headers, body: bytes) -> StatusError:
    members = _read_problem(body)
    texts = _BoundedTexts()
    title, detail = texts.kept(members.get("title")), texts.kept(members.get("detail"))
    trace_id = texts.kept(members.get("trace_id")) or texts.kept(members.get("traceId"))
    said = members.get("status")
    problem = ProblemDetails(
        type=texts.kept(members.get("type")),
        title=title,
        status=said if type(said) is int and abs(said) < _NO_STATUS else None,
        detail=detail,
        instance=texts.kept(members.get("instance")),
        trace_id=trace_id,
        error_code=texts.kept(members.get("error_code")),
    )
    wait = retry_after(headers, datetime.now(UTC).timestamp())
    kind = status_class(status)
    faults = members.get("errors")
    if status == _UNPROCESSABLE and isinstance(faults, list):
        objects = (fault for fault in faults if isinstance(fault, dict))
        found = tuple(texts.identity_fault(fault) for fault in islice(objects, _MAX_FAULTS))
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
        by_member = texts.by_member(faults)
        malformed = KeyValidationError(
            _with_faults(status, problem, [f"{k}: {', '.join(v)}" for k, v in by_member.items()]),
            status=status,
            user_id=user_id,
            problem=problem,
            retry_after=wait,
        )
        malformed.faults = by_member
        return malformed
    refusal = kind(status=status, user_id=user_id, problem=problem, retry_after=wait)
    if kind is NotFoundError and not members:  # as other servers answer whatever is asked for
        refusal.advice = "Check the id, that the user belongs to this tenant, and the domain"
    return refusal


class _BoundedTexts:
    """Collects the strings of one refusal, made harmless, up to a total length."""

    def __init__(self) -> None:
        self._left = _MAX_CHARACTERS

    def kept(self, value: object) -> str | None:
        """Return the string, or None if it is of another type or the total is reached."""
        if not isinstance(value, str) or self._left <= 0:
            return None
        text = clean(value)[: self._left]
        self._left -= len(text) + _OBJECT_SIZE
        return text

    def identity_fault(self, fault: dict[str, Any]) -> IdentityFault:
        """Return a fault of a list."""
        return IdentityFault(
            code=self.kept(fault.get("code")),
            description=self.kept(fault.get("description")),
            field=self.kept(fault.get("field")),
        )

    def by_member(self, faults: dict[str, Any]) -> dict[str, tuple[str, ...]]:
        """Return the faults of a map."""
        kept: dict[str, tuple[str, ...]] = {}
        for name, said in islice(faults.items(), _MAX_FAULTS):
            values = said[:_MAX_FAULTS] if isinstance(said, list) else [said]
            if (member := self.kept(name)) is not None:
                texts = map(self.kept, values)
                kept[member] = tuple(text for text in texts if text is not None)
        return kept


def _with_faults(status: int, problem: ProblemDetails, faults: list[str]) -> str:
    said = "; ".join(fault.rstrip(".") for fault in faults if fault) or problem.detail or ""
    trace = f" [trace {problem.trace_id}]" if problem.trace_id else ""
    return clean(f"{status} {problem.title or 'Unprocessable Entity'}: {said}").rstrip(": ") + trace


def _read_problem(body: bytes) -> dict[str, Any]:
    """Return the members of a problem; none if the body is something else or cut short."""
    if len(body) > MAX_PROBLEM:
        return {}
    try:
        members = _json.decode(body)
    except _NOT_READ:
        members = _read_leniently(body).value
    return members if isinstance(members, dict) else {}


def _http_date(value: str) -> float | None:
    try:
        moment = parsedate_to_datetime(value)
        if moment.tzinfo is None:  # the asctime form has no zone, and is in UTC (RFC 9110)
            moment = moment.replace(tzinfo=UTC)
        return moment.timestamp()
    except (ValueError, OverflowError, IndexError, TypeError):
        return None
