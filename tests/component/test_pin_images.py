"""The digest of an image that was pushed is what an overlay applies."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import manifests
from tests.manifests import K8S, rays

DIGEST = f"sha256:{'0123456789abcdef' * 4}"
IMAGES = [
    f"registry.example.org:5000/x/melanoma-{name}:2.60.0-cpu-1.0" for name in ("serve", "train")
]


def _pin(values: Path, *images: str) -> "subprocess.CompletedProcess[str]":
    """Run it as the workflow does, with a Python that has no package."""
    return subprocess.run(
        [sys.executable, "-I", "-S", K8S / "pin_images.py", values, *images],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_a_digest_reaches_every_pod(overlay: str, tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s", ignore=shutil.ignore_patterns("requirements.lock"))
    values = tmp_path / "k8s" / "overlays" / overlay / "values" / "kustomization.yaml"
    before = values.read_text()
    pinned = [f"{image}@{DIGEST}" for image in IMAGES]
    for _ in range(2):  # a second time replaces the first
        done = _pin(values, *pinned)
        assert done.returncode == 0, done.stderr
    assert [line for line in before.splitlines() if "#" in line] == [
        line for line in values.read_text().splitlines() if "#" in line
    ]
    for purpose, image in zip(("serve", "train"), pinned, strict=True):
        (document,) = rays(manifests.render(f"{overlay}/{purpose}", below=tmp_path / "k8s"))
        assert {
            container["image"]
            for spec in manifests.pod_specs(document)
            for container in spec["containers"]
        } == {image}


def test_an_entry_with_comments_is_replaced_whole(tmp_path: Path) -> None:
    values = tmp_path / "kustomization.yaml"
    values.write_text(
        "images:\n  - name: melanoma-serve # ours\n    # our registry\n    newName: old\n"
        "    newTag: old # soon\n  - name: melanoma-serve-old\n    newName: other\n"
    )
    done = _pin(values, f"registry.example.org/melanoma-serve:9@{DIGEST}")
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(values.read_text())["images"] == [
        {
            "name": "melanoma-serve",
            "newName": "registry.example.org/melanoma-serve",
            "newTag": "9",
            "digest": DIGEST,
        },
        {"name": "melanoma-serve-old", "newName": "other"},
    ]
    assert "    # our registry\n" in values.read_text()


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (IMAGES[0], "sha256:DIGEST"),
        (f"registry.example.org/melanoma-serve@{DIGEST}", "sha256:DIGEST"),
        (f"https://registry.example.org/melanoma-serve:1@{DIGEST}", "sha256:DIGEST"),
        (f"registry.example.org/other:1@{DIGEST}", "one entry with the name other; it has 0"),
    ],
)
def test_a_wrong_image_changes_nothing(image: str, told: str, tmp_path: Path) -> None:
    values = tmp_path / "kustomization.yaml"
    shutil.copy(K8S / "overlays" / "cpu" / "values" / "kustomization.yaml", values)
    before = values.read_text()
    done = _pin(values, f"{IMAGES[0]}@{DIGEST}", image)
    assert (done.returncode, told in done.stderr) == (1, True), done.stderr
    assert values.read_text() == before
    assert list(tmp_path.iterdir()) == [values]
