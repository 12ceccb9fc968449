"""Random conversations over reused connections: no call gets the response to another.

The same conversation goes over two ways, and h11 says what it meant. By hand, 200,000 answers:

    pytest tests/hostile/test_conversations.py -n 2 --hypothesis-profile=long --hypothesis-seed=1

A failure tells the seed of its conversation, and what was said in it.
"""

import asyncio
import re
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count, islice
from random import Random

import pytest
from clients import nothing_left_behind, run
from conversations import RESET, STALL, USERS, Meaning, Reply, meaning, reply
from faults import AUTHORITY, certificate
from invariants import is_alone
from raw_server import Peer, RawServer
from secrets_search import KEY
from test_segments import ONCE, SOON, TIMEOUT, arrived
from ways import Way, session_by, trusted, trusting

import monocloud_async as m
from monocloud_async import MonoCloudSession

ROUNDS = 8
SEED = 18
ANSWERS, ANSWERS_BY_HAND = 5_000, 200_000  # all tests together
Told = m.User | BaseException


@dataclass
class Call:
    """One user's call: the replies to its requests, and the result."""

    user_id: str
    number: int
    replies: list[Reply] = field(default_factory=list)
    marks: set[int] = field(default_factory=set)  # that may be in the last reply
    told: Told | None = None
    spoken: asyncio.Event = field(default_factory=asyncio.Event)

    def kind(self) -> str:
        """The result as a word, the same on all paths."""
        if isinstance(self.told, m.StatusError):
            return str(self.told.status)
        return type(self.told).__name__


class Tenant:
    """Replies according to the seed, and records the connections of the requests."""

    def __init__(self, seed: str) -> None:
        self.seed = seed
        self.calls: dict[str, Call] = {}
        self.marks = set[int]()
        self.wrong: list[str] = []

    async def act(self, peer: Peer) -> None:
        before: tuple[Call, Meaning] | None = None
        while True:
            request = await peer.request()
            call = self.calls[request.split(b"/")[3].decode()]
            if before is not None and not _may_stay(*before):
                self.wrong.append(f"call {call.number} went over the connection of {before}")
            number = len(call.replies)
            chance = Random(f"{self.seed}/{call.number}/{number}")
            mark = 2 * chance.getrandbits(47)  # so that one wrong digit is not another mark
            self.marks |= {mark, mark + 1}
            said = reply(chance, call.user_id, mark)
            call.replies.append(said)
            call.marks = {mark, mark + 1}
            call.spoken.clear()
            try:
                for piece in said.pieces:
                    await peer.send(piece)
                    await arrived()
                if said.end == RESET:
                    peer.reset()
            finally:
                call.spoken.set()
            if said.end == STALL:
                await peer.silence()
            if said.end:
                return
            before = call, meaning(said)


def _may_stay(call: Call, meant: Meaning) -> bool:
    """Return whether the next request may use this connection."""
    if meant.strange:
        return True  # parsers differ here; the responses show whether it does harm
    return meant.stays and (meant.status != 200 or _says(meant, call.user_id))


def _says(meant: Meaning, *words: object) -> bool:
    """Return whether each of these is in the body, raw or decompressed."""
    bodies = [meant.body]
    with suppress(zlib.error):
        bodies.append(zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(meant.body))
    return any(all(str(word).encode() in body for word in words) for body in bodies)


def is_told_his_own(call: Call, others: set[int]) -> None:
    """Check that the call ended with a user or our error, without another request's mark."""
    told = call.told
    assert isinstance(told, m.User | m.MonoCloudError), repr(told)
    if isinstance(told, m.User):
        assert told.user_id == call.user_id
        assert told.creation_time not in others
    else:
        is_alone(told)
        assert others.isdisjoint(map(int, re.findall(r"mark (\d+)", str(told)))), str(told)


def is_told_what_was_said(call: Call) -> None:
    """Check that the result is what h11 reads, if h11 can read the response."""
    told = call.told
    if not call.replies:
        assert isinstance(told, m.TransportError | m.RateLimitedError)
        return
    meant = meaning(call.replies[-1])
    if meant.strange:
        return
    if isinstance(told, m.User):
        assert (meant.status, meant.whole) == (200, True), meant
        assert _says(meant, told.user_id, told.creation_time or ""), meant
    elif isinstance(told, m.StatusError):
        assert meant.status == told.status, meant


