"""Reads the Serve config strictly.

Ray Serve ignores unknown keys, so that a mistyped limit would have no effect.
"""

import copy
import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from ray.serve.schema import ServeDeploySchema

from melanoma.errors import SettingError
from melanoma.io import storage

CONFIG = Path(__file__).with_name("config.yaml")
DEPLOYMENTS = ("Ingress", "Classifier", "Explainer")


class AppArgs(BaseModel):
    """Arguments of the application.

    Facts about the model come from the bundle, and scaling numbers from the Serve config.

    Attributes:
        bundle: folder of the bundle, readable on every node.
        manifest_sha256: sha256 of the only manifest that may be served; None allows any.
        allow_uncontracted: give decisions although the contract is not met, with a warning in every
            answer.
        require_api_key: refuse to start without MELANOMA_API_KEYS_FILE. Only a service on loopback
            may run without keys.
        answer_timeout_s: seconds that the graph may take for one request; after that the answer is
            504.
        classifier: deployment gives the classifier replicas of its own; ingress makes it a part of
            every ingress replica, which saves a hop where both have the same number of replicas.
    """

    model_config = ConfigDict(extra="forbid")

    bundle: str
    # Lower-case hex, as sha256sum prints it.
    manifest_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    allow_uncontracted: bool = False
    require_api_key: bool = True
    answer_timeout_s: float = Field(default=25, gt=0)
    classifier: Literal["deployment", "ingress"] = "deployment"

    @field_validator("bundle")
    @classmethod
    def _is_place(cls, bundle: str) -> str:
        storage.to_path(bundle)  # refuses secrets, because Serve stores its config and shows it
        return bundle


def read_config(path: Path = CONFIG) -> dict[str, Any]:
    """Return a checked Serve config as plain values.

    Raises:
        SettingError: if a key is unknown or a value is out of its range.
    """
    values = yaml.safe_load(path.read_text())
    check_config(values)
    return dict(values)


def check_config(values: Mapping[str, Any]) -> ServeDeploySchema:
    """Return a config as Serve's own schema, after checking that Serve would ignore nothing in it.

    Raises:
        SettingError: if a key is unknown, a value is out of its range, or the deployments are not
            exactly those of the graph.
    """
    for place, known in _unknown(ServeDeploySchema, values, ""):
        nearest = difflib.get_close_matches(place.rpartition(".")[2], known, n=1)
        hint = f" Did you mean {nearest[0]}?" if nearest else " Remove it."
        raise SettingError(
            f"All keys of the Serve config must be known to Serve; {place} is not.{hint}"
        )
    try:
        config = ServeDeploySchema.model_validate(values)
        for app in config.applications:
            AppArgs.model_validate(app.args)
            for deployment in app.deployments:
                _check_scaling(deployment.autoscaling_config)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise SettingError(
            f"The Serve config must hold valid values; {place} does not: {first['msg']}."
        ) from error
    for app in config.applications:
        names = [deployment.name for deployment in app.deployments]
        expected = deployments(AppArgs.model_validate(app.args))
        if sorted(names) != sorted(expected):
            raise SettingError(
                f"The Serve config must name the deployments {', '.join(expected)}; it names"
                f" {', '.join(sorted(names)) or 'none'}."
            )
    return config


def deployments(args: AppArgs) -> tuple[str, ...]:
    """Return the names of the deployments of an application."""
    in_ingress = args.classifier == "ingress"
    return tuple(name for name in DEPLOYMENTS if not (in_ingress and name == "Classifier"))


def classifier_in_ingress(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a Serve config whose ingress replicas hold the classifier.

    They get its resources. How many requests they take stays the ingress's own, which is three
    batches at a time.
    """
    changed = copy.deepcopy(dict(config))
    (app,) = changed["applications"]
    by_name = {deployment["name"]: deployment for deployment in app["deployments"]}
    by_name["Ingress"]["ray_actor_options"] = by_name.pop("Classifier")["ray_actor_options"]
    app["deployments"] = list(by_name.values())
    app["args"]["classifier"] = "ingress"
    check_config(changed)
    return changed


def deployment_options(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the options of each deployment in a config, by name, for Serve's `options`."""
    (app,) = config["applications"]
    return {
        deployment["name"]: {key: value for key, value in deployment.items() if key != "name"}
        for deployment in app["deployments"]
    }


def _check_scaling(values: Any) -> None:
    """Check autoscaling values as Serve does on deployment; its schema accepts any dict here.

    Raises:
        ValidationError: if a value is out of its range.
    """
    from ray.serve.config import AutoscalingConfig

    if isinstance(values, dict):
        AutoscalingConfig.model_validate(values)


def _unknown(model: type[BaseModel], values: Any, place: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each key that a model does not know, as a dotted path, and the keys it knows there."""
    if isinstance(values, list):
        for index, value in enumerate(values):
            yield from _unknown(model, value, f"{place}{index}.")
        return
    if not isinstance(values, Mapping):
        return
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    for key, value in values.items():
        if key not in fields:
            yield f"{place}{key}", list(fields)
            continue
        for inner in _models(fields[key].annotation):
            yield from _unknown(inner, value, f"{place}{key}.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield every pydantic model in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
