"""A MonoCloud user, as any version of the API sends it.

Only `user_id` is common to all known servers.
A member that is absent, null or of another type than here (see `endpoint`) becomes None, or an
empty list or map, so loops need no check. A wrong type is not an error: the user is enabled.
Unknown members are ignored, and enumerations are plain strings.
Times are seconds since 1970.
"""

from typing import Any

from msgspec import Struct, field


class UserIdp(Struct, frozen=True, kw_only=True):
    """An external identity of the user, as MonoCloud's documentation has it (`User.idps`)."""

    authenticator: str | None = None
    provider_user_id: str | None = None
    claims: dict[str, Any] = field(default_factory=dict)


class UserExternalProvider(Struct, frozen=True, kw_only=True):
    """An external identity of the user, as servers send it since 2025."""

    authenticator: str | None = None
    provider: str | None = None
    provider_user_id: str | None = None
    claims: dict[str, Any] = field(default_factory=dict)


class UserConnection(Struct, frozen=True, kw_only=True):
    """A connection of the user to an identity provider (servers of 2025; no longer sent)."""

    idp: str | None = None
    connection_id: str | None = None


class UserEmail(Struct, frozen=True, kw_only=True):
    """One e-mail address of the user."""

    id: str | None = None
    email: str | None = None
    primary: bool | None = None
    verified: bool | None = None
    idps: list[str] = field(default_factory=list)
    authenticators: list[str] = field(default_factory=list)
    source: str | None = None
    verification_source: str | None = None


class UserPhone(Struct, frozen=True, kw_only=True):
    """One phone number of the user."""

    id: str | None = None
    phone: str | None = None
    primary: bool | None = None
    verified: bool | None = None
    idps: list[str] = field(default_factory=list)
    authenticators: list[str] = field(default_factory=list)
    source: str | None = None
    verification_source: str | None = None


class UserUsername(Struct, frozen=True, kw_only=True):
    """The name that the user signs in with."""

    id: str | None = None
    username: str | None = None
    idps: list[str] = field(default_factory=list)
    authenticators: list[str] = field(default_factory=list)
    source: str | None = None


class UserPasskey(Struct, frozen=True, kw_only=True):
    """One passkey of the user."""

    passkey_id: str | None = None
    name: str | None = None
    public_key: str | None = None
    aa_guid: str | None = None
    user_agent: str | None = None
    user_present: bool | None = None
    user_verified: bool | None = None
    backup_eligibility: bool | None = None
    backup_state: bool | None = None


class User(Struct, frozen=True, kw_only=True):
    """The user in the tenant's response.

    `disabled` is set by an administrator, and enabling a user clears it. The value is shown as
    received: MonoCloud's own example of a successful enable says `true`.
    It is not the lockout after failed sign-ins (`block_until`), which another endpoint ends.
    In a list of users, `public_data`, `private_data` and the claims of providers are empty.
    """

    user_id: str
    disabled: bool | None = None
    claims: dict[str, Any] = field(default_factory=dict)
    public_data: dict[str, Any] = field(default_factory=dict)
    private_data: dict[str, Any] = field(default_factory=dict)
    emails: list[UserEmail] = field(default_factory=list)
    phone_numbers: list[UserPhone] = field(default_factory=list)
    username: UserUsername | None = None
    passkeys: list[UserPasskey] = field(default_factory=list)
    idps: list[UserIdp] = field(default_factory=list)
    external_providers: list[UserExternalProvider] = field(default_factory=list)
    connections: list[UserConnection] = field(default_factory=list)
    creation_time: int | None = None
    last_updated: int | None = None
    has_password: bool | None = None
    password_updated_at: int | None = None
    force_password_reset: bool | None = None
    block_until: int | None = None
    failure_count: int | None = None
    sign_in_attempts_count: int | None = None
    sign_in_success_count: int | None = None
    last_sign_in_attempt: int | None = None
    last_sign_in_attempt_ip: str | None = None
    last_sign_in_success: int | None = None
    last_sign_in_success_ip: str | None = None
    last_activity: int | None = None
    last_known_city: str | None = None
    last_known_country: str | None = None
    last_known_region: str | None = None


class ProblemDetails(Struct, frozen=True, kw_only=True):
    """Why the tenant refused a request (RFC 9457, `application/problem+json`).

    Strings are cut to 500 characters and have no control characters, as they end up in terminals
    and logs. `trace_id` is the id that MonoCloud's support asks for, in any of its spellings.
    """

    type: str | None = None
    title: str | None = None
    status: int | None = None
    detail: str | None = None
    instance: str | None = None
    trace_id: str | None = None
    error_code: str | None = None
