"""A fast server for measurements: nginx, or else asyncio, plain and over TLS.

It answers every enable with the documented user, under the id that was asked for.
"""

import asyncio
import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import trustme

SAMPLE = Path(__file__).parent.parent / "tests" / "samples" / "user-documented.json"
ID = "USER-ID"

NGINX = """
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/errors;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    keepalive_requests 100000000;
    keepalive_timeout 300s;
    client_body_temp_path {folder}/temporary;
    proxy_temp_path {folder}/temporary;
    fastcgi_temp_path {folder}/temporary;
    uwsgi_temp_path {folder}/temporary;
    scgi_temp_path {folder}/temporary;
    default_type application/json;
    ssl_protocols TLSv1.2 TLSv1.3;
    server {{
        listen 127.0.0.1:{plain};
        listen 127.0.0.1:{tls} ssl;
        ssl_certificate {folder}/server.pem;
        ssl_certificate_key {folder}/server.pem;
        location ~ "^/api/users/([^/]+)/enable$" {{ return 200 '{body}'; }}
    }}
}}
"""


def body(user_id: str) -> str:
    """Return the documented user with this id, in bytes that need no escapes in nginx's quotes."""
    user = json.loads(SAMPLE.read_text(encoding="utf-8")) | {"user_id": ID}
    text = json.dumps(user, separators=(",", ":"))
    assert not set(text) & set("'$\\")
    assert text.count(ID) == 1
    return text.replace(ID, user_id)


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yield the addresses, plain and TLS, and the server; `folder` gets the authority, ca.pem."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate.private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    plain, tls = _free_ports()
    nginx = shutil.which("nginx")
    if nginx is not None:
        config = folder / "nginx.conf"
        config.write_text(
            NGINX.format(folder=folder, plain=plain, tls=tls, body=body("$1")), encoding="utf-8"
        )
        command = [nginx, "-p", str(folder), "-c", str(config)]
        said = subprocess.run([nginx, "-v"], check=True, capture_output=True, text=True).stderr
        name = said.strip().rpartition(": ")[2].replace("/", " ")
    else:
        command = [sys.executable, __file__, str(folder), str(plain), str(tls)]
        name = "a server on asyncio (no nginx here)"
    said_by_it = folder / "server.txt"
    with said_by_it.open("wb") as output, subprocess.Popen(command, stderr=output) as server:
        try:
            for port in (plain, tls):
                if not _answers(port, server):
                    sys.exit(f"the server did not start:\n{said_by_it.read_text()}")
            yield f"http://127.0.0.1:{plain}", f"https://127.0.0.1:{tls}", name
            assert server.poll() is None, "the server ended before the measurement"
        finally:
            server.terminate()


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def _answers(port: int, server: "subprocess.Popen[bytes]") -> bool:
    for _ in range(100):
        if server.poll() is not None:
            return False
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return True
    return False


class _Answers(asyncio.Protocol):
    """Answers requests without a body, one after the other on one connection."""

    transport: asyncio.Transport
    asked = re.compile(rb"POST /api/users/([^/ ]+)/enable HTTP/1\.1\r\n")
    before, after = body(ID).encode().split(ID.encode())
    left = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        *heads, self.left = (self.left + data).split(b"\r\n\r\n")
        for head in heads:
            request = self.asked.match(head)
            if request is None:
                self.transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                continue
            user = b"".join((self.before, request[1], self.after))
            self.transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                % (len(user), user)
            )


async def _serve(folder: str, plain: str, tls: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{folder}/server.pem")
    loop = asyncio.get_running_loop()
    await loop.create_server(_Answers, "127.0.0.1", int(plain))
    await loop.create_server(_Answers, "127.0.0.1", int(tls), ssl=context)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(*sys.argv[1:]))