async def ask(session: MonoCloudSession, call: Call, together: int) -> None:
    """Make the call, which must end in time; after a 429, calls made together take turns."""
    loop = asyncio.get_running_loop()
    due = loop.time() + session.pace.pause_left + together * TIMEOUT + SOON
    task = asyncio.create_task(session.enable_user(call.user_id))
    await asyncio.wait([task], timeout=due - loop.time())
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
        call.told = TimeoutError("it did not end in its time")
        return
    call.told = asyncio.CancelledError() if task.cancelled() else task.exception() or task.result()
    if call.replies:
        await call.spoken.wait()


async def converse(way: Way, seed: str, *, tls: bool) -> list[Call]:
    """Make the calls of this conversation, check each, and return them with their results."""
    chance, tenant, calls = Random(seed), Tenant(seed), list[Call]()
    server = RawServer(tenant.act, tls=certificate("trusted") if tls else None)
    async with (
        server,
        session_by(way, server.url, KEY, timeout=TIMEOUT, retry=ONCE) as session,
    ):
        for _ in range(ROUNDS):
            asked = chance.sample(USERS, k=chance.choice((1, 1, 1, 2, 3)))
            now = [Call(user_id, len(calls) + i) for i, user_id in enumerate(asked)]
            calls += now
            tenant.calls = {call.user_id: call for call in now}
            await asyncio.gather(*(ask(session, call, len(now)) for call in now))
    for call in calls:
        try:
            is_told_his_own(call, tenant.marks - call.marks)
            is_told_what_was_said(call)
        except AssertionError as error:
            tenant.wrong.append(f"call {call.number}: {error}")
    assert not tenant.wrong, f"{seed}, {way}:\n" + "\n".join(tenant.wrong) + "\n" + script(calls)
    return calls


def script(calls: list[Call]) -> str:
    """Describe the conversation for a failure message."""
    return "\n".join(
        f"{call.number} {call.user_id}: {call.kind()} {str(call.told)[:100]}\n"
        + "\n".join(f"    {reply.pieces!r} {reply.end}" for reply in call.replies)
        for call in calls
    )


def is_alike(call: Call, same: Call, other: Way) -> bool:
    """Whether both ways tell the same.

    Over a connector of its own, aiohttp tells nothing of a response with bytes behind it, in the
    same segment, that its parser cannot read. And after such a chunk it wakes nobody who waits for
    more; then the deadline does.
    """
    given_up = isinstance(same.told, m.TransportError) and "not HTTP" in str(same.told)
    late = isinstance(same.told, m.RequestTimeoutError)
    return call.kind() == same.kind() or (other == "theirs" and (given_up or late))


@pytest.mark.parametrize(
    ("way", "other", "tls"),
    [
        ("fast", "lent", False),
        ("fast", "hooked", False),
        ("fast", "theirs", False),
        ("fast", "tunnel", True),
    ],
)
def test_every_answer_belongs_to_its_question(
    way: Way,
    other: Way,
    tls: bool,  # noqa: FBT001  a table
    by_hand: bool,  # noqa: FBT001  a fixture
    request: pytest.FixtureRequest,
) -> None:
    first = request.config.getoption("hypothesis_seed") or SEED
    wanted = (ANSWERS_BY_HAND if by_hand else ANSWERS) // 4

    async def main() -> None:
        numbers, answers = count(), 0
        while answers < wanted:
            async with nothing_left_behind():
                for number in islice(numbers, 25):
                    seed = f"{first}/{other}/{number}"
                    ended = [await converse(each, seed, tls=tls) for each in (way, other)]
                    answers += sum(len(call.replies) for calls in ended for call in calls)
                    for call, same in zip(*ended, strict=True):
                        # Whether a connection died before it answered, or as it did, they may see
                        # in two ways; then one of them asks again.
                        if len(call.replies) == len(same.replies):
                            told = f"call {call.number}, {call.kind()} and {same.kind()}"
                            assert is_alike(call, same, other), (
                                f"{seed}, {told}:\n{script(ended[0])}"
                            )

    with trusted(trusting(AUTHORITY)):
        run(main())
