"""Builds the Serve graph: ingress -> classifier, and -> explainer for guided maps.

The classifier is a deployment of its own where decoding and the network scale apart, or an object
of the ingress, which saves a hop. The argument `classifier` of the Serve config decides.
`serve deploy serve/config.yaml` starts it.
"""

from collections.abc import Mapping
from typing import Any, cast

from ray import serve
from ray.serve import Application

from serve.classifier import Classifier, ClassifierArgs
from serve.explainer import Explainer
from serve.ingress import Ingress
from serve.listener import Listen
from serve.settings import AppArgs


def build_app(args: AppArgs) -> Application:
    """Build the application for `serve deploy`; its config holds the deployment options."""
    return build_graph(args, {})


def build_graph(
    args: AppArgs, options: Mapping[str, Mapping[str, Any]], *, listen: Listen | None = None
) -> Application:
    """Build the application.

    Args:
        args: the application's arguments.
        options: Serve options by deployment name; a deployment that is missing gets the defaults.
        listen: where the ingress listens itself; None if Ray Serve's proxies stand in front of it.
    """

    def deployment(cls: type) -> Any:
        return serve.deployment(cls, name=cls.__name__, **options.get(cls.__name__, {}))  # type: ignore[attr-defined]

    of_classifier = ClassifierArgs(args.bundle, args.manifest_sha256, args.allow_uncontracted)
    classifier = (
        of_classifier
        if args.classifier == "ingress"
        else deployment(Classifier).bind(of_classifier)
    )
    explainer = deployment(Explainer).bind(args.bundle, manifest_sha256=args.manifest_sha256)
    return cast(
        Application,
        deployment(Ingress).bind(
            classifier,
            explainer,
            require_api_key=args.require_api_key,
            answer_timeout_s=args.answer_timeout_s,
            listen=listen,
        ),
    )
