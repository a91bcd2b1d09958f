import functools

import pytest

from melanoma.evidence.metrics import group_bootstrap


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports get their intervals from 40 draws instead of 1000, which take seconds."""
    few = functools.partial(group_bootstrap, num_draws=40)
    monkeypatch.setattr("melanoma.evidence.numbers.group_bootstrap", few)
    monkeypatch.setattr("melanoma.evidence.strata.group_bootstrap", few)


@pytest.fixture
def without_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundles hold no network for ONNX Runtime, which takes seconds to write."""
    monkeypatch.setattr("melanoma.bundle.packing._export", lambda *_: None)
