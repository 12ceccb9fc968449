"""The id in a cell: cleaned where it can only mean one id, refused with the reason else."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from monocloud_async.inputs import By
from monocloud_async.inputs.ids import NotAnIdError, columns_of_ids, find, is_column_name, plain_id

ID = "UOtBaOybB6dTpIJNrnkRw"


@pytest.mark.parametrize(
    "text",
    [
        f"  {ID}\t\r\n",
        f"\u00a0{ID}\u3000",
        *(f"{mark}{ID}{mark}" for mark in "\u200b\ufeff\u2060\u00ad\u200e\u202a"),
        f'="{ID}"',
        f"'{ID}",
        f"'{ID}'",
        f'"{ID}"',
        f"`{ID}`",
        f"<{ID}>",
        f"\u201c{ID}\u201d",
        f"\u201e{ID}\u201c",
        f"\u2018{ID}\u2019",
        f'=" {ID} "',
    ],
)
def test_what_programs_put_around_an_id_is_removed(text: str) -> None:
    assert find(text) == ID


@pytest.mark.parametrize(
    ("by", "names"),
    [
        (By.ID, "User\u00a0ID; user\u200b_id; \ufeffid"),
        (By.ID, "user_id; userId; User ID; ID; Benutzer-ID; ID utilisateur; id_usuario"),
        (By.EMAIL, "email; E-Mail; E-mail Address; Email Address [Required]; mail; primaryEmail"),
        (By.EMAIL, "Primary email; E-Mail-Adresse; Mailadresse; Adresse e-mail; Courriel"),
        (By.EMAIL, "Adresse de messagerie; Correo electrónico; Dirección de correo electrónico"),
    ],
)
def test_columns_are_known_by_the_names_that_exports_give_them(by: By, names: str) -> None:
    assert [name for name in names.split("; ") if not is_column_name(name, by)] == []


@pytest.mark.parametrize(
    ("by", "names"),
    [
        (By.ID, "objectId; uid; sub; login; username; external_id; client id; Kennung; email"),
        (By.EMAIL, "emails; Recovery Email; secondEmail; alternateEmailAddress; email_verified"),
        (By.EMAIL, "userPrincipalName; login; username; Email domain; New Primary Email; id"),
    ],
)
def test_a_column_whose_name_may_mean_something_else_is_not_guessed(by: By, names: str) -> None:
    assert [name for name in names.split("; ") if is_column_name(name, by)] == []


@pytest.mark.parametrize(
    ("by", "names", "found"),
    [
        (By.EMAIL, ["name", "Primary Email", "email"], ["email"]),
        (By.EMAIL, ["email", "Mail"], ["email", "Mail"]),
        (By.EMAIL, ["Courriel", "Primary email"], ["Courriel", "Primary email"]),
        (By.ID, ["id", "Benutzer-ID"], ["id"]),
        (By.ID, ["Benutzer-ID", "email"], ["Benutzer-ID"]),
    ],
)
def test_a_name_of_another_system_counts_only_where_there_is_no_plain_one(
    by: By, names: list[str], found: list[str]
) -> None:
    assert columns_of_ids(names, by) == found


@pytest.mark.parametrize("user_id", ["ada", "-ada", "a.b", "a:b", "Ω", "ada@acme", "+1", "auth0:7"])
def test_an_id_is_itself(user_id: str) -> None:
    assert find(user_id) == user_id


@example("-----------------\n")
@example("id-utilisateur\n")
@given(st.from_regex(r"[A-Za-z0-9_.+-]{10,20}(\r\n|\n|\r| )?", fullmatch=True))
def test_a_plain_line_is_the_id_that_is_found_in_it(line: str) -> None:
    user_id = plain_id(line)
    assert user_id is None or user_id == find(line)


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\r"])
def test_ids_as_they_mostly_are_make_plain_lines(end: str) -> None:
    assert plain_id(ID + end) == ID


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is empty"),
        ("..", "nothing was sent"),
        ("a\x00b", "control characters"),
        ("ada@acme.example", "e-mail address"),
        ("<ada@acme.example>", "e-mail address"),
        ("# two VIPs", "begins with #"),
        ("#REF!", "begins with #, as a comment or an error of a spreadsheet"),
        ("Err:502", "an error of a spreadsheet"),
        ("TRUE", "a boolean, in place of an id"),
        ("NULL", "stands for no value"),
        ("n/a", "stands for no value"),
        ("User ID", "the name of a column"),
        ("1.23457E+15", "a spreadsheet has rounded"),
        ("1,2E+4", "a spreadsheet has rounded"),
        ("1.23457e+15", "a spreadsheet has rounded"),
        ("ada\u2019", "a quote in the id"),
        ("ada bob", "white space"),
        ("ada\u00a0bob", "white space"),
        ("ada\nbob", "line break"),
        ("ada\u200bbob", r"invisible character U+200B"),
        ("ada,bob", "a comma in the id"),
        ("ada;bob", "a semicolon in the id"),
        ('ada"', "a quote in the id"),
        ("ad\udce4", "not UTF-8"),
        ("\ufffd", "not UTF-8"),
        ("x" * 1025, "longer than 1024 bytes"),
    ],
)
def test_what_is_no_id_is_told_with_the_reason(text: str, problem: str) -> None:
    with pytest.raises(NotAnIdError) as caught:
        find(text)
    assert problem in str(caught.value)
