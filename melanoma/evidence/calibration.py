"""The calibrator, which turns logits into probabilities.

Its temperature and bias are fitted by likelihood, and its form is chosen by held-out likelihood.
Knows nothing of networks or thresholds.
"""

import dataclasses
from typing import Literal

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from melanoma.arrays import FloatArray, IntArray
from melanoma.evidence.metrics import negative_log_likelihood
from melanoma.io.typed import Strict

Form = Literal["identity", "temperature", "temperature_bias"]
FORMS: tuple[Form, ...] = ("identity", "temperature", "temperature_bias")
# A normal prior with a standard deviation of 3 on each bias. It keeps the bias of a class without
# validation images finite, and one image outweighs it.
RIDGE = 1 / (2 * 3**2)


@dataclasses.dataclass(frozen=True)
class Calibrator(Strict):
    """``softmax(logits / temperature + bias)``.

    Class weights shift the prior that the network learns. Temperature alone (Guo et al., On
    Calibration of Modern Neural Networks, 2017) cannot undo that shift; a bias for each class can.

    Attributes:
        temperature: above 0.
        bias: one value for each class, added after the division.
        form: which of the two were fitted.
    """

    temperature: float
    bias: tuple[float, ...]
    form: Form

    @staticmethod
    def identity(num_classes: int) -> "Calibrator":
        """Return the calibrator that only takes the softmax."""
        return Calibrator(1.0, (0.0,) * num_classes, "identity")

    def __call__(self, logits: FloatArray) -> FloatArray:
        """Map ``(N, C)`` logits to ``(N, C)`` float64 probabilities."""
        return np.asarray(
            softmax(logits.astype(np.float64) / self.temperature + np.array(self.bias), axis=1)
        )


def fit_calibrator(
    logits: FloatArray, labels: IntArray, groups: IntArray, *, folds: int = 5
) -> Calibrator:
    """Fit a calibrator in the form that predicts held-out groups best.

    Args:
        logits: ``(N, C)``, of images that the network was not trained on.
        labels: ``(N,)`` class indices.
        groups: ``(N,)`` integers; images of a group stay on one side of the comparison.
        folds: number of folds of the comparison. With fewer than two groups, the identity is
            returned.
    """
    # Here, because the import takes a second and a server never fits.
    from sklearn.model_selection import GroupKFold

    folds = min(folds, len(np.unique(groups)))
    if folds < 2:
        return Calibrator.identity(logits.shape[1])
    scores: dict[Form, float] = dict.fromkeys(FORMS, 0.0)
    for fitted, held_out in GroupKFold(folds).split(logits, labels, groups):
        for form in FORMS:
            probabilities = _fit(logits[fitted], labels[fitted], form)(logits[held_out])
            scores[form] += negative_log_likelihood(labels[held_out], probabilities) * len(held_out)
    return _fit(logits, labels, min(FORMS, key=scores.__getitem__))


def _fit(logits: FloatArray, labels: IntArray, form: Form) -> Calibrator:
    num_classes = logits.shape[1]
    if form == "identity":
        return Calibrator.identity(num_classes)
    has_bias = form == "temperature_bias"
    logits = logits.astype(np.float64)
    target, ridge = np.eye(num_classes)[labels], RIDGE / len(labels)

    def loss_and_gradient(parameters: FloatArray) -> tuple[float, FloatArray]:
        # The first parameter is -log(temperature), which needs no bound.
        bias = parameters[1:] if has_bias else np.zeros(num_classes)
        scaled = logits * np.exp(parameters[0]) + bias
        log_p = log_softmax(scaled, axis=1)
        error = (np.exp(log_p) - target) / len(labels)
        gradient = np.concatenate(
            [[(error * (scaled - bias)).sum()], error.sum(axis=0) + 2 * ridge * bias]
        )
        loss = -(log_p * target).sum() / len(labels) + ridge * (bias**2).sum()
        return float(loss), gradient if has_bias else gradient[:1]

    start = np.zeros(1 + (num_classes if has_bias else 0))
    found = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B").x
    bias = tuple(float(b) for b in found[1:]) if has_bias else (0.0,) * num_classes
    return Calibrator(float(np.exp(-found[0])), bias, form)


def expected_calibration_error(
    labels: IntArray, probabilities: FloatArray, *, num_bins: int = 15
) -> float:
    """Return the mean gap between confidence and accuracy over bins of equal width.

    Confidence is the probability of the likeliest class. This is not a proper score.
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    gap = np.bincount(bins, weights=confidence - right, minlength=num_bins)
    return float(np.abs(gap).sum() / len(labels))


def calibration_scores(labels: IntArray, probabilities: FloatArray) -> dict[str, float]:
    """Return nll (nats), brier (multi-class) and ece."""
    brier = ((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(axis=1).mean()
    return {
        "nll": negative_log_likelihood(labels, probabilities),
        "brier": float(brier),
        "ece": expected_calibration_error(labels, probabilities),
    }
