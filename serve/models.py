"""What answers the jobs of an ingress: a classifier of its own process, or a deployment.

Ray Serve's exceptions for a full queue and a missing deployment are translated, because Serve
registers FastAPI handlers of its own for them.
"""

from typing import Any, Protocol

from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serve.classifier import Answer, Job
from serve.described import Described
from serve.lanes import OverloadedError


class NotReadyError(Exception):
    """A deployment has no replica that can answer."""


class Model(Protocol):
    """What answers the jobs: a classifier of this process, or a deployment of classifiers."""

    async def ready(self) -> None:
        """Return if the weights are loaded."""

    async def describe(self) -> Described:
        """Return what the ingress needs to know of the bundle."""

    async def predict(self, job: Job) -> Answer:
        """Return the prediction for one image."""


class LocalModel:
    """A classifier of this process, with a limit like that of a deployment's queue."""

    def __init__(self, classifier: Model, *, max_images: int) -> None:
        self._classifier, self._max_images, self._num = classifier, max_images, 0

    async def ready(self) -> None:
        """Return at once: the weights are loaded."""
        await self._classifier.ready()

    async def describe(self) -> Described:
        """Return the description of the bundle."""
        return await self._classifier.describe()

    async def predict(self, job: Job) -> Answer:
        """Return the prediction for one image.

        Raises:
            OverloadedError: if too many images are waiting.
        """
        if self._num >= self._max_images:
            raise OverloadedError
        self._num += 1
        try:
            return await self._classifier.predict(job)
        finally:
            self._num -= 1


class DeployedModel:
    """The classifiers of a deployment, asked through its handle.

    Raises, from every method:
        OverloadedError: if the deployment's queue is full.
        NotReadyError: if the deployment does not exist.
    """

    def __init__(self, handle: "DeploymentHandle[Any]") -> None:
        self._handle = handle

    async def ready(self) -> None:
        """Return if a replica answers."""
        await ask_deployment(self._handle.ready)

    async def describe(self) -> Described:
        """Return the description of a replica's bundle."""
        described: Described = await ask_deployment(self._handle.describe)
        return described

    async def predict(self, job: Job) -> Answer:
        """Return a replica's prediction for one image."""
        answer: Answer = await ask_deployment(self._handle.predict, job)
        return answer


async def ask_deployment(method: Any, *arguments: Any) -> Any:
    """Return the answer of a deployment's method.

    Raises:
        OverloadedError: if the deployment's queue is full.
        NotReadyError: if the deployment does not exist.
    """
    try:
        return await method.remote(*arguments)
    except BackPressureError:
        raise OverloadedError from None
    except DeploymentUnavailableError:
        raise NotReadyError from None
