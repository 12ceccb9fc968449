"""Rate limit headers: how they are read, and how far a session believes them."""

import asyncio
import math
import time
from collections.abc import Callable
from random import Random

import pytest
import samples
import virtual_time
from limiters import Ours
from multidict import CIMultiDict
from raw_server import RawServer, answering, http
from tenants import Bucket, Hinting, Tenant, Window, simulate
from ways import Way, session_by

from monocloud_async import BulkReport
from monocloud_async.ratelimit.estimator import Ticket
from monocloud_async.ratelimit.hints import Forecast, Hint, HintReader, read_hint
from monocloud_async.response import Response

NOW = 1_800_000_000.0
DATE = "Date: Fri, 15 Jan 2027 08:00:00 GMT"  # this is NOW


def both(*lines: str) -> Hint | None:
    """Return what both forms of the same headers say, which is the same."""
    pairs = [line.split(": ", 1) for line in lines]
    head = "".join(f"{line}\r\n" for line in ("HTTP/1.1 200 OK", *lines))
    body = "\r\nRateLimit-Remaining: 0\r\nRateLimit-Reset: 9\r\n"
    hint = read_hint(f"{head}\r\n{body}".encode("latin-1"), NOW)
    assert hint == read_hint(CIMultiDict((name, value) for name, value in pairs), NOW)
    return hint


@pytest.mark.parametrize(
    ("lines", "remaining", "reset"),
    [
        (['RateLimit: "default";r=50;t=30', 'RateLimit-Policy: "default";q=100;w=60'], 50, 30),
        (['ratelimit: "default"; r=50; t=30'], 50, 30),
        (['RateLimit: "burst";r=9', 'RateLimit-Policy: "day";q=9;w=99, "burst";q=9;w=2'], 9, 2),
        (['RateLimit: "day";r=70;t=9000, "burst";r=5;t=2'], 5, 2),
        (['RateLimit: "day";r=70;t=900', 'RateLimit: "burst";r=5;t=2'], 5, 2),
        (['RateLimit: "a";r=0;t=1, "b";r=0;t=8'], 0, 8),
        (['RateLimit: "9-in-1min"; r=9; t=60', 'RateLimit-Policy: "x"; pk=:MD/c+w==:'], 9, 60),
        (['RateLimit: default;r=5;t=2;note="a;t=3, b"'], 5, 2),
        (["RateLimit: limit=100, remaining=50, reset=5"], 50, 5),
        (["RateLimit: limit=100,remaining=50,reset=5", "RateLimit-Policy: 100;w=60"], 50, 5),
        (["RateLimit-Limit: 9, 9;w=60", "RateLimit-Remaining: 8", "RateLimit-Reset: 5"], 8, 5),
        (["X-RateLimit-Limit: 9", "X-RateLimit-Remaining: 5", "X-RateLimit-Reset: 7"], 5, 7),
        (["x-ratelimit-remaining: 5", "x-ratelimit-reset: 1800000007", DATE], 5, 7),
        (["X-RateLimit-Remaining: 5", "X-RateLimit-Reset: 1800000007"], 5, 7),
        (["X-RateLimit-Remaining: 5", "X-RateLimit-Reset: 1800000007.5", DATE], 5, 7.5),
        (["X-RateLimit-Remaining: 5", "X-RateLimit-Reset: 1800000007000", DATE], 5, 7),
        (["X-RateLimit-Remaining: 5", "X-RateLimit-Reset: 1700000000", DATE], 5, 0),
        (["X-Rate-Limit-Limit: 1m", "X-Rate-Limit-Remaining: 5",
          "X-Rate-Limit-Reset: 2027-01-15T08:00:09.1234567Z"], 5, 9.123456),
    ],
)  # fmt: skip
def test_the_forms_that_servers_send_are_read(
    lines: list[str], remaining: int, reset: float
) -> None:
    hint = both(*lines)
    assert hint is not None
    assert hint.remaining == remaining
    assert hint.reset == pytest.approx(reset)


def test_the_clock_of_this_machine_does_not_matter_where_the_answer_has_a_date() -> None:
    lines = {"X-RateLimit-Remaining": "5", "X-RateLimit-Reset": "1800000007"}
    dated = CIMultiDict(lines | {"Date": DATE.partition(": ")[2]})
    assert read_hint(dated, NOW - 86_400) == Hint(5, 7.0)


