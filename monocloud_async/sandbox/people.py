"""Generates plausible data for a user; the same id always gives the same data."""

from __future__ import annotations

import functools
import unicodedata
import uuid
import zlib
from base64 import b64encode
from random import Random
from typing import Any

GIVEN_NAMES = """
    Adaeze Ahmed Amélie Ana Anders Aoife Bilal Björn Chloé Daniel Elif Fatima Grace Hiroshi Ines
    Ivan João John José Kavya Lena Liam Lucía Mateo Mei Nadia Noor Olga Priya Renée Sam Zoë
""".split()  # noqa: SIM905 - a list, one name a line, would fill two pages
FAMILY_NAMES = """
    Andersson Bauer Costa Demir Dubois Fernández García Haddad Ito Ivanova Jansen Khan Kowalska
    Kumar Lim Müller Nguyen O'Brien Okafor Patel Peña Rossi Silva Smith Tanaka Williams Öztürk
""".split()  # noqa: SIM905 - a list, one name a line, would fill two pages
COUNTRIES = ("BR", "DE", "ES", "FR", "GB", "IN", "JP", "NG", "SE", "TR", "US", None)
PROVIDERS = (("google", "google"), ("github", "github"), ("entra_oidc", "corp-entra"))
YEAR_2020, YEAR_2025, LATE_2025 = 1_577_836_800, 1_735_689_600, 1_761_696_000
DOCUMENTED_ERA = 0.1  # share of users in the format of MonoCloud's documentation


def person(user_id: str) -> dict[str, Any]:
    """Return the JSON of a disabled user; everything is derived from the id.

    So the data is not stored, and ten million users need only one short row each.
    Phone numbers and IP addresses are from ranges reserved for fiction and documentation.
    """
    rng = Random(user_id)  # noqa: S311 - repeatable, and not a secret
    given, family = rng.choice(GIVEN_NAMES), rng.choice(FAMILY_NAMES)
    handle = f"{_ascii(given)}.{_ascii(family)}{rng.randrange(10_000)}"
    created, updated = times(user_id)
    shape = _documented if _chance(rng, DOCUMENTED_ERA) else _newest
    return {
        "user_id": user_id,
        "disabled": True,
        "claims": {"name": f"{given} {family}", "given_name": given, "family_name": family},
        "public_data": {"send_emails": _chance(rng, 0.5)} if _chance(rng, 0.3) else {},
        "private_data": {"subscription_plan": "premium"} if _chance(rng, 0.2) else {},
        "creation_time": created,
        "last_updated": updated,
        "has_password": (has_password := _chance(rng, 0.8)),
        "password_updated_at": rng.randrange(created, updated + 1) if has_password else None,
        "passkeys": [_passkey(rng)] if _chance(rng, 0.2) else [],
        **shape(rng, handle=handle, created=created),
    }


def times(user_id: str) -> tuple[int, int]:
    """Return when the user was created and last updated; quicker than the whole person."""
    number = zlib.crc32(user_id.encode(errors="replace"))
    created = YEAR_2020 + number % (YEAR_2025 - YEAR_2020)
    return created, created + number // 7 % (LATE_2025 - created)


def _newest(rng: Random, *, handle: str, created: int) -> dict[str, Any]:
    email = f"{handle}@example.com"
    provider = rng.choice(PROVIDERS) if _chance(rng, 0.3) else None
    attempts = rng.randrange(1, 500)
    seen = rng.randrange(created, LATE_2025)
    address = f"203.0.113.{rng.randrange(1, 255)}"
    verified = {"primary": True, "verified": True, "source": None, "verification_source": "email"}
    unverified = verified | {"verified": False, "verification_source": None}
    return {
        "emails": [{"id": _uuid(rng), **verified, "email": email}],
        "phone_numbers": (
            [{"id": _uuid(rng), **unverified, "phone": _phone(rng)}] if _chance(rng, 0.5) else []
        ),
        "username": (
            {"id": _uuid(rng), "source": None, "username": handle} if _chance(rng, 0.4) else None
        ),
        "force_password_reset": _chance(rng, 0.05),
        "external_providers": [
            {
                "authenticator": authenticator,
                "provider": name,
                "provider_user_id": _uuid(rng),
                "claims": {"email": email},
            }
            for authenticator, name in filter(None, [provider])
        ],
        "block_until": None,
        "failure_count": rng.choice((0, 0, 0, 1, 3)),
        "sign_in_attempts_count": attempts,
        "last_sign_in_attempt": seen,
        "last_sign_in_attempt_ip": address,
        "sign_in_success_count": rng.randrange(attempts),
        "last_sign_in_success": seen,
        "last_sign_in_success_ip": address,
        "last_activity": seen + rng.randrange(3600),
        "last_known_city": None,
        "last_known_country": rng.choice(COUNTRIES),
        "last_known_region": None,
    }


def _documented(rng: Random, *, handle: str, created: int) -> dict[str, Any]:
    email = f"{handle}@example.org"
    idps = ["monocloud", "google"]
    contact = {"verified": True, "primary": True, "idps": idps}
    return {
        "emails": [
            {"id": _uuid(rng), **contact, "authenticators": ["password", "email"], "email": email}
        ],
        "phone_numbers": [
            {"id": _uuid(rng), **contact, "authenticators": ["phone"], "phone": _phone(rng)}
        ],
        "username": {
            "id": _uuid(rng),
            "authenticators": ["password"],
            "idps": idps,
            "username": f"{handle}.{created % 1000}",
        },
        "idps": [
            {
                "authenticator": "google",
                "provider_user_id": _uuid(rng),
                "claims": {"email": email, "email_verified": "true"},
            }
        ],
    }


def _passkey(rng: Random) -> dict[str, Any]:
    return {
        "passkey_id": b64encode(rng.randbytes(32), altchars=b"-_").decode().rstrip("="),
        "name": rng.choice(("iPhone 15 Pro Max", "Pixel 9", "YubiKey 5C", "MacBook Air")),
        "public_key": b64encode(rng.randbytes(91)).decode(),
        "aa_guid": _uuid(rng),
        "backup_eligibility": True,
        "backup_state": True,
        "user_present": True,
        "user_verified": True,
        "user_agent": "Mozilla/5.0 (Macintosh; Intel Mac OS X 10.15; rv:127.0) Firefox/127.0",
    }


def _chance(rng: Random, share: float) -> bool:
    return rng.random() < share


def _phone(rng: Random) -> str:
    return f"+441514960{rng.randrange(1000):03}"


def _uuid(rng: Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


@functools.cache
def _ascii(name: str) -> str:
    """Return the name in lower-case ASCII, as in a mailbox: é is e, and O'Brien is obrien."""
    folded = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return folded.replace("'", "")
