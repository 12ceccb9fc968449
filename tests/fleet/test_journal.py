"""The names of journals: which a run that begins may have, and which one that goes on."""

import pytest

from monocloud_async import ConfigurationError
from monocloud_async.fleet.journal import journal_name, name_in_folder


@pytest.mark.parametrize("name", ["名\u3000簿.journal", "my\u00a0ids.journal", "a b", "é" * 100])
def test_ordinary_names_are_taken(name: str) -> None:
    assert journal_name(name) == name_in_folder(name) == name


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("x" * 201, "is too long .* 200 bytes"),
        ("é" * 101, "is too long"),
        *(
            (f"j{end}", "has such a file beside it")
            for end in ("-wal", "-shm", "-lock", "-journal")
        ),
    ],
)
def test_a_name_that_only_an_earlier_run_may_have_is_refused_at_the_start(
    name: str, says: str
) -> None:
    assert name_in_folder(name) == name
    with pytest.raises(ConfigurationError, match=says):
        journal_name(name)


@pytest.mark.parametrize("name", ["a\nb", "a\0", "a\x9b", "a\udc80"])
def test_control_characters_are_refused_everywhere(name: str) -> None:
    for check in (journal_name, name_in_folder):
        with pytest.raises(ConfigurationError, match="control characters"):
            check(name)
