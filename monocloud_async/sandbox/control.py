"""The messages of the control endpoints."""

from typing import Any

import msgspec


class SandboxStats(msgspec.Struct, frozen=True, kw_only=True):
    """What the sandbox has received since it was created, without the control endpoints."""

    requests: int
    """Requests received, counted on arrival."""
    by_status: dict[str, int]
    """Responses by status; `"none"` counts requests without one: reset, hung or abandoned."""
    in_flight: int
    """Requests being served now."""
    peak_in_flight: int
    """The maximum of `in_flight` so far."""
    connections: int
    """Connections accepted, including those of the control endpoints."""
    users: dict[str, int]
    """How many users are `"enabled"` and `"disabled"`."""


class SandboxUser(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `PUT /_sandbox/users/{id}`."""

    disabled: bool = True
    script: list[str | int] = []
    members: dict[str, Any] = {}


class Disable(msgspec.Struct, frozen=True):
    """The body of a disable request."""

    revoke_sessions: bool = False
