"""Translates aiohttp's errors into ours, whose messages have no header, password or body.

Our errors are never chained to aiohttp's, which hold the request's headers with the key.
"""

from collections.abc import Iterator

import aiohttp
from aiohttp.http import HttpProcessingError
from aiohttp.http_exceptions import LineTooLong

from monocloud_async.connector import MAX_HEADERS, HeadersTooLongError, SpokeFirstError
from monocloud_async.errors import ConfigurationError, RequestTimeoutError, TransportError
from monocloud_async.transport.standard import (
    ClientGaveUpError,
    ClosedError,
    NoFreeConnectionError,
    is_exhausted,
)

_CERTIFICATE = (
    "Check the domain; where a gateway of your own opens TLS, name the file of its authority in"
    " SSL_CERT_FILE"
)
_TOO_LONG = f"are longer than {MAX_HEADERS >> 10} KiB, which is all that is read"
_STRICT = (
    "Python 3.13 checks certificates strictly, and this one, or its authority's, does not conform"
    " to RFC 5280. Have it issued anew, or pass a client_session whose SSL context is without"
    " ssl.VERIFY_X509_STRICT"
)
# OpenSSL's X509_V_ERR codes of what only the strict check refuses (openssl/x509_vfy.h).
_STRICT_CODES = range(80, 94)
_EXHAUSTED = "Raise the limit of open files (ulimit -n), or make fewer calls at once"
_TLS = "Check the domain and its port, and whether a proxy is in between"


def timeout_error(error: TimeoutError, user_id: str, seconds: float) -> RequestTimeoutError:
    """Return the error for a request that got no complete response in time."""
    if isinstance(error, NoFreeConnectionError):
        what = f"the client_session had no free connection for most of {seconds:.3g} s"
        late = RequestTimeoutError(what, user_id=user_id, sent=error.sent)
        late.local = True
        late.advice = "Raise the limit of its connector, or make fewer calls at once"
        return late
    if isinstance(error, ClientGaveUpError):
        what = f"the client_session gave up by itself, before {seconds:.3g} s were over"
        early = RequestTimeoutError(what, user_id=user_id)
        early.local = True
        early.advice = "Look at the time limits in its middlewares and traces"
        return early
    sent = not isinstance(error, aiohttp.ConnectionTimeoutError)
    what = f"no complete answer within {seconds:.3g} s" if sent else "no connection in time"
    return RequestTimeoutError(what, user_id=user_id, sent=sent)


ClientFailure = aiohttp.ClientError | HttpProcessingError | OSError


def transport_error(error: ClientFailure, user_id: str) -> TransportError:
    """Return the error for a request that failed, before or after it was sent."""
    return _not_sent(error, user_id) or _cut_off(error, user_id)


def expired_error(user_id: str) -> RequestTimeoutError:
    """Return the error for a request that would start after its deadline."""
    error = RequestTimeoutError(
        "the time was over before it could be sent", user_id=user_id, sent=False, transient=False
    )
    error.refusal = "deadline"
    return error


def unusable_client_error(error: Exception, user_id: str, *, borrowed: bool) -> ConfigurationError:
    """Return the error for a client with which no request can be made.

    Examples of borrowed ones are a session of another event loop, a proxy without http://, and a
    connector for IPv6 only if the tenant has no IPv6 address: there, aiohttp fails with an
    assertion. Our own one fails if a mock that replaces parts of aiohttp is for another version.
    """
    # Without aiohttp's message, which may contain the proxy's password.
    kind = type(error).__name__
    what = (
        f"the borrowed client_session made no request ({kind}): look at its event loop, its proxy"
        " and its connector"
        if borrowed
        else f"aiohttp made no request ({kind}): look whether what mocks or traces it is for this"
        " version of aiohttp"
    )
    return ConfigurationError(what, user_id=user_id)


def _not_sent(error: ClientFailure, user_id: str) -> TransportError | None:
    transient, lasting, local, advice = True, False, False, None
    match error:
        case SpokeFirstError():
            what = "the server spoke before it was asked, which is not HTTP"
        case aiohttp.ClientConnectorCertificateError():
            reason = getattr(error.certificate_error, "verify_message", "") or "it is not trusted"
            what = f"the server's TLS certificate was refused: {reason.rstrip('.')}"
            strict = getattr(error.certificate_error, "verify_code", 0) in _STRICT_CODES
            transient, lasting, advice = False, True, _STRICT if strict else _CERTIFICATE
        case aiohttp.ClientSSLError():
            reason = getattr(error.os_error, "reason", "") or "no TLS on this port"
            what = f"TLS could not be set up: {reason}"
            transient, lasting, advice = False, True, _TLS
        case aiohttp.ClientConnectorError() if is_exhausted(error):
            what = f"this machine could make no more connections: {_reason(error.os_error)}"
            local, advice = True, _EXHAUSTED
        case aiohttp.ClientConnectorDNSError():
            what, lasting = f"the host name {error.host} could not be resolved", True
        case aiohttp.ClientProxyConnectionError():
            what = "the proxy could not be reached"
        case aiohttp.ClientConnectorError():
            what = f"could not connect: {_reason(error.os_error)}"
        case aiohttp.ClientHttpProxyError():
            what = f"the proxy refused to connect (status {error.status})"
        case _:
            return None
    translated = TransportError(
        what, user_id=user_id, sent=False, transient=transient, lasting=lasting
    )
    translated.local = local
    translated.advice = advice or translated.advice
    return translated


def _cut_off(error: ClientFailure, user_id: str) -> TransportError:
    stale = False
    match error:
        case HeadersTooLongError():
            return _headers_too_long(user_id)
        case ClosedError():
            what = "the session was closed before an answer came"
            return TransportError(what, user_id=user_id, transient=False, lasting=True)
        # The second one is aiohttp's for a request that it could no longer write.
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientConnectionResetError():
            what, stale = "the connection was closed before an answer came", True
        case aiohttp.ClientPayloadError():
            what = "the answer was cut short"
        case aiohttp.ClientResponseError() | HttpProcessingError():
            if _is_of_long_headers(error):
                return _headers_too_long(user_id)
            if _is_of_many_headers(error):
                return _headers_too_long(user_id, "have more lines than are read")
            what = "the answer was not HTTP"  # aiohttp reports it as a 400 that no server sent
        case OSError():
            what, stale = f"the connection broke: {_reason(error)}", True
        case _:
            what = f"the request failed ({type(error).__name__})"
    return TransportError(what, user_id=user_id, stale=stale)


def _headers_too_long(user_id: str, how: str = _TOO_LONG) -> TransportError:
    translated = TransportError(f"the answer's headers {how}", user_id=user_id, transient=False)
    translated.advice = "It may well be done; see what a gateway adds to the answers"
    return translated


def _is_of_long_headers(error: BaseException) -> bool:
    """Whether a line of the headers was too long for aiohttp's parser."""
    return any(isinstance(cause, LineTooLong) for cause in _causes(error))


def _is_of_many_headers(error: BaseException) -> bool:
    """Whether the headers had too many lines for aiohttp's parser, which has no class for it."""
    return any(cause.args[:1] == ("Too many headers received",) for cause in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Return the error and its causes, in which alone the parser tells its limits."""
    while error is not None:
        yield error
        error = error.__cause__


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__
