"""`melanoma serve` as a process: it starts where little is given, says what it does, tells nobody,
and ends well on a signal."""

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import psutil
import pytest

from tests.clusters import free_ports, wait_for
from tests.strangers import call_as_a_stranger

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
NOBODY = 54321  # has no entry in the list of users
CLIENTS = 6


@dataclasses.dataclass
class Server:
    """A running `melanoma serve`.

    Attributes:
        process: it, or what traces it.
        log: where its stderr goes.
        url: where it listens.
    """

    process: "subprocess.Popen[bytes]"
    log: Path
    url: str

    @property
    def said(self) -> str:
        return self.log.read_text()

    def pid(self) -> int:
        """Return the process of the command itself."""
        family = [
            psutil.Process(self.process.pid),
            *psutil.Process(self.process.pid).children(recursive=True),
        ]
        return next(
            p.pid
            for p in family
            if p.cmdline()[:1] == [sys.executable] and "ray_jobs.cli" in p.cmdline()
        )

    def wait_until_serving(self) -> None:
        wait_for(lambda: self.process.poll() is not None or "\nserving " in self.said, 300)
        assert self.process.poll() is None, self.said


@contextlib.contextmanager
def serving(
    folder: Path, *words: str, around: list[str] | None = None, env: dict[str, str] | None = None
) -> Iterator[Server]:
    """Start the command, with another before it if one is named, and end whatever is left of it."""
    (port,) = free_ports(1)
    command = [
        *(around or []),
        sys.executable,
        "-m",
        "ray_jobs.cli",
        "serve",
        *words,
        "--port",
        str(port),
    ]
    log = folder / "serve.log"
    host = words[words.index("--host") + 1] if "--host" in words else "127.0.0.1"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=os.environ if env is None else env, stderr=file, stdout=file, cwd=ROOT
        )
    server = Server(
        process, log, f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    )
    try:
        yield server
    finally:
        left = (
            psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        )
        for each in left:
            with contextlib.suppress(psutil.Error):
                each.kill()
        process.kill()
        process.wait(30)


@pytest.fixture
def readable_bundle(bundle_dir: Path) -> Iterator[Path]:
    """The bundle where every user can read it."""
    folder = Path(tempfile.mkdtemp(prefix="melanoma-bundle-"))
    shutil.copytree(bundle_dir, folder / "bundle")
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    yield folder / "bundle"
    shutil.rmtree(folder)


def _ask_without_end(
    url: str, image: bytes, stop: threading.Event, answers: list[tuple[float, float, str]]
) -> None:
    with httpx.Client(timeout=60, trust_env=False) as client:
        while not stop.is_set():
            started = time.monotonic()
            try:
                answer = client.post(f"{url}/v1/predict?explain=grad_cam", content=image)
                came = f"{answer.status_code} {answer.json().get('code', '')}".strip()
            except httpx.TransportError as error:
                came = type(error).__name__
            answers.append((started, time.monotonic(), came))


def _stop_under_load(
    server: Server, image: bytes, number: signal.Signals
) -> list[tuple[float, float, str]]:
    """Send a signal while clients ask without end; return what came of every request that was under
    way then, or came later."""
    stop, answers = threading.Event(), list[tuple[float, float, str]]()
    threads = [
        threading.Thread(target=_ask_without_end, args=(server.url, image, stop, answers))
        for _ in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(answers) > 3 * CLIENTS)
    told = time.monotonic()
    os.kill(server.pid(), number)
    assert server.process.wait(40) == 0, server.said
    stop.set()
    for thread in threads:
        thread.join()
    under_way = [came for started, ended, came in answers if started < told < ended]
    assert under_way
    assert set(under_way) == {"200"}
    return [each for each in answers if each[0] >= told]


def _no_port_runs_what_a_stranger_sends(family: list[psutil.Process], mark: Path) -> None:
    """Call every port that is open beyond loopback without the token, with a pickle that would
    leave a mark."""
    listening = {
        socket.laddr.port
        for process in family
        for socket in process.net_connections("inet")
        if socket.status == psutil.CONN_LISTEN and not socket.laddr.ip.startswith("127.")
    }
    assert len(listening) >= 10
    told = [call_as_a_stranger(port, mark) for port in sorted(listening)]
    assert not mark.exists()
    assert grpc.StatusCode.UNAUTHENTICATED in told
    assert grpc.StatusCode.OK not in told


def _spill_folders() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("melanoma-*")}


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.drill)]
)
def test_it_ends_well_under_load(
    number: signal.Signals, bundle_dir: Path, image: bytes, tmp_path: Path
) -> None:
    before = _spill_folders()
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    with serving(tmp_path, str(bundle_dir), env=env) as server:
        server.wait_until_serving()
        family = psutil.Process(server.pid()).children(recursive=True)
        replicas = [each for each in family if "ServeReplica" in " ".join(each.cmdline())]
        assert replicas
        assert {each.nice() for each in replicas} == {psutil.Process().nice()}
        _no_port_runs_what_a_stranger_sends(family, tmp_path / "run-by-a-stranger")
        later = _stop_under_load(server, image, number)
        # New requests are refused in words a client may retry on, until nobody listens any more.
        assert "503 stopping" in {came for _, _, came in later}
        assert not [came for _, _, came in later if came.startswith(("404", "500"))]
        assert "stopping: requests in flight" in server.said
        assert "Traceback" not in server.said
        assert not psutil.wait_procs(family, timeout=20)[1]
    assert _spill_folders() == before


