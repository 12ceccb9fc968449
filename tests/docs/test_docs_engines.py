"""The examples for Airflow and Prefect, without the engine: its retry does the rest of a run."""

import runpy
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from monocloud_async import RunStoppedError
from monocloud_async.sandbox import Sandbox

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


class Engine(ModuleType):
    """Stands in for the engine, and has the arguments that it was given."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.options: dict[str, Any] = {}

    def task(self, function: Any, **options: Any) -> Any:
        self.options = options
        return lambda *_: function

    def flow(self, function: Any, **_: Any) -> Any:
        return function

    def DAG(self, **_: Any) -> Any:  # noqa: N802  Airflow's name
        return nullcontext()


@pytest.mark.parametrize(
    ("example", "engine"), [("airflow_dag.py", "airflow.sdk"), ("prefect_flow.py", "prefect")]
)
async def test_a_retry_of_the_engine_does_the_rest(
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    example: str,
    engine: str,
) -> None:
    stand_in = Engine(engine)
    monkeypatch.setitem(sys.modules, engine, stand_in)
    monkeypatch.setenv("MONOCLOUD_MANAGEMENT_DOMAIN", sandbox.url)
    monkeypatch.setenv("MONOCLOUD_MANAGEMENT_API_KEY", sandbox.api_key)
    enable = runpy.run_path(str(EXAMPLES / example))["enable"]
    assert stand_in.options["retries"] == 10
    ids, (*_, last) = tmp_path / "users.txt", sandbox.user_ids()
    ids.write_text("\n".join(["nobody", *sandbox.user_ids()]))
    sandbox.script(last, 401)
    with pytest.raises(RunStoppedError):
        await enable(ids)
    assert await enable(ids) == {"enabled": 20, "failed": 1}
    assert sandbox.stats().users == {"enabled": 20, "disabled": 0}
