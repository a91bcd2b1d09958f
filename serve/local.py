"""Serves one bundle on this machine until it is stopped.

This process starts Ray, watches and ends it; a second one checks the bundle, deploys the graph and
is gone. So the network's libraries, half a gigabyte, are loaded by the replicas alone.
"""

import asyncio
import contextlib
import errno
import http.client
import ipaddress
import logging
import multiprocessing
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

import joblib
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException

from melanoma.errors import DataError
from melanoma.io.storage import AnyPath
from serve.api_keys import VARIABLE, check_keys
from serve.local_graph import LocalService, deploy_when_told

MAX_THREADS = 4  # of the classifier: a batch of eight small images gains little from more
OBJECT_STORE_BYTES = (
    100 * 2**20
)  # images go from replica to replica past the object store; Ray's least is 75 MiB
SHARED_MEMORY_BYTES = 128 * 2**20
READY_SECONDS, PATIENCE_SECONDS = 300.0, 15.0
STOP_SECONDS = 30.0
"""How long requests that are under way may take to end after a signal; longer than any answer may take."""


class _StoppedError(Exception):
    """A signal came while something was awaited."""


def serve_locally(bundle: AnyPath, *, host: str, port: int, allow_uncontracted: bool) -> None:
    """Serve a bundle on a local cluster of its own; returns when interrupted or terminated.

    Raises:
        BundleError: if the bundle cannot be loaded.
        DataError: if the address cannot be had, is open to others and no API keys are set, or there
            is too little shared memory.
        SettingError: if the file of API keys cannot be used.
        RuntimeError: if the service does not become ready.
    """
    if not check_keys() and not _is_loopback(host):
        raise DataError(
            f"--host must be a loopback address where no API keys are asked for, got {host}; "
            f"name a file of keys in {VARIABLE} (see serve/api_keys.py), or leave --host out."
        )
    _check_free(host, port)
    shared = _shared_memory()
    service = LocalService(
        str(bundle.resolve()),
        host,
        port,
        _num_threads(),
        allow_uncontracted,
        require_api_key=not _is_loopback(host),
    )
    stop = threading.Event()
    with _signals(stop), tempfile.TemporaryDirectory(prefix="melanoma-", dir=shared) as spill:
        try:
            sentence = _start(service, spill, stop)
            _say(f"serving {bundle} at {service.url}\n{sentence}")
            stop.wait()
        except _StoppedError:
            pass
        finally:
            _end(stop)


def _start(service: LocalService, spill: str, stop: threading.Event) -> str:
    """Bring the service up and return what its contract promises."""
    with _deployer(service) as pipe:
        _say(f"checking {service.bundle}")
        sentence: str = _told(
            pipe, stop
        )  # a refusal should come at once and in words, not from a replica's log
        logs = _start_ray(spill, stop)
        _say(f"starting, which takes a minute or less; the log is in {logs}/serve")
        pipe.send(ray.get_runtime_context().gcs_address)
        _told(pipe, stop)
    _wait_until_ready(service, stop, logs)
    return sentence


def _end(stop: threading.Event) -> None:
    """Let what is under way end, then end the cluster; a second signal ends it at once."""
    try:
        if stop.is_set():
            _say(
                "stopping: requests under way are answered, new ones are not taken; another signal"
                " ends at once"
            )
            if ray.is_initialized():
                asyncio.run(_drain())
    except (KeyboardInterrupt, RayServeException, RayError):
        pass  # ended at once, or there is nothing left to wait for
    finally:
        ray.shutdown()


async def _drain() -> None:
    """Refuse new requests and return once none is under way, or after `STOP_SECONDS`."""
    logging.getLogger("ray.serve").setLevel(
        logging.WARNING
    )  # what it tells of its own workings is not for people
    ingress = serve.get_app_handle("melanoma")
    deadline, num_quiet = time.monotonic() + STOP_SECONDS, 0
    while (
        time.monotonic() < deadline and num_quiet < 2
    ):  # twice: one may be between the proxy and the ingress
        try:
            async with asyncio.timeout(5):
                in_flight = await ingress.drain.remote()
        except (TimeoutError, BackPressureError):
            in_flight = 1  # too busy to say so
        num_quiet = num_quiet + 1 if in_flight == 0 else 0
        await asyncio.sleep(0.2)


