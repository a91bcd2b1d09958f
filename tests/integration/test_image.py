"""The serving image runs the pods of `serve-minimal`: read-only, as their user, in their memory.

Needs runc and the unpacked image; docs/kubernetes/images.md has the commands.
"""

import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
import yaml

from melanoma.bundle.manifest import MANIFEST
from melanoma.evidence.operating_point import Decision
from melanoma.io.files import sha256_of
from tests import manifests
from tests.clusters import wait_for
from tests.containers import Container, bytes_of, missing_image
from tests.machines import Network, missing

pytestmark = [pytest.mark.ray, pytest.mark.drill, pytest.mark.timeout(900)]
GET = "wget --tries 1 -T 10 -q -O-"
RAYLET, GCS, PROXY = (
    f"{GET} http://localhost:{path} | grep success"
    for path in ("52365/api/local_raylet_healthz", "8265/api/gcs_healthz", "8000/-/healthz")
)
"""Of these KubeRay makes its probes."""


class Pods:
    """Head and worker of the service; state: what they serve."""

    def __init__(self, network: Network, folder: Path, bundle: Path) -> None:
        documents = manifests.render("serve-minimal")
        (self._service,) = manifests.of_kind(documents, "RayService")
        (told,) = (
            each["data"]
            for each in manifests.of_kind(documents, "ConfigMap")
            if each["metadata"]["name"].startswith("melanoma-ray")
        )
        self._token = secrets.token_hex(32)
        environment = told | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self._token}
        self._bundle = folder / "bundle"
        shutil.copytree(bundle, self._bundle)
        for path in (self._bundle, *self._bundle.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        self._address = network.machine().address
        self.worker_address = network.machine().address
        cluster = manifests.cluster_of(self._service)
        self._made: list[Container] = []
        for machine, group, start in zip(
            network.machines,
            manifests.groups_of(cluster),
            ("--head", f"--address={self._address}:6379"),
            strict=True,
        ):
            own = folder / machine.name
            own.mkdir()
            spec = group["template"]["spec"]
            limit = bytes_of(spec["containers"][0]["resources"]["limits"]["memory"])
            words = " ".join(f"--{key}={value}" for key, value in group["rayStartParams"].items())
            self._made.append(
                Container(
                    machine,
                    own,
                    spec,
                    environment,
                    f"ray start {start} --block --memory={limit} --metrics-export-port=8080"
                    f" --dashboard-agent-listen-port=52365 {words}",
                    {"/bundle": self._bundle},
                )
            )
            if start == "--head":
                wait_for(lambda: self.is_ready(self._made[0], RAYLET, GCS))
        self.head, self.worker = self._made

    def is_ready(self, container: Container, *probes: str) -> bool:
        return container.run(" && ".join(probes)).returncode == 0

    def deploy(self) -> None:
        """Send the Serve config as KubeRay sends it."""
        config: dict[str, Any] = yaml.safe_load(self._service["spec"]["serveConfigV2"])
        config["applications"][0]["args"] |= {
            "manifest_sha256": sha256_of(self._bundle / MANIFEST),
        }
        httpx.put(
            f"http://{self._address}:8265/api/serve/applications/",
            json=config,
            headers={"Authorization": f"Bearer {self._token}"},
            timeout=60,
        ).raise_for_status()

    def stop(self) -> None:
        for container in self._made:
            container.stop()


@pytest.fixture(scope="module")
def pods(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pods]:
    if reason := missing() or missing_image():
        pytest.skip(reason)
    with Network() as network:
        made = Pods(network, tmp_path_factory.mktemp("pods"), bundle_dir)
        try:
            yield made
        finally:
            made.stop()


def test_the_image_answers_within_its_memory(
    pods: Pods, image: bytes, record_property: Callable[[str, object], None]
) -> None:
    pods.deploy()
    wait_for(lambda: pods.is_ready(pods.worker, RAYLET, PROXY), seconds=240)
    url = f"http://{pods.worker_address}:8000"
    wait_for(lambda: httpx.get(f"{url}/readyz", timeout=20).status_code == 200, seconds=120)
    for method in ("none", "grad_cam", "guided_grad_cam"):
        answer = httpx.post(f"{url}/v1/predict?explain={method}", content=image, timeout=60).json()
        assert answer["decision"] in get_args(Decision), answer
    assert httpx.post(f"{url}/v1/report", content=image, timeout=60).content[:5] == b"%PDF-"
    (killed, head), (also_killed, worker) = pods.head.memory(), pods.worker.memory()
    assert killed == also_killed == 0
    record_property("measured", f"head holds {head} MiB, worker {worker} MiB")


@pytest.mark.parametrize("which", ["head", "worker"])
def test_the_image_can_do_no_more_than_it_must(which: str, pods: Pods) -> None:
    container: Container = getattr(pods, which)
    for command, refusal in (
        ("touch /opt/venv/x", "Read-only file system"),
        ("python -c 'import ray_jobs'", "No module named 'ray_jobs'"),
        ("python -c 'import melanoma.training.engine'", "No module named 'melanoma.training"),
    ):
        assert refusal in container.run(command).stderr
    assert container.run("id -u; id -g").stdout.split() == ["1000", "1000"]
    assert "CapEff:\t0000000000000000" in container.run("cat /proc/self/status").stdout
