"""Real local clusters as `ray start` makes them, with a token, and object storage that speaks S3;
for tests of what crosses machines."""

import contextlib
import dataclasses
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

BIN = Path(sys.executable).parent
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def free_ports(num: int) -> list[int]:
    """Return ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(num)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    """Return once something holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


def title_of(pid: int) -> str:
    """Return what a process calls itself, nothing if it has ended meanwhile."""
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""


def wait_for_http(url: str, process: "subprocess.Popen[bytes]", seconds: float = 60) -> None:
    """Return once something answers there, whatever it answers."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it answered"
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except urllib.error.HTTPError:
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
        else:
            return
    raise AssertionError(f"{url} never answered")


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and all that came of it."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for member in family:
        with contextlib.suppress(psutil.Error):
            member.kill()
    process.wait(30)


@contextlib.contextmanager
def object_storage(bucket: str) -> Iterator[str]:
    """Start an S3 server with one bucket; give the query that makes s3:// addresses reach it."""
    (port,) = free_ports(1)
    server = subprocess.Popen(
        [BIN / "moto_server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for_http(f"http://127.0.0.1:{port}/", server)
        urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{port}/{bucket}", method="PUT"), timeout=10
        ).close()
        yield f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    finally:
        end(server)


def token_file(folder: Path) -> Path:
    """Write a new token of Ray's into a folder and return its path."""
    path = folder / "token"
    path.write_text(secrets.token_hex(32))
    return path


def certificate(folder: Path, address: str = "127.0.0.1") -> tuple[Path, Path]:
    """Make a certificate of an address that is its own CA, and its key."""
    cert, key = folder / "tls.crt", folder / "tls.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=melanoma", "-addext", f"subjectAltName=IP:{address}",
         "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


@dataclasses.dataclass(frozen=True)
class Head:
    """A head that asks for a token.

    Attributes:
        address: what a driver on this machine connects to.
        dashboard: its address for jobs and for Serve.
        serve_port: where a service may listen.
        environment: the variables that a user of it needs.
    """

    address: str
    dashboard: str
    serve_port: int
    environment: dict[str, str]


@contextlib.contextmanager
def head_with_token(
    folder: Path, *options: str, num_cpus: int = 4, num_gpus: int = 2, **environment: str
) -> Iterator[Head]:
    """Start a cluster of one node, as a pod would, with an environment of its own; it says it has
    GPUs, so that what asks for them is placed.

    Args:
        folder: for its token and its log.
        options: more words for `ray start`.
        num_cpus: CPUs that it says it has.
        num_gpus: GPUs that it says it has.
        environment: more variables for it and for its users.
    """
    from ray.util import get_node_ip_address  # unit tests start without Ray

    session = tempfile.mkdtemp(
        prefix="ray-"
    )  # short: the names of Ray's sockets must fit into 107 letters
    token = token_file(folder)
    port, dashboard, agent, client, serve_port = free_ports(5)
    around = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "MELANOMA_CACHE": str(folder / "cache"),
        **environment,
    }
    command = [
        BIN / "ray",
        "start",
        "--head",
        "--block",
        "--port",
        str(port),
        "--dashboard-port",
        str(dashboard),
        "--dashboard-agent-listen-port",
        str(agent),
        "--ray-client-server-port",
        str(client),
        "--num-cpus",
        str(num_cpus),
        "--num-gpus",
        str(num_gpus),
        "--object-store-memory",
        str(256 * 2**20),
        "--disable-usage-stats",
        "--temp-dir",
        session,
        *options,
    ]
    # Shells of the cluster find `python` where this one is.
    inside = os.environ | around | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=inside, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for_http(f"http://127.0.0.1:{dashboard}/api/version", process)
        address = f"{get_node_ip_address()}:{port}"
        yield Head(address, f"http://127.0.0.1:{dashboard}", serve_port, around)
    finally:
        end(process)
