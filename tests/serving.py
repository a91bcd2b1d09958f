"""The graph on a real local Serve, as the tests deploy it."""

import contextlib
import dataclasses
import gc
import hashlib
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray import serve

from melanoma.bundle.manifest import MANIFEST
from melanoma.io.files import sha256_of
from serve.api_keys import VARIABLE
from serve.app import build_graph
from serve.listener import Listen
from serve.settings import AppArgs, classifier_in_ingress, deployment_options, read_config
from tests.clusters import wait_for


@dataclasses.dataclass(frozen=True)
class Service:
    """A real local Serve with the graph of the config, behind an API key.

    Attributes:
        url: where it listens.
        key: one that is let in.
        where: what the graph consists of, see `Deployer`.
    """

    url: str
    key: str
    where: str = "deployment"

    @property
    def authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


class Deployer:
    """Deploys bundles on one started Serve: a first one, and others in its place.

    Attributes:
        service: where they are served.
        where: what the graph consists of: `deployment`, with the classifier apart; `ingress`, with
            the classifier in the ingress; `alone`, the same without a proxy, as `melanoma serve`
            does it.
    """

    def __init__(self, service: Service, keys: Path, where: str) -> None:
        self.service, self._keys, self.where = service, keys, where

    @property
    def classifier(self) -> str:
        """The deployment whose replicas hold the classifier."""
        return "Classifier" if self.where == "deployment" else "Ingress"

    def __call__(
        self,
        bundle_dir: Path,
        *,
        manifest_sha256: str | None = None,
        **options: dict[str, Any],
    ) -> Service:
        """Deploy a bundle, pinned to its manifest or to another; options of a deployment by its
        name; return where it is served."""
        config = read_config()
        if self.where != "deployment":
            config = classifier_in_ingress(config)
        merged = deployment_options(config)
        for name, values in options.items():
            merged[name] |= values
        if self.where == "alone":  # two replicas cannot listen on one port
            merged["Ingress"] |= {"max_surge_percent": 0, "autoscaling_config": None}
        merged["Ingress"]["ray_actor_options"] |= {
            "runtime_env": {"env_vars": {VARIABLE: str(self._keys)}}
        }
        pinned = manifest_sha256 or sha256_of(bundle_dir / MANIFEST)
        args = AppArgs(
            bundle=str(bundle_dir),
            manifest_sha256=pinned,
            classifier="deployment" if self.where == "deployment" else "ingress",
        )
        port = int(self.service.url.rpartition(":")[2])
        serve.run(
            build_graph(
                args,
                merged,
                listen=Listen("127.0.0.1", port, 40, 75) if self.where == "alone" else None,
            ),
            name="melanoma",
            route_prefix="/",
            logging_config=config["applications"][0]["logging_config"],
        )
        return self.service


def _all_cpus_are_free() -> bool:
    """Return whether nothing holds a CPU of the cluster."""
    # After an error, Ray Data's actors are in a cycle of references, which holds their CPUs.
    gc.collect()
    return bool(ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])


@contextlib.contextmanager
def local_serve(folder: Path, where: str = "deployment") -> Iterator[Deployer]:
    """Start Serve on a free port; give what deploys to it; the folder is for the API keys."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    service = Service(f"http://127.0.0.1:{port}", secrets.token_urlsafe(32), where)
    keys = folder / "keys"
    keys.write_text(f"{hashlib.sha256(service.key.encode()).hexdigest()} the tests\n")
    config = read_config()
    serve.start(
        proxy_location="Disabled" if where == "alone" else None,
        http_options=config["http_options"] | {"host": "127.0.0.1", "port": port},
        logging_config=config["logging_config"],
    )
    try:
        yield Deployer(service, keys, where)
    finally:
        serve.shutdown()
        # What comes next may need all CPUs, and Ray would wait for them silently.
        wait_for(_all_cpus_are_free)
