"""What the Dockerfile leaves out of the serving image, serving does not need."""

import ast
import re
from pathlib import Path

from tests import manifests
from tests.manifests import K8S

ROOT = K8S.parent


def test_the_serving_image_keeps_all_that_serving_imports() -> None:
    """And nothing of what it leaves out is imported, anywhere below serve/."""
    text = (K8S / "Dockerfile").read_text()
    listed = re.search(r"for part in (.*?);", text, re.DOTALL)
    assert listed is not None
    left_out = {part for part in listed[1].split() if part != "\\"}
    assert all((ROOT / part).exists() for part in left_out)
    needed = {str(path.relative_to(ROOT)) for path in _closure("serve")}
    assert {"melanoma/bundle/predictor.py", "serve/ingress.py"} <= needed
    assert not {
        path
        for path in needed
        if any(path == part or path.startswith(f"{part}/") for part in left_out)
    }


def _closure(package: str) -> set[Path]:
    """Return every file of ours that a package imports, directly or not."""
    found: set[Path] = set()
    waiting = [f"{package}.{path.stem}" for path in (ROOT / package).glob("*.py")]
    while waiting:
        name = waiting.pop()
        path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
        if path.is_file() and path not in found:
            found.add(path)
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module:
                    waiting += [
                        node.module,
                        *(f"{node.module}.{alias.name}" for alias in node.names),
                    ]
                elif isinstance(node, ast.Import):
                    waiting += [alias.name for alias in node.names]
    return found


def test_the_dockerfile_is_clean() -> None:
    assert manifests.hadolint_findings((K8S / "Dockerfile").read_text()) == ""
