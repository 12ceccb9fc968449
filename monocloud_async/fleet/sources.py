"""Which files a process of the fleet reads, and whether they still have the planned content.

The plan of a run comes from Temporal, so whoever reaches Temporal may have written it. A process
reads only below the folders and URLs that it was started with.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from monocloud_async.errors import ConfigurationError
from monocloud_async.fleet.id_file import IdFile, check_url, digest_of, is_url, shown
from monocloud_async.sanitize import clean
from monocloud_async.user_id import leaves_folder


class Sources:
    """The files that a process may read.

    Args:
        allowed: folders, files and https URLs. Default: the working directory.

    Raises:
        ConfigurationError: one of them is not an absolute URL that can be used, or is no folder or
            file on this machine.
    """

    def __init__(self, allowed: Sequence[str | os.PathLike[str]] = ()) -> None:
        named = [os.fspath(each) for each in allowed] or [os.getcwd()]  # noqa: PTH109  a string, as the others
        self._urls = [urlsplit(check_url(each)) for each in named if is_url(each)]
        for each in named:
            # A process that may read nothing would wait for a run that it can do.
            if not is_url(each) and not os.path.exists(each):  # noqa: PTH110  False also for a NUL
                raise ConfigurationError(
                    f"{clean(each)} is not there, and this process may read ids only below it;"
                    " mount or create it first, or give --source another folder or URL"
                )
        self._folders = [Path(each).resolve() for each in named if not is_url(each)]
        self._verified: set[tuple[str, str | None, str]] = set()

    def check(self, where: str) -> None:
        """Raise `ConfigurationError` if this path or URL is not below one of the allowed ones."""
        if is_url(where):
            url = urlsplit(check_url(where))
            allowed = any(_is_below(url, each) for each in self._urls)
        else:
            path = Path(where).resolve()
            allowed = any(path.is_relative_to(each) for each in self._folders)
        if not allowed:
            raise ConfigurationError(
                f"{shown(where)} is not below a folder or URL that this process may read; if it"
                " should be read, start the process with --source and that folder or URL"
            )

    async def read(self, source: IdFile, start: int, end: int, digest: str = "") -> bytes:
        """Return the lines that begin in this range, with the planned content.

        Args:
            source: the file.
            start: the first byte of the range.
            end: the byte after the range.
            digest: the digest that these lines must have. Default: all of the file must have its
                planned digest, which is computed again whenever the file looks changed.

        Raises:
            ConfigurationError: the file may not be read, or its content has changed.
            OSError, aiohttp.ClientError: the file cannot be read now.
        """
        self.check(source.where)
        if digest:
            content, _ = await source.whole_lines(start, end)
            if digest_of(content) != digest:
                raise source.changed(f"the lines from byte {start:,} on are different")
            return content
        while True:
            content, version = await source.whole_lines(start, end)
            seen = (source.where, source.digest, version)
            if seen in self._verified:
                return content
            await source.verify(version)
            self._verified.add(seen)


def _is_below(url: SplitResult, above: SplitResult) -> bool:
    path, folder = url.path, above.path.rstrip("/")
    return (
        (url.scheme, url.netloc.lower()) == (above.scheme, above.netloc.lower())
        and (path == above.path or path.startswith(f"{folder}/"))
        and not leaves_folder(path)
    )