@pytest.mark.parametrize(
    "lines",
    [
        ["Retry-After: 3"],
        ["X-RateLimit-Remaining: 5"],
        ["X-RateLimit-Remaining: -1", "X-RateLimit-Reset: 7"],
        ["X-RateLimit-Remaining: NaN", "X-RateLimit-Reset: 7"],
        ["X-RateLimit-Remaining: 5", "X-RateLimit-Reset: inf"],
        ["X-RateLimit-Remaining: 5", "X-RateLimit-Reset: 1e3"],
        ["X-RateLimit-Remaining: 5", "X-RateLimit-Reset: soon"],
        ["X-RateLimit-Remaining: 5", "X-RateLimit-Reset: 86400"],
        ["X-RateLimit-Remaining: 5", "X-RateLimit-Reset: 9999-12-31T23:59:59"],
        ["X-RateLimit-Remaining: " + "9" * 400, "X-RateLimit-Reset: 7"],
        ["X-RateLimit-Remaining: \u00b2", "X-RateLimit-Reset: 7"],
        ["X-RateLimit-Remaining: 0" + " " * 10_000, "X-RateLimit-Reset: " + "1" * 10_000],
        ['RateLimit: "default";r=5'],
        ['RateLimit: "default";r=?1;t=?0'],
        ['RateLimit: "default";r=-5;t=9'],
        ['RateLimit: "default;r=5;t=9'],
        ['RateLimit: "bytes";r=0;t=9', 'RateLimit-Policy: "bytes";q=9;w=9;qu="content-bytes"'],
        ["RateLimit: limit=100"],
        ["RateLimit: ;;;;;;;;,,,,,,"],
    ],
)
def test_what_no_server_means_is_no_hint(lines: list[str]) -> None:
    assert both(*lines) is None


def test_hostile_headers_are_read_in_no_time() -> None:
    began = time.process_time()
    for value in ('"a"' + "; " * 10_000, "a" * 10_000, " " * 490 + "!", '"a";' * 120, ";r=" * 160):
        for name in ("RateLimit", "RateLimit-Policy", "X-RateLimit-Reset"):
            read_hint(CIMultiDict({"RateLimit": '"a";r=0;t=1', name: value}), NOW)
    for value in (" " * 500_000, " \t" * 250_000, "a" * 500_000, "\nRateLimit:" * 40_000):
        for end in ("", "\r\n\r\n", "\x00\r\n\r\n"):
            read_hint(f"HTTP/1.1 200 OK\r\nRateLimit:{value}{end}".encode(), NOW)
    assert time.process_time() - began < 2


def test_where_no_answer_has_hints_few_are_looked_at() -> None:
    def response(*lines: str, status: int = 200) -> Response:
        head = "\r\n".join(("HTTP/1.1 200 OK", *lines, "", "")).encode()
        return Response(status, head, b"", lambda: None)

    reader, hinting = HintReader(), response('RateLimit: "a";r=5;t=2')
    assert reader.read(response()) is None
    unread = 0
    while reader.read(hinting) is None:
        unread += 1
    assert 8 <= unread <= 32
    assert reader.read(hinting) == Hint(5, 2.0)
    assert reader.read(response()) is None
    assert reader.read(hinting) is None
    # A refusal is always worth it.
    assert reader.read(response('RateLimit: "a";r=0;t=2', status=429)) == Hint(0, 2.0)


# What it does with them: a simulated run, in virtual time


def run_over(tenant: Tenant, users: int, *, latency: float = 0.02) -> tuple[float, int]:
    """Return the seconds that a run took, and how many requests were refused."""
    result = simulate(Ours(), tenant, users=users, concurrency=50, latency=latency)
    return result.seconds, result.refused


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize(("quota", "seconds"), [(300, 2.0), (1000, 10.0), (3000, 30.0)])
def test_a_window_that_tells_what_remains_refuses_next_to_nothing(
    quota: int, seconds: float, *, tells: bool
) -> None:
    users = int(quota / seconds * 120)
    silent, many = run_over(Window(quota, seconds, tells=tells), users)
    hinted, few = run_over(Hinting(Window(quota, seconds, tells=tells)), users)
    assert few <= 20 < many
    assert hinted <= 1.02 * silent


def test_a_bucket_that_tells_what_remains_refuses_less_of_the_first_volley() -> None:
    silent, many = run_over(Bucket(50, 50), 2000)
    hinted, few = run_over(Hinting(Bucket(50, 50)), 2000)
    assert few <= many / 2
    assert hinted <= 1.02 * silent


