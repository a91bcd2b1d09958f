"""The graph, and nothing else: ingress -> classifier, and -> explainer for guided maps. `serve run serve.app:build_app bundle=DIR` starts it."""

from typing import cast

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application

from serve.classifier import Classifier
from serve.explainer import Explainer
from serve.ingress import Ingress


class AppArgs(BaseModel):
    """What a deployment chooses; everything about the model comes from the bundle.

    Attributes:
        bundle: folder of the bundle, readable on every node.
        allow_uncontracted: decide although the contract is unmet, and say so in every answer.
        min_replicas: classifier replicas kept.
        max_replicas: classifier replicas at most.
        num_cpus: CPUs, and threads, of a classifier replica.
        num_gpus: GPUs of a classifier replica.
        explainer_max_replicas: replicas at most of the explainer, which guided maps alone need.
    """

    model_config = ConfigDict(extra="forbid")

    bundle: str
    allow_uncontracted: bool = False
    min_replicas: int = 1
    max_replicas: int = 4
    num_cpus: float = 1
    num_gpus: float = 0
    explainer_max_replicas: int = 1


def build_app(args: AppArgs) -> Application:
    """Build the application."""
    classifier = serve.deployment(  # type: ignore[attr-defined]
        Classifier,
        max_ongoing_requests=32,
        max_queued_requests=64,
        ray_actor_options={"num_cpus": args.num_cpus, "num_gpus": args.num_gpus},
        autoscaling_config={
            "min_replicas": args.min_replicas,
            "max_replicas": args.max_replicas,
            "target_ongoing_requests": 8,
            "upscale_delay_s": 30,
            "downscale_delay_s": 300,
        },
    ).bind(args.bundle, allow_uncontracted=args.allow_uncontracted, num_threads=max(1, round(args.num_cpus)))
    # Half a CPU: one core then holds ingress and explainer beside a classifier that has the other.
    explainer = serve.deployment(  # type: ignore[attr-defined]
        Explainer,
        max_ongoing_requests=8,
        max_queued_requests=16,
        ray_actor_options={"num_cpus": 0.5},
        autoscaling_config={
            "min_replicas": 1,
            "max_replicas": args.explainer_max_replicas,
            "target_ongoing_requests": 2,
            "upscale_delay_s": 30,
            "downscale_delay_s": 300,
        },
    ).bind(args.bundle, num_threads=1)
    # 0.1 CPU: the ingress decodes in threads and waits; a whole CPU each would starve a small machine of classifiers.
    ingress = serve.deployment(
        Ingress, max_ongoing_requests=128, max_queued_requests=128, ray_actor_options={"num_cpus": 0.1}
    )
    return cast(Application, ingress.bind(classifier, explainer))  # type: ignore[attr-defined]
