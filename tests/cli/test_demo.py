"""The command `demo`."""

import signal
import subprocess
import sys
import time

import pytest
from terminal import PROGRAM


@pytest.mark.process
def test_the_demo_ends_well_and_shows_the_tenants_own_database() -> None:
    done = subprocess.run(
        [*PROGRAM, "demo"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "4,994 users are enabled, 6 are not: refused with 422." in done.stdout
    assert "404 Not Found: 12" in done.stdout


@pytest.mark.process
def test_a_demo_that_is_interrupted_ends_its_tenant_too() -> None:
    with subprocess.Popen(
        [*PROGRAM, "demo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        url = process.stdout.readline().split(" runs at ")[1].split(",")[0]
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err
    port = int(url.rpartition(":")[2])
    probe = f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)"
    refused = subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False)
    assert b"ConnectionRefusedError" in refused.stderr
