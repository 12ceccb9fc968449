"""The use of Temporal: connection, payloads, names and error translation.

The address and the credentials come from temporalio's environment configuration:
`TEMPORAL_ADDRESS`, `TEMPORAL_NAMESPACE`, `TEMPORAL_API_KEY`, `TEMPORAL_TLS_*`, or a profile
(https://docs.temporal.io/develop/environment-configuration). The key that signs or encrypts
payloads comes from the environment as well: see `codec`.
"""

import dataclasses
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import msgspec
from temporalio.api.common.v1 import Payload, WorkflowExecution
from temporalio.api.failure.v1 import Failure
from temporalio.api.workflowservice.v1 import GetWorkflowExecutionHistoryRequest
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowQueryFailedError
from temporalio.converter import (
    CompositePayloadConverter,
    DataConverter,
    DefaultFailureConverterWithEncodedAttributes,
    DefaultPayloadConverter,
    EncodingPayloadConverter,
    JSONPlainPayloadConverter,
    WorkflowSerializationContext,
)
from temporalio.envconfig import ClientConfig
from temporalio.exceptions import ApplicationError
from temporalio.exceptions import FailureError as TemporalFailureError
from temporalio.runtime import Runtime
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker

from monocloud_async.config import tenant_name
from monocloud_async.errors import ConfigurationError, MonoCloudError
from monocloud_async.fleet.codec import (
    FailureConverter,
    KeylessCodec,
    PayloadRefusedError,
    WatchedCodec,
    protected,
)
from monocloud_async.sanitize import clean
from monocloud_async.version import __version__

_NO_WORKER: Final = {
    RPCStatusCode.FAILED_PRECONDITION,
    RPCStatusCode.DEADLINE_EXCEEDED,
    RPCStatusCode.CANCELLED,  # how the client reports its own timeout
}

# With any other status, the answer may have been lost on its way, or Temporal is busy.
REFUSALS: Final = {
    RPCStatusCode.INVALID_ARGUMENT,
    RPCStatusCode.NOT_FOUND,
    RPCStatusCode.PERMISSION_DENIED,
    RPCStatusCode.UNAUTHENTICATED,
    RPCStatusCode.FAILED_PRECONDITION,
    RPCStatusCode.UNIMPLEMENTED,
}


_NO_NAMESPACE: Final = "Temporal has no such namespace: check TEMPORAL_NAMESPACE"


class FleetError(MonoCloudError):
    """Temporal or a part of the fleet cannot be reached, or refuses."""


class RunEndedError(FleetError):
    """The run ended without a report, for example because its journal was refused."""


async def connect(
    environment: Mapping[str, str] | None = None, *, runtime: Runtime | None = None
) -> Client:
    """Connect to the Temporal that the environment configures, by default at localhost:7233.

    If the environment names a key file of the fleet, what Temporal carries is signed or encrypted.

    Args:
        environment: variables to use instead of this process's environment.
        runtime: for metrics and logs of Temporal's client. Default: the runtime of the process.

    Raises:
        ConfigurationError: the configuration cannot be used.
        FleetError: Temporal cannot be reached.
    """
    try:
        config = ClientConfig.load_client_connect_config(override_env_vars=environment)
    except (RuntimeError, ValueError, OSError) as error:
        raise ConfigurationError(f"cannot use Temporal's configuration: {error}") from None
    address = config.setdefault("target_host", "localhost:7233")
    codec = protected(DataConverter.default, environment)
    try:
        return await Client.connect(**config, data_converter=codec, runtime=runtime)
    except ValueError as error:
        raise ConfigurationError(f"cannot use Temporal's configuration: {error}") from None
    except (RuntimeError, RPCError):  # its text may quote credentials
        raise FleetError(
            f"cannot reach Temporal at {address}: start it, or set TEMPORAL_ADDRESS"
            " (and TEMPORAL_NAMESPACE and TEMPORAL_API_KEY if needed)"
        ) from None


def with_message_codec(client: Client) -> Client:
    """Return a client on the same connection that encodes this package's messages."""
    config = client.config()
    config["data_converter"] = converter(config["data_converter"])
    return Client(**config)


def converter(base: DataConverter = DataConverter.default) -> DataConverter:
    """Return a copy of the converter that encodes this package's messages; keeps its codec."""
    codec, failures = base.payload_codec or KeylessCodec(), base.failure_converter_class
    if failures is DefaultFailureConverterWithEncodedAttributes:
        failures = FailureConverter
    return dataclasses.replace(
        base,
        payload_converter_class=_Converter,
        payload_codec=codec,
        failure_converter_class=failures,
    )


def telling(client: Client, refused: Callable[[PayloadRefusedError], object]) -> Client:
    """Return a client on the same connection that tells which messages its codec refuses."""
    config = client.config()
    base = config["data_converter"]
    codec = WatchedCodec(base.payload_codec or KeylessCodec(), refused)
    config["data_converter"] = dataclasses.replace(base, payload_codec=codec)
    return Client(**config)


