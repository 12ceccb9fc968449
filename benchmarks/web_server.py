"""A quick server for measurements: nginx, or asyncio where there is none, plain and over TLS.

It answers every enable with the documented user, under the id that was asked for.
"""

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    keepalive_requests 1000000000;
    keepalive_timeout 300s;
    client_body_temp_path {folder}/temporary;
    proxy_temp_path {folder}/temporary;
    fastcgi_temp_path {folder}/temporary;
    uwsgi_temp_path {folder}/temporary;
    scgi_temp_path {folder}/temporary;
    default_type application/json;
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
    """The documented user with this id, in bytes that no quoting of nginx's minds."""
    user = json.loads(SAMPLE.read_text(encoding="utf-8")) | {"user_id": ID}
    text = json.dumps(user, separators=(",", ":"))
    return text.replace("'", "").replace("$", "").replace(ID, user_id)


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, str, str]]:
    """The addresses, plain and TLS, and what serves there; `folder` gets the authority, ca.pem."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate.private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    plain, tls = _free_port(), _free_port()
    nginx = shutil.which("nginx")
    if nginx is not None:
        config = folder / "nginx.conf"
        config.write_text(
            NGINX.format(folder=folder, plain=plain, tls=tls, body=body("$1")), encoding="utf-8"
        )
        command = [nginx, "-p", str(folder), "-c", str(config)]
        said = subprocess.run([nginx, "-v"], check=True, capture_output=True, text=True).stderr
        name = said.rpartition(" ")[2].strip()
    else:
        command = [sys.executable, __file__, str(folder), str(plain), str(tls)]
        name = "asyncio, because there is no nginx"
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            for port in (plain, tls):
                _wait_for(port, server)
            yield f"http://127.0.0.1:{plain}", f"https://127.0.0.1:{tls}", name
        finally:
            server.terminate()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_for(port: int, server: "subprocess.Popen[bytes]") -> None:
    for _ in range(100):
        if server.poll() is not None:
            sys.exit(f"the server for the measurement ended with {server.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    sys.exit("the server for the measurement does not answer")


class _Answers(asyncio.Protocol):
    transport: asyncio.Transport
    before, after = body(ID).encode().split(ID.encode())
    left = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        *requests, self.left = (self.left + data).split(b"\r\n\r\n")
        for request in requests:
            user = request.split(b"/", 4)[3] + self.after
            self.transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                % (len(self.before) + len(user))
                + self.before
                + user
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
