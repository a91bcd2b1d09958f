"""What `melanoma serve` does in a process of its own: check the bundle, deploy the graph on a cluster that others have started, end."""

import dataclasses
import logging
import os
import signal
from multiprocessing.connection import Connection
from typing import Any

ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}
REQUEST_SECONDS = 120.0
"""An upload and its answer together, in the proxy; the answer alone has `answer_timeout_s`."""


@dataclasses.dataclass(frozen=True)
class LocalService:
    """A service of one bundle on this machine.

    Attributes:
        bundle: its folder, or its address in object storage.
        host: address to listen on.
        port: port to listen on.
        num_threads: CPUs of the classifier.
        allow_uncontracted: decide although the contract is unmet.
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
        """Where it listens, as a browser takes it."""
        return _url(self.host, self.port)

    @property
    def url_here(self) -> str:
        """Where this machine reaches it."""
        return _url(ANY.get(self.host, self.host), self.port)


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def deploy_when_told(service: LocalService, pipe: Connection) -> None:
    """Check the bundle and say what its contract promises; deploy on the cluster that is then named, and say so; say what fails."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # a terminal sends Ctrl-C to the whole group; the parent decides
    try:
        sentence, manifest_sha256 = _check(service)
        pipe.send(sentence)
        _deploy(service, manifest_sha256, address=pipe.recv())
        pipe.send(None)
    except EOFError:
        pass  # the parent is gone
    except Exception as error:  # the process's outermost frame: the parent says it
        pipe.send(error)


def _check(service: LocalService) -> tuple[str, str]:
    """Return the sentence of the contract and the hash of the manifest."""
    from melanoma.bundle.bundle import load_bundle
    from melanoma.bundle.manifest import MANIFEST
    from melanoma.io.files import sha256_of
    from melanoma.io.storage import to_path

    bundle = load_bundle(to_path(service.bundle))
    return bundle.operating_point.contract.sentence(bundle.task), sha256_of(
        to_path(service.bundle) / MANIFEST
    )


def _deploy(service: LocalService, manifest_sha256: str, *, address: str) -> None:
    """Deploy the graph; it stays when this process ends."""
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        os.environ.setdefault(
            "RAY_AUTH_MODE", "token"
        )  # Ray turns it on by itself for a cluster that it starts only
    import ray
    from ray import serve

    from serve.app import build_graph
    from serve.settings import AppArgs, deployment_options, read_config

    logging.getLogger("ray.serve").setLevel(
        logging.WARNING
    )  # what it tells of its own start is not for people
    config = read_config()
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
    signal.signal(
        signal.SIGTERM, signal.SIG_DFL
    )  # Ray's own handler would show a traceback when the parent ends this process
    listening = {"host": service.host, "port": service.port, "request_timeout_s": REQUEST_SECONDS}
    serve.start(
        http_options=config["http_options"] | listening, logging_config=config["logging_config"]
    )
    options = _fit_machine(deployment_options(config), service.num_threads)
    serve.run(
        build_graph(args, options),
        name="melanoma",
        route_prefix="/",
        logging_config=app["logging_config"],
    )


def _fit_machine(options: dict[str, dict[str, Any]], num_threads: int) -> dict[str, dict[str, Any]]:
    """Return the options with one replica of each deployment: one process with all cores batches better than many with one each."""
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
    fitted["Classifier"]["ray_actor_options"] = {"num_cpus": num_threads}
    if ray.cluster_resources().get("GPU", 0) > 0:
        for name in ("Classifier", "Explainer"):
            fitted[name]["ray_actor_options"] = fitted[name]["ray_actor_options"] | {
                "num_gpus": 0.5
            }
    return fitted
