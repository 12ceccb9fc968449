"""The API as values and pure functions: from id to path, from response to user or error.

An `Operation` is one request of the API: enable, disable or get a user, or list users. A new
operation needs one value here and one method of the session; everything in between is generic. One
that runs do for many users is a `BulkOperation`, whose outcomes and counts are also declared here.
The specification is MonoCloud's page "Enable a user", and the public source of its own clients.
This module does no I/O: `transport` sends and receives, and this module interprets.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Final, Generic, Literal, NoReturn, TypeVar
from urllib.parse import quote

import msgspec
from multidict import CIMultiDict

from monocloud_async.errors import (
    ConfigurationError,
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
from monocloud_async.sanitize import clean, redirect_origin
from monocloud_async.version import __version__

if TYPE_CHECKING:
    from monocloud_async.lenient_json import Reading

Headers = Mapping[str, str]

ACCEPT = "application/json, application/problem+json"
USER_AGENT = f"monocloud-async/{__version__}"
# Bytes, decompressed: the documented user has 2,000, and a problem 300. Not more, because decoded
# JSON takes up to 24 times its size in memory: "[[],[],[], ...".
MAX_USER, MAX_PROBLEM = 1 << 18, 1 << 16
MAX_PAGE = 1 << 22  # of fifty users

_USERS_PATH = "/api/users"
_GROUP_PATH = f"{_USERS_PATH}/groups/{{group_id}}/assigned"
_MAX_ID_BYTES = 1024  # servers refuse a request line of about 8 KiB; quoting triples the length
# Of one refusal. Its error may live as long as the run, and a character may take four bytes.
_MAX_FAULTS, _MAX_CHARACTERS = 20, 3000
_OBJECT_SIZE = 20  # of a string, in characters: even an empty one takes memory
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CONTROL_BYTE = re.compile(rb"[\x00-\x1f\x7f]")
_PATH_CHARACTER = re.compile(r"[./\\%;?#]")
_SEPARATOR = re.compile(rb"[/\\]")
_DOTS = frozenset({b".", b".."})
_PARAMETERS = re.compile(rb"[;?#].*", re.DOTALL)  # some servers remove these from a segment
_ESCAPED = re.compile(rb"%(?:[uU]00)?([0-9a-fA-F]{2})")  # IIS also decodes %uXXXX
# Overlong encodings (RFC 3629, section 3), which some decoders accept.
_OVERLONG = re.compile(
    rb"[\xc0\xc1]|\xe0[\x80-\x9f]|\xf0[\x80-\x8f]|\xf8[\x80-\x87]|\xfc[\x80-\x83]"
)
_DELAY_SECONDS = re.compile(r"[0-9]{1,9}")
# How a JSON array begins; "[error] ..." is text.
_LIST = re.compile(rb'(?:\xef\xbb\xbf)?\s*\[\s*[\[\]{"0-9-]')
_UNREADABLE = "\ufffd"  # what lenient_json puts in the place of what cannot be read
_CALLERS_MAPS = frozenset({"claims", "public_data", "private_data"})
PAGINATION: Final = "x-pagination"
_OK, _MULTIPLE_CHOICES, _BAD_REQUEST, _UNPROCESSABLE, _LAST = 200, 300, 400, 422, 600
_NO_STATUS = 1000

T_co = TypeVar("T_co", covariant=True)


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


# Operations are compared by identity.
class Operation(msgspec.Struct, Generic[T_co], frozen=True, kw_only=True, eq=False):
    """An idempotent request of the API, and how its response is read.

    Attributes:
        name: the API's name for the operation.
        method: the HTTP method.
        body: the JSON to send, or "" for none.
        max_body: the maximum number of bytes of a 200, decompressed.
    """

    name: str
    method: str
    body: str = ""
    max_body: int = MAX_USER

    @property
    def template(self) -> str:
        """The path as MonoCloud's documentation writes it, with `{user_id}` for the id."""
        raise NotImplementedError

    def path(self, target: str) -> str:
        """Return the path of the request for this target: a user id, or a query."""
        raise NotImplementedError

    def read(self, target: str, response: Response) -> T_co:
        """Return what the response has; raises `MonoCloudError` if it is not a success."""
        raise NotImplementedError

    def body_limit(self, status: int) -> int:
        """Return the maximum number of bytes to read of a response with this status."""
        return self.max_body if status == _OK else MAX_PROBLEM


