"""What the service loses when its parts, its machines or its head are lost: on machines of their
own, behind a balancer as Kubernetes has.

The graph is that of the manifests; the balancer probes, waits and asks elsewhere, where no answer
comes, with the numbers of the gateway.
"""

import collections
import dataclasses
import hashlib
import os
import random
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from benchmarks.random_bundle import other_shape
from melanoma.bundle.bundle import load_bundle
from melanoma.bundle.manifest import MANIFEST
from melanoma.io.files import sha256_of
from serve.api_keys import VARIABLE
from serve.environment import ENVIRONMENT
from tests import manifests
from tests.clusters import BIN, wait_for
from tests.machines import Machine, RayMachines, inner_pid, missing, ray_machines

pytestmark = [pytest.mark.ray, pytest.mark.drill, pytest.mark.timeout(900)]
PORT, CLIENTS = 8000, 4
NUM_CPUS = 2  # of a worker in the manifests: one classifier fits on each
ANSWERING = ("Ingress", "Classifier")
Record = Callable[[str, object], None]


@dataclasses.dataclass
class Service:
    """The graph on machines; state: the bundle it should serve."""

    cluster: RayMachines
    folder: Path
    key: str

    def deploy(self, bundle: Path, *, pin: str | None = None) -> None:
        """Send the manifests' Serve config, with a bundle of this test's, as KubeRay sends it."""
        (document,) = manifests.of_kind(manifests.render("cpu/serve"), "RayService")
        config: dict[str, Any] = yaml.safe_load(document["spec"]["serveConfigV2"])
        config["applications"][0]["args"] |= {
            "bundle": str(bundle),
            "manifest_sha256": pin or sha256_of(bundle / MANIFEST),
        }
        for deployment in config["applications"][0]["deployments"]:
            deployment["autoscaling_config"] |= {
                "min_replicas": 2 if deployment["name"] in ANSWERING else 1,
                "max_replicas": 2,
            }
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        subprocess.run(
            [BIN / "serve", "deploy", path, "--address", self.cluster.dashboard],
            env=os.environ | self.cluster.around, check=True, timeout=120, capture_output=True,
        )  # fmt: skip

    def application(self) -> dict[str, Any]:
        found: dict[str, Any] = (
            self.cluster.applications().get("applications", {}).get("melanoma", {})
        )
        return found

    def is_whole(self, *, without: tuple[str, int] = ("", 0)) -> bool:
        """Return whether every deployment has its replicas, none a process that is lost, and
        whether they are reached where they are."""
        app, addresses = self.application(), {machine.address for machine in self.cluster.workers}
        if app.get("status") != "RUNNING":
            return False
        for name, deployment in app["deployments"].items():
            running = [
                r
                for r in deployment["replicas"]
                if r["state"] == "RUNNING" and r["node_ip"] in addresses
            ]
            if len(running) < (2 if name in ANSWERING else 1) or len(running) < len(
                deployment["replicas"]
            ):
                return False
            if not all(is_well(replica["node_ip"]) for replica in running):
                return False
            if without in [(replica["node_ip"], replica["pid"]) for replica in running]:
                return False
        return True

    def wait_until_whole(self, *, without: tuple[str, int] = ("", 0)) -> None:
        wait_for(lambda: time.sleep(0.5) or self.is_whole(without=without), seconds=240)


