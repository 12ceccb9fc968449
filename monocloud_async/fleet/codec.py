"""Signs or encrypts what Temporal carries and stores, with a key of the operator.

Whoever reaches Temporal can write messages. With a key, every part of the fleet refuses those that
nobody with the key has written. A message is bound to its namespace and its workflow id, which has
the tenant, so it is not valid for another tenant. The runs of one tenant have the same workflow id:
whoever reaches Temporal can repeat a message of an earlier one.
"""

import hmac
import logging
import os
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, Self

from temporalio.api.common.v1 import Payload
from temporalio.api.failure.v1 import Failure
from temporalio.converter import (
    ActivitySerializationContext,
    DataConverter,
    DefaultFailureConverter,
    DefaultFailureConverterWithEncodedAttributes,
    PayloadCodec,
    PayloadConverter,
    SerializationContext,
    WithSerializationContext,
    WorkflowSerializationContext,
)

from monocloud_async.config import exposure
from monocloud_async.errors import ConfigurationError, MonoCloudError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_LOG: Final = logging.getLogger("monocloud_async.fleet")

SIGNING_KEY_FILE: Final = "MONOCLOUD_FLEET_SIGNING_KEY_FILE"
ENCRYPTION_KEY_FILE: Final = "MONOCLOUD_FLEET_ENCRYPTION_KEY_FILE"
_SHORTEST: Final = 32  # characters of a key
_SIGNED: Final = b"binary/monocloud-signed"
_SIGNATURE: Final = 32  # bytes
_ENCRYPTED: Final = b"binary/monocloud-encrypted"
_NONCE: Final = 12  # bytes (NIST SP 800-38D, section 5.2.1.1)
# What was done to a message, and where its key comes from, by its encoding.
_NEEDED: Final = {
    _SIGNED: ("signed", SIGNING_KEY_FILE),
    _ENCRYPTED: ("encrypted", ENCRYPTION_KEY_FILE),
}


class PayloadRefusedError(MonoCloudError):
    """A message in Temporal was not written by anybody who has the fleet's key."""


@dataclass(frozen=True)
class _Codec(PayloadCodec, WithSerializationContext):
    """A codec with keys: the first one is used, and all are accepted.

    Attributes:
        keys: secrets of at least 32 characters.
        context: the namespace and the workflow id that the payloads belong to.
    """

    keys: Sequence[str] = field(repr=False)
    context: bytes = b""
    verb: ClassVar[str]  # what it does to a payload; no key is used for two things

    def __post_init__(self) -> None:
        """Check the keys; no error shows one."""
        known = [] if isinstance(self.keys, str | bytes) else list(self.keys)
        if not known or not all(isinstance(key, str) and len(key) >= _SHORTEST for key in known):
            raise ConfigurationError(
                f"the fleet needs a list of keys with at least {_SHORTEST} characters each; make"
                " one with: openssl rand -base64 32"
            )

    def with_context(self, context: SerializationContext) -> Self:
        """Return a codec for the payloads of one workflow id."""
        if not isinstance(context, WorkflowSerializationContext | ActivitySerializationContext):
            return self
        whole = _joined(context.namespace.encode(), (context.workflow_id or "").encode())
        return replace(self, context=whole)

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Return the payloads as they are sent."""
        return [self._encoded(payload, self._derived(self.keys[0])) for payload in payloads]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Return the payloads as they were written.

        Raises:
            PayloadRefusedError: one of them was not written with one of the keys for this workflow
                id.
        """
        return [self._decode(payload) for payload in payloads]

    def _decode(self, payload: Payload) -> Payload:
        for key in self.keys:
            if (decoded := self._decoded(payload, self._derived(key))) is not None:
                return decoded
        raise PayloadRefusedError(
            f"a message in Temporal is not {self.verb} with this fleet's key for this tenant: give"
            " all parts the same key file, and if they have it, find out who else reaches Temporal"
        )

    def _derived(self, key: str) -> bytes:
        return hmac.digest(key.encode(), f"monocloud-async {self.verb}".encode(), "sha256")

    @abstractmethod
    def _encoded(self, payload: Payload, key: bytes) -> Payload:
        """Return the payload as it is sent."""

    @abstractmethod
    def _decoded(self, payload: Payload, key: bytes) -> Payload | None:
        """Return the payload as it was written, or None if it was not written with this key."""


class SigningCodec(_Codec):
    """Signs payloads with HMAC-SHA256; whoever reaches them can still read them."""

    verb = "signed"

    def _encoded(self, payload: Payload, key: bytes) -> Payload:
        content = payload.SerializeToString()
        # In an encoding of its own, so that a part without the key does not believe it unchecked.
        return Payload(metadata={"encoding": _SIGNED}, data=self._sign(content, key) + content)

    def _decoded(self, payload: Payload, key: bytes) -> Payload | None:
        signature, content = payload.data[:_SIGNATURE], payload.data[_SIGNATURE:]
        if payload.metadata.get("encoding") != _SIGNED:
            return None
        if not hmac.compare_digest(signature, self._sign(content, key)):
            return None
        return Payload.FromString(content)

    def _sign(self, content: bytes, key: bytes) -> bytes:
        return hmac.digest(key, _joined(self.context, content), "sha256")


