"""A plan of a run over a fleet."""

from typing import Any

from monocloud_async.fleet.id_file import IdFile
from monocloud_async.fleet.messages import Plan
from monocloud_async.inputs import Format


def plan(
    *, operation: str = "enable", max_rate: float | None = 10.0, journal: str = "j", **source: Any
) -> Plan:
    members: dict[str, Any] = {
        "where": "ids.txt",
        "form": Format.TXT,
        "column": None,
        "size": 1000,
        "mark": "m",
        "begin": 100,
        "header": "",
        "line": 9.0,
        **source,
    }
    return Plan(
        tenant="https://acme",
        source=IdFile(**members),
        journal=journal,
        max_rate=max_rate,
        max_outage=5.0,
        operation=operation,
    )
