"""aiohttp's exceptions as ours: which of them, what it says, and what may be done about it."""

import errno
import socket
import ssl
from ssl import SSLCertVerificationError

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.http_exceptions import BadHttpMessage, BadStatusLine, LineTooLong
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from monocloud_async import ConfigurationError, RequestTimeoutError, TransportError
from monocloud_async.connector import HeadersTooLongError, SpokeFirstError
from monocloud_async.transport.error_translation import (
    ClientFailure,
    expired_error,
    timeout_error,
    transport_error,
    unusable_client_error,
)
from monocloud_async.transport.standard import NOT_SENT, ClosedError

TO = ConnectionKey("acme.com", 443, True, True, None, None, None)  # noqa: FBT003  aiohttp's own
HEADERS = CIMultiDictProxy(CIMultiDict({"X-API-KEY": "4711"}))
REQUEST = aiohttp.RequestInfo(URL("https://acme.com"), "POST", headers=HEADERS)
REFUSED = ConnectionRefusedError(111, "Connection refused")
NO_FILE = OSError(errno.EMFILE, "Too many open files")
NO_THREAD = OSError(errno.EAGAIN, "no thread for the look-up")
NO_NAME = socket.gaierror(-2, "Name or service not known")


def refused_certificate() -> aiohttp.ClientConnectorCertificateError:
    error = SSLCertVerificationError("certificate verify failed")
    error.verify_message = "certificate has expired."
    return aiohttp.ClientConnectorCertificateError(TO, error)


def of_long_headers() -> aiohttp.ClientResponseError:
    error = aiohttp.ClientResponseError(REQUEST, (), status=400)
    error.__cause__ = LineTooLong(b"x", 8190)
    return error


# Flags: s ent, t ransient, l asting, S tale, L ocal.
@pytest.mark.parametrize(
    ("error", "says", "flags"),
    [
        (SpokeFirstError(), "the server spoke before it was asked", "t"),
        (
            refused_certificate(),
            "certificate was refused: certificate has expired. Check the domain; where",
            "l",
        ),
        (
            aiohttp.ClientConnectorSSLError(TO, ssl.SSLError(1, "wrong version")),
            "TLS could not be set up",
            "l",
        ),
        (aiohttp.ClientConnectorDNSError(TO, NO_NAME), "host name acme.com could not be", "tl"),
        (aiohttp.ClientConnectorDNSError(TO, NO_THREAD), "no more connections: no thread", "tL"),
        (aiohttp.ClientConnectorError(TO, NO_FILE), "Too many open files. Raise the", "tL"),
        (aiohttp.ClientProxyConnectionError(TO, REFUSED), "the proxy could not be reached", "t"),
        (aiohttp.ClientConnectorError(TO, REFUSED), "could not connect: Connection refused", "t"),
        (
            aiohttp.ClientHttpProxyError(REQUEST, (), status=407),
            "the proxy refused to connect (status 407",
            "t",
        ),
        (HeadersTooLongError(), "the answer's headers are longer than 64 KiB", "s"),
        (of_long_headers(), "the answer's headers are longer than 64 KiB", "s"),
        (BadHttpMessage("Too many headers received"), "headers have more lines than", "s"),
        (ClosedError(), "the session was closed before an answer came", "sl"),
        (aiohttp.ServerDisconnectedError(), "was closed before an answer came", "stS"),
        (aiohttp.ClientConnectionResetError("closing"), "was closed before an answer", "stS"),
        (aiohttp.ClientPayloadError("half"), "the answer was cut short", "st"),
        (BadStatusLine("x"), "the answer was not HTTP", "st"),
        (aiohttp.ClientResponseError(REQUEST, (), status=400), "the answer was not HTTP", "st"),
        (aiohttp.ClientOSError(104, "Connection reset"), "broke: Connection reset", "stS"),
        (OSError("no number"), "the connection broke: OSError", "stS"),
        (aiohttp.ClientError("sentinel"), "the request failed (ClientError", "st"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_each_fault_says_what_happened_and_what_may_be_done(
    error: ClientFailure, says: str, flags: str
) -> None:
    ours = transport_error(error, "ada")
    told = {
        "s": ours.sent,
        "t": ours.transient,
        "l": ours.lasting,
        "S": ours.stale,
        "L": ours.local,
    }
    assert type(ours) is TransportError
    assert says in str(ours)
    assert "".join(flag for flag, is_so in told.items() if is_so) == flags
    assert isinstance(error, NOT_SENT) is not ours.sent
    assert ours.user_id == "ada"
    assert (ours.__cause__, ours.__context__) == (None, None)
    assert "4711" not in str(ours)


def test_a_timeout_tells_whether_the_request_was_sent() -> None:
    late = timeout_error(TimeoutError(), "ada", 3.0)
    assert "no complete answer within 3 s" in str(late)
    assert (late.sent, late.transient) == (True, True)
    early = timeout_error(aiohttp.ConnectionTimeoutError(), "ada", 3.0)
    assert "no connection in time" in str(early)
    assert (early.sent, early.transient) == (False, True)


def test_time_that_is_over_before_the_request_is_not_tried_again() -> None:
    error = expired_error("ada")
    assert type(error) is RequestTimeoutError
    assert (error.sent, error.transient, error.refusal) == (False, False, "deadline")


def test_a_client_that_makes_no_request_is_a_mistake_of_its_configuration() -> None:
    error = unusable_client_error(ValueError("http://eve:hunter2@p:9"), "ada", borrowed=True)
    assert type(error) is ConfigurationError
    assert "made no request (ValueError)" in str(error)
    assert "hunter2" not in str(error)


@pytest.mark.parametrize(
    ("code", "advice"),
    [(89, "without ssl.VERIFY_X509_STRICT"), (19, "in SSL_CERT_FILE"), (18, "in SSL_CERT_FILE")],
)
def test_the_advice_for_a_certificate_is_that_for_its_cause(code: int, advice: str) -> None:
    reason = SSLCertVerificationError("refused")
    reason.verify_code, reason.verify_message = code, "reason"
    error = aiohttp.ClientConnectorCertificateError(TO, reason)
    assert transport_error(error, "ada").advice.endswith(advice)


def test_a_client_that_nobody_lent_is_not_called_borrowed() -> None:
    error = unusable_client_error(TypeError("stream_writer"), "ada", borrowed=False)
    assert "borrowed" not in str(error)
    assert "aiohttp made no request (TypeError)" in str(error)
