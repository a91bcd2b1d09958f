"""What the service does when it is asked too much, when its parts die and while its bundle is
changed."""

import collections
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from ray import serve

from benchmarks.random_bundle import other_shape
from melanoma.bundle.bundle import load_bundle
from melanoma.bundle.manifest import WEIGHTS
from tests.clusters import wait_for
from tests.problems import is_problem
from tests.serving import Deployer, Service, local_serve

pytestmark = pytest.mark.ray
Record = Callable[[str, object], None]
# With the classifier apart, and in the ingress.
BOTH = pytest.mark.parametrize(
    "deploy",
    ["deployment", pytest.param("ingress", marks=pytest.mark.drill)],
    indirect=True,
    scope="module",
)
QUICK = {"graceful_shutdown_timeout_s": 10, "graceful_shutdown_wait_loop_s": 0.2}


@pytest.fixture(scope="module")
def deploy(
    ray_cluster: None, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Deployer]:
    with local_serve(
        tmp_path_factory.mktemp("keys"), getattr(request, "param", "deployment")
    ) as deploy:
        yield deploy


@pytest.fixture(scope="module")
def other_bundle(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network under another version and on another canvas."""
    return other_shape(bundle_dir, tmp_path_factory.mktemp("other") / "bundle")


def _replicas(scale: int) -> dict[str, Any]:
    return {**QUICK, "autoscaling_config": None, "num_replicas": scale}


def _steadily(
    service: Service, image: bytes, act: Callable[[], object], *, clients: int = 3
) -> list[httpx.Response | httpx.TransportError]:
    """Ask again and again while something is done, and a little longer; return every answer."""
    stop = threading.Event()

    def ask() -> list[httpx.Response | httpx.TransportError]:
        found: list[httpx.Response | httpx.TransportError] = []
        with httpx.Client(
            base_url=service.url, timeout=60, headers=service.authorization
        ) as client:
            while not stop.is_set():
                try:
                    found.append(client.post("/v1/predict", content=image))
                except httpx.TransportError as error:
                    found.append(error)
                time.sleep(0.02)
        return found

    with ThreadPoolExecutor(clients) as pool:
        asked = [pool.submit(ask) for _ in range(clients)]
        time.sleep(1)
        try:
            act()
            time.sleep(2)
        finally:
            stop.set()
    return [answer for each in asked for answer in each.result()]


def _statuses(answers: list[httpx.Response | httpx.TransportError]) -> dict[object, int]:
    return dict(
        collections.Counter(
            a.status_code if isinstance(a, httpx.Response) else type(a).__name__ for a in answers
        )
    )


def _ask(service: Service, image: bytes) -> httpx.Response:
    return httpx.post(
        f"{service.url}/v1/predict", content=image, headers=service.authorization, timeout=60
    )


def test_too_many_requests_are_refused_in_words_and_at_once(
    deploy: Deployer, bundle_dir: Path, image: bytes
) -> None:
    narrow = {"max_ongoing_requests": 2, "max_queued_requests": 2}
    service = deploy(bundle_dir, **{deploy.classifier: _replicas(1) | narrow})
    probes: list[int] = []
    with (
        httpx.Client(
            timeout=60, headers=service.authorization, limits=httpx.Limits(max_connections=64)
        ) as client,
        ThreadPoolExecutor(64) as pool,
    ):
        asked = pool.map(
            lambda _: client.post(f"{service.url}/v1/predict", content=image), range(288)
        )
        for _ in range(10):  # a gateway must not take a busy service for a broken one
            probes.append(httpx.get(f"{service.url}/-/healthz", timeout=30).status_code)
        answers = list(asked)
    statuses = _statuses(answers)  # type: ignore[arg-type]  # a list of one of the two
    assert set(statuses) == {200, 503}, statuses
    assert set(probes) == {200}, probes
    refused = [answer for answer in answers if answer.status_code == 503]
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    # The ingress says it in our words; what its own queue cannot hold, if so much comes at once,
    # Ray's proxy refuses in plain ones.
    in_words = [
        answer for answer in refused if answer.headers["content-type"] == "application/problem+json"
    ]
    for answer in in_words:
        is_problem(answer, 503, "overloaded")
    assert in_words
    assert _ask(service, image).status_code == 200


@pytest.mark.fault
@BOTH
def test_a_bad_and_a_good_bundle_are_rolled_out_under_load(
    deploy: Deployer, bundle_dir: Path, other_bundle: Path, image: bytes, record_property: Record
) -> None:
    """The old one goes on serving until the good one does."""
    old, new = (load_bundle(folder).manifest.version for folder in (bundle_dir, other_bundle))
    service = deploy(bundle_dir, **{deploy.classifier: _replicas(2)})
    after_the_bad_one: list[str] = []

    def roll_out() -> None:
        with pytest.raises(RuntimeError):
            deploy(other_bundle, manifest_sha256="0" * 64, **{deploy.classifier: _replicas(2)})
        after_the_bad_one.append(_ask(service, image).json()["model"]["version"])
        deploy(other_bundle, **{deploy.classifier: _replicas(2)})

    answers = _steadily(service, image, roll_out)
    assert set(_statuses(answers)) == {200}, _statuses(answers)
    assert after_the_bad_one == [old]
    told = {a.json()["model"]["version"] for a in answers if isinstance(a, httpx.Response)}
    assert told == {old, new}
    assert _ask(service, image).json()["model"]["version"] == new
    record_property("lost", f"nothing of {len(answers)}")


@pytest.mark.fault
@BOTH
def test_a_classifier_is_killed_under_load(
    deploy: Deployer, bundle_dir: Path, image: bytes, record_property: Record
) -> None:
    """It costs what it was computing, which is answered 503, and no more."""
    service = deploy(bundle_dir, **{deploy.classifier: _replicas(2)})
    kept = _replicas_of(deploy.classifier)

    def kill() -> None:
        os.kill(kept[0], signal.SIGKILL)
        started = time.monotonic()
        wait_for(lambda: _replaced(kept[0], _replicas_of(deploy.classifier)), seconds=60)
        record_property("back_seconds", time.monotonic() - started)

    answers = _steadily(service, image, kill)
    lost = [a for a in answers if not isinstance(a, httpx.Response) or a.status_code != 200]
    assert len(lost) <= 3, _statuses(
        answers
    )  # each of three clients waits for one answer at a time
    for answer in lost:
        assert isinstance(answer, httpx.Response), answer
        is_problem(answer, 503, "replica_lost")
    record_property("lost", f"{len(lost)} of {len(answers)}, answered 503")


def _replaced(killed: int, pids: list[int]) -> bool:
    return len(pids) >= 2 and killed not in pids


def _replicas_of(deployment: str) -> list[int]:
    """Return the processes of all replicas of a deployment."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            words = " ".join(process.cmdline())
        except psutil.Error:  # it has ended meanwhile
            continue
        if words.startswith(f"ray::ServeReplica:melanoma:{deployment}"):
            found.append(process.pid)
    return sorted(found)


def test_missing_weights_are_not_ready_and_say_so(
    deploy: Deployer, bundle_dir: Path, image: bytes, tmp_path: Path
) -> None:
    serve.delete("melanoma")
    folder = Path(shutil.copytree(bundle_dir, tmp_path / "bundle"))
    (folder / WEIGHTS).unlink()
    with pytest.raises(RuntimeError):
        deploy(folder, **{deploy.classifier: _replicas(1)})
    service = deploy.service
    is_problem(_ask(service, image), 503, "not_ready")
    is_problem(httpx.get(f"{service.url}/readyz", timeout=30), 503, "not_ready")
    assert httpx.get(f"{service.url}/healthz", timeout=30).status_code == 200