def is_well(address: str) -> bool:
    """Return whether a machine's proxy says that it can answer."""
    try:
        return httpx.get(f"http://{address}:{PORT}/-/healthz", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def _seconds(told: str) -> float:
    return float(told.removesuffix("s"))


class Balancer:
    """Sends to machines that say they are well; state: which missed probes, and what came of every
    request."""

    def __init__(self, service: Service, image: bytes) -> None:
        self._service, self._image = service, image
        self._stop = threading.Event()
        self.answers: collections.Counter[str] = collections.Counter()
        self.versions: set[str] = set()
        (policy,) = manifests.of_kind(manifests.render("cpu/serve"), "BackendTrafficPolicy")
        retry, probe = policy["spec"]["retry"], policy["spec"]["healthCheck"]["active"]
        self._attempts, self._patience = (
            1 + retry["numRetries"],
            _seconds(retry["perRetry"]["timeout"]),
        )
        self._most_misses, self._interval = probe["unhealthyThreshold"], _seconds(probe["interval"])
        addresses = [machine.address for machine in service.cluster.workers]
        self._misses = {
            address: 0 if is_well(address) else self._most_misses for address in addresses
        }
        self.asked_again, self.slowest_seconds = 0, 0.0

    def _probe(self) -> None:
        while not self._stop.wait(self._interval):
            for address in [machine.address for machine in self._service.cluster.workers]:
                self._misses[address] = (
                    0 if is_well(address) else self._misses.get(address, self._most_misses) + 1
                )

    def _choose(self, but: str = "") -> str:
        """Return a machine that did not miss its last probes, another one if there is one; any,
        where none is well."""
        known = [machine.address for machine in self._service.cluster.workers]
        well = [
            address
            for address in known
            if self._misses.get(address, self._most_misses) < self._most_misses
        ]
        return random.choice([address for address in well if address != but] or well or known)

    def _post(self, client: httpx.Client, address: str) -> str:
        try:
            answer = client.post(f"http://{address}:{PORT}/v1/predict", content=self._image)
        except httpx.TransportError as error:
            return type(error).__name__
        if answer.status_code == 200:
            self.versions.add(answer.json()["model"]["version"])
        return str(answer.status_code)

    def _ask(self) -> None:
        authorization = {"Authorization": f"Bearer {self._service.key}"}
        with httpx.Client(timeout=self._patience, headers=authorization) as client:
            while not self._stop.wait(0.05):
                started, asked, came = time.monotonic(), "", ""
                for attempt in range(self._attempts):
                    asked = self._choose(but=asked)
                    came = self._post(client, asked)
                    self.asked_again += attempt > 0
                    if came.isdigit():  # an answer, whatever it says, is the client's
                        break
                self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - started)
                self.answers[came] += 1

    def during(self, act: Callable[[], object]) -> None:
        """Ask without end while something is done, a little before and after it."""
        with ThreadPoolExecutor(CLIENTS + 1) as pool:
            running = [pool.submit(self._probe), *(pool.submit(self._ask) for _ in range(CLIENTS))]
            try:
                time.sleep(2)
                act()
                time.sleep(3)
            finally:
                self._stop.set()
        for each in running:
            each.result()

    def lost(self, *, times: int = 1) -> str:
        """Return what was lost, in words for the table: every request has an answer, and of each
        client so many at most are no prediction."""
        num, refused = sum(self.answers.values()), sum(self.answers.values()) - self.answers["200"]
        assert num > 20, self.answers
        assert set(self.answers) <= {"200", "408", "500", "503", "504"}, self.answers
        assert refused <= times * CLIENTS, self.answers
        told = (
            ", ".join(
                f"{count} x {status}"
                for status, count in sorted(self.answers.items())
                if status != "200"
            )
            or "nothing"
        )
        again = f", {self.asked_again} asked again" if self.asked_again else ""
        return f"{told} of {num}{again}, slowest {self.slowest_seconds:.1f} s"


