"""Renders a cluster's Serve config as a patch of its RayService.

    python -m serve.render FOLDER...

Each folder holds `serve-values.yaml` and gets `serve-config.yaml`, which is serve/config.yaml
changed by those values. `melanoma serve`, `serve deploy` and Kubernetes thus share one source. The
result is checked strictly before it is written. All this module knows of KubeRay is where a
RayService keeps the Serve config. Bundle, sha256 and numbers of replicas stand between quotes, the
only ones in the text, where k8s/components/values puts those of an overlay.
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
    """A text of several lines, written as one YAML block."""


class _Quoted(str):
    """A text that is written between single quotes."""


class _Dumper(yaml.SafeDumper):
    """Writes every value in full, so that a reader need not follow anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    _Text, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|")
)
_Dumper.add_representer(
    _Quoted, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'")
)


def serve_config(values: dict[str, Any]) -> dict[str, Any]:
    """Return the Serve config of a cluster.

    Args:
        values: ``args`` of the application, and ``deployments`` by name; both hold only what
            differs from serve/config.yaml.

    Raises:
        SettingError: if the result is not a valid config.
    """
    config = read_config()
    (app,) = config["applications"]
    if unknown := values.keys() - {"args", "deployments"}:
        raise SettingError(
            f"The keys must be args and deployments; {', '.join(sorted(unknown))} is unknown."
            " Remove it."
        )
    args = values.get("args") or {}
    if not args.get("bundle") or not args.get("manifest_sha256"):
        raise SettingError(
            "args must name the bundle and the manifest_sha256 that pins it. A cluster has no"
            " default bundle."
        )
    if not is_address(args["bundle"]) and not Path(args["bundle"]).is_absolute():
        raise SettingError(
            "args.bundle must be an address such as s3://bucket/bundle, or an absolute path that"
            f" every node has; it is {args['bundle']}."
        )
    app["args"] |= args
    by_name = {deployment["name"]: deployment for deployment in app["deployments"]}
    for name, changes in (values.get("deployments") or {}).items():
        if name not in by_name:
            raise SettingError(
                f"deployments must be chosen from {', '.join(by_name)}; {name} is unknown."
            )
        for option, change in changes.items():
            old = by_name[name].get(option)
            by_name[name][option] = old | change if isinstance(old, dict) else change
    check_config(config)
    return config


def patch(folder: Path) -> str:
    """Return the text of the patch for the values in a folder.

    Raises:
        SettingError: if the values are not YAML, or the result is not a valid config.
    """
    try:
        values = yaml.safe_load((folder / VALUES).read_text())
    except yaml.YAMLError as error:
        raise SettingError(
            f"The file must be YAML: {' '.join(str(error).split())}. Correct it."
        ) from error
    if not isinstance(values, dict):
        raise SettingError("The file must be a mapping with args and deployments.")
    config = serve_config(values)
    (app,) = config["applications"]
    _quote(app["args"], "bundle", "manifest_sha256")
    for deployment in app["deployments"]:
        _quote(deployment["autoscaling_config"], "min_replicas", "max_replicas")
    text = _Text(_dump(config))
    service = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": "melanoma"},
        "spec": {"serveConfigV2": text},
    }
    return HEADER + _dump(service)


def _quote(values: dict[str, Any], *names: str) -> None:
    values |= {name: _Quoted(values[name]) for name in names}


def _dump(value: Any) -> str:
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=150))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        try:
            write_text(Path(name, PATCH), patch(Path(name)))
        except SettingError as error:
            sys.exit(f"{Path(name, VALUES)}: {error}")
