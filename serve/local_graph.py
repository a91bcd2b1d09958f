"""The helper process of `melanoma serve`: it checks the bundle, deploys the graph and ends.

The parent process (serve/local.py) starts the cluster.
"""

import dataclasses
import logging
import os
import signal
from multiprocessing.connection import Connection
from typing import Any

ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclasses.dataclass(frozen=True)
class LocalService:
    """A service of one bundle on this machine.

    Attributes:
        bundle: folder of the bundle, or its address in object storage.
        host: address to listen on.
        port: port to listen on.
        num_threads: CPUs of the ingress, which holds the classifier.
        allow_uncontracted: give decisions although the contract is not met.
        require_api_key: refuse to run without API keys.
    """

    bundle: str
    host: str
    port: int
    num_threads: int
    allow_uncontracted: bool
    require_api_key: bool

    @property
    def url(self) -> str:
        """The address on which the service listens, as a URL."""
        return _url(self.host, self.port)

    @property
    def url_here(self) -> str:
        """The URL at which this machine reaches the service."""
        return _url(ANY.get(self.host, self.host), self.port)


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def deploy_when_told(service: LocalService, pipe: Connection) -> None:
    """Check the bundle, wait for the address of a cluster, and deploy the graph there.

    Args:
        service: what to deploy.
        pipe: to the parent. It carries the contract's sentence out, the cluster's address in, and
            None out at the end. If a step fails, it carries the exception out instead.
    """
    # A terminal sends Ctrl-C to the whole process group. The parent decides what to do about it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        sentence, manifest_sha256 = _check(service)
        pipe.send(sentence)
        _deploy(service, manifest_sha256, address=pipe.recv())
        pipe.send(None)
    except EOFError:
        pass  # the parent is gone
    except Exception as error:  # the outermost frame of this process: the parent reports it
        pipe.send(error)


def _check(service: LocalService) -> tuple[str, str]:
    """Return the sentence of the contract and the sha256 of the manifest."""
    from melanoma.bundle.bundle import load_bundle
    from melanoma.bundle.manifest import MANIFEST
    from melanoma.io.files import sha256_of
    from melanoma.io.storage import to_path

    bundle = load_bundle(to_path(service.bundle))
    bundle.check_takes_images()
    return bundle.operating_point.contract.sentence(bundle.task), sha256_of(
        to_path(service.bundle) / MANIFEST
    )


def _deploy(service: LocalService, manifest_sha256: str, *, address: str) -> None:
    """Deploy the graph on the cluster at an address; it stays when this process ends."""
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        # Ray sets the mode by itself only for a cluster that it starts.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray
    from ray import serve

    from serve.app import build_graph
    from serve.listener import Listen
    from serve.settings import AppArgs, classifier_in_ingress, deployment_options, read_config

    # Ray Serve's own progress lines do not help users.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    config = classifier_in_ingress(read_config())
    (app,) = config["applications"]
    args = AppArgs(
        **app["args"]
        | {
            "bundle": service.bundle,
            "manifest_sha256": manifest_sha256,
            "allow_uncontracted": service.allow_uncontracted,
            "require_api_key": service.require_api_key,
        }
    )
    ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    # Ray's own handler would print a traceback when the parent ends this process.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    serve.start(proxy_location="Disabled", logging_config=config["logging_config"])
    options = _fit_machine(deployment_options(config), service.num_threads)
    # No proxy stands in front of the ingress, so the ingress applies its limits itself.
    ingress = options["Ingress"]
    listen = Listen(
        service.host,
        service.port,
        max_requests=ingress["max_ongoing_requests"] + ingress["max_queued_requests"],
        keep_alive_seconds=config["http_options"]["keep_alive_timeout_s"],
    )
    serve.run(
        build_graph(args, options, listen=listen),
        name="melanoma",
        route_prefix="/",
        logging_config=app["logging_config"],
    )


def _fit_machine(options: dict[str, dict[str, Any]], num_threads: int) -> dict[str, dict[str, Any]]:
    """Return the options with one replica of each deployment.

    On one machine, one classifier with all cores holds the network in memory once.
    """
    import ray

    fitted = {
        name: (
            values
            | {
                "autoscaling_config": values["autoscaling_config"] | {"max_replicas": 1},
                "max_surge_percent": 0,
            }
        )
        for name, values in options.items()
    }
    fitted["Ingress"]["ray_actor_options"] = {"num_cpus": num_threads}
    if ray.cluster_resources().get("GPU", 0) > 0:
        for name in fitted:
            fitted[name]["ray_actor_options"] = fitted[name]["ray_actor_options"] | {
                "num_gpus": 0.5
            }
    return fitted