@pytest.fixture(scope="module")
def service(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    if lack := missing():
        pytest.skip(lack)
    folder = tmp_path_factory.mktemp("machines")
    key = secrets.token_urlsafe(32)
    (folder / "keys").write_text(f"{hashlib.sha256(key.encode()).hexdigest()} the drills\n")
    with ray_machines(folder, **ENVIRONMENT, **{VARIABLE: str(folder / "keys")}) as cluster:
        for _ in range(3):  # the third is the room for a new version that an autoscaler would make
            cluster.add_worker(NUM_CPUS)
        service = Service(cluster, folder, key)
        service.deploy(bundle_dir)
        service.wait_until_whole()
        yield service


@pytest.fixture
def balancer(service: Service, image: bytes) -> Balancer:
    service.wait_until_whole()
    return Balancer(service, image)


def _kill_one(service: Service, title: str) -> tuple[str, int]:
    """Kill a process of the first machine that has one of some title; return its address and number
    there."""
    machine, pid = next((m, pid) for m in service.cluster.workers for pid in m.processes(title))
    killed = machine.address, inner_pid(pid)
    os.kill(pid, signal.SIGKILL)
    return killed


@pytest.mark.parametrize(
    "part", ["ServeReplica:melanoma:Classifier", "ServeReplica:melanoma:Ingress", "ProxyActor"]
)
def test_a_part_is_killed_under_load(
    part: str, service: Service, balancer: Balancer, record_property: Record
) -> None:
    def act() -> None:
        started = time.monotonic()
        killed = _kill_one(service, f"ray::{part}")
        time.sleep(1)
        service.wait_until_whole(without=killed)
        record_property("back_seconds", time.monotonic() - started)

    balancer.during(act)
    record_property("lost", balancer.lost())


def test_a_bad_bundle_is_rolled_out_and_back(
    service: Service, balancer: Balancer, bundle_dir: Path, record_property: Record
) -> None:
    def act() -> None:
        service.deploy(bundle_dir, pin="0" * 64)
        wait_for(lambda: service.application().get("status") == "DEPLOY_FAILED", 120)
        started = time.monotonic()
        service.deploy(bundle_dir)
        service.wait_until_whole()
        record_property("back_seconds", time.monotonic() - started)

    balancer.during(act)
    assert balancer.versions == {load_bundle(bundle_dir).manifest.version}
    record_property("lost", balancer.lost())


def test_the_password_of_redis_is_changed(
    service: Service,
    balancer: Balancer,
    bundle_dir: Path,
    tmp_path: Path,
    record_property: Record,
) -> None:
    """Redis takes both passwords while the head starts again with the new one."""

    def act() -> None:
        service.cluster.new_password()
        service.cluster.head.crash()
        service.cluster.start_head()
        service.cluster.forget_old_password()
        service.wait_until_whole()

    balancer.during(act)
    record_property("lost", balancer.lost())
    service.deploy(other_shape(bundle_dir, tmp_path / "bundle"))  # what a head does is stored
    service.wait_until_whole()
    service.deploy(bundle_dir)


def test_the_head_is_lost_and_starts_again_from_redis(
    service: Service,
    balancer: Balancer,
    bundle_dir: Path,
    image: bytes,
    tmp_path: Path,
    record_property: Record,
) -> None:
    """Machines serve on while it is away; afterwards it can do what a head does: roll out another
    bundle."""
    other = other_shape(bundle_dir, tmp_path / "bundle")

    def act() -> None:
        service.cluster.head.crash()
        time.sleep(15)
        assert not service.application()
        started = time.monotonic()
        service.cluster.start_head()
        service.wait_until_whole()
        record_property("back_seconds", time.monotonic() - started)

    balancer.during(act)
    record_property("lost", balancer.lost())
    service.deploy(other)
    wait_for(lambda: service.application().get("status") == "DEPLOYING", 60)
    service.wait_until_whole()
    after = Balancer(service, image)
    after.during(lambda: None)
    assert after.versions == {load_bundle(other).manifest.version}
    service.deploy(bundle_dir)


@pytest.mark.parametrize(
    "lose", [Machine.stop_ray, Machine.vanish], ids=["is told to stop", "vanishes"]
)
def test_a_machine_under_load(
    lose: Callable[[Machine], None], service: Service, balancer: Balancer, record_property: Record
) -> None:
    """As the manifests' preStop ends one, or its cable is pulled and nobody is told. Another one
    comes, as an autoscaler would bring it."""

    def act() -> None:
        started = time.monotonic()
        lost = next(
            machine
            for machine in service.cluster.workers
            if machine.processes("ray::ServeReplica:melanoma:Classifier")
        )
        lose(lost)
        time.sleep(5)
        service.cluster.add_worker(NUM_CPUS)
        service.cluster.workers.remove(lost)
        service.wait_until_whole()
        record_property("back_seconds", time.monotonic() - started)

    balancer.during(act)
    # Nobody tells that it vanished: until Ray misses it, a client may wait for it in vain, be told
    # so, and do so once more.
    record_property("lost", balancer.lost(times=2 if lose is Machine.vanish else 1))
