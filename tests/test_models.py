import json

import msgspec
import pytest
import samples

from monocloud_async import User
from monocloud_async.response import read_response


def read(name: str) -> User:
    return read_response(samples.USER_ID, 200, {}, samples.body(name))


def test_the_documented_user_is_read_whole() -> None:
    user = read("user-documented.json")
    assert user.disabled is True
    assert user.idps[0].authenticator == "google"
    assert user.idps[0].claims["name"] == "John Doe"
    assert user.emails[0].idps == ["monocloud", "google"]
    assert user.phone_numbers[0].authenticators == ["password", "phone"]
    assert user.username is not None
    assert user.username.username == "username"
    assert user.passkeys[0].name == "IPhone 15 Pro Max"
    assert user.public_data["color_preference"] == {"dashboard": "monochrome"}
    assert (user.creation_time, user.has_password) == (1640975400, True)


def test_the_newest_user_is_read_whole() -> None:
    user = read("user-newest.json")
    assert user.disabled is False
    assert user.external_providers[0].provider == "corp-entra"
    assert user.emails[0].verification_source == "admin"
    assert user.phone_numbers[0].source == "custom_oidc"
    assert (user.username, user.block_until, user.idps) == (None, None, [])
    assert (user.last_known_country, user.sign_in_success_count) == ("GB", 11)


@pytest.mark.parametrize("name", ["user-documented.json", "user-newest.json"])
def test_no_member_of_a_sample_is_dropped(name: str) -> None:
    sent = json.loads(samples.body(name))
    kept = msgspec.to_builtins(read(name))
    for member, value in sent.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            assert value[0].items() <= kept[member][0].items()
        elif isinstance(value, dict):
            assert value.items() <= kept[member].items()
        else:
            assert kept[member] == value


COLLECTIONS: dict[str, object] = {
    "claims": {},
    "public_data": {},
    "private_data": {},
    "emails": [],
    "phone_numbers": [],
    "passkeys": [],
    "idps": [],
    "external_providers": [],
    "connections": [],
}


@pytest.mark.parametrize(("member", "empty"), COLLECTIONS.items())
def test_absent_and_null_collections_are_empty(member: str, empty: object) -> None:
    for body in (samples.user("u"), samples.user("u", **{member: None})):
        assert getattr(read_response("u", 200, {}, body), member) == empty


def test_absent_and_null_parts_of_parts_are_empty() -> None:
    body = samples.user(
        "u",
        emails=[{"idps": None}],
        phone_numbers=[{"authenticators": None}],
        username={"idps": None},
        idps=[{"claims": None}],
        external_providers=[{}],
        connections=[{"idp": "google", "connection_id": None}],
    )
    user = read_response("u", 200, {}, body)
    assert user.username is not None
    assert (user.emails[0].idps, user.phone_numbers[0].authenticators) == ([], [])
    assert (user.username.idps, user.idps[0].claims) == ([], {})
    assert user.external_providers[0].claims == {}
    assert user.connections[0].idp == "google"


def test_a_null_that_the_caller_keeps_is_his() -> None:
    """Nulls are removed from the members that MonoCloud defines, and from no others."""
    kept = {"a": None, "b": [None, {"c": None}]}
    body = samples.user("u", passkeys=None, claims=kept, idps=[{"claims": kept}], new={"d": None})
    user = read_response("u", 200, {}, body)
    assert (user.passkeys, user.claims, user.idps[0].claims) == ([], kept, kept)


def test_unknown_members_and_words_are_fine() -> None:
    body = samples.user("u", brand_new={"a": [1]}, emails=[{"source": "telepathy", "new": 1}])
    assert read_response("u", 200, {}, body).emails[0].source == "telepathy"


def test_only_the_id_is_required() -> None:
    assert read_response("u", 200, {}, b'{"user_id":"u"}') == User(user_id="u")
