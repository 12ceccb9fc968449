"""The logs of a process of the fleet, for people or as JSON."""

import logging
from datetime import UTC, datetime

import msgspec

from monocloud_async.errors import MonoCloudError


def set_up(*, json: bool) -> logging.Logger:
    """Write all logs to stderr, one line each if it can be, and return the fleet's logger.

    To call it again changes nothing.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if json else _Text("%(asctime)s %(message)s"))
    logging.basicConfig(handlers=[handler])
    log = logging.getLogger("monocloud_async.fleet")
    if json:
        log.setLevel(logging.INFO)
    return log


def _is_ours(error: BaseException | None) -> bool:
    """Return whether this is an error of ours, by itself or as a part of the fleet tells Temporal.

    Its text says what to do, and its traceback nothing.
    """
    from temporalio.exceptions import ApplicationError  # noqa: PLC0415  optional

    return isinstance(error, (MonoCloudError, ApplicationError))


class _Text(logging.Formatter):
    """Writes our own errors without a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        if not _is_ours(error):
            return super().format(record)
        plain = logging.makeLogRecord({**record.__dict__, "exc_info": None, "exc_text": None})
        return f"{super().format(plain)}: {error}"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            line["error"] = f"{type(error).__name__}: {error}"
        if error is not None and not _is_ours(error):
            line["traceback"] = self.formatException(record.exc_info)  # type: ignore[arg-type]  # there is an error
        return msgspec.json.encode(line).decode()
