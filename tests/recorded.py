"""Two runs that a journal has, with a pause, an outage, and ids that would do harm."""

from pathlib import Path

import pytest

from monocloud_async import NotFoundError, Outcome, ProblemDetails, User
from monocloud_async.cli import main
from monocloud_async.endpoint import ENABLE
from monocloud_async.journal.store import InputInfo, JournalStore, Rows, Sample

TENANT = "https://acme.eu.monocloud.com"


NASTY = [
    "=cmd|' /C calc'!A0",
    "+1",
    "-1",
    "@SUM(A1)",
    "\uff1d1",
    "<script>document.title='owned'</script>",
    '"><img src=x onerror=document.title="owned">',
    "evil\u202egpj.exe",
    "a,b;c",
    "{{ 7 * 7 }}",
]


def outcome(position: int, user_id: str, error: str = "", *, attempts: int = 1) -> Outcome:
    if not error:
        user = User(user_id=user_id)
        return Outcome(
            user_id=user_id, position=position, status="enabled", user=user, attempts=attempts,
            seconds=0.001 * (position % 100 + 1),
        )  # fmt: skip
    problem = ProblemDetails(title=error, trace_id="00-abc-01")
    refused = NotFoundError(status=404, user_id=user_id, problem=problem)
    return Outcome(user_id=user_id, position=position, status="failed", error=refused, attempts=1)


def write(path: Path, outcomes: list[Outcome], source: InputInfo = InputInfo()) -> Path:  # noqa: B008  frozen
    """A journal of two runs: a second each, the first one killed, a pause and an outage."""
    middle = len(outcomes) // 2
    for number, part in enumerate((outcomes[:middle], outcomes[middle:])):
        records = JournalStore(path, TENANT, ENABLE, source)
        records.open()
        began = 1_790_000_000_000 + number * 86_400_000
        for tick in range(10):
            at = began + 100 * tick
            records.write(Rows.of(part[tick::10], at), at)
        records.add_sample(Sample(10, 1, 0, 0, down=False), began + 300)
        records.add_sample(Sample(15, 1, 2, 200, down=False), began + 600)
        end = "finished" if number else None
        records.add_sample(Sample(20, 2, 3, 200, down=bool(number)), began + 1000, end)
        records.close()
    return path


def told(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """What `report` prints about it."""
    assert main(["report", *map(str, argv)]) == 0
    return capsys.readouterr().out
