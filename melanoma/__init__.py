"""Melanoma triage: the science and its pipelines.

Runs in one process. Knows nothing of Ray, HTTP or Kubernetes.

Research use only. Not a medical device; not a diagnosis.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from melanoma.bundle.bundle import load_bundle
    from melanoma.bundle.predictor import Predictor
    from melanoma.comparison import compare
    from melanoma.config import TrainConfig
    from melanoma.data.prepare import prepare
    from melanoma.data.prepare_config import PrepareConfig
    from melanoma.evaluation import evaluate
    from melanoma.executor import Executor, LocalExecutor
    from melanoma.presets import preset
    from melanoma.scoring import score
    from melanoma.task import Task
    from melanoma.training.run import train

__version__ = "0.2.0"
__all__ = [
    "Executor",
    "LocalExecutor",
    "Predictor",
    "PrepareConfig",
    "Task",
    "TrainConfig",
    "compare",
    "evaluate",
    "load_bundle",
    "prepare",
    "preset",
    "score",
    "train",
]
_HOMES = {
    "Executor": "melanoma.executor",
    "LocalExecutor": "melanoma.executor",
    "Predictor": "melanoma.bundle.predictor",
    "PrepareConfig": "melanoma.data.prepare_config",
    "Task": "melanoma.task",
    "TrainConfig": "melanoma.config",
    "compare": "melanoma.comparison",
    "evaluate": "melanoma.evaluation",
    "load_bundle": "melanoma.bundle.bundle",
    "prepare": "melanoma.data.prepare",
    "preset": "melanoma.presets",
    "score": "melanoma.scoring",
    "train": "melanoma.training.run",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import melanoma` does not load torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
