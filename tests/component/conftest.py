"""Fixtures of the tests of manifests."""

import os
from pathlib import Path

import pytest

from tests import manifests
from tests.manifests import Document


@pytest.fixture(scope="session")
def serving() -> list[Document]:
    return manifests.render("gpu/serve")


@pytest.fixture(scope="session")
def training() -> list[Document]:
    return manifests.world("cpu/train")


@pytest.fixture(scope="session")
def crds() -> Path:
    folder = (
        Path(os.environ.get("MELANOMA_SHARED", Path(__file__).parents[2] / ".." / "shared"))
        / "crds"
    )
    if not folder.is_dir():
        pytest.skip(
            "KubeRay's definitions are not here: set MELANOMA_SHARED to the folder whose crds/"
            " holds them"
        )
    return folder


@pytest.fixture(scope="session")
def more_crds() -> Path:
    """The definitions of the kinds that are not KubeRay's: Gateway API, Envoy Gateway, the
    Prometheus operator."""
    folder = os.environ.get("MELANOMA_CRDS")
    if not folder:
        pytest.skip(
            "definitions of other kinds are not here: set MELANOMA_CRDS to a folder of them"
            " (`kubectl get crds -o yaml`)"
        )
    return Path(folder)
