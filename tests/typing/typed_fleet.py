"""What a fleet gives to type checkers. Nobody runs this; mypy and pyright read it."""
# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from pathlib import Path
from typing import Literal, assert_type

from temporalio.client import Client

from monocloud_async import MonoCloudError
from monocloud_async.fleet import (
    Failure,
    FleetError,
    FleetReport,
    FleetRun,
    Progress,
    Span,
    connect,
)
from monocloud_async.inputs import Format


async def start() -> None:
    client = assert_type(await connect(), Client)
    assert_type(await FleetRun.start("users.csv", max_rate=300), FleetRun)
    assert_type(
        await FleetRun.start(
            Path("users.txt"), max_rate=300, form=Format.TXT, journal=Path("j"), client=client
        ),
        FleetRun,
    )
    assert_type(await FleetRun.start("users.csv"), FleetRun)
    await FleetRun.start("users", max_rate=1, form="txt")  # type: ignore[arg-type]  # a Format


async def steer(run: FleetRun) -> None:
    assert_type(await FleetRun.attach("acme.eu.monocloud.com"), FleetRun)
    assert_type(run.tenant, str)
    await run.pause()
    await run.pause("the tenant's people asked for it")
    await run.resume()
    await run.set_rate(200)
    await run.set_rate(None)
    await run.set_rate("200")  # type: ignore[arg-type]  # a number
    await run.cancel()


async def look(run: FleetRun) -> None:
    progress = assert_type(await run.progress(), Progress)
    assert_type(progress.enabled, int)
    assert_type(progress.expected, int)
    assert_type(progress.max_rate, float | None)
    assert_type(progress.learnt, float | None)
    assert_type(progress.paused, str | None)
    assert_type(progress.trouble, list[str])
    failure = assert_type(await run.failures(), list[Failure])[0]
    assert_type(failure.user_id, str)
    assert_type(failure.status, int | None)
    report = assert_type(await run.result(), FleetReport)
    assert_type(report.how, Literal["finished", "cancelled"])
    assert_type(report.gaps, list[Span])
    assert_type(report.failures, list[Failure])


def refused(error: FleetError) -> MonoCloudError:
    return error