class UserOperation(Operation[User], frozen=True, kw_only=True, eq=False):
    """An operation on one user, whose id is its target.

    Attributes:
        suffix: the path after `/api/users/{user_id}`.
    """

    suffix: str = ""
    variant: str = ""

    @property
    def template(self) -> str:
        """The path with `{user_id}` for the id."""
        return f"{_USERS_PATH}/{{user_id}}{self.suffix}"

    @property
    def endpoint(self) -> str:
        """The operation as MonoCloud's documentation writes it; journals store it."""
        return f"{self.method} {self.template}{self.variant}"

    def path(self, target: str) -> str:
        """Return the percent-encoded path for this user; the id is exactly one segment of it.

        Raises:
            InvalidUserIdError: the id cannot be one segment (see `check_user_id`).
        """
        return f"{_USERS_PATH}/{_segment(target)}{self.suffix}"

    def read(self, target: str, response: Response) -> User:
        """Return the user in the response; raises as `read_response` does."""
        body = response.body
        if response.status == _OK and len(body) <= MAX_USER:  # nearly every response is like this
            try:
                user = _user.decode(body)
            except _NOT_READ:
                pass
            else:
                if user.user_id == target:
                    return user
        return read_response(target, response.status, response.headers, body)


class ListOperation(Operation["UserPage"], frozen=True, kw_only=True, eq=False):
    """A page of a list of users; its target is the path of `list_path`.

    Attributes:
        collection: the path, with `{group_id}` for the id of a group.
    """

    collection: str = _USERS_PATH

    @property
    def template(self) -> str:
        """The path, with `{group_id}` for the id of a group."""
        return self.collection

    def path(self, target: str) -> str:
        """Return the target, which is a path."""
        return target

    def read(self, target: str, response: Response) -> "UserPage":
        """Return the page in the response; raises as `read_page` does."""
        del target
        return read_page(response)


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


Done = Literal["enabled", "disabled"]
DoneBefore = Literal["already_enabled", "already_disabled"]


class DoneCounts(msgspec.Struct, kw_only=True):
    """How many users an operation was done for: a field for each `Done`."""

    enabled: int = 0
    disabled: int = 0


class DoneBeforeCounts(DoneCounts, kw_only=True):
    """Also how many users it had been done for before: a field for each `DoneBefore`."""

    already_enabled: int = 0
    already_disabled: int = 0


class BulkOperation(UserOperation, frozen=True, kw_only=True, eq=False):
    """An operation that a run can do for many users, because it sets a state.

    Attributes:
        doing: what a run does to the users, for messages.
        done: the `Outcome.status` of a user for whom it is done.
        done_before: the `Outcome.status` of a user for whom it was done before the run.
        contradicted_by: returns whether the user in a successful response is in another state.
    """

    doing: str
    done: Done
    done_before: DoneBefore
    contradicted_by: Callable[[User], bool]


LIST_USERS: Final = ListOperation(name="list", method="GET", max_body=MAX_PAGE)
LIST_GROUP: Final = msgspec.structs.replace(LIST_USERS, collection=_GROUP_PATH)
GET_USER: Final = UserOperation(name="get", method="GET")
ENABLE: Final = BulkOperation(
    name="enable",
    method="POST",
    suffix="/enable",
    doing="enabling",
    done="enabled",
    done_before="already_enabled",
    contradicted_by=lambda user: user.disabled is True,
)
DISABLE: Final = BulkOperation(
    name="disable",
    method="POST",
    suffix="/disable",
    body='{"revoke_sessions":false}',
    doing="disabling",
    done="disabled",
    done_before="already_disabled",
    contradicted_by=lambda user: user.disabled is False,
)
# A journal of the one is not for the other, which would leave sessions open.
DISABLE_AND_REVOKE_SESSIONS: Final = msgspec.structs.replace(
    DISABLE, body='{"revoke_sessions":true}', variant=" with revoke_sessions"
)
# By the name that a fleet's messages have. A journal stores the `endpoint` of one of these.
BULK_OPERATIONS: Final[Mapping[str, BulkOperation]] = {
    "enable": ENABLE,
    "disable": DISABLE,
    "disable_and_revoke_sessions": DISABLE_AND_REVOKE_SESSIONS,
}


def bulk_operation(name: str) -> BulkOperation:
    """Return the operation of this name.

    Raises:
        ConfigurationError: there is none.
    """
    try:
        return BULK_OPERATIONS[name]
    except (KeyError, TypeError):  # a list is not even a possible name
        known = ", ".join(BULK_OPERATIONS)
        raise ConfigurationError(f"operation must be one of {known}, not {name!r}") from None


def check_user_id(user_id: str) -> None:
    """Raise `InvalidUserIdError` unless the id can be one path segment.

    Refused are other types, the empty string, control characters, lone surrogates, surrounding
    white space, and more than 1,024 bytes; and ids that a proxy or a server could decode into
    another path, to which a request with the admin key would go (docs/security.md).
    """
    if not isinstance(user_id, str):
        raise InvalidUserIdError(f"a user id is a str, not {type(user_id).__name__}")
    user_id = exact_id(user_id)
    if _is_plain(user_id):
        return
    problem = _id_problem(user_id)
    if problem:
        raise InvalidUserIdError(f"this id {problem}; nothing was sent", user_id=user_id[:80])


