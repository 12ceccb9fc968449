"""Implements `users`: finds users by their state, time of change or e-mail address."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rich.console import Console

from monocloud_async.cli import loop, streams
from monocloud_async.cli.access import Access
from monocloud_async.cli.display import counted, say
from monocloud_async.cli.exit_codes import ALL_DONE, SOME_FAILED
from monocloud_async.cli.list_display import shown
from monocloud_async.cli.options import TableFormat
from monocloud_async.cli.tables import Cell, Row, open_table
from monocloud_async.cli.times import iso
from monocloud_async.errors import ConfigurationError
from monocloud_async.inputs import By
from monocloud_async.inputs.reader import open_ids
from monocloud_async.models import User
from monocloud_async.sanitize import clean

COLUMNS: Final = (
    *("user_id", "disabled", "email", "username", "name"),
    *("last_updated", "last_sign_in", "block_until"),
)
_SHOWN: Final = 10  # e-mail addresses and bad lines that are listed one by one


@dataclass(kw_only=True)
class Selection:
    """Which users of a list are wanted; None means: whatever it is.

    Attributes:
        disabled: whether the user is disabled.
        after: changed at this time or later, in seconds since 1970.
        before: changed before this time.
        emails: how many users have each of these addresses, as `folded` returns them.
        undecided: users who were left out, because the list does not have what decides.
        twins: users who were left out, because each of their addresses is also another user's.
        unsaid: users who were left out, because a file cannot say their ids.
    """

    disabled: bool | None = None
    after: float | None = None
    before: float | None = None
    emails: Counter[str] | None = None
    undecided: int = field(default=0, init=False)
    twins: int = field(default=0, init=False)
    unsaid: int = field(default=0, init=False)

    def has(self, user: User) -> bool:
        """Return whether the user is wanted, unless another user has the same address."""
        if self.emails is not None:
            addresses = self.addresses(user)
            self.emails.update(addresses)
            if not addresses:
                return False
        if (self.disabled is not None and user.disabled is None) or (
            (self.after, self.before) != (None, None) and user.last_updated is None
        ):
            self.undecided += 1
            return False
        changed = user.last_updated or 0
        return (
            (self.disabled is None or user.disabled is self.disabled)
            and (self.after is None or changed >= self.after)
            and (self.before is None or changed < self.before)
        )

    def addresses(self, user: User) -> set[str]:
        """Return those addresses of the user that are wanted."""
        return addresses_of(user) & (self.emails or {}).keys()

    def is_only_user(self, addresses: set[str]) -> bool:
        """Return whether nobody else has one of these addresses; known at the end of the list."""
        return self.emails is None or any(self.emails[address] == 1 for address in addresses)


def folded(address: str) -> str:
    """Return the address in the form in which addresses are compared."""
    return address.strip().lower()  # `casefold` takes ß for ss: another address


def addresses_of(user: User) -> set[str]:
    """Return all e-mail addresses of the user, folded."""
    return {folded(each.email) for each in user.emails if each.email}


def read_emails(path: Path) -> tuple[Counter[str], int]:
    """Return the addresses of a file, each with a count of 0, and how many lines have none.

    Raises:
        ConfigurationError: the file cannot be read, or has no address at all.
    """
    emails, bad = Counter[str](), 0
    with open_ids(path, None, None, by=By.EMAIL) as reader:
        for line in reader:
            if line.user_id is None:
                bad += 1
            else:
                emails[folded(line.user_id)] = 0
        for note in reader.notes:
            say(streams.err(), note)
        if not emails:
            lines = f"; {counted(bad, 'line')} without one" if bad else ""
            raise ConfigurationError(f"there are no e-mail addresses in {reader.name}{lines}")
    return emails, bad


def write_users(
    access: Access,
    selection: Selection,
    *,
    query: str | None,
    group: str | None,
    output: Path | None,
    form: TableFormat,
    bad_lines: int = 0,
) -> int:
    """Write the selected users, print how many there are, and return the exit code."""
    access.check()
    if (selection.before or float("inf")) <= (selection.after or 0):
        raise ConfigurationError("--changed-after is not before --changed-before")
    err = streams.err()

    async def find(row: Row) -> None:
        held: list[tuple[set[str], tuple[Cell, ...]]] = []
        found = 0

        def add(row_cells: tuple[Cell, ...]) -> None:
            nonlocal found
            is_added = row(row_cells)
            found += is_added
            selection.unsaid += not is_added

        async with access.session() as session:
            listed = session.list_users(filter=query, group=group)
            say(err, f"Reading the users of {access.tenant}")
            async with shown(err, listed, session.pace):
                async for user in listed:
                    if not selection.has(user):
                        continue
                    if selection.emails is None:
                        add(cells(user))
                    else:  # a later user may have the same address
                        held.append((selection.addresses(user), cells(user)))
            for addresses, row_cells in held:
                if selection.is_only_user(addresses):
                    add(row_cells)
                else:
                    selection.twins += 1
            again = f"; {listed.repeated:,} came twice, as pages shifted" if listed.repeated else ""
            where = "" if output is None else f", in {output}"
            say(err, f"{found:,} of {listed.returned:,} users{where}{again}")

    with open_table(output, form, COLUMNS) as row:
        loop.ask_tenant(find(row), err)
    is_sure = _tell_doubts(err, selection, bad_lines)
    return ALL_DONE if is_sure else SOME_FAILED


def _tell_doubts(err: Console, selection: Selection, bad_lines: int) -> bool:
    """Print who may be missing; return whether nobody is."""
    if selection.undecided:
        say(
            err,
            f"{selection.undecided:,} users were left out, because the list does not say when they"
            " changed or whether they are disabled",
        )
    if selection.unsaid:
        say(
            err,
            f"{counted(selection.unsaid, 'user')} left out, because a file cannot say"
            f" {'the id' if selection.unsaid == 1 else 'their ids'}",
        )
    if selection.twins:
        say(
            err,
            f"{counted(selection.twins, 'user')} left out, because several users have the same"
            " address: bulk would enable all of them",
        )
    counts = selection.emails or Counter[str]()
    if bad_lines:
        say(err, f"{bad_lines:,} lines without an e-mail address")
    nobodys = [address for address, count in counts.items() if not count]
    shared = [address for address, count in counts.items() if count > 1]
    for addresses, what in ((nobodys, "no user has"), (shared, "several users have")):
        for address in addresses[:_SHOWN]:
            say(err, f"{what} {clean(address)}")
        if len(addresses) > _SHOWN:
            say(err, f"... {what} {len(addresses):,} of the addresses")
    left_out = selection.undecided or selection.twins or selection.unsaid
    return not (left_out or bad_lines or nobodys or shared)


def cells(user: User) -> tuple[Cell, ...]:
    """Return the row of the user, in the order of `COLUMNS`."""
    emails = [each for each in user.emails if each.email]
    email = next((each.email for each in emails if each.primary), None)
    return (
        user.user_id,
        user.disabled,
        email or (emails[0].email if emails else None),
        user.username.username if user.username else None,
        _name(user),
        iso(user.last_updated),
        iso(user.last_sign_in_success),
        iso(user.block_until),
    )


def _name(user: User) -> str | None:
    parts = [user.claims.get(name) for name in ("name", "given_name", "family_name")]
    name, *others = (part if isinstance(part, str) else None for part in parts)
    return name or " ".join(filter(None, others)) or None
