"""Payloads that are signed or encrypted with a key of the operator, and those that are not."""

import asyncio
import re
import shlex
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fleets import Fleet, Temporal, fleet, temporal
from temporalio.api.common.v1 import Payload
from temporalio.api.failure.v1 import Failure
from temporalio.converter import (
    ActivitySerializationContext,
    DataConverter,
    DefaultFailureConverterWithEncodedAttributes,
    WorkflowSerializationContext,
)

from monocloud_async import ConfigurationError
from monocloud_async.fleet import FleetError, FleetRun, check_fleet
from monocloud_async.fleet.codec import (
    ENCRYPTION_KEY_FILE,
    SIGNING_KEY_FILE,
    EncryptingCodec,
    PayloadRefusedError,
    SigningCodec,
    protected,
    protection,
)
from monocloud_async.fleet.temporal import converter, workflow_id

KEY, OTHER = "k" * 40, "o" * 40
RUN = WorkflowSerializationContext(namespace="default", workflow_id="run")
Codec = SigningCodec | EncryptingCodec
both = pytest.mark.parametrize("kind", [SigningCodec, EncryptingCodec])


def payload() -> Payload:
    return Payload(metadata={"encoding": b"json/plain", "a": b"1"}, data=b'"users"')


@both
async def test_a_payload_is_read_with_the_key_and_for_its_workflow(kind: type[Codec]) -> None:
    codec = kind([KEY]).with_context(RUN)
    (sent,) = await codec.encode([payload()])
    assert sent != payload()
    assert await codec.decode([sent]) == [payload()]
    activity = ActivitySerializationContext(
        namespace="default",
        activity_id=None,
        activity_type=None,
        activity_task_queue=None,
        workflow_id="run",
        workflow_type=None,
        is_local=False,
    )
    assert await kind([KEY]).with_context(activity).decode([sent]) == [payload()]


@both
async def test_another_key_another_workflow_and_no_key_are_refused(kind: type[Codec]) -> None:
    codec = kind([KEY]).with_context(RUN)
    elsewhere = WorkflowSerializationContext(namespace="default", workflow_id="another")
    for forged in (
        [payload()],
        [Payload()],
        await kind([OTHER]).with_context(RUN).encode([payload()]),
        await kind([KEY]).with_context(elsewhere).encode([payload()]),
        await kind([KEY]).encode([payload()]),
    ):
        with pytest.raises(PayloadRefusedError, match="this fleet's key") as caught:
            await codec.decode(forged)
        assert KEY not in str(caught.value)


@both
async def test_every_changed_byte_is_noticed(kind: type[Codec]) -> None:
    codec = kind([KEY]).with_context(RUN)
    (sent,) = await codec.encode([payload()])
    for place in range(len(sent.data)):
        data = bytearray(sent.data)
        data[place] ^= 1
        with pytest.raises(PayloadRefusedError):
            await codec.decode([Payload(metadata=sent.metadata, data=bytes(data))])
    sent.metadata["encoding"] = b"binary/plain"
    with pytest.raises(PayloadRefusedError):
        await codec.decode([sent])


@both
async def test_an_old_key_is_accepted_and_the_first_one_used(kind: type[Codec]) -> None:
    old, new = kind([OTHER]), kind([KEY, OTHER])
    assert await new.decode(await old.encode([payload()])) == [payload()]
    with pytest.raises(PayloadRefusedError):
        await old.decode(await new.encode([payload()]))


@both
async def test_a_part_without_the_key_does_not_read_it_either(kind: type[Codec]) -> None:
    with pytest.raises(KeyError, match="monocloud"):
        await DataConverter.default.decode(await kind([KEY]).encode([payload()]))


async def test_nothing_can_be_read_in_what_is_encrypted() -> None:
    (sent,) = await EncryptingCodec([KEY]).encode([payload()])
    assert b"users" not in sent.SerializeToString()


