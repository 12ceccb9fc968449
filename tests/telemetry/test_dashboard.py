"""The dashboard for Grafana reads what OpenTelemetry exports to Prometheus."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from seen import Seen
from tenant_in_memory import Tenant, users
from tenants import Bucket
from virtual_time import run

from monocloud_async import InvalidUserIdError

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "observability.md").read_text(encoding="utf-8")
ALERTS = PAGE[PAGE.index("Useful alerts:") : PAGE.index("## A web service")]
OURS = re.compile(r"\b(?:monocloud_\w+|server_address|error_type)\b")
OF_A_HISTOGRAM = re.compile(r"_(?:bucket|count|sum)$")


@pytest.fixture
def exported(seen: Seen) -> tuple[set[str], set[str]]:
    """The names of all metrics of this package, and of their labels."""
    assert seen

    async def main() -> tuple[set[str], set[str]]:
        tenant = Tenant(Bucket(50, 5))
        async with tenant.session() as session:
            await asyncio.gather(*map(session.enable_user, users(100)))
            await session.bulk_enable(users(100))
            with pytest.raises(InvalidUserIdError):
                await session.enable_user("..")
            samples = [sample for metric in REGISTRY.collect() for sample in metric.samples]
        ours = [sample for sample in samples if sample.name.startswith("monocloud_")]
        return {sample.name for sample in ours}, {name for each in ours for name in each.labels}

    return run(main(), sockets=False)


def dashboard() -> dict[str, Any]:
    return dict(json.loads((DOCS / "examples" / "grafana.json").read_text()))


def queries() -> Iterator[str]:
    for panel in dashboard()["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))
    for variable in dashboard()["templating"]["list"]:
        yield str(variable["query"])


def test_every_name_on_the_dashboard_and_in_the_alerts_is_exported(
    exported: tuple[set[str], set[str]],
) -> None:
    metrics, labels = exported
    named = {name for query in (*queries(), ALERTS) for name in OURS.findall(query)}
    assert named <= metrics | labels


def test_every_metric_is_on_the_dashboard(exported: tuple[set[str], set[str]]) -> None:
    metrics, _ = exported
    named = {name for query in queries() for name in OURS.findall(query)}
    assert {OF_A_HISTOGRAM.sub("", name) for name in metrics} == {
        OF_A_HISTOGRAM.sub("", name) for name in named if name in metrics
    }


@pytest.mark.usefixtures("exported")
def test_the_page_lists_every_metric(seen: Seen) -> None:
    listed = set(re.findall(r"^\| `(monocloud\.\S+)`", PAGE, re.MULTILINE))
    assert {name for name, *_ in seen.figures()} <= listed


def test_no_share_is_without_a_value_when_every_call_fails() -> None:
    """Then there may be no series of calls that are `ok`, and nothing is no share of all."""
    shares = [query for query in (*queries(), *ALERTS.splitlines()) if ") / " in query]
    assert len(shares) == 2
    for share in shares:
        above, _, _ = share.partition(") / ")
        assert 'outcome="ok"' not in above or above.endswith(" or vector(0)")


def test_no_two_panels_are_at_the_same_place_or_have_the_same_number() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [
        (x, y)
        for panel in panels
        if (at := panel["gridPos"])
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(places)) == len(places)
    assert max(x for x, _ in places) < 24