@contextlib.contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """Make Ctrl-C and SIGTERM, the two ways to end a server, set an event; a second one interrupts."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    _catch_signals(stop)
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _catch_signals(stop: threading.Event) -> None:
    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)


def _start_ray(spill: str, stop: threading.Event) -> Path:
    """Start a cluster of this process's own and return the folder of its logs."""
    try:
        context: Any = ray.init(
            address="local",
            num_cpus=_num_threads()
            + 2,  # of which Ray counts one for ingress and explainer, and one is to spare
            object_store_memory=OBJECT_STORE_BYTES,
            object_spilling_directory=spill,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except SystemExit:  # Ray's own answer to SIGTERM while it starts
        stop.set()
        raise _StoppedError from None
    _catch_signals(stop)  # Ray has put its own handler in their place
    return Path(context.address_info["session_dir"]) / "logs"


@contextlib.contextmanager
def _deployer(service: LocalService) -> Iterator[Connection]:
    """Start the process that checks the bundle and deploys the graph; give this end of the pipe to it."""
    ours, theirs = multiprocessing.Pipe()
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=deploy_when_told, args=(service, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        process.terminate()
        process.join()


def _told(pipe: Connection, stop: threading.Event) -> Any:
    """Return what the other process says next.

    Raises:
        Exception: what it says went wrong there.
        _StoppedError: if a signal comes first.
    """
    try:
        _wait(lambda: pipe.poll(0.2), stop, what="still starting")
        told = pipe.recv()
    except (EOFError, TimeoutError):
        raise RuntimeError(
            "the process that deploys the graph ended or hung before it was done; see the lines"
            " above."
        ) from None
    if isinstance(told, Exception):
        raise told
    return told


def _wait_until_ready(service: LocalService, stop: threading.Event, logs: Path) -> None:
    def is_ready() -> bool:
        # No proxy of the environment's: it would be asked for an address of this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            opener.open(f"{service.url_here}/readyz", timeout=5).close()
        except (urllib.error.URLError, http.client.HTTPException, OSError):
            stop.wait(0.5)
            return False
        return True

    try:
        _wait(is_ready, stop, what="still loading the bundle", seconds=READY_SECONDS)
    except TimeoutError:
        raise RuntimeError(
            f"the service did not become ready within {READY_SECONDS:.0f} s; its log in"
            f" {logs}/serve says why."
        ) from None


def _wait(
    condition: Callable[[], bool], stop: threading.Event, *, what: str, seconds: float = 600.0
) -> None:
    """Return once a condition holds, and say from time to time that it does not yet."""
    started = said = time.monotonic()
    while not condition():
        now = time.monotonic()
        if stop.is_set():
            raise _StoppedError
        if now - started > seconds:
            raise TimeoutError
        if now - said > PATIENCE_SECONDS:
            said = now
            _say(f"{what} ({now - started:.0f} s)")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _shared_memory() -> Path | None:
    """Return the memory file system for Ray's object store and what that spills; None where the system has none.

    Raises:
        DataError: if it is too small: Ray would put the object store, and images with it, into a
            file on a disk.
    """
    shared = Path("/dev/shm")
    if not shared.is_dir():
        _say("there is no /dev/shm: Ray keeps its object store in the temporary folder")
        return None
    free = shutil.disk_usage(shared).free
    if free < SHARED_MEMORY_BYTES:
        raise DataError(
            f"/dev/shm must have {SHARED_MEMORY_BYTES >> 20} MiB free, it has {free >> 20}, so that"
            " images would be written to a disk; start a container with --shm-size=512m, or mount"
            " a memory volume there."
        )
    return shared


def _num_threads() -> int:
    return int(min(joblib.cpu_count(), MAX_THREADS))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


_REMEDIES = {
    errno.EADDRINUSE: "another program listens there; pass another --port.",
    errno.EACCES: "ports below 1024 need privileges; pass a --port of 1024 or more.",
    errno.EADDRNOTAVAIL: "--host must be an address of this machine.",
}


def _check_free(host: str, port: int) -> None:
    """Raise DataError, before anything is started, if the address or the port cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except socket.gaierror as error:
            raise DataError(
                f"cannot listen on {host}: --host must be an address of this machine."
            ) from error
        except OSError as error:
            remedy = _REMEDIES.get(
                error.errno or 0, f"{error.strerror}; pass another --host or --port."
            )
            raise DataError(f"cannot listen on {host}, port {port}: {remedy}") from error