@pytest.mark.parametrize("wrapped", [False, True])
async def test_that_a_message_is_refused_can_be_read_with_another_key(*, wrapped: bool) -> None:
    own = DataConverter(
        payload_codec=EncryptingCodec([OTHER]),
        failure_converter_class=DefaultFailureConverterWithEncodedAttributes,
    )
    for error, says in ((PayloadRefusedError("another key"), "another key"), (OSError("no"), "")):
        raised: Exception = error
        if wrapped and says:
            raised = RuntimeError("cannot decode")
            raised.__cause__ = error
        failure = Failure()
        await converter(own).encode_failure(raised, failure)
        told = failure.cause if wrapped and says else failure
        assert (told.message if says else failure.HasField("encoded_attributes")) == (says or True)
        assert failure.HasField("encoded_attributes") != bool(says)


@both
@pytest.mark.parametrize("keys", ["k" * 40, b"k" * 40, [], [""], ["x"], [KEY, "x" * 31], [7]])
def test_keys_that_protect_nothing_are_refused(kind: type[Codec], keys: Any) -> None:
    with pytest.raises(ConfigurationError, match="keys with at least 32 characters"):
        kind(keys)


@both
def test_a_codec_does_not_show_its_key(kind: type[Codec]) -> None:
    assert KEY not in repr(kind([KEY]))


@pytest.mark.parametrize("variable", [SIGNING_KEY_FILE, ENCRYPTION_KEY_FILE])
def test_the_key_comes_from_a_file_that_the_environment_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, variable: str
) -> None:
    file = tmp_path / "fleet.key"
    environment = {variable: str(file)}
    with pytest.raises(ConfigurationError, match="No such file"):
        protected(DataConverter.default, environment)
    file.touch(0o600)
    for content in ("", "short\n", f"{KEY}\nshort\n"):
        file.write_text(content)
        with pytest.raises(ConfigurationError, match="at least 32 characters"):
            protected(DataConverter.default, environment)
    file.write_bytes(b"\xff" * 40)
    with pytest.raises(ConfigurationError, match="it is not text"):
        protected(DataConverter.default, environment)
    file.write_text(f"{KEY}\n{OTHER}\n")
    named = protected(DataConverter.default, environment)
    codec: Any = named.payload_codec
    assert codec.keys == [KEY, OTHER]
    assert [record.getMessage() for record in caplog.records] == []
    file.chmod(0o644)
    protected(DataConverter.default, environment)
    assert f"can read the key: chmod 600 {file}" in caplog.text
    assert protection(named) == codec.verb
    assert protected(DataConverter.default, {}) is DataConverter.default
    assert protection(DataConverter.default) == "neither signed nor encrypted"
    with pytest.raises(ConfigurationError, match=f"{variable} names: it is set but empty"):
        protected(DataConverter.default, {variable: ""})
    with pytest.raises(ConfigurationError, match="not both"):
        protected(DataConverter.default, {SIGNING_KEY_FILE: "a", ENCRYPTION_KEY_FILE: "b"})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Temporal]:
    with temporal(tmp_path_factory.mktemp("temporal")) as server:
        yield server


@pytest.fixture
async def parts(
    request: pytest.FixtureRequest, tmp_path: Path, server: Temporal
) -> AsyncIterator[Fleet]:
    key = tmp_path / "fleet.key"
    key.write_text(KEY)
    bare = dict(server.environment)
    server.environment[request.param] = str(key)
    async with fleet(tmp_path, server, 60) as parts:
        yield parts
    server.environment = bare


@contextmanager
def without_key(parts: Fleet) -> Iterator[None]:
    known = parts.server.environment
    parts.server.environment = {
        name: value for name, value in known.items() if name.startswith("TEMPORAL_")
    }
    try:
        yield
    finally:
        parts.server.environment = known


@pytest.mark.parametrize("parts", [ENCRYPTION_KEY_FILE], indirect=True)
@pytest.mark.process
async def test_a_fleet_with_a_key_does_its_run(parts: Fleet) -> None:
    parts.part("coordinator")
    parts.part("worker")
    parts.sandbox.latency = 0.1
    parts.sandbox.script(parts.sandbox.user_ids()[0], 422)
    run = await parts.start(50)
    await parts.until(5)
    progress = await run.progress()
    assert (progress.paused, progress.trouble, progress.expected) == (None, [], 60)
    await run.pause("a look")
    assert (await parts.until_paused(run)).paused == "a look"
    await run.set_rate(60)
    await run.resume()
    report = await run.result()
    assert (report.enabled, report.failed, report.gaps) == (59, 1, [])


