"""What the control endpoints take and tell."""

import msgspec


class SandboxStats(msgspec.Struct, frozen=True, kw_only=True):
    """What the tenant has seen since it was made; the control endpoints are not counted."""

    requests: int
    """Requests received, each counted when it arrives."""
    by_status: dict[str, int]
    """Answers by status; `"none"` are requests that got no answer: reset, hung or given up."""
    in_flight: int
    """Requests being served now."""
    peak_in_flight: int
    """The most requests that were served at the same time."""
    connections: int
    """Connections accepted, those of the control endpoints included."""
    users: dict[str, int]
    """How many users are `"enabled"` and `"disabled"`."""


class SandboxUser(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `PUT /_sandbox/users/{id}` takes."""

    disabled: bool = True
    script: list[str | int] = []
