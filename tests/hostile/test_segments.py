"""Each fault at each segment border of a response: every call ends in time, with its own result.

What the ways have in common is tried on each of them with a part of the table. By hand, all of it:

    pytest tests/hostile/test_segments.py -n 2 --hypothesis-profile=long
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice, pairwise

import pytest
from clients import nothing_left_behind, run
from faults import AUTHORITY, certificate
from invariants import is_alone
from raw_server import Peer, RawServer, http
from secrets_search import KEY
from segments import BREAKS, ENDLESS, EXTRAS, HARMLESS, SHAPES, Shape, borders, user
from ways import WAYS, Way, session_by, trusted, trusting

import monocloud_async as m
from monocloud_async import MonoCloudSession, RetryPolicy

TIMEOUT = 1.0
SOON = 0.1  # seconds after its deadline within which a call ends
ONCE = RetryPolicy(attempts=1)
# Of so many scenes one is tried, beginning at another one for each way: together they try all of
# them. Coprime to the numbers of breaks and extras, so that each of them comes at some border.
PARTS: dict[tuple[Way, bool], int] = {
    ("fast", False): 5,
    ("hooked", False): 5,
    ("lent", False): 5,
    ("theirs", False): 7,
    ("fast", True): 17,
    ("hooked", True): 29,
    ("lent", True): 17,
    ("theirs", True): 29,
    ("tunnel", True): 29,
}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What the server sends for ada's first request.

    Attributes:
        name: for people.
        shape: of the answer.
        whole: whether all of ada's answer is in it, or only what comes before the last cut.
        cuts: where a new segment begins.
        more: what comes in the last segment, behind or in the place of the rest.
        end: what becomes of the connection; "" is that it waits for requests.
    """

    name: str
    shape: Shape
    whole: bool
    cuts: tuple[int, ...]
    more: bytes
    end: str = ""

    def segments(self, mark: int) -> list[bytes]:
        """Return the bytes to send, for ada and this mark."""
        answer = self.shape.make("ada", mark)
        said = (answer if self.whole else answer[: self.cuts[-1]]) + self.more
        places = [0, *self.cuts, len(said)]
        return [said[start:end] for start, end in pairwise(places) if start < end]


def breaking(shape: Shape) -> Iterator[Scene]:
    """The response breaks at a border."""
    for where, at in borders(shape.make("ada", 10)):
        for end, more in BREAKS.items():
            yield Scene(
                name=f"{end} {where}", shape=shape, whole=False, cuts=(at,), more=more, end=end
            )


def followed(shape: Shape) -> Iterator[Scene]:
    """The response is complete, with more data in its last segment or right after it."""
    whole = shape.make("ada", 10)
    for where, at in [*borders(whole), ("nowhere", 0), ("behind all of it", len(whole))]:
        for what, more in EXTRAS.items():
            yield Scene(
                name=f"cut {where}, then {what}", shape=shape, whole=True, cuts=(at,), more=more
            )


def in_three(shape: Shape) -> Iterator[Scene]:
    """One of both, in the last of three segments; the faults take turns."""
    places = [*borders(shape.make("ada", 10))]
    for number, ((_, first), (where, at)) in enumerate(pairwise(places)):
        for whole, table in ((False, BREAKS), (True, EXTRAS)):
            what, more = [*table.items()][number % len(table)]
            yield Scene(
                name=f"{what} {where}, whole: {whole}",
                shape=shape,
                whole=whole,
                cuts=(first, at),
                more=more,
                end="" if whole else what,
            )


class Tenant:
    """Answers all requests correctly, except one of ada's."""

    def __init__(self) -> None:
        self.scene: Scene | None = None
        self.marks = count(10)
        self.asked: list[tuple[str, int]] = []

    def marks_of(self, user_id: str) -> list[int]:
        """Return the possible results of this user, if nothing was smuggled."""
        return [mark for asked, mark in self.asked if asked == user_id]

    async def act(self, peer: Peer) -> None:
        while True:
            request = await peer.request()
            user_id, mark = request.split(b"/")[3].decode(), next(self.marks)
            self.asked.append((user_id, mark))
            scene = self.scene
            if user_id != "ada" or scene is None:
                await peer.send(http(user(user_id, mark)))
                continue
            self.scene = None
            for segment in scene.segments(mark):
                await peer.send(segment)
                await arrived()
            match scene.end:
                case "close":
                    return
                case "reset":
                    peer.reset()
                    return
                case "stall":
                    await peer.silence()
                    return