def test_a_signal_while_it_starts_ends_it(bundle_dir: Path, tmp_path: Path) -> None:
    with serving(tmp_path, str(bundle_dir)) as server:
        wait_for(lambda: "starting" in server.said)
        family = psutil.Process(server.pid()).children(recursive=True)
        os.kill(server.pid(), signal.SIGTERM)
        assert server.process.wait(60) == 0, server.said
        assert "Traceback" not in server.said
        assert not psutil.wait_procs(family, timeout=20)[1]


def _as_nobody() -> list[str]:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("another user needs root and setpriv")
    # It may read what root may, because the interpreter of the tests may lie in root's home; it may
    # write nothing there.
    reading = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *reading]


def test_it_starts_for_a_user_without_a_home_behind_a_proxy(
    readable_bundle: Path, image: bytes, tmp_path: Path
) -> None:
    """As `docker run --user` and OpenShift start it, in a network with a proxy, at an address of
    IPv6."""
    folder = Path(
        tempfile.mkdtemp(prefix="m-")
    )  # short: the names of Ray's sockets must fit into 107 letters
    os.chown(folder, NOBODY, NOBODY)
    proxies = dict.fromkeys(
        ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"
    )
    env = {"PATH": os.environ["PATH"], "TMPDIR": str(folder), "RAY_TMPDIR": str(folder), **proxies}
    with serving(
        tmp_path, str(readable_bundle), "--host", "::1", around=_as_nobody(), env=env
    ) as server:
        server.wait_until_serving()
        assert f"serving {readable_bundle} at {server.url}\n" in server.said
        assert re.search(r"the log is in \S+/logs/serve", server.said)
        answer = httpx.post(f"{server.url}/v1/predict", content=image, trust_env=False, timeout=60)
        assert answer.status_code == 200
        (logs,) = re.findall(r"the log is in (\S+)", server.said)
        assert list(Path(logs).glob("*.log"))
        os.kill(server.pid(), signal.SIGTERM)
        assert server.process.wait(60) == 0, server.said
    shutil.rmtree(folder)


def test_nothing_calls_home(bundle_dir: Path, image: bytes, tmp_path: Path) -> None:
    """No name is looked up, nobody outside is called, and nothing is left in HOME; libraries that
    count their users do all of that."""
    if shutil.which("strace") is None:
        pytest.skip("system calls are watched with strace, which is not here")
    home, trace = tmp_path / "home", tmp_path / "trace"
    home.mkdir()
    watch = [
        "strace",
        "--seccomp-bpf",
        "-f",
        "-qq",
        "-s",
        "120",
        "-e",
        "trace=connect,sendto,sendmsg,sendmmsg",
        "-o",
        str(trace),
    ]
    env = {
        key: value
        for key, value in os.environ.items()
        if "TELEMETRY" not in key and "USAGE_STATS" not in key
    }
    with serving(tmp_path, str(bundle_dir), around=watch, env=env | {"HOME": str(home)}) as server:
        server.wait_until_serving()
        for explain in ("grad_cam", "guided_grad_cam"):
            answer = httpx.post(
                f"{server.url}/v1/predict?explain={explain}",
                content=image,
                trust_env=False,
                timeout=60,
            )
            assert answer.status_code == 200
        time.sleep(12)  # ONNX Runtime sends after ten seconds
        os.kill(server.pid(), signal.SIGTERM)
        server.process.wait(60)
    lines = trace.read_text(errors="replace").splitlines()
    assert len(lines) > 100  # it watched
    own = {each.address for addresses in psutil.net_if_addrs().values() for each in addresses}
    outside = re.compile(r'sin_addr=inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"')
    called = [
        (line, (match[1] or match[2]).removeprefix("::ffff:"))
        for line in lines
        if (match := outside.search(line))
    ]
    # Ray asks for this machine's own address by connecting a datagram socket to 8.8.8.8; it sends
    # nothing there.
    assert not [
        line for line, address in called if address not in own | {"8.8.8.8", "::", "0.0.0.0"}
    ]
    assert not [path for path in home.rglob("*") if path.is_file()]


def test_every_process_is_told_not_to_call_home() -> None:
    script = (
        "import melanoma.bundle.backend, os, onnxruntime;"
        " print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    env = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=env,
    )
    assert done.stdout == "1\n"


def _refusal(
    *words: str, env: dict[str, str] | None = None, around: list[str] | None = None
) -> str:
    command = [*(around or []), sys.executable, "-m", "ray_jobs.cli", "serve", *words]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | (env or {}),
        check=False,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_what_cannot_be_had_is_told(bundle_dir: Path, tmp_path: Path) -> None:
    bundle = str(bundle_dir)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        assert "another program listens there. Pass another --port" in _refusal(
            bundle, "--port", port
        )
    env = {"MELANOMA_API_KEYS_FILE": str(tmp_path / "keys")}
    (tmp_path / "keys").write_text("0" * 64)
    for host in ("203.0.113.7", "no.such.host.invalid"):
        assert "--host must be an address of this machine" in _refusal(
            bundle, "--host", host, env=env
        )
    assert "--insecure-ray" in _refusal(bundle, env={"RAY_AUTH_MODE": "disabled"})
    assert "manifest.json" in _refusal(str(tmp_path))


def test_too_little_shared_memory_is_refused(bundle_dir: Path) -> None:
    """Docker gives 64 MiB: Ray would put its object store, and images with it, into a file on a
    disk."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a small /dev/shm needs root and unshare")
    small = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"',
        "sh",
    ]
    told = _refusal(str(bundle_dir), around=small)
    assert "/dev/shm must have 128 MiB free; it has 64" in told
    assert "--shm-size" in told


def test_the_command_itself_stays_small(bundle_dir: Path) -> None:
    """It only waits: the network's libraries are the replicas'."""
    script = (
        "import serve.local, sys; print([name for name in ('torch', 'onnxruntime', 'matplotlib',"
        " 'timm') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == "[]\n"
