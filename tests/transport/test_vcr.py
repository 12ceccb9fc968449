"""Users' own tests: VCR.py records what a session sends and receives, and plays it back."""

from pathlib import Path

import pytest
import vcr

from monocloud_async import MonoCloudSession, NotFoundError
from monocloud_async.sandbox import Sandbox

KEY = "sentinel-key-4711"


async def use(url: str) -> None:
    async with MonoCloudSession(url, KEY) as session:
        report = await session.bulk_enable(["ada", "bob"])
        assert report.enabled == 2
        assert (await session.enable_user("ada")).user_id == "ada"
        with pytest.raises(NotFoundError):
            await session.get_user("nobody")
        assert {user.user_id async for user in session.list_users()} == {"ada", "bob"}


async def test_calls_runs_and_lists_are_recorded_and_played_back(tmp_path: Path) -> None:
    cassette = tmp_path / "users.yaml"
    async with Sandbox(users=["ada", "bob"], api_key=KEY) as sandbox:
        for _ in ("recorded", "played back"):
            with vcr.use_cassette(str(cassette), filter_headers=["X-API-KEY"]):
                await use(sandbox.url)
            requests = sandbox.stats().requests
        assert requests == 5 == cassette.read_text().count("uri:")
    assert KEY not in cassette.read_text()