async def arrived() -> None:
    """Wait until the client, which runs in this thread, has read what was sent."""
    for _ in range(4):
        await asyncio.sleep(0)


async def told(session: MonoCloudSession, user_id: str, limit: float) -> m.User | m.MonoCloudError:
    """Make this user's call, which must end in time, and return its result."""
    call = asyncio.create_task(session.enable_user(user_id))
    await asyncio.wait([call], timeout=limit)
    in_time = call.done()
    if not in_time:
        call.cancel()
        await asyncio.wait([call])
    assert in_time, f"{user_id}: not ended in time"
    try:
        return call.result()
    except m.MonoCloudError as error:
        is_alone(error)
        return error


async def plays(scene: Scene, tenant: Tenant, server: RawServer, way: Way, *, reused: bool) -> None:
    """Make ada's call, for which the scene is, and then bob's, over one session."""
    tenant.asked, tenant.marks, before = [], count(10), server.connections
    async with session_by(way, server.url, KEY, timeout=TIMEOUT, retry=ONCE) as session:
        if reused:
            await session.enable_user("cyd")
        tenant.scene = scene
        ada = await told(session, "ada", TIMEOUT + SOON)
        first, *later = tenant.marks_of("ada")
        match ada:
            case m.User():
                own = ada.creation_time in (tenant.marks_of("ada") if scene.whole else later)
                assert own, f"ada was told {ada.creation_time} of {tenant.marks_of('ada')}"
            case m.StatusError():
                assert ada.status == scene.shape.status, f"ada was told {ada}"
                own = scene.shape.is_of(ada, first)
            case _:
                own = False
        # Invalid HTTP followed her response, so this error is fine.
        assert own or not scene.whole or not scene.more.startswith(b"HTTP"), f"ada was told {ada!r}"
        await arrived()
        bob = await told(session, "bob", session.pace.pause_left + TIMEOUT + SOON)
        assert isinstance(bob, m.User), f"bob was told {bob!r}"
        assert bob.creation_time in tenant.marks_of("bob"), f"bob was told {bob.creation_time}"
        if not (scene.whole and scene.more == HARMLESS):
            assert server.connections - before == 2, "the connection was used again"


@pytest.mark.parametrize("reused", [False, True], ids=["new", "reused"])
@pytest.mark.parametrize(
    ("way", "tls"), [pytest.param(*p, id=f"{p[0]}-{'TLS' if p[1] else 'plain'}") for p in PARTS]
)
@pytest.mark.parametrize(
    ("scenes", "shape"),
    [
        (scenes, shape)
        for scenes in (breaking, followed, in_three)
        for shape in SHAPES
        # Nothing comes behind an answer that ends with the connection.
        if shape != ENDLESS or scenes is breaking
    ],
)
def test_an_answer_in_segments(
    scenes: Callable[[Shape], Iterator[Scene]],
    way: Way,
    tls: bool,  # noqa: FBT001  a table
    shape: str,
    reused: bool,  # noqa: FBT001  a table
    by_hand: bool,  # noqa: FBT001  a fixture
) -> None:
    part = 1 if by_hand else PARTS[way, tls]
    first = (WAYS.index(way) + [*SHAPES].index(shape) + reused) % part

    async def main() -> list[str]:
        tenant, wrong = Tenant(), []
        server = RawServer(tenant.act, tls=certificate("trusted") if tls else None)
        async with nothing_left_behind(), server:
            for scene in islice(scenes(SHAPES[shape]), first, None, part):
                try:
                    await plays(scene, tenant, server, way, reused=reused)
                except AssertionError as error:
                    wrong.append(f"{scene.name}: {str(error).splitlines()[0]}")
        return wrong

    with trusted(trusting(AUTHORITY)):
        wrong = run(main())
    assert not wrong, f"{len(wrong)} scenes:\n" + "\n".join(wrong)
