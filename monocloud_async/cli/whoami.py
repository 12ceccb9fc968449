"""Implements `whoami`: tells which tenant and which key a command would use, and tries them."""

from pathlib import Path

from monocloud_async.cli import loop, streams
from monocloud_async.cli.access import Access
from monocloud_async.cli.display import say
from monocloud_async.cli.exit_codes import ALL_DONE
from monocloud_async.config import API_KEY
from monocloud_async.retry import RetryPolicy


def show_tenant(access: Access, api_key_file: Path | None) -> int:
    """Print the tenant, the origin of the key, and whether it works; return the exit code.

    Raises:
        Exit: the key is refused, or the tenant does not answer.
        ConfigurationError: the options cannot be used.
    """
    access.check()
    out, err = streams.out(), streams.err()
    origin = f"the variable {API_KEY}" if api_key_file is None else f"the file {api_key_file}"
    say(out, f"Tenant: {access.tenant}")
    say(out, f"API key: from {origin}")

    async def ask() -> None:
        async with access.session() as session:
            retry = RetryPolicy(attempts=access.attempts)  # a person waits, so without patience
            async for _ in session.list_users(retry=retry):
                break

    loop.ask_tenant(ask(), err)
    say(out, "The key works: it may read users")
    return ALL_DONE
