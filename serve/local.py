"""Serves one bundle on this machine until it is stopped."""

import contextlib
import ipaddress
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import ray
from ray import serve

from melanoma.bundle import MANIFEST, load_bundle
from melanoma.errors import DataError
from melanoma.files import sha256_of
from melanoma.storage import Place
from serve.api_keys import VARIABLE, check_keys
from serve.app import build_graph
from serve.settings import AppArgs, deployment_options, read_config

MAX_THREADS = 4  # of the classifier: a batch of eight small pictures gains little from more


def serve_locally(bundle: Place, *, host: str, port: int, allow_uncontracted: bool) -> None:
    """Serve a bundle on a local cluster of its own; returns when interrupted or terminated.

    Raises:
        BundleError: if the bundle cannot be loaded.
        DataError: if the port is taken, or the address is open to others and no API keys are set.
        SettingError: if the file of API keys cannot be used.
    """
    point = load_bundle(bundle).operating_point  # a refusal should come at once and in words, not from a replica's log
    if not check_keys() and not _is_loopback(host):
        raise DataError(
            f"--host must be a loopback address where no API keys are asked for, got {host}; "
            f"name a file of keys in {VARIABLE} (see serve/api_keys.py), or leave --host out."
        )
    _check_free(host, port)
    chosen = {
        "bundle": str(bundle.resolve()),
        "manifest_sha256": sha256_of(bundle / MANIFEST),
        "allow_uncontracted": allow_uncontracted,
        "require_api_key": not _is_loopback(host),
    }
    args = AppArgs(**(read_config()["applications"][0]["args"] | chosen))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both ways to end a server are its ordinary end
    with tempfile.TemporaryDirectory(prefix="melanoma-", dir=_memory()) as spill:
        with contextlib.suppress(KeyboardInterrupt):
            _start(args, host=host, port=port, spill=spill)
            print(f"serving {bundle} at http://{host}:{port}\n{point.contract.sentence()}", file=sys.stderr, flush=True)
            threading.Event().wait()
        print("stopping", file=sys.stderr, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            serve.delete(
                "melanoma"
            )  # lets what is under way end; the cluster, this process's own, then goes as a whole
        ray.shutdown()


def _start(args: AppArgs, *, host: str, port: int, spill: str) -> None:
    """Start a cluster of this process's own and the graph on it."""
    ray.init(
        address="local",
        num_cpus=_num_threads() + 2,  # of which Ray counts one for ingress and explainer, and one is to spare
        object_spilling_directory=spill,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # what it tells of its own start is not for people
    config = read_config()
    http_options = config["http_options"] | {"host": host, "port": port}
    serve.start(http_options=http_options, logging_config=config["logging_config"])
    serve.run(
        build_graph(args, _fit_machine(deployment_options(config))),
        name="melanoma",
        route_prefix="/",
        logging_config=config["applications"][0]["logging_config"],
    )


def _memory() -> Path | None:
    """Return where Ray may put what its object store cannot hold: in memory, for pictures are part of it; None if nowhere is."""
    shared = Path("/dev/shm")
    if shared.is_dir() and os.access(shared, os.W_OK):
        return shared
    print(
        "there is no /dev/shm to write to: what Ray's object store spills goes to the temporary folder", file=sys.stderr
    )
    return None


def _num_threads() -> int:
    return min(os.cpu_count() or 1, MAX_THREADS)


def _fit_machine(options: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the options with one replica of each deployment: one process with all cores batches better than many with one each."""
    fitted = {
        name: values
        | {"autoscaling_config": values["autoscaling_config"] | {"max_replicas": 1}, "max_surge_percent": 0}
        for name, values in options.items()
    }
    fitted["Classifier"]["ray_actor_options"] = {"num_cpus": _num_threads()}
    if ray.cluster_resources().get("GPU", 0) > 0:
        for name in ("Classifier", "Explainer"):
            fitted[name]["ray_actor_options"] = fitted[name]["ray_actor_options"] | {"num_gpus": 0.5}
    return fitted


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_free(host: str, port: int) -> None:
    """Raise DataError, before anything is started, if the port cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise DataError(
                f"--host and --port must be free to listen on, {host}:{port} is not ({error.strerror}); pass another --port."
            ) from error
