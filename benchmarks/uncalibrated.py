"""The metrics of an evaluation before its calibrator, as a plain loop reports them: likeliest class of the raw logits.

python benchmarks/uncalibrated.py evidence/predictions.parquet
"""

import sys

import numpy as np
import pandas as pd
from scipy.special import softmax

from melanoma.evidence.metrics import METRICS
from tests.tasks import CLASSES


def uncalibrated(table: pd.DataFrame) -> dict[str, float]:
    """Return every metric of predictions.parquet's table, per image."""
    logits = table[[f"logit_{name}" for name in CLASSES]].to_numpy(dtype=np.float64)
    labels, probabilities, ones = table["label"].to_numpy(), softmax(logits, axis=1), np.ones(len(table))
    return {name: metric(labels, probabilities, ones) for name, metric in METRICS.items()}


if __name__ == "__main__":
    for name, value in uncalibrated(pd.read_parquet(sys.argv[1])).items():
        print(f"{name:32}{value:.3f}")
