"""Serves one bundle on this machine until it is stopped."""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path

import ray
from ray import serve

from melanoma.bundle import load_bundle
from melanoma.errors import DataError
from serve.app import AppArgs, build_app


def serve_locally(bundle: Path, *, host: str, port: int, allow_uncontracted: bool) -> None:
    """Serve a bundle on a local cluster of its own; returns when interrupted or terminated.

    Raises:
        BundleError: if the bundle cannot be loaded.
        DataError: if the port is taken.
    """
    point = load_bundle(bundle).operating_point  # a refusal should come at once and in words, not from a replica's log
    _check_free(host, port)
    if not ray.is_initialized():
        num_cpus = max(os.cpu_count() or 1, 2)
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # what it tells of its own start is not for people
    replicas = max(1, (os.cpu_count() or 2) - 1)
    args = AppArgs(bundle=str(bundle.resolve()), allow_uncontracted=allow_uncontracted, max_replicas=replicas)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both ways to end a server are its ordinary end
    with contextlib.suppress(KeyboardInterrupt):
        serve.start(http_options={"host": host, "port": port})
        serve.run(build_app(args), name="melanoma", route_prefix="/")
        print(f"serving {bundle} at http://{host}:{port}\n{point.contract.sentence()}", file=sys.stderr, flush=True)
        threading.Event().wait()
    print("stopping", file=sys.stderr, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        serve.delete("melanoma")  # lets what is under way end; the cluster, this process's own, then goes as a whole
    ray.shutdown()


def _check_free(host: str, port: int) -> None:
    """Raise DataError, before anything is started, if the port cannot be had."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise DataError(
                f"--host and --port must be free to listen on, {host}:{port} is not ({error.strerror}); pass another --port."
            ) from error