async def check_readable(client: Client, tenant: str) -> None:
    """Raise `PayloadRefusedError` if the tenant's run is of parts with another key, or with none.

    They could not read what this part writes, and one message that its coordinator cannot read ends
    a run.
    """
    run = workflow_id(tenant)
    description = await client.get_workflow_handle(run).describe()
    codec = in_context(client, run).payload_codec
    if codec is None or description.status is not WorkflowExecutionStatus.RUNNING:
        return
    answer = await client.workflow_service.get_workflow_execution_history(
        GetWorkflowExecutionHistoryRequest(
            namespace=client.namespace,
            execution=WorkflowExecution(workflow_id=run),
            maximum_page_size=1,
        )
    )
    for event in answer.history.events:
        await codec.decode(event.workflow_execution_started_event_attributes.input.payloads)


def in_context(client: Client, run: str) -> DataConverter:
    """Return the client's converter for the payloads of this workflow id."""
    context = WorkflowSerializationContext(namespace=client.namespace, workflow_id=run)
    return client.data_converter.with_context(context)


async def failure_text(client: Client, run: str, failure: Failure) -> str:
    """Return the message of a failure of this run, which may be encrypted."""
    error = await in_context(client, run).decode_failure(failure)
    text = error.message if isinstance(error, TemporalFailureError) else str(error)
    cause = error.__cause__
    return f"{text}: {cause.message}" if isinstance(cause, ApplicationError) else text


def workflow_id(tenant: str) -> str:
    """Return the id of a tenant's run; Temporal refuses a second one, so the rate cannot double."""
    return f"monocloud-async {tenant_name(tenant).partition('://')[2]}"


def worker_queue(tenant: str) -> str:
    """Return the task queue of a tenant's workers."""
    return workflow_id(tenant)


def coordinator_queue(tenant: str) -> str:
    """Return the task queue of a tenant's coordinator."""
    return f"{workflow_id(tenant)} coordinator"


def member_name() -> str:
    """Return the name of this process in the fleet: its process, host and version."""
    return f"{os.getpid()}@{socket.gethostname()} {__version__}"


@contextmanager
def translated(tenant: str) -> Iterator[None]:
    """Turn errors of Temporal into a `FleetError`."""
    try:
        yield
    except RPCError as error:
        raise to_fleet_error(error, tenant) from None
    except PayloadRefusedError as error:
        raise FleetError(str(error)) from None
    except WorkflowQueryFailedError as error:
        raise FleetError(
            f"the coordinator cannot answer for {tenant}: {clean(error.message)}; it may be of"
            " another version than the one that began the run"
        ) from None


def to_fleet_error(error: RPCError, tenant: str) -> FleetError:
    """Return the `FleetError` for an error of Temporal about a tenant's run."""
    if error.status == RPCStatusCode.NOT_FOUND and "amespace" in error.message:
        return FleetError(f"{_NO_NAMESPACE} ({error.message})")
    if error.status == RPCStatusCode.NOT_FOUND:
        return no_run(tenant, has_ended="completed" in error.message)
    if error.status in _NO_WORKER:
        return FleetError(
            f"no coordinator answers for {tenant}: check that `monocloud-async fleet coordinator`"
            " is running, with this Temporal"
        )
    if error.status in REFUSALS:
        return FleetError(f"Temporal refused ({error.status.name}): {error.message}")
    return FleetError(
        f"Temporal cannot answer now ({error.status.name}: {error.message}): try again, and check"
        " that it is up"
    )


def no_run(tenant: str, *, has_ended: bool) -> FleetError:
    """Return the error for an order to a run that is not there, or has ended."""
    if has_ended:
        return FleetError(
            f"no run is in progress for {tenant}: the latest one has ended; to see how:"
            " monocloud-async fleet status"
        )
    return FleetError(
        f"no run is in progress for {tenant}: there was none in this namespace of Temporal, as far"
        " as it knows; to see the runs of all tenants: temporal workflow list"
    )


async def work(worker: Worker) -> None:
    """Run the worker until cancelled.

    Raises:
        FleetError: Temporal refuses the worker.
    """
    try:
        await worker.run()
    except RuntimeError as error:  # how the client reports a refusal
        if "amespace" in str(error):
            raise FleetError(_NO_NAMESPACE) from None
        raise FleetError(f"Temporal refused: {error}") from None


class _Json(EncodingPayloadConverter):
    """Uses `msgspec` for JSON, because the standard library cannot encode a Struct."""

    @property
    def encoding(self) -> str:
        return "json/plain"

    def to_payload(self, value: Any) -> Payload:
        data = msgspec.json.encode(value)
        return Payload(metadata={"encoding": self.encoding.encode()}, data=data)

    def from_payload(self, payload: Payload, type_hint: type | None = None) -> Any:
        return msgspec.json.decode(payload.data, type=Any if type_hint is None else type_hint)


class _Converter(CompositePayloadConverter):
    def __init__(self) -> None:
        super().__init__(
            *(
                _Json() if isinstance(converter, JSONPlainPayloadConverter) else converter
                for converter in DefaultPayloadConverter.default_encoding_payload_converters
            )
        )