class EncryptingCodec(_Codec):
    """Encrypts payloads with AES-256-GCM, which also shows whether they were changed.

    The messages of failures are encrypted only if the data converter also has
    `temporalio.converter.DefaultFailureConverterWithEncodedAttributes`.
    """

    verb = "encrypted"

    def __post_init__(self) -> None:
        """Check the keys, and that the library is there."""
        super().__post_init__()
        _aes(bytes(32))

    def _encoded(self, payload: Payload, key: bytes) -> Payload:
        nonce = os.urandom(_NONCE)
        hidden = _aes(key).encrypt(nonce, payload.SerializeToString(), self.context)
        return Payload(metadata={"encoding": _ENCRYPTED}, data=nonce + hidden)

    def _decoded(self, payload: Payload, key: bytes) -> Payload | None:
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415  only who encrypts needs it

        if payload.metadata.get("encoding") != _ENCRYPTED:
            return None
        nonce, hidden = payload.data[:_NONCE], payload.data[_NONCE:]
        try:
            return Payload.FromString(_aes(key).decrypt(nonce, hidden, self.context))
        except (InvalidTag, ValueError):  # cut off
            return None


class KeylessCodec(PayloadCodec):
    """Refuses what another part of the fleet has signed or encrypted, and changes nothing else."""

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Return the payloads."""
        return list(payloads)

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Return the payloads.

        Raises:
            PayloadRefusedError: one of them needs a key.
        """
        for payload in payloads:
            if (needed := _NEEDED.get(payload.metadata.get("encoding", b""))) is not None:
                verb, variable = needed
                raise PayloadRefusedError(
                    f"this fleet's messages in Temporal are {verb}, and this part has no key: set"
                    f" {variable} to the path of the fleet's key file"
                )
        return list(payloads)


@dataclass(frozen=True)
class WatchedCodec(PayloadCodec, WithSerializationContext):
    """Another codec that also tells when it refuses a message.

    Attributes:
        codec: the other one.
        refused: is called with the error.
    """

    codec: PayloadCodec
    refused: Callable[[PayloadRefusedError], object]

    def with_context(self, context: SerializationContext) -> Self:
        """Return a codec for the payloads of one workflow id."""
        if not isinstance(self.codec, WithSerializationContext):
            return self
        return replace(self, codec=self.codec.with_context(context))

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Return the payloads as the other codec encodes them."""
        return await self.codec.encode(payloads)

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Return the payloads as the other codec decodes them, or raise as it does."""
        try:
            return await self.codec.decode(payloads)
        except PayloadRefusedError as error:
            self.refused(error)
            raise


class FailureConverter(DefaultFailureConverterWithEncodedAttributes):
    """Leaves the text of failures to the codec, which encrypts it.

    But not that of a refused message: this part has another key, with which nobody else could
    decrypt it. A failure that cannot be decoded would end the run.
    """

    def to_failure(
        self, exception: BaseException, payload_converter: PayloadConverter, failure: Failure
    ) -> None:
        """Fill in the failure for this exception."""
        if any(isinstance(e, PayloadRefusedError) for e in (exception, exception.__cause__)):
            DefaultFailureConverter().to_failure(exception, payload_converter, failure)
        else:
            super().to_failure(exception, payload_converter, failure)


def protected(base: DataConverter, environment: Mapping[str, str] | None = None) -> DataConverter:
    """Return a converter with the codec that the environment names, or as it is.

    `MONOCLOUD_FLEET_SIGNING_KEY_FILE` or `MONOCLOUD_FLEET_ENCRYPTION_KEY_FILE` is the path of a
    file with keys, one in a line. The first one is used, and all are accepted.

    Raises:
        ConfigurationError: the file or the keys in it cannot be used.
    """
    named = os.environ if environment is None else environment
    files = {name: named[name] for name in (SIGNING_KEY_FILE, ENCRYPTION_KEY_FILE) if name in named}
    if len(files) > 1:
        raise ConfigurationError(
            f"set {SIGNING_KEY_FILE} or {ENCRYPTION_KEY_FILE}, not both: what is encrypted needs no"
            " signature"
        )
    for name, file in files.items():
        try:
            if name == SIGNING_KEY_FILE:
                return replace(base, payload_codec=SigningCodec(_keys(file)))
            return replace(
                base,
                payload_codec=EncryptingCodec(_keys(file)),
                failure_converter_class=DefaultFailureConverterWithEncodedAttributes,
            )
        except ConfigurationError as error:
            raise ConfigurationError(f"cannot use the file that {name} names: {error}") from None
    return base


def protection(converter: DataConverter) -> str:
    """Return in words what the codec of a converter does to payloads."""
    codec = converter.payload_codec
    if codec is None or isinstance(codec, KeylessCodec):
        return "neither signed nor encrypted"
    return codec.verb if isinstance(codec, _Codec) else f"with {type(codec).__name__}"


def _keys(file: str) -> list[str]:
    """Return the keys in this file, one in a line."""
    if not file:  # not the same as no variable: somebody wanted a key
        raise ConfigurationError("it is set but empty")
    path = Path(file)
    try:
        keys = path.read_text(encoding="utf-8").split()
        warning = exposure(path)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigurationError(f"{file}: {why}") from None
    if warning is not None:
        _LOG.warning("%s", warning)
    return keys


def _aes(key: bytes) -> "AESGCM":
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415  as above
    except ImportError:
        raise ConfigurationError(
            "encryption needs a library: pip install 'monocloud-async[temporal]'"
        ) from None
    return AESGCM(key)


def _joined(*parts: bytes) -> bytes:
    """Return these parts as bytes that no other parts give."""
    return b"".join(len(part).to_bytes(8) + part for part in parts)
