"""Machines on one computer, as far as Linux can make them: namespaces on a bridge, each with its
own address, ports, processes and folder.

A machine can be lost as a whole: its processes killed at once, or its cable pulled. What it kept in
its folder is gone with it.
"""

import contextlib
import dataclasses
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.clusters import BIN, certificate, end, title_of, token_file, wait_for, wait_for_http

NETWORK = "198.18.{}"
"""Addresses set aside for tests of networks (RFC 2544), so that they are nobody's."""
REDIS_PORT = 6380  # with TLS, as in the component redis


def missing() -> str:
    """Return why there can be no machines here, or nothing."""
    lacking = [
        name
        for name in ("ip", "unshare", "nsenter", "mount", "openssl", "redis-cli", "redis-server")
        if shutil.which(name) is None
    ]
    if os.geteuid() != 0 or lacking:
        return f"machines need root, and here {' and '.join(lacking) or 'it'} is not"
    name = f"try{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return "this computer allows no network namespaces"
    _ip("netns", "del", name)
    return ""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@dataclasses.dataclass
class Machine:
    """One machine.

    Attributes:
        name: its namespace.
        cable: the computer's end of its cable.
        address: where the others reach it.
        process: what it was told to run last.
    """

    name: str
    cable: str
    address: str
    process: "subprocess.Popen[bytes] | None" = None

    def run(self, command: Sequence[str | Path], disk: Path, log: Path, **environment: str) -> None:
        """Start a program there, which sees the machine's own processes only, and an empty folder
        of its own at the path ``disk``."""
        inside = [
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
            "sh",
            "-c",
            'mount -t tmpfs tmpfs "$0" && exec "$@"',
            disk,
        ]
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *inside, *command],
                env=os.environ | environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def processes(self, title: str = "") -> list[int]:
        """Return the processes that run there, or those whose title begins so."""
        told = subprocess.run(
            ["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False
        ).stdout
        return sorted(pid for pid in map(int, told.split()) if title_of(pid).startswith(title))

    def crash(self) -> None:
        """Kill all that runs there, at once."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process is not None:
            self.process.wait(30)

    def stop_ray(self) -> None:
        """Tell what runs there to stop, as the manifests do before a pod ends."""
        assert self.process is not None
        inside = psutil.Process(self.process.pid).children()[0].pid
        stop = [
            "nsenter",
            "--target",
            str(inside),
            "--net",
            "--pid",
            "--mount",
            BIN / "ray",
            "stop",
        ]
        subprocess.run(stop, check=True, capture_output=True, timeout=120)

    def vanish(self) -> None:
        """Pull its cable: nobody who talks to it is told, then or later."""
        _ip("link", "set", self.cable, "down")


def inner_pid(pid: int) -> int:
    """Return the number that a process has on its machine."""
    told = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in told.splitlines() if line.startswith("NSpid:")).split()[-1])


class Network:
    """A switch and the machines on it; state: which there are."""

    def __init__(self) -> None:
        self._id = os.getpid() % 10_000
        self._bridge, self._prefix = f"mb{self._id}", NETWORK.format(self._id % 250)
        self.machines: list[Machine] = []
        self.address = f"{self._prefix}.254"  # of this computer there

    def __enter__(self) -> "Network":
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("addr", "add", f"{self.address}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for machine in self.machines:
            machine.crash()
            _ip("netns", "del", machine.name)
        _ip("link", "del", self._bridge)

    def machine(self) -> Machine:
        """Bring up one more."""
        number = len(self.machines) + 1
        name, cable = f"m{self._id}-{number}", f"c{self._id}-{number}"
        made = Machine(name, cable, f"{self._prefix}.{number}")
        _ip("netns", "add", name)
        self.machines.append(made)
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", cable, "master", self._bridge, "up")
        for device in ("lo", "eth0"):
            _ip("-n", name, "link", "set", device, "up")
        _ip("-n", name, "addr", "add", f"{made.address}/24", "dev", "eth0")
        return made


class RayMachines:
    """A Ray cluster whose head keeps what it knows in Redis over TLS with a CA of its own, as in
    the manifests; state: the machines it has, and the password of Redis."""

    def __init__(self, network: Network, folder: Path, **environment: str) -> None:
        self._network, self._folder = network, folder
        self._session = Path(
            tempfile.mkdtemp(prefix="ray-")
        )  # short: the names of Ray's sockets must fit into 107 letters
        token = token_file(folder)
        self._cert, key = certificate(folder, network.address)
        self.around = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "MELANOMA_CACHE": str(folder / "cache"),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            **environment,
        }
        # As KubeRay sets them where gcsFaultToleranceOptions are, and the component redis-ca.
        self._of_head = {
            "RAY_REDIS_ADDRESS": f"rediss://{network.address}:{REDIS_PORT}",
            "RAY_REDIS_CA_CERT": str(self._cert),
            "RAY_external_storage_namespace": "drill",
        }
        self._password = secrets.token_hex(16)
        self._of_worker = {"RAY_gcs_rpc_server_reconnect_timeout_s": "600"}
        with (folder / "redis.log").open("wb") as log:
            self._redis = subprocess.Popen(
                [
                    "redis-server",
                    "--bind",
                    network.address,
                    "--port",
                    "0",
                    "--tls-port",
                    str(REDIS_PORT),
                    "--tls-cert-file",
                    str(self._cert),
                    "--tls-key-file",
                    str(key),
                    "--tls-ca-cert-file",
                    str(self._cert),
                    "--tls-auth-clients",
                    "no",
                    "--requirepass",
                    self._password,
                    "--save",
                    "",
                    "--dir",
                    str(folder),
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.head, self.workers = network.machine(), list[Machine]()

    @property
    def dashboard(self) -> str:
        return f"http://{self.head.address}:8265"

    def start_head(self) -> None:
        """Start the head, the first time or again, on its machine."""
        self.head.run(
            [
                BIN / "ray",
                "start",
                "--head",
                "--block",
                "--node-ip-address",
                self.head.address,
                "--num-cpus",
                "0",
                "--dashboard-host",
                "0.0.0.0",
                "--object-store-memory",
                str(128 * 2**20),
                "--disable-usage-stats",
                "--temp-dir",
                self._session,
                "--redis-password",
                self._password,
            ],
            self._session,
            self._folder / "head.log",
            **self.around,
            **self._of_head,
        )
        assert self.head.process is not None
        wait_for_http(f"{self.dashboard}/api/version", self.head.process)

    def new_password(self) -> None:
        """Give Redis one more password, which the head takes when it starts again."""
        new = secrets.token_hex(16)
        self._redis_cli("ACL", "SETUSER", "default", f">{new}")
        self._old, self._password = self._password, new

    def forget_old_password(self) -> None:
        """Take the old password away, also from clients that are connected with it."""
        self._redis_cli("ACL", "SETUSER", "default", f"<{self._old}")

    def _redis_cli(self, *words: str) -> None:
        done = subprocess.run(
            ["redis-cli", "--tls", "--cacert", self._cert, "-h", self._network.address,
             "-p", str(REDIS_PORT), *words],
            env=os.environ | {"REDISCLI_AUTH": self._password},
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        assert done.stdout.strip() == "OK", done.stdout

    def add_worker(self, num_cpus: int) -> Machine:
        """Bring up a machine that computes."""
        machine = self._network.machine()
        machine.run(
            [
                BIN / "ray",
                "start",
                "--block",
                "--address",
                f"{self.head.address}:6379",
                "--node-ip-address",
                machine.address,
                "--num-cpus",
                str(num_cpus),
                "--object-store-memory",
                str(128 * 2**20),
                "--disable-usage-stats",
            ],
            self._session,
            self._folder / f"{machine.name}.log",
            **self.around,
            **self._of_worker,
        )
        wait_for(
            lambda: b"Ray runtime started" in (self._folder / f"{machine.name}.log").read_bytes()
        )
        self.workers.append(machine)
        return machine

    def applications(self) -> dict[str, Any]:
        """Return what Serve says of itself, or nothing while the head is away."""
        token = Path(self.around["RAY_AUTH_TOKEN_PATH"]).read_text()
        try:
            answer = httpx.get(
                f"{self.dashboard}/api/serve/applications/",
                headers={"Authorization": f"Bearer {token}"},
                timeout=10,
            )
            answer.raise_for_status()
        except httpx.HTTPError:
            return {}
        found: dict[str, Any] = answer.json()
        return found

    def close(self) -> None:
        """End all of it."""
        for machine in (*self.workers, self.head):
            machine.crash()
        end(self._redis)
        shutil.rmtree(self._session, ignore_errors=True)


@contextlib.contextmanager
def ray_machines(folder: Path, **environment: str) -> Iterator[RayMachines]:
    """Give a cluster on machines of its own, its head started."""
    with Network() as network:
        cluster = RayMachines(network, folder, **environment)
        try:
            cluster.start_head()
            yield cluster
        finally:
            cluster.close()
