"""Resolves e-mail addresses to user ids, over the list of all users."""

from itertools import islice
from typing import Final

from monocloud_async.cli import loop, streams
from monocloud_async.cli.access import Access
from monocloud_async.cli.display import say
from monocloud_async.cli.list_display import shown
from monocloud_async.cli.users import addresses_of, folded
from monocloud_async.errors import ConfigurationError
from monocloud_async.inputs import By
from monocloud_async.inputs.ids import EMAIL_IN_PLACE, is_column_name
from monocloud_async.inputs.lines import Line
from monocloud_async.inputs.reader import IdReader
from monocloud_async.sanitize import clean

_SAMPLE: Final = 100  # lines


def refuse_addresses(reader: IdReader) -> None:
    """Check that the ids of a file are not e-mail addresses.

    Raises:
        ConfigurationError: all of the first lines have one, under their header if there is one.
    """
    if reader.by is By.EMAIL:
        return
    sample = list(islice(reader.lines_again() or (), _SAMPLE))
    if sample and is_column_name(sample[0].user_id or sample[0].text.strip(), By.EMAIL):
        del sample[0]
    if sample and all(line.problem == EMAIL_IN_PLACE for line in sample):
        raise ConfigurationError(
            f"{reader.name} has e-mail addresses, not user ids: add --by email, which looks the"
            " users up. Nothing was sent"
        )


def resolve(access: Access, reader: IdReader) -> None:
    """Let the reader return the users who have the e-mail addresses of its lines.

    A line whose address nobody has, or several users have, becomes a bad line.

    Raises:
        ConfigurationError: the input can be read only once.
        Exit: the list of users could not be read.
    """
    addresses = reader.reread()
    if addresses is None:
        raise ConfigurationError("--by email needs a file, which is read twice, and not a pipe")
    found: dict[str, list[str]] = {folded(address): [] for address in addresses}
    err = streams.err()
    say(err, f"Looking up {len(found):,} e-mail addresses on {access.tenant}")

    async def read() -> None:
        async with access.session() as session:
            users = session.list_users()
            async with shown(err, users, session.pace):
                async for user in users:
                    for address in addresses_of(user) & found.keys():
                        found[address].append(user.user_id)

    loop.ask_tenant(read(), err)

    def resolved(line: Line) -> Line:
        if line.user_id is None:
            return line
        users = found.get(folded(line.user_id), [])
        if len(users) == 1:
            return line._replace(user_id=users[0])
        several = "several users have: " + ", ".join(map(clean, users[:3]))
        what = "no user has" if not users else several
        problem = f"has the e-mail address {clean(line.user_id)}, which {what}"
        return line._replace(user_id=None, problem=problem)

    reader.resolve = resolved
    reader.if_changed = (
        "an e-mail address may have got or lost its user since: start a new journal with --journal"
        " FILE, and add --check to leave out who is enabled already"
    )
