"""Serves one bundle on this machine until it is stopped.

This process starts, watches and stops Ray. A second process checks the bundle, deploys the graph
and ends. As a result, only the replicas keep the network's libraries (half a gigabyte) in memory.
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

MAX_THREADS = 4  # of the classifier: a batch of four images gains nothing from more threads
# Small, because images do not pass through the object store. Ray's minimum is 75 MiB.
OBJECT_STORE_BYTES = 100 * 2**20
SHARED_MEMORY_BYTES = 128 * 2**20
READY_SECONDS, PATIENCE_SECONDS = 300.0, 15.0
STOP_SECONDS = 30.0
"""How long requests in flight may take to end after a signal; longer than `answer_timeout_s`."""


class _StoppedError(Exception):
    """A signal arrived while this process was waiting."""


def serve_locally(bundle: AnyPath, *, host: str, port: int, allow_uncontracted: bool) -> None:
    """Serve a bundle on a new local cluster until the process is interrupted or terminated.

    Args:
        bundle: folder of the bundle.
        host: address to listen on.
        port: port to listen on.
        allow_uncontracted: give decisions although the contract is not met.

    Raises:
        BundleError: if the bundle cannot be loaded.
        DataError: if the address is not available, if it is not a loopback address and no API keys
            are set, or if there is too little shared memory.
        SettingError: if the file of API keys cannot be used.
        RuntimeError: if the service does not become ready.
    """
    if not check_keys() and not _is_loopback(host):
        raise DataError(
            f"--host must be a loopback address if there are no API keys; it is {host}. Name a file"
            f" of keys in {VARIABLE} (see serve/api_keys.py), or leave --host out."
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
    """Start the service and return the sentence of its contract."""
    with _deployer(service) as pipe:
        _say(f"checking {service.bundle}")
        # Check before Ray starts, so that a bad bundle gives an error at once and not in the log of
        # a replica.
        sentence: str = _receive(pipe, stop)
        logs = _start_ray(spill, stop)
        _say(f"starting, which takes a minute or less; the log is in {logs}/serve")
        pipe.send(ray.get_runtime_context().gcs_address)
        _receive(pipe, stop)
    _wait_until_ready(service, stop, logs)
    return sentence


def _end(stop: threading.Event) -> None:
    """Wait for the requests in flight, then stop the cluster; a second signal stops it at once."""
    try:
        if stop.is_set():
            _say(
                "stopping: requests in flight are answered, new requests are refused; send another"
                " signal to stop at once"
            )
            if ray.is_initialized():
                asyncio.run(_drain())
    except (KeyboardInterrupt, RayServeException, RayError):
        pass  # a second signal, or the cluster is gone and there is nothing to wait for
    finally:
        ray.shutdown()


async def _drain() -> None:
    """Refuse new requests and return when none is in flight, or after `STOP_SECONDS`."""
    # Ray Serve's own progress lines do not help users.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ingress = serve.get_app_handle("melanoma")
    deadline, num_quiet = time.monotonic() + STOP_SECONDS, 0
    # Ask twice, because a request may be on its way to the ingress.
    while time.monotonic() < deadline and num_quiet < 2:
        try:
            async with asyncio.timeout(5):
                in_flight = await ingress.drain.remote()
        except (TimeoutError, BackPressureError):
            in_flight = 1  # the ingress is too busy to answer
        num_quiet = num_quiet + 1 if in_flight == 0 else 0
        await asyncio.sleep(0.2)


@contextlib.contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """Make Ctrl-C and SIGTERM set an event; a second signal raises KeyboardInterrupt."""
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
    """Start a cluster for this process and return the folder of its logs."""
    try:
        context: Any = ray.init(
            address="local",
            # Two more than the classifier's: one for the explainer, one to spare.
            num_cpus=_num_threads() + 2,
            object_store_memory=OBJECT_STORE_BYTES,
            object_spilling_directory=spill,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except SystemExit:  # Ray raises it on SIGTERM while it starts
        stop.set()
        raise _StoppedError from None
    _catch_signals(stop)  # again, because Ray installs its own handlers
    return Path(context.address_info["session_dir"]) / "logs"


@contextlib.contextmanager
def _deployer(service: LocalService) -> Iterator[Connection]:
    """Start the process that checks the bundle and deploys the graph; yield the pipe to it."""
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


def _receive(pipe: Connection, stop: threading.Event) -> Any:
    """Return the next message of the other process.

    Raises:
        Exception: the exception that the other process sends.
        RuntimeError: if the other process ends or hangs.
        _StoppedError: if a signal arrives first.
    """
    try:
        _wait(lambda: pipe.poll(0.2), stop, what="still starting")
        message = pipe.recv()
    except (EOFError, TimeoutError):
        raise RuntimeError(
            "The process that deploys the graph ended or hung before it was done. The lines above"
            " may say why."
        ) from None
    if isinstance(message, Exception):
        raise message
    return message


def _wait_until_ready(service: LocalService, stop: threading.Event, logs: Path) -> None:
    def is_ready() -> bool:
        # Without a proxy from the environment, because the address is on this machine.
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
            f"The service did not become ready within {READY_SECONDS:.0f} s. See its log in"
            f" {logs}/serve."
        ) from None


def _wait(
    condition: Callable[[], bool], stop: threading.Event, *, what: str, seconds: float = 600.0
) -> None:
    """Return when a condition holds, and print a line about the wait now and then.

    Args:
        condition: called again and again; it should block for a moment itself.
        stop: the event that a signal sets.
        what: what is waited for, for the printed line.
        seconds: longest wait.

    Raises:
        _StoppedError: if a signal arrives first.
        TimeoutError: if the condition does not hold in time.
    """
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
    """Return the memory file system for Ray's objects, or None if the system has none.

    Raises:
        DataError: if it is too small. Ray would then put the object store, and images with it, into
            a file on a disk.
    """
    shared = Path("/dev/shm")
    if not shared.is_dir():
        _say("/dev/shm is missing: Ray keeps its object store in the temporary folder")
        return None
    free = shutil.disk_usage(shared).free
    if free < SHARED_MEMORY_BYTES:
        raise DataError(
            f"/dev/shm must have {SHARED_MEMORY_BYTES >> 20} MiB free; it has {free >> 20}. With"
            " less, images would be written to a disk. Start the container with --shm-size=512m, or"
            " mount a memory volume at /dev/shm."
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
    errno.EADDRINUSE: "another program listens there. Pass another --port.",
    errno.EACCES: "ports below 1024 need privileges. Pass a --port of 1024 or more.",
    errno.EADDRNOTAVAIL: "--host must be an address of this machine.",
}


def _check_free(host: str, port: int) -> None:
    """Raise DataError if the address or the port is not available, before anything is started."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except socket.gaierror as error:
            raise DataError(
                f"Cannot listen on {host}: --host must be an address of this machine."
            ) from error
        except OSError as error:
            remedy = _REMEDIES.get(
                error.errno or 0, f"{error.strerror}. Pass another --host or --port."
            )
            raise DataError(f"Cannot listen on {host}, port {port}: {remedy}") from error
