"""How the parts of an answer come from one bundle while two are being served: with stand-ins for
the deployments, without Ray."""

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ray.exceptions import ActorDiedError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from benchmarks.hostile_files import SIDE_PX, png, scan_bomb
from melanoma.bundle.deciding import Prediction
from melanoma.errors import InvalidImageError
from serve import model_client
from serve.classifier import Answer, Job
from serve.described import Described
from serve.lanes import Lane, OverloadedError
from serve.model_client import BundleChangingError, ModelClient
from serve.models import DeployedModel, LocalModel, NotReadyError
from serve.readings import Reading
from serve.uploads import MAX_REQUEST_PIXELS, Upload, uploads_of
from tests.bundles import described


@pytest.fixture(autouse=True)
def _no_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's metrics want a replica around them; pauses want none of our time."""

    class Silent:
        def stage(self, name: str) -> Any:
            import contextlib

            return contextlib.nullcontext()

    monkeypatch.setattr(model_client, "request_metrics", Silent)
    monkeypatch.setattr(model_client, "PAUSE_SECONDS", 0.001)


class _Fails:
    """Stands in for a handle: whatever is asked of it fails alike."""

    def __init__(self, error: Exception) -> None:
        self.describe = self.ready = self
        self._error = error

    async def remote(self) -> None:
        raise self._error


@pytest.mark.parametrize(
    ("raised", "renamed"),
    [
        (BackPressureError(num_queued_requests=9, max_queued_requests=8), OverloadedError),
        (DeploymentUnavailableError(DeploymentID("Classifier", "melanoma")), NotReadyError),
        (ActorDiedError(), ActorDiedError),
    ],
    ids=["full", "missing", "lost"],
)
def test_what_serve_raises_of_a_deployment_has_a_name_of_our_own(
    raised: Exception, renamed: type[Exception]
) -> None:
    deployment: Any = _Fails(raised)
    with pytest.raises(renamed):
        asyncio.run(ModelClient(DeployedModel(deployment), deployment).describe())


class _Method:
    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    async def remote(self, *arguments: Any) -> Any:
        await asyncio.sleep(0)  # others have their turn, as over a network
        return self._function(*arguments)


class _Replicas:
    """Stands in for a classifier's handle: two bundles of two canvases answer, whichever is
    drawn."""

    def __init__(self, versions: dict[str, tuple[int, int]], *, seed: int = 0) -> None:
        self._versions, self._rng = versions, np.random.default_rng(seed)
        self.describe, self.predict = _Method(self._describe), _Method(self._predict)

    def _draw(self) -> str:
        return str(self._rng.choice(list(self._versions)))

    def _describe(self) -> Described:
        version = self._draw()
        return described(version, self._versions[version])

    def _predict(self, job: Job) -> Answer:
        version = self._draw()
        here = described(version, self._versions[version])
        said = None if job.known == here.key else here
        if job.image.shape[:2] != self._versions[version]:
            return Answer(None, said)
        return Answer(Prediction(np.zeros(7), np.full(7, 1 / 7), "refer", (), 0.0), said)


IMAGE = Upload(Image.linear_gradient("L").resize((80, 60)).convert("RGB"))


TWO = {"old": (96, 128), "new": (72, 96)}


def test_no_request_is_lost_while_a_bundle_of_another_shape_is_taken_up() -> None:
    async def ask() -> list[Reading]:
        replicas: Any = _Replicas(TWO)
        asked = ModelClient(DeployedModel(replicas), replicas)
        return list(await asyncio.gather(*(asked.read(IMAGE) for _ in range(200))))

    for reading in asyncio.run(ask()):
        assert reading.image.shape[:2] == TWO[reading.version] == reading.preprocess.stored_shape


@pytest.mark.parametrize("seed", range(5))
def test_all_images_of_one_request_are_read_by_one_bundle(seed: int) -> None:
    replicas: Any = _Replicas(TWO, seed=seed)
    readings = asyncio.run(ModelClient(DeployedModel(replicas), replicas).read_all([IMAGE] * 32))
    assert len(readings) == 32
    assert len({reading.version for reading in readings}) == 1


