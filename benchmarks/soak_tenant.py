"""The tenant of the soak test: the sandbox, over TLS and with its answers in chunks.

    python benchmarks/soak_tenant.py DATABASE CERTIFICATE PORT

It prints its address. A scripted answer that is cut in the middle keeps its length, without which
nobody could know that it was cut.
"""

import asyncio
import ssl
import sys

from aiohttp import web

from monocloud_async.sandbox import Sandbox

RATE, BURST, LATENCY, ERRORS = 1000, 200, 0.005, 0.002


async def main(db: str, certificate: str, port: str) -> None:
    sandbox = Sandbox(db=db, rate_limit=RATE, burst=BURST, latency=LATENCY, error_rate=ERRORS)

    async def in_chunks(request: web.BaseRequest) -> web.Response:
        answer = await sandbox.answer(request)
        if "Content-Length" not in answer.headers:
            answer.enable_chunked_encoding()
        return answer

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = web.Server(in_chunks, handler_cancellation=True, access_log=None)
    listener = await asyncio.get_running_loop().create_server(
        server, "127.0.0.1", int(port), ssl=context, backlog=1024
    )
    print(f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
