"""Temporal, as this package uses it: the connection, the payloads, the names, its errors in words.

Where it is, and how to log in there, is temporalio's own environment configuration:
`TEMPORAL_ADDRESS`, `TEMPORAL_NAMESPACE`, `TEMPORAL_API_KEY`, `TEMPORAL_TLS_*`, or a profile
(https://docs.temporal.io/develop/environment-configuration).
"""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import msgspec
from temporalio.api.common.v1 import Payload
from temporalio.client import Client
from temporalio.converter import (
    CompositePayloadConverter,
    DataConverter,
    DefaultPayloadConverter,
    EncodingPayloadConverter,
    JSONPlainPayloadConverter,
)
from temporalio.envconfig import ClientConfig
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker

from monocloud_async.errors import ConfigurationError, MonoCloudError

_NO_WORKER: Final = {
    RPCStatusCode.FAILED_PRECONDITION,
    RPCStatusCode.DEADLINE_EXCEEDED,
    RPCStatusCode.CANCELLED,  # what the client makes of its own timeout
}


_NO_NAMESPACE: Final = "Temporal has no such namespace: look at TEMPORAL_NAMESPACE"


class FleetError(MonoCloudError):
    """Temporal, or a part of the fleet, is not there or refuses."""


async def connect(environment: Mapping[str, str] | None = None) -> Client:
    """A client for the Temporal that the environment names; localhost:7233 if it names none.

    Args:
        environment: in place of this process's.

    Raises:
        ConfigurationError: what the environment says cannot be used.
        FleetError: nobody answers there.
    """
    try:
        config = ClientConfig.load_client_connect_config(override_env_vars=environment)
    except (RuntimeError, ValueError, OSError) as error:
        raise ConfigurationError(f"cannot use Temporal's configuration: {error}") from None
    address = config.setdefault("target_host", "localhost:7233")
    try:
        return await Client.connect(**config)
    except ValueError as error:
        raise ConfigurationError(f"cannot use Temporal's configuration: {error}") from None
    except (RuntimeError, RPCError):  # its text may quote what it was given
        raise FleetError(
            f"no Temporal answers at {address}: start one, or set TEMPORAL_ADDRESS"
            " (and TEMPORAL_NAMESPACE, TEMPORAL_API_KEY where it wants them)"
        ) from None


def with_message_codec(client: Client) -> Client:
    """The same connection, with payloads that are this package's messages; a codec stays."""
    config = client.config()
    config["data_converter"] = converter(config["data_converter"])
    return Client(**config)


def converter(base: DataConverter = DataConverter.default) -> DataConverter:
    """The same converter, for this package's messages."""
    return dataclasses.replace(base, payload_converter_class=_Converter)


def workflow_id(tenant: str) -> str:
    """One for a tenant: Temporal refuses a second run, which would double the rate."""
    return f"monocloud-async {tenant.partition('://')[2]}"


def worker_queue(tenant: str) -> str:
    """Where the workers of a tenant are given chunks."""
    return workflow_id(tenant)


def coordinator_queue(tenant: str) -> str:
    """Where the coordinator of a tenant is given the rest."""
    return f"{workflow_id(tenant)} coordinator"


@contextmanager
def translated(tenant: str) -> Iterator[None]:
    """What Temporal raises, as a `FleetError`."""
    try:
        yield
    except RPCError as error:
        raise to_fleet_error(error, tenant) from None


def to_fleet_error(error: RPCError, tenant: str) -> FleetError:
    """What Temporal's refusal of something about a tenant's run means."""
    if error.status == RPCStatusCode.NOT_FOUND and "amespace" in error.message:
        return FleetError(f"{_NO_NAMESPACE} ({error.message})")
    if error.status == RPCStatusCode.NOT_FOUND:
        return FleetError(f"there is no run for {tenant} under way: start one")
    if error.status in _NO_WORKER:
        return FleetError(
            f"no coordinator answers for {tenant}: look whether `monocloud-async fleet coordinator`"
            " is running, and for this Temporal"
        )
    return FleetError(f"Temporal refused ({error.status.name}): {error.message}")


async def work(worker: Worker) -> None:
    """Have it work until cancelled.

    Raises:
        FleetError: Temporal does not let it.
    """
    try:
        await worker.run()
    except RuntimeError as error:  # what the client makes of a refusal
        if "amespace" in str(error):
            raise FleetError(_NO_NAMESPACE) from None
        raise FleetError(f"Temporal refused: {error}") from None


class _Json(EncodingPayloadConverter):
    """`msgspec`'s JSON in place of the standard library's, which knows no Struct."""

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