def list_path(
    number: int,
    size: int,
    *,
    query: str | None = None,
    sort: str | None = None,
    group: str | None = None,
) -> str:
    """Return the path of one page of a list of users.

    Args:
        number: the number of the page, from 1.
        size: the maximum number of users on a page.
        query: the API's `filter`.
        sort: the API's `sort`.
        group: the id of a group, for its members alone.

    Raises:
        InvalidUserIdError: the id of the group cannot be one segment of a path.
    """
    path = _USERS_PATH if group is None else _GROUP_PATH.format(group_id=_segment(group))
    parts = {"page": str(number), "size": str(size), "filter": query, "sort": sort}
    # Percent-encoded, also the space: a "+" is one only for some servers.
    pairs = (f"{name}={quote(text, safe='')}" for name, text in parts.items() if text is not None)
    return f"{path}?{'&'.join(pairs)}"


def _segment(user_id: str) -> str:
    """Return the id percent-encoded as one segment of a path."""
    if type(user_id) is str and _is_plain(user_id):
        return user_id
    check_user_id(user_id)
    return quote(exact_id(user_id), safe="")


def exact_id(user_id: str) -> str:
    """Return the id as an exact `str`; what is no string, unchanged.

    A subclass may hash, print or format as something else, as the members of an enum do.
    """
    if type(user_id) is str or not isinstance(user_id, str):
        return user_id
    return str.__str__(user_id)


def _is_plain(user_id: str) -> bool:
    """Return whether the id needs no encoding and no further check, as nearly all ids."""
    return user_id.isalnum() and user_id.isascii() and len(user_id) <= _MAX_ID_BYTES


def _id_problem(user_id: str) -> str | None:
    if not user_id:
        return "is empty"
    if _CONTROL.search(user_id):
        return "has control characters"
    if user_id != user_id.strip():
        return "has white space around it"
    try:
        length = len(user_id.encode())
    except UnicodeEncodeError:
        return "is not valid Unicode (a lone surrogate)"
    if length > _MAX_ID_BYTES:
        return f"is longer than {_MAX_ID_BYTES} bytes"
    return _path_problem(user_id) if _PATH_CHARACTER.search(user_id) else None


def _path_problem(user_id: str) -> str | None:
    """Return the problem of an id after a gateway has decoded it any number of times, or None."""
    decoded = _fully_decoded(user_id)
    if _OVERLONG.search(decoded):
        return "has an overlong encoding of a character in it"
    if len(_SEPARATOR.findall(decoded)) > len(_SEPARATOR.findall(user_id.encode())):
        return "has an encoded slash or backslash, which would address another path"
    parts = _segments(decoded)
    if not _DOTS.isdisjoint(parts):
        what = "is" if len(parts) == 1 else "has"
        return f"{what} a dot segment, which would address another path"
    if b"" in parts:
        return "has nothing before, after or between slashes, which would address another path"
    return "has encoded control characters" if _CONTROL_BYTE.search(decoded) else None


def leaves_folder(path: str) -> bool:
    """Return whether some proxy or server could resolve this path to one in another folder."""
    decoded = _fully_decoded(path)
    return (
        not _DOTS.isdisjoint(_segments(decoded))
        or _OVERLONG.search(decoded) is not None
        or _CONTROL_BYTE.search(decoded) is not None
    )


def _segments(decoded: bytes) -> list[bytes]:
    return [_PARAMETERS.sub(b"", part).strip() for part in _SEPARATOR.split(decoded)]


def _fully_decoded(text: str) -> bytes:
    """Return the text as it is after a gateway has decoded it any number of times."""
    decoded, encoded = text.encode(errors="surrogatepass"), b""
    while decoded != encoded:
        decoded, encoded = _ESCAPED.sub(_unescaped, decoded), decoded
    return decoded


def _unescaped(found: re.Match[bytes]) -> bytes:
    return bytes.fromhex(found[1].decode())


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


def _http_date(value: str) -> float | None:
    try:
        moment = parsedate_to_datetime(value)
        if moment.tzinfo is None:  # the asctime form has no zone, and is in UTC (RFC 9110)
            moment = moment.replace(tzinfo=UTC)
        return moment.timestamp()
    except (ValueError, OverflowError, IndexError, TypeError):
        return None


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
    return kind(status=status, user_id=user_id, problem=problem, retry_after=wait)


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
