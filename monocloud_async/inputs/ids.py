"""Finds the user id in a cell of a table, a line of text, or a JSON string.

People's files hold ids as spreadsheets, databases and mail programs write them. What can only mean
one id is cleaned; what may mean another one, or none, is a problem with a reason. An SDK call takes
an id as it is (`check_user_id`); this module is stricter, because nobody sees each line of a file.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from monocloud_async.errors import InvalidUserIdError
from monocloud_async.inputs import By
from monocloud_async.user_id import check_user_id

# Names of columns and members, in lower case and without "_", "-" and spaces: the first ones, and
# those that other directories (Auth0, Okta, Entra ID, Google Workspace) and Outlook use in English,
# German, French and Spanish. None of them may also mean something else, such as a login or the id
# of another system; "emails" is a list in MonoCloud's own JSON.
_NAMES: Final = {By.ID: {"userid", "id"}, By.EMAIL: {"email", "emailaddress", "mail"}}
_OTHER_NAMES: Final = {
    By.ID: {"benutzerid", "idutilisateur", "idusuario"},
    By.EMAIL: {
        *("primaryemail", "emailaddress[required]", "emailadresse", "mailadresse"),
        *("adresseemail", "adressemail", "adressedemessagerie", "courriel"),
        *("correoelectrónico", "correoelectronico"),
        *("direccióndecorreoelectrónico", "direcciondecorreoelectronico"),
    },
}
# How messages list them.
LISTED: Final = {By.ID: "user_id or id", By.EMAIL: "email"}

_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]{1,1024}")
# White space, and characters without width (Unicode's category Cf), as copied from web pages.
_INVISIBLE: Final = (
    r"\s\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff"
)
_AROUND: Final = re.compile(rf"\A[{_INVISIBLE}]+|[{_INVISIBLE}]+\Z")
_HIDDEN: Final = re.compile(rf"[{_INVISIBLE}]")
_CURLY: Final = "\u2018\u2019\u201a\u201c\u201d\u201e"  # quotes of word processors and chats
# How programs mark a cell as text, or quote a word: ="x", 'x, 'x', "x", `x`, <x>.
_MARKED: Final = re.compile(
    rf"""="(.*)"|'(.*?)'?|"(.*)"|`(.*)`|<(.*)>|[{_CURLY}](.*)[{_CURLY}]""", re.DOTALL
)
_EMAIL: Final = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
_ROUNDED: Final = re.compile(r"-?[0-9](?:[.,][0-9]+)?[Ee][+-][0-9]+")
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} .*")
_ERROR: Final = re.compile(r"Err:[0-9]{3}")  # of LibreOffice
_RULE: Final = re.compile(r"[-=+_|:*~]+")
_NO_VALUE: Final = {"null", "(null)", "<null>", "none", "nil", "nan", "n/a", "undefined"}
_BOOLEANS: Final = {"true", "false"}
_LONGEST_WORD: Final = 14  # characters of a word for no value, or of a column's name
_PLAIN_LINE: Final = re.compile(
    rf"([A-Za-z0-9][A-Za-z0-9_-]{{{_LONGEST_WORD},1000}})(?:\r\n|\n|\r)?"
)
_QUOTES: Final = f"\"'`{_CURLY}"
_STRANGE: Final = re.compile(rf"[{_QUOTES},;|<>{{}}\[\]\ufffd\ud800-\udfff]")
_NAMED: Final = {",": "a comma", ";": "a semicolon", "|": "a bar"}


EMAIL_IN_PLACE: Final = (
    "has an e-mail address in place of an id (the user_id of the dashboard or of GET /users);"
    " --by email looks the users up"
)


class NotAnIdError(Exception):
    """The text is not exactly one id; the message says why, to follow "line 3 "."""


@lru_cache(1024)
def is_column_name(text: str, by: By = By.ID) -> bool:
    """Return whether a column of this name holds user ids: "user_id", "User ID", "id"."""
    return normalized(text) in _NAMES[by] | _OTHER_NAMES[by]


def columns_of_ids(names: Iterable[str], by: By) -> list[str]:
    """Return the names of the columns, or members, that hold user ids.

    Another system's name counts only if there is none of the first ones.
    """
    found = [name for name in names if is_column_name(name, by)]
    return [name for name in found if normalized(name) in _NAMES[by]] or found


def normalized(name: str) -> str:
    """Return the name of a column or member in lower case, without "_", "-" and white space."""
    return re.sub(rf"[_\-{_INVISIBLE}]", "", name.lower())


def shown_name(name: str) -> str:
    """Return the name of a column as people see it: with plain spaces, and nothing invisible."""
    return " ".join(re.sub(rf"(?!\s)[{_INVISIBLE}]", "", name).split())


def strip(text: str) -> str:
    """Return the text without white space and invisible characters around it."""
    return _AROUND.sub("", text)


def plain_id(line: str) -> str | None:
    """Return what `find` returns, if the line is an id as they mostly are; this is only for speed.

    Such an id is longer than any name of a column and any word for no value.
    """
    found = _PLAIN_LINE.fullmatch(line)
    return found and found[1]


def find(text: str, by: By = By.ID) -> str:
    """Return the id in this text, or with `By.EMAIL` the e-mail address.

    Raises:
        NotAnIdError: the text is not exactly one of these.
    """
    return _find_id(text) if by is By.ID else _find_email(text)


def _find_id(text: str) -> str:
    text = text.strip()
    if _PLAIN.fullmatch(text):
        if len(text) > _LONGEST_WORD and text[0] not in "-_":
            return text
    else:
        text = _unmarked(text)
    if _RULE.fullmatch(text):
        raise NotAnIdError("is a ruled line between rows, not an id")
    if text.lower() in _NO_VALUE:
        raise NotAnIdError(f"has {text}, which stands for no value, in place of an id")
    if text.lower() in _BOOLEANS:
        raise NotAnIdError(f"has {text}, which is a boolean, in place of an id")
    if is_column_name(text):
        raise NotAnIdError(f"has {text!r} in place of an id, which is the name of a column")
    if _PLAIN.fullmatch(text):
        return text
    if problem := _problem(text):
        raise NotAnIdError(problem)
    try:
        check_user_id(text)
    except InvalidUserIdError as error:
        raise NotAnIdError(str(error.args[0])) from None
    return text


def _find_email(text: str) -> str:
    text = _unmarked(text).removeprefix("mailto:")
    if not _EMAIL.fullmatch(text) or _STRANGE.search(text) or _HIDDEN.search(text):
        raise NotAnIdError("has no single e-mail address")
    return text


def _unmarked(text: str) -> str:
    """Return the text without what programs put around it."""
    text = strip(text)
    if marked := _MARKED.fullmatch(text):
        return strip(next(inner for inner in marked.groups() if inner is not None))
    return text


def _problem(text: str) -> str | None:
    """Return why a text that is more than letters and digits is no id, as far as that is known."""
    if _EMAIL.fullmatch(text):
        return EMAIL_IN_PLACE
    if text.startswith("#"):
        return "begins with #, as a comment or an error of a spreadsheet does"
    if _ERROR.fullmatch(text):
        return "has an error of a spreadsheet in place of an id"
    if _ROUNDED.fullmatch(text):
        return "has a number that a spreadsheet has rounded; format the column as text"
    if _DATE.fullmatch(text):
        return "has a date, as a spreadsheet makes of some texts; format the column as text"
    found = _HIDDEN.search(text) or _STRANGE.search(text)
    return found and _described(found[0])


def _described(character: str) -> str:
    """Return the problem with this character in an id."""
    if character in "\r\n":
        return "has an id with a line break in it; look for a stray quote"
    if character in " \t\u00a0":
        return "has white space in the id; an id has none"
    if _HIDDEN.match(character):
        return f"has the invisible character U+{ord(character):04X} in the id"
    if character > "\x7f" and character not in _QUOTES:
        return "is not UTF-8 where the id is; save the file as CSV UTF-8"
    what = _NAMED.get(character, "a quote" if character in _QUOTES else character)
    return f"has {what} in the id; if the file is a table, use --format csv and --column"