@pytest.mark.parametrize("parts", [SIGNING_KEY_FILE], indirect=True)
@pytest.mark.process
async def test_a_run_that_a_stranger_starts_does_nothing(parts: Fleet) -> None:
    with without_key(parts):
        await parts.start(50)
    parts.part("coordinator")
    worker = parts.part("worker")
    run = await FleetRun.attach(parts.sandbox.url, client=await parts.server.client())
    assert await asyncio.to_thread(worker.ended) == 2
    assert "find out who else reaches Temporal" in worker.said()
    said = ""
    async with asyncio.timeout(60):
        while "with this fleet's key for this tenant" not in said:
            try:
                await run.progress()
            except FleetError as error:
                said = str(error)
    assert said.startswith("the run cannot go on, because a step of it fails in the coordinator")
    (ends,) = re.findall(r"or end the run with: (temporal .*)", said)
    assert shlex.split(ends) == [
        *("temporal", "workflow", "terminate", "--namespace", "default"),
        *("--workflow-id", workflow_id(parts.sandbox.url)),
    ]
    assert parts.sandbox.asked == []
    assert not parts.journal.exists()


@pytest.mark.parametrize("parts", [SIGNING_KEY_FILE], indirect=True)
@pytest.mark.process
async def test_the_doctor_finds_a_worker_without_the_key(parts: Fleet) -> None:
    with without_key(parts):
        parts.part("worker")
    client = await parts.server.client()
    said = list[str]()
    async with asyncio.timeout(60):
        while not said:
            found = await check_fleet(domain=parts.sandbox.url, client=client)
            said = [each.said for each in found if each.what.startswith("Worker ")]
    assert f"are signed, and this part has no key: set {SIGNING_KEY_FILE} to" in said[0]
    assert said[0].endswith("give all parts the same version and the same key file")


@pytest.mark.parametrize("parts", [SIGNING_KEY_FILE, ENCRYPTION_KEY_FILE], indirect=True)
@pytest.mark.process
async def test_a_worker_with_another_key_ends_and_is_named_and_the_run_goes_on(
    parts: Fleet, tmp_path: Path
) -> None:
    other = tmp_path / "other.key"
    other.write_text(OTHER)
    (variable,) = {SIGNING_KEY_FILE, ENCRYPTION_KEY_FILE} & set(parts.server.environment)
    bad = parts.part("worker", variables={variable: str(other)})
    parts.part("coordinator")
    there = await FleetRun.attach(parts.sandbox.url, client=await parts.server.client())
    async with asyncio.timeout(60):
        while "worker" not in {each.role for each in await there.members()}:  # noqa: ASYNC110  another process
            await asyncio.sleep(0.1)
    run = await parts.start(50)
    assert await asyncio.to_thread(bad.ended) == 2  # it was there before the run
    assert "with this fleet's key for this tenant: give all parts the same" in bad.said()
    ((name, why),) = (await parts.until_away(run)).away.items()
    assert name.startswith(f"{bad.pid}@")
    assert "with this fleet's key for this tenant" in why
    late = parts.part("worker", variables={variable: str(other)})
    assert await asyncio.to_thread(late.ended) == 2  # without a chunk
    parts.part("worker")
    await run.resume()
    report = await run.result()
    assert (report.enabled, report.gaps, parts.sandbox.repeats()) == (60, [], 0)


@pytest.mark.parametrize("parts", [SIGNING_KEY_FILE], indirect=True)
@pytest.mark.process
async def test_an_order_that_the_run_could_not_read_is_not_given(parts: Fleet) -> None:
    parts.part("coordinator")
    run = await parts.start(50)
    await parts.until_hosted()
    with without_key(parts):
        keyless = await FleetRun.attach(parts.sandbox.url, client=await parts.server.client())
    orders = (keyless.pause, keyless.resume, partial(keyless.set_rate, 1), keyless.failures)
    for order in (*orders, keyless.progress):
        with pytest.raises(FleetError, match="are signed, and this part has no key"):
            await order()
    parts.part("worker")
    assert (await run.result()).enabled == 60
    with pytest.raises(FleetError, match="are signed, and this part has no key"):
        await keyless.result()
