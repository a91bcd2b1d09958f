"""Prints the metrics of an evaluation before calibration, from the raw logits.

A plain training loop reports these.

    python -m benchmarks.uncalibrated evidence/predictions.parquet
"""

import sys

import numpy as np
import pandas as pd
from scipy.special import softmax

from melanoma.evidence.metrics import METRICS, Predicted
from melanoma.task import DEFAULT_TASK, TASKS, Task


def uncalibrated(table: pd.DataFrame, task: Task) -> dict[str, float]:
    """Return every metric, per image, for the table of predictions.parquet."""
    logits = table[[f"logit_{name}" for name in task.classes]].to_numpy(dtype=np.float64)
    units = Predicted(task, table["label"].to_numpy(), softmax(logits, axis=1))
    return {name: metric.value(units, np.ones(len(units))) for name, metric in METRICS.items()}


if __name__ == "__main__":
    for name, value in uncalibrated(pd.read_parquet(sys.argv[1]), TASKS[DEFAULT_TASK]).items():
        print(f"{name:32}{value:.3f}")
