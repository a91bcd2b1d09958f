"""Ray's own autoscaler reads the manifests from an API server and asks it for workers.

The API server is a stand-in, with TLS, that knows one RayCluster and its head's pod.
"""

import copy
import dataclasses
import http.server
import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import manifests
from tests.clusters import BIN, Head, certificate, end, free_ports, head_with_token, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
SCALING = [
    name for name in manifests.OVERLAYS if name.partition("/")[2] in ("serve", *manifests.JOBS)
]
NAME, NAMESPACE, HEAD = "melanoma-x", "zone", "head"
CLUSTER = f"/apis/ray.io/v1/namespaces/{NAMESPACE}/rayclusters/{NAME}"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


class _ApiServer(http.server.ThreadingHTTPServer):
    """Knows one cluster; remembers who asked for what."""

    def __init__(self, port: int, cluster: dict[str, Any], head_address: str) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.asked: set[tuple[str, str]] = set()
        self.cluster = {
            "apiVersion": "ray.io/v1",
            "kind": "RayCluster",
            "metadata": {"name": NAME, "namespace": NAMESPACE, "resourceVersion": "1"},
            "spec": cluster,
            "status": {},
        }
        self._head_address = head_address

    @property
    def pods(self) -> dict[str, Any]:
        """Its head's pod, and those of the workers that it asks for, which never start."""
        (group,) = self.cluster["spec"]["workerGroupSpecs"]
        running = {"podIP": self._head_address, "containerStatuses": [{"state": {"running": {}}}]}
        items = [
            _pod(HEAD, "head", "headgroup", {"phase": "Running", **running}),
            *(
                _pod(f"worker-{index}", "worker", group["groupName"], {"phase": "Pending"})
                for index in range(self.replicas)
            ),
        ]
        return {"kind": "PodList", "metadata": {"resourceVersion": "1"}, "items": items}

    @property
    def replicas(self) -> int:
        (group,) = self.cluster["spec"]["workerGroupSpecs"]
        return int(group["replicas"])


def _pod(name: str, node_type: str, group: str, status: dict[str, Any]) -> dict[str, Any]:
    labels = {"node-type": node_type, "group": group, "cluster": NAME}
    told = {f"ray.io/{key}": value for key, value in labels.items()}
    return {
        "metadata": {"name": name, "labels": told},
        "spec": {"containers": [{"name": "ray", "resources": {}}]},
        "status": status,
    }


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _ApiServer

    def _answer(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        place = self.path.partition("?")[0]
        self.server.asked.add(("GET", place))
        self._answer({CLUSTER: self.server.cluster, PODS: self.server.pods}.get(place, {}))

    def do_PATCH(self) -> None:
        self.server.asked.add(("PATCH", self.path.partition("?")[0]))
        for change in json.loads(self.rfile.read(int(self.headers["Content-Length"]))):
            _, spec, groups, index, name = change["path"].split("/")
            self.server.cluster[spec][groups][int(index)][name] = change["value"]
        self._answer(self.server.cluster)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@dataclasses.dataclass
class _Control:
    """A head without CPUs, and TLS for an API server."""

    head: Head
    cert: Path
    key: Path
    folder: Path

    def ask_for(self, bundles: list[dict[str, float]]) -> None:
        """Ask the cluster for resources, as a driver does."""
        told = (
            "import ray, sys, json; from ray.autoscaler.sdk import request_resources;"
            " ray.init(address=sys.argv[1], log_to_driver=False);"
            " request_resources(bundles=json.loads(sys.argv[2]))"
        )
        subprocess.run(
            [sys.executable, "-c", told, self.head.address, json.dumps(bundles)],
            env=os.environ | self.head.environment, check=True, capture_output=True,
        )  # fmt: skip


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Control]:
    folder = tmp_path_factory.mktemp("control")
    # What KubeRay tells a head.
    around = {
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLUSTER_NAME": NAME,
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_NODE_TYPE_NAME": "headgroup",
    }
    with head_with_token(folder, "--no-monitor", num_cpus=0, num_gpus=0, **around) as head:
        yield _Control(head, *certificate(folder), folder)


@pytest.mark.parametrize(
    "overlay",
    [
        "cpu/serve",
        *(pytest.param(name, marks=pytest.mark.drill) for name in SCALING if name != "cpu/serve"),
    ],
)
def test_rays_autoscaler_reads_the_cluster_and_asks_for_a_worker_more(
    overlay: str, control: _Control
) -> None:
    (document,) = manifests.rays(manifests.render(overlay))
    cluster = copy.deepcopy(manifests.cluster_of(document))
    (group,) = cluster["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    gpus = limits.get("nvidia.com/gpu")
    whole = {"CPU": float(limits["cpu"])} | ({"GPU": float(gpus)} if gpus else {})
    wanted = min(group["minReplicas"] + 1, group["maxReplicas"])
    (port,) = free_ports(1)
    server = _ApiServer(port, cluster, control.head.address.partition(":")[0])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(control.cert, control.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    control.ask_for([whole] * (group["minReplicas"] + 1))
    log = control.folder / f"{overlay.replace('/', '-')}.log"
    with log.open("wb") as out:
        autoscaler = subprocess.Popen(
            [BIN / "ray", "kuberay-autoscaler", "--cluster-name", NAME,
             "--cluster-namespace", NAMESPACE, "--gcs-address", control.head.address],
            env=os.environ | control.head.environment | {
                "KUBERNETES_SERVICE_HOST": "127.0.0.1",
                "KUBERNETES_SERVICE_PORT_HTTPS": str(port),
                "RAY_KUBERAY_CA_CERT_PATH": str(control.cert),
                "RAY_KUBERAY_CLIENT_CERT_PATH": str(control.cert),
                "RAY_KUBERAY_CLIENT_KEY_PATH": str(control.key),
                "PATH": f"{BIN}:{os.environ['PATH']}",
            },
            stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    try:
        wait_for(lambda: server.replicas == wanted and ("GET", PODS) in server.asked, seconds=60)
    except AssertionError:
        pytest.fail(log.read_text()[-2000:])
    finally:
        end(autoscaler)
        control.ask_for([])
        server.shutdown()
    # All that the head's account needs: its cluster, and the pods of its namespace.
    assert server.asked <= {("GET", CLUSTER), ("PATCH", CLUSTER), ("GET", PODS)}