LIES: dict[str, Callable[[Random], Callable[[int, float], Hint]]] = {
    "nothing remains": lambda _: lambda _r, _t: Hint(0, 60.0),
    "at random": lambda random: lambda _r, _t: Hint(random.randrange(300), 1.0),
    "plenty remains": lambda _: lambda r, t: Hint(r + 1000, float(math.ceil(t))),
    "never falls": lambda _: lambda _r, _t: Hint(100, 60.0),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("tenant", [lambda: Bucket(200, 20), lambda: Window(10**9, 1000.0)])
def test_lies_cost_next_to_nothing(lie: str, tenant: Callable[[], Bucket | Window]) -> None:
    silent, many = run_over(tenant(), 10_000)
    hinted, few = run_over(Hinting(tenant(), LIES[lie](Random(1))), 10_000)
    assert hinted <= 1.02 * silent + 0.5
    assert few <= many + 10


@pytest.mark.parametrize(
    ("quota", "seconds"),
    [(300, 60.0), (20, 1.0), (20, 0.9), (20, 0.75), (20, 0.5), (20, 0.2), (5, 0.1)],
)
def test_a_limit_that_is_told_but_not_enforced_costs_seconds_once(
    quota: int, seconds: float
) -> None:
    counter = Window(quota, seconds)

    class Lenient:
        def take(self, now: float) -> float | None:
            counter.take(now)
            return None

        def remaining(self, now: float) -> tuple[int, float]:
            return counter.remaining(now)

    say = None if seconds >= 1 else Hint  # whole seconds, or as exact as it can be
    took, refused = run_over(Hinting(Lenient(), say), 40_000)
    assert refused == 0
    assert took <= 40_000 / 2500 + 6


def test_a_hint_never_raises_the_rate() -> None:
    limiter, plain = Ours(), Ours()
    for each, say in ((limiter, lambda _r, _t: Hint(10**9, 1.0)), (plain, None)):
        tenant = Bucket(100, 10)
        simulate(each, tenant if say is None else Hinting(tenant, say), users=3000, concurrency=50,
                 latency=0.02)  # fmt: skip
    assert limiter.rate == plain.rate


def told(forecast: Forecast, limiter: Ours, remaining: int, reset: float, now: float) -> None:
    forecast.update(limiter.send(now), Hint(remaining, reset), now, 0.02, is_known=False)


def test_a_pause_by_hints_that_were_not_tested_is_short_and_grows_as_they_prove_right() -> None:
    forecast, limiter, now, pauses = Forecast(), Ours(), 0.0, []
    for remaining in (4, 3, 2, 1, 0):
        told(forecast, limiter, remaining, 3000.0, now)
    for _ in range(12):
        wait = forecast.time_left(now)
        assert wait
        pauses.append(wait)
        now += wait
        forecast.refused(limiter.send(now), None)
    assert pauses[0] == 1
    assert pauses == sorted(pauses)
    assert pauses[-1] == pytest.approx(60, rel=0.1)  # a longer one is for a 429 to ask for


def test_three_grants_that_hints_ruled_out_end_their_say() -> None:
    forecast, limiter = Forecast(), Ours()
    for remaining in (4, 3, 2, 1, 0):
        told(forecast, limiter, remaining, 10.0, 0.0)
    assert forecast.pause(0.0)
    for number in range(3):
        assert not forecast.lost
        forecast.granted(limiter.send(1.0 + number), 1.02 + number)
    assert forecast.lost
    assert not forecast.pause(4.0)


def test_hints_that_have_lost_their_say_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    limiter, lie = Ours(), LIES["nothing remains"](Random(1))
    simulate(limiter, Hinting(Window(10**9, 1e9), lie), users=1000, concurrency=5, latency=0.02)
    assert limiter.is_open
    assert limiter._forecast is not None
    assert limiter._forecast.lost
    asked: list[Ticket] = []
    monkeypatch.setattr(Forecast, "granted", lambda _self, ticket, _now: asked.append(ticket))
    limiter.read_hint(Response(200, b"HTTP/1.1 200 OK\r\n\r\n", b"", lambda: None))
    limiter.granted(limiter.send(1e6), 1e6 + 0.02)
    assert not asked


def test_a_429_that_says_that_requests_remain_proves_hints_wrong() -> None:
    forecast, limiter = Forecast(), Ours()
    told(forecast, limiter, 50, 10.0, 0.0)
    for _ in range(3):
        forecast.refused(limiter.send(0.1), Hint(50, 10.0))
    assert forecast.lost


# The session as it is, over a socket


@pytest.mark.parametrize(("way", "form"), [("fast", "ratelimit"), ("theirs", "fields")])
def test_a_run_pauses_before_the_429_by_every_path(way: Way, form: str) -> None:
    refused = 0

    def reply(request: bytes) -> bytes:
        nonlocal refused
        now = asyncio.get_running_loop().time()
        is_full = window.take(now) is not None
        refused += is_full
        remaining, left = window.remaining(now)
        reset = math.ceil(left)
        lines = (
            [b'RateLimit: "default";r=%d;t=%d' % (remaining, reset)]
            if form == "ratelimit"
            else [b"x-ratelimit-remaining: %d" % remaining, b"x-ratelimit-reset: %d" % reset]
        )
        user_id = request.split(b"/")[3].decode()
        return http(b"{}", *lines, status=429) if is_full else http(samples.user(user_id), *lines)

    async def main() -> BulkReport:
        async with (
            RawServer(answering(reply)) as server,
            session_by(way, server.url, "k") as session,
        ):
            return await session.bulk_enable([f"u{n}" for n in range(70)], concurrency=10)

    window = Window(20, 10.0, tells=False)
    report = virtual_time.run(main())
    assert report.enabled == 70
    assert report.throttled == refused <= 6
    assert 29 <= report.seconds <= 45
