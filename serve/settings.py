"""Reads the Serve config, strictly. Ray Serve passes over keys it does not know, so that a mistyped limit is no limit at all."""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from ray.serve.schema import ServeDeploySchema

from melanoma.errors import SettingError
from melanoma.io import storage

CONFIG = Path(__file__).with_name("config.yaml")
DEPLOYMENTS = ("Ingress", "Classifier", "Explainer")


class AppArgs(BaseModel):
    """What a deployment chooses; everything about the model comes from the bundle, every number of scaling from the config.

    Attributes:
        bundle: folder of the bundle, readable on every node.
        manifest_sha256: of the only manifest that may be served; None serves whatever stands in the
            folder.
        allow_uncontracted: decide although the contract is unmet, and say so in every answer.
        require_api_key: refuse to start without MELANOMA_API_KEYS_FILE; only a service on loopback
            may go without.
        answer_timeout_s: seconds the graph may take for one request, after which it is answered
            504.
    """

    model_config = ConfigDict(extra="forbid")

    bundle: str
    manifest_sha256: str | None = Field(
        default=None, pattern="^[0-9a-f]{64}$"
    )  # as sha256sum prints it
    allow_uncontracted: bool = False
    require_api_key: bool = True
    answer_timeout_s: float = Field(default=25, gt=0)

    @field_validator("bundle")
    @classmethod
    def _is_place(cls, bundle: str) -> str:
        storage.to_path(bundle)  # refuses secrets: Serve keeps its config, and shows it
        return bundle


def read_config(path: Path = CONFIG) -> dict[str, Any]:
    """Return a Serve config as plain values, checked.

    Raises:
        SettingError: if a key is unknown or a value out of its range; says where.
    """
    values = yaml.safe_load(path.read_text())
    check_config(values)
    return dict(values)


def check_config(values: Mapping[str, Any]) -> ServeDeploySchema:
    """Return a config as Serve's own schema, with nothing in it that Serve would pass over.

    Raises:
        SettingError: if a key is unknown, a value out of its range, or a deployment not one of the
            graph's.
    """
    for place, known in _unknown(ServeDeploySchema, values, ""):
        nearest = difflib.get_close_matches(place.rpartition(".")[2], known, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else "."
        raise SettingError(
            f"every key of the Serve config must be one that Serve knows, {place} is not{hint}"
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
            f"the Serve config must hold valid values, {place} does not: {first['msg']}."
        ) from error
    for app in config.applications:
        names = sorted(deployment.name for deployment in app.deployments)
        if names != sorted(DEPLOYMENTS):
            raise SettingError(
                f"the Serve config must name the deployments {', '.join(DEPLOYMENTS)}, it names"
                f" {names}."
            )
    return config


def deployment_options(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what a config says of each deployment, by name, as Serve's `options` take it."""
    (app,) = config["applications"]
    return {
        deployment["name"]: {key: value for key, value in deployment.items() if key != "name"}
        for deployment in app["deployments"]
    }


def _check_scaling(values: Any) -> None:
    """Raise as Serve itself would on deployment: its schema takes any dict here."""
    from ray.serve.config import AutoscalingConfig

    if isinstance(values, dict):
        AutoscalingConfig.model_validate(values)


def _unknown(model: type[BaseModel], values: Any, place: str) -> Iterator[tuple[str, list[str]]]:
    """Give every key that a model does not know, as a dotted place, with the keys that it knows there."""
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
    """Give every pydantic model that a type annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
