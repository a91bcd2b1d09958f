"""Builds the Serve graph: ingress -> classifier, and -> explainer for guided maps.

`serve deploy serve/config.yaml` starts it.
"""

from collections.abc import Mapping
from typing import Any, cast

from ray import serve
from ray.serve import Application

from serve.classifier import Classifier
from serve.explainer import Explainer
from serve.ingress import Ingress
from serve.settings import AppArgs


def build_app(args: AppArgs) -> Application:
    """Build the application for `serve deploy`; its config holds the deployment options."""
    return build_graph(args, {})


def build_graph(args: AppArgs, options: Mapping[str, Mapping[str, Any]]) -> Application:
    """Build the application.

    Args:
        args: the application's arguments.
        options: Serve options by deployment name; a deployment that is missing gets the defaults.
    """

    def deployment(cls: type) -> Any:
        return serve.deployment(cls, name=cls.__name__, **options.get(cls.__name__, {}))  # type: ignore[attr-defined]

    classifier = deployment(Classifier).bind(
        args.bundle,
        manifest_sha256=args.manifest_sha256,
        allow_uncontracted=args.allow_uncontracted,
    )
    explainer = deployment(Explainer).bind(args.bundle, manifest_sha256=args.manifest_sha256)
    return cast(
        Application,
        deployment(Ingress).bind(
            classifier,
            explainer,
            require_api_key=args.require_api_key,
            answer_timeout_s=args.answer_timeout_s,
        ),
    )
