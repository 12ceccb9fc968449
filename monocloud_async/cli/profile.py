"""Profiles: short names for a tenant and its key, as files that only their owner can read."""

import os
import re
import stat
import tomllib
from collections.abc import Container
from pathlib import Path
from typing import Final

from monocloud_async.cli.streams import check_streams
from monocloud_async.errors import ConfigurationError
from monocloud_async.sanitize import clean

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_OPTIONS: Final = {"domain": "--domain", "api_key_file": "--api-key-file"}
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def is_name(name: str) -> bool:
    """Return whether a profile may have this name."""
    return _NAME.fullmatch(name) is not None


def options_of(name: str, known: Container[str]) -> list[str]:
    """Return the options that a profile stands for, as far as the command knows them.

    Raises:
        ConfigurationError: there is no such profile, or other users may read or change it, or
            stdout or stderr is written to it or to the file of its key.
    """
    if not is_name(name):
        raise ConfigurationError(f"{clean(name)!r} is no name of a profile")
    try:
        path = _folder() / f"{name}.toml"
    except RuntimeError:
        raise ConfigurationError(
            "this user has no home for profiles; XDG_CONFIG_HOME names another folder for them"
        ) from None
    check_streams("the profile", path)
    try:
        if path.exists() and not path.is_file():  # to open a named pipe would wait for its writer
            raise ConfigurationError(f"the profile {path} is no regular file")
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = tomllib.loads(file.read().decode("utf-8-sig"))  # as Windows' Notepad saves it
    except OSError as error:
        raise ConfigurationError(f"cannot read the profile {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigurationError(f"the profile {path} is no TOML: {clean(str(error))}") from None
    if os.name == "posix" and mode & _OTHERS:
        raise ConfigurationError(f"others may use the profile {path}: chmod 600 {path}")
    if content.keys() - _OPTIONS or not all(isinstance(value, str) for value in content.values()):
        raise ConfigurationError(f"the profile {path} may have domain and api_key_file, as strings")
    if "api_key_file" in content:  # a path is relative to the profile
        try:
            key_file = path.parent / Path(content["api_key_file"]).expanduser()
        except RuntimeError:
            key = clean(content["api_key_file"])
            raise ConfigurationError(
                f"the profile {path} has the key in {key}: there is no such home; write the whole"
                " path"
            ) from None
        check_streams("the file of the API key", key_file)
        content["api_key_file"] = str(key_file)
    given = [(_OPTIONS[member], value) for member, value in content.items()]
    return [f"{option}={value}" for option, value in given if option in known]


def profiles() -> list[Path]:
    """Return the files of all profiles."""
    try:
        return list(_folder().glob("*.toml"))
    except (OSError, RuntimeError):  # the folder is another user's, or this user has no home
        return []


def _folder() -> Path:
    home = os.environ.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path.home() / ".config") / "monocloud-async"
