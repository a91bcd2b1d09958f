"""Writes a cluster's Serve config as the patch of a RayService: serve/config.yaml, with what the cluster's own values change.

    python -m serve.render FOLDER...

Each folder holds `serve-values.yaml` and gets `serve-config.yaml`. One source for `melanoma serve`,
`serve deploy` and Kubernetes; the result is checked strictly before it is written. Knows nothing of
KubeRay but where its RayService keeps that text.
"""

import sys
from pathlib import Path
from typing import Any

import yaml

from melanoma.errors import SettingError
from melanoma.io.files import write_text
from melanoma.io.storage import is_address
from serve.settings import check_config, read_config

VALUES, PATCH = "serve-values.yaml", "serve-config.yaml"
HEADER = f"# Written by `make manifests` from serve/config.yaml and {VALUES}: change those.\n"


class _Text(str):
    """A text of several lines, written as one block."""


class _Dumper(yaml.SafeDumper):
    """Writes every value where it stands: a reader should not have to follow anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    _Text, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|")
)


def serve_config(values: dict[str, Any]) -> dict[str, Any]:
    """Return the Serve config of a cluster.

    Args:
        values: ``args`` of the application, and ``deployments`` by name, each only with what
            differs.

    Raises:
        SettingError: if the result is no valid config.
    """
    config = read_config()
    (app,) = config["applications"]
    if unknown := values.keys() - {"args", "deployments"}:
        raise SettingError(
            f"the values must be args and deployments, {', '.join(sorted(unknown))} is neither."
        )
    args = values.get("args") or {}
    if not args.get("bundle") or not args.get("manifest_sha256"):
        raise SettingError(
            "args must name the bundle and the manifest_sha256 that pins it; a cluster serves"
            " nothing by default."
        )
    if not is_address(args["bundle"]) and not Path(args["bundle"]).is_absolute():
        raise SettingError(
            "args.bundle must be an address such as s3://bucket/bundle, or an absolute path that"
            f" every node has, got {args['bundle']}."
        )
    app["args"] |= args
    by_name = {deployment["name"]: deployment for deployment in app["deployments"]}
    for name, changes in (values.get("deployments") or {}).items():
        if name not in by_name:
            raise SettingError(f"deployments must be of {', '.join(by_name)}, {name} is not.")
        for option, change in changes.items():
            old = by_name[name].get(option)
            by_name[name][option] = old | change if isinstance(old, dict) else change
    check_config(config)
    return config


def patch(folder: Path) -> str:
    """Return the patch for the values in a folder.

    Raises:
        SettingError: if they are no YAML, or the result is no valid config.
    """
    try:
        values = yaml.safe_load((folder / VALUES).read_text())
    except yaml.YAMLError as error:
        raise SettingError(
            f"the values must be YAML, they are not ({' '.join(str(error).split())})."
        ) from error
    if not isinstance(values, dict):
        raise SettingError("the values must be args and deployments, they are neither.")
    text = _Text(_dump(serve_config(values)))
    service = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": "melanoma"},
        "spec": {"serveConfigV2": text},
    }
    return HEADER + _dump(service)


def _dump(value: Any) -> str:
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=150))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        try:
            write_text(Path(name, PATCH), patch(Path(name)))
        except SettingError as error:
            sys.exit(f"{Path(name, VALUES)}: {error}")