def test_a_bundle_that_changes_with_every_answer_is_told() -> None:
    versions = itertools.count()

    class Restless(_Replicas):
        def _draw(self) -> str:
            version = str(next(versions))
            self._versions[version] = (48 + 3 * int(version), 64 + 4 * int(version))
            return version

    replicas: Any = Restless({})
    with pytest.raises(BundleChangingError):
        asyncio.run(ModelClient(DeployedModel(replicas), replicas).read(IMAGE))


def test_a_large_image_is_let_go_before_the_classifier_is_asked() -> None:
    replicas: Any = _Replicas({"one": (96, 128)})
    reading = asyncio.run(
        ModelClient(DeployedModel(replicas), replicas).read(
            Upload(Image.linear_gradient("L").resize((4000, 3000)).convert("RGB"))
        )
    )
    assert reading.shown.size == (1024, 768)


def test_slow_is_not_unready(monkeypatch: pytest.MonkeyPatch) -> None:
    """A question that waits behind images says nothing against the service; one that nothing delays
    does."""
    monkeypatch.setattr(model_client, "READY_SECONDS", 0.01)

    class Slow:
        def __init__(self) -> None:
            self.ready = self.describe = self

        async def remote(self) -> None:
            await asyncio.sleep(1)

    slow: Any = Slow()
    asked = ModelClient(DeployedModel(slow), slow)
    with pytest.raises(NotReadyError):
        asyncio.run(asked.check_ready())
    asked._waiting = 1
    asyncio.run(asked.check_ready())
    with pytest.raises(OverloadedError):
        asyncio.run(asked.describe())


