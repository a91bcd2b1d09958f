"""Writes each overlay's Serve config into a patch of its RayService: serve/config.yaml, with what the overlay's serve-values.yaml changes.

    python k8s/render.py

One source for `melanoma serve`, `serve deploy` and Kubernetes; the result is checked strictly before it is written.
"""

from pathlib import Path
from typing import Any

import yaml

from melanoma.files import write_text
from serve.settings import check_config, read_config

OVERLAYS = Path(__file__).with_name("overlays")
HEADER = (
    "# Written by k8s/render.py from serve/config.yaml and serve-values.yaml: change those, then `make manifests`.\n"
)


class _Text(str):
    """A text of several lines, written as one block."""


def _block(dumper: yaml.SafeDumper, text: _Text) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|")


yaml.SafeDumper.add_representer(_Text, _block)


def serve_config(values: dict[str, Any]) -> dict[str, Any]:
    """Return the Serve config of a cluster.

    Args:
        values: ``args`` of the application, and ``deployments`` by name, each only with what differs.

    Raises:
        ValueError: if the result is no valid config.
    """
    config = read_config()
    (app,) = config["applications"]
    app["args"] |= values.get("args", {})
    by_name = {deployment["name"]: deployment for deployment in app["deployments"]}
    for name, changes in values.get("deployments", {}).items():
        by_name[name] |= changes
    check_config(config)
    return config


def patch(overlay: Path) -> str:
    """Return the patch of an overlay's RayService."""
    config = serve_config(yaml.safe_load((overlay / "serve-values.yaml").read_text()))
    text = _Text(_dump(config))
    service = {
        "apiVersion": "ray.io/v1", "kind": "RayService", "metadata": {"name": "melanoma"}, "spec": {"serveConfigV2": text},
    }  # fmt: skip
    return HEADER + _dump(service)


def _dump(value: Any) -> str:
    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    return str(yaml.dump(value, Dumper=Plain, sort_keys=False, width=150))


def main() -> None:
    """Write every overlay's patch."""
    for values in sorted(OVERLAYS.glob("*/serve/serve-values.yaml")):
        write_text(values.with_name("serve-config.yaml"), patch(values.parent))


if __name__ == "__main__":
    main()
