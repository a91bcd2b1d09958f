"""What a cluster's own values may say of the Serve config, and what is refused before anything is
written."""

from pathlib import Path
from typing import Any

import pytest

from melanoma.errors import SettingError
from serve.render import VALUES, patch, serve_config

ARGS = {"bundle": "s3://bucket/bundle", "manifest_sha256": "0" * 64}


def _by_name(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    (app,) = config["applications"]
    return {deployment["name"]: deployment for deployment in app["deployments"]}


def test_only_what_differs_changes() -> None:
    plain = serve_config({"args": ARGS})
    changed = serve_config(
        {
            "args": ARGS,
            "deployments": {
                "Classifier": {"autoscaling_config": {"min_replicas": 2}, "max_ongoing_requests": 7}
            },
        }
    )
    assert plain["applications"][0]["args"].items() >= ARGS.items()
    expected = _by_name(plain)
    expected["Classifier"]["max_ongoing_requests"] = 7
    expected["Classifier"]["autoscaling_config"]["min_replicas"] = 2
    assert _by_name(changed) == expected


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "must name the bundle and the manifest_sha256"),
        ({"args": None}, "must name the bundle and the manifest_sha256"),
        ({"args": {"bundle": ARGS["bundle"]}}, "must name the bundle and the manifest_sha256"),
        (
            {"args": {**ARGS, "manifest_sha256": None}},
            "must name the bundle and the manifest_sha256",
        ),
        ({"args": {**ARGS, "bundle": ""}}, "must name the bundle and the manifest_sha256"),
        ({"args": {**ARGS, "manifest_sha256": "latest"}}, "manifest_sha256"),
        ({"args": {**ARGS, "bundel": "x"}}, "bundel"),
        (
            {"args": {**ARGS, "bundle": "bucket/bundle"}},
            "absolute path that every node has; it is bucket/bundle",
        ),
        ({"args": ARGS, "deploymnets": {}}, "deploymnets is unknown"),
        ({"args": ARGS, "deployments": {"Clasifier": {}}}, "Clasifier is unknown"),
        (
            {"args": ARGS, "deployments": {"Classifier": {"max_ongoing_request": 3}}},
            "max_ongoing_requests",
        ),
        (
            {
                "args": ARGS,
                "deployments": {"Classifier": {"autoscaling_config": {"min_replicas": 99}}},
            },
            "max_replicas",
        ),
    ],
)
def test_what_cannot_be_served_is_told(values: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingError, match=told):
        serve_config(values)


@pytest.mark.parametrize("text", ["args: [", "", "- args", "args"])
def test_values_that_are_none_are_told(text: str, tmp_path: Path) -> None:
    (tmp_path / VALUES).write_text(text)
    with pytest.raises(SettingError, match="The file must be"):
        patch(tmp_path)