def test_a_classifier_of_this_process_has_a_limit_too() -> None:
    class Slow:
        async def predict(self, job: Job) -> Answer:
            await asyncio.sleep(0.05)
            return Answer(None, None)

    async def ask() -> list[Any]:
        model: Any = LocalModel(Slow(), max_images=3)  # type: ignore[arg-type]
        asked = [model.predict(None) for _ in range(5)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        return [*found, await model.predict(None)]

    found = asyncio.run(ask())
    assert [type(each) for each in found] == [Answer] * 3 + [OverloadedError] * 2 + [Answer]


class Gate:
    """A decoder that blocks until it is opened; counts how many threads are in it at once."""

    def __init__(self, work: int = 1) -> None:
        self._open, self._lock, self._work = threading.Event(), threading.Lock(), work
        self.num_inside = self.most_inside = self.num_begun = 0

    def work(self) -> int:
        return self._work

    def decode(self) -> Image.Image:
        with self._lock:
            self.num_begun += 1
            self.num_inside += 1
            self.most_inside = max(self.most_inside, self.num_inside)
        self._open.wait(30)
        with self._lock:
            self.num_inside -= 1
        return IMAGE.decode()

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


def _calls() -> ModelClient:
    replicas: Any = _Replicas({"one": (96, 128)})
    replicas.ready = _Method(lambda: None)
    return ModelClient(DeployedModel(replicas), replicas)


async def _until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError


def test_a_permit_is_held_until_the_thread_ends(gate: Gate) -> None:
    """Clients that hang up free nothing; what they asked for and nobody began is never begun."""

    async def ask() -> None:
        asked = _calls()
        tasks = []
        for _ in range(24):
            tasks.append(asyncio.create_task(asked.read(gate)))
            await asyncio.sleep(0.005)
        await _until(lambda: gate.num_inside == model_client.SMALL_AT_ONCE)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        again = asyncio.create_task(asked.read(gate))
        await asyncio.sleep(0.05)
        assert gate.num_inside == model_client.SMALL_AT_ONCE
        gate.open()
        assert (await again).version == "one"

    asyncio.run(ask())
    assert (gate.most_inside, gate.num_begun) == (
        model_client.SMALL_AT_ONCE,
        model_client.SMALL_AT_ONCE + 1,
    )


def test_large_images_come_one_at_a_time_and_small_ones_pass_them() -> None:
    async def ask() -> None:
        asked, large = _calls(), Gate(model_client.SMALL_WORK + 1)
        tasks = [asyncio.create_task(asked.read(large)) for _ in range(8)]
        await _until(lambda: large.num_inside > 0)
        assert (await asyncio.wait_for(asked.read(IMAGE), timeout=10)).version == "one"
        assert large.most_inside == model_client.LARGE_AT_ONCE == 1
        large.open()
        await asyncio.gather(*tasks)
        assert large.most_inside == 1

    asyncio.run(ask())


def test_large_images_that_would_wait_in_vain_are_refused() -> None:
    async def ask() -> None:
        asked, large = _calls(), Gate(model_client.SMALL_WORK + 1)
        tasks = [
            asyncio.create_task(asked.read(large))
            for _ in range(model_client.MAX_LARGE_WAITING + 1)
        ]
        await _until(
            lambda: (
                large.num_inside == 1
                and asked._large._num_waiting == model_client.MAX_LARGE_WAITING
            )
        )
        with pytest.raises(OverloadedError):
            await asked.read(large)
        large.open()
        await asyncio.gather(*tasks)

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("work", "num_threads"),
    [(1, model_client.SMALL_AT_ONCE), (model_client.SMALL_WORK + 1, model_client.LARGE_AT_ONCE)],
)
def test_readiness_says_no_while_decoding_is_stuck(
    work: int, num_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask() -> None:
        asked, gate = _calls(), Gate(work)
        tasks = [asyncio.create_task(asked.read(gate)) for _ in range(num_threads)]
        await _until(lambda: gate.num_inside == num_threads)
        await asked.check_ready()  # busy, and not for long
        monkeypatch.setattr(model_client, "STUCK_SECONDS", 0)
        with pytest.raises(NotReadyError):
            await asked.check_ready()
        for task in tasks:
            task.cancel()
        with pytest.raises(NotReadyError):  # nobody waits, and the threads are still at it
            await asked.check_ready()
        gate.open()
        await _until(lambda: gate.num_inside == 0)
        await asyncio.sleep(0.05)
        await asked.check_ready()

    asyncio.run(ask())


def test_what_is_refused_in_a_thread_frees_it_too() -> None:
    async def ask() -> list[Any]:
        lane = Lane("test", num_threads=2)
        return list(
            await asyncio.gather(
                *(lane.run(lambda: 1 // 0) for _ in range(20)), return_exceptions=True
            )
        )

    assert {type(found) for found in asyncio.run(ask())} == {ZeroDivisionError}


def test_all_images_of_a_request_have_a_limit_together() -> None:
    """It is kept by their headers; these have no pixels."""
    largest = png(b"")
    assert SIDE_PX**2 * 2 == MAX_REQUEST_PIXELS
    assert [upload.num_pixels() for upload in uploads_of([largest] * 2)] == [SIDE_PX**2] * 2
    with pytest.raises(InvalidImageError, match="50 megapixels") as refused:
        uploads_of([largest, largest, IMAGE.content])
    assert (refused.value.status, refused.value.code) == (413, "image_too_large")


def test_of_several_images_it_is_said_which_is_at_fault() -> None:
    whole, bomb = scan_bomb(0, side=64), scan_bomb(1000, side=64)
    with pytest.raises(
        InvalidImageError, match=r"^Image 2 of 2: The image must be JPEG"
    ) as refused:
        uploads_of([whole, b"words"])
    assert refused.value.status == 415
    uploads = uploads_of([whole, whole[: len(whole) // 2] + b"\xff\xd9", bomb])
    for ask, place in ((uploads[1].decode, "Image 2 of 3"), (uploads[2].work, "Image 3 of 3")):
        with pytest.raises(InvalidImageError, match=f"^{place}: "):
            ask()
    (alone,) = uploads_of([bomb])
    with pytest.raises(InvalidImageError, match=r"^An image of this size"):
        alone.decode()
