"""How the parts of an answer come from one bundle while two are being served: with stand-ins for the deployments, without Ray."""

import asyncio
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ray.exceptions import ActorDiedError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from melanoma.config import DataConfig
from melanoma.predictor import Prediction
from serve import calls
from serve.calls import BundleChangingError, Calls, NotReadyError, OverloadedError
from serve.classifier import Answer, Job


@pytest.fixture(autouse=True)
def _no_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's metrics want a replica around them; pauses want none of our time."""

    class Silent:
        def stage(self, name: str) -> Any:
            import contextlib

            return contextlib.nullcontext()

    monkeypatch.setattr(calls, "request_metrics", Silent)
    monkeypatch.setattr(calls, "PAUSE_SECONDS", 0.001)


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
def test_what_serve_raises_of_a_deployment_has_a_name_of_our_own(raised: Exception, renamed: type[Exception]) -> None:
    deployment: Any = _Fails(raised)
    with pytest.raises(renamed):
        asyncio.run(Calls(deployment, deployment).describe())


def _described(version: str, canvas: tuple[int, int]) -> dict[str, Any]:
    return {
        "manifest": {"version": version, "preprocessing": {"canvas": list(canvas), **dataclasses.asdict(DataConfig())}}
    }


class _Method:
    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    async def remote(self, *arguments: Any) -> Any:
        await asyncio.sleep(0)  # others have their turn, as over a network
        return self._function(*arguments)


class _Replicas:
    """Stands in for a classifier's handle: two bundles of two canvases answer, whichever is drawn."""

    def __init__(self, versions: dict[str, tuple[int, int]], *, seed: int = 0) -> None:
        self._versions, self._rng = versions, np.random.default_rng(seed)
        self.describe, self.predict = _Method(self._describe), _Method(self._predict)

    def _draw(self) -> str:
        return str(self._rng.choice(list(self._versions)))

    def _describe(self) -> dict[str, Any]:
        version = self._draw()
        return _described(version, self._versions[version])

    def _predict(self, job: Job) -> Answer:
        version = self._draw()
        described = None if job.known == version else _described(version, self._versions[version])
        if job.picture.shape[:2] != self._versions[version]:
            return Answer(None, described)
        return Answer(Prediction(np.zeros(7), np.full(7, 1 / 7), "refer", (), 0.0), described)


def _picture() -> Image.Image:
    return Image.new("RGB", (80, 60))


TWO = {"old": (96, 128), "new": (72, 96)}


def test_no_request_is_lost_while_a_bundle_of_another_canvas_is_taken_up() -> None:
    async def ask() -> list[calls.Reading]:
        replicas: Any = _Replicas(TWO)
        asked = Calls(replicas, replicas)
        return list(await asyncio.gather(*(asked.read(_picture) for _ in range(200))))

    for reading in asyncio.run(ask()):
        assert reading.picture.shape[:2] == TWO[reading.version] == reading.preprocess.canvas


@pytest.mark.parametrize("seed", range(5))
def test_all_pictures_of_one_request_are_read_by_one_bundle(seed: int) -> None:
    replicas: Any = _Replicas(TWO, seed=seed)
    readings = asyncio.run(Calls(replicas, replicas).read_all([_picture] * 32))
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
        asyncio.run(Calls(replicas, replicas).read(_picture))


def test_a_large_picture_is_let_go_before_the_classifier_is_asked() -> None:
    replicas: Any = _Replicas({"one": (96, 128)})
    reading = asyncio.run(Calls(replicas, replicas).read(lambda: Image.new("RGB", (4000, 3000))))
    assert reading.shown.size == (1200, 900)


def test_slow_is_not_unready(monkeypatch: pytest.MonkeyPatch) -> None:
    """A question that waits behind pictures says nothing against the service; one that nothing delays does."""
    monkeypatch.setattr(calls, "READY_SECONDS", 0.01)

    class Slow:
        def __init__(self) -> None:
            self.ready = self.describe = self

        async def remote(self) -> None:
            await asyncio.sleep(1)

    slow: Any = Slow()
    asked = Calls(slow, slow)
    with pytest.raises(NotReadyError):
        asyncio.run(asked.check_ready())
    asked._waiting = 1
    asyncio.run(asked.check_ready())
    with pytest.raises(OverloadedError):
        asyncio.run(asked.describe())
