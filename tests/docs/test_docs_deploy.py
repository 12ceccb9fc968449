"""The files to deploy a fleet: their options exist, and what they promise each other agrees."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from monocloud_async.cli.fleet.app import app
from monocloud_async.fleet import metrics, worker
from monocloud_async.fleet.codec import SIGNING_KEY_FILE

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
DOCKERFILE = (EXAMPLES / "Dockerfile").read_text(encoding="utf-8")
UNITS = ["monocloud-coordinator.service", "monocloud-worker.service"]


def check_options(command: list[str]) -> None:
    """Check that `monocloud-async fleet` has this command with these options."""
    name, *options = command
    commands: Any = typer.main.get_command(app)
    known = {option for each in commands.commands[name].params for option in each.opts}
    named = {option.partition("=")[0] for option in options if option.startswith("--")}
    assert named
    assert named <= known


def words(instruction: str) -> list[str]:
    (found,) = re.findall(rf"^{instruction} (\[.*\])$", DOCKERFILE, re.MULTILINE)
    return [str(word) for word in json.loads(found)]


def test_the_image_has_what_the_wheel_is_built_from() -> None:
    copied = {
        name
        for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE)
        for name in line.split()[:-1]
    }
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    hatch = project["tool"]["hatch"]
    assert copied == {
        "pyproject.toml",
        project["project"]["readme"],
        *project["project"]["license-files"],
        *hatch["build"]["targets"]["wheel"]["packages"],
    }
    assert Path(hatch["version"]["path"]).parts[0] in copied
    extras = re.findall(r"\[([a-z,]+)\]\"", DOCKERFILE)
    assert set(extras[0].split(",")) <= project["project"]["optional-dependencies"].keys()


def test_the_image_runs_the_worker_as_nobody_special_and_checks_its_health() -> None:
    assert words("ENTRYPOINT") == ["monocloud-async", "fleet"]
    command = words("CMD")
    check_options(command)
    shown = re.findall(r"monocloud-async \\\n#\s+(.*)$", DOCKERFILE, re.MULTILINE)
    assert [line.split()[0] for line in shown] == ["worker", "coordinator"]
    for line in shown:
        check_options(line.split())
        assert "--health 0.0.0.0:8080" in line  # which HEALTHCHECK asks
    health = command[command.index("--health") + 1].rpartition(":")[2]
    metrics_port = command[command.index("--metrics") + 1].rpartition(":")[2]
    assert f"EXPOSE {health} {metrics_port}\n" in DOCKERFILE
    assert f"http://127.0.0.1:{health}/livez" in DOCKERFILE
    *_, user = re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE)
    assert int(user) > 0


@pytest.fixture(scope="module")
def manifests() -> dict[str, Any]:
    text = (EXAMPLES / "fleet.yaml").read_text(encoding="utf-8")
    return {each["kind"]: each for each in yaml.safe_load_all(text)}


def test_the_manifests_are_a_coordinator_with_a_disk_and_workers(
    manifests: dict[str, Any],
) -> None:
    assert list(manifests) == ["ConfigMap", "StatefulSet", "Deployment"]
    coordinator = manifests["StatefulSet"]["spec"]
    assert coordinator["replicas"] == 1
    (claim,) = coordinator["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    (secret,) = coordinator["template"]["spec"]["volumes"]
    assert [item["key"] for item in secret["secret"]["items"]] == ["fleet.key"]  # no API key


@pytest.mark.parametrize("kind", ["StatefulSet", "Deployment"])
def test_a_pod_has_health_checks_metrics_and_time_to_end(
    manifests: dict[str, Any], kind: str
) -> None:
    pod = manifests[kind]["spec"]["template"]
    assert pod["spec"]["terminationGracePeriodSeconds"] > worker._GRACE.total_seconds()
    assert pod["spec"]["securityContext"]["runAsNonRoot"]
    (container,) = pod["spec"]["containers"]
    check_options(container["args"])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert f"--health=0.0.0.0:{ports['health']}" in container["args"]
    assert f"--metrics=0.0.0.0:{ports['metrics']}" in container["args"]
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(ports["metrics"])
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "health"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "health"}


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_starts_a_command_that_exists_and_gives_it_time_to_end(name: str) -> None:
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    (command,) = re.findall(r"^ExecStart=\S+/monocloud-async fleet (.+)$", text, re.MULTILINE)
    check_options(shlex.split(command))
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    assert int(seconds) > worker._GRACE.total_seconds()
    assert "Type=notify\nWatchdogSec=60\n" in text
    assert "\n#LoadCredential=fleet.key:/etc/monocloud/fleet.key\n" in text
    assert f"\n#Environment={SIGNING_KEY_FILE}=%d/fleet.key\n" in text


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
@pytest.mark.process
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for name in UNITS:
        text = (EXAMPLES / name).read_text(encoding="utf-8")
        text = re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={sys.executable}", text)
        text = re.sub(r"(?m)^#(?=\w+=)", "", text)  # what can be switched on
        (tmp_path / name).write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(tmp_path / name for name in UNITS)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


class Meter:
    """Stands in for Temporal's meter; has the names of the gauges."""

    def __init__(self) -> None:
        self.names = list[str]()

    def create_gauge_float(self, name: str, _: str) -> None:
        self.names.append(name)


def test_the_dashboard_shows_every_gauge_and_no_other() -> None:
    board = json.loads((EXAMPLES / "fleet_grafana.json").read_text(encoding="utf-8"))
    asked = " ".join(
        target["expr"] for panel in board["panels"] for target in panel.get("targets", [])
    )
    meter: Any = Meter()
    metrics._Gauges(meter)
    assert set(re.findall(r"monocloud_fleet_\w+", asked)) == set(meter.names)
