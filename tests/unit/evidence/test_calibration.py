import numpy as np
import pytest
from scipy.special import softmax

from melanoma.evidence.calibration import expected_calibration_error, fit_calibrator
from melanoma.evidence.metrics import negative_log_likelihood


def _simulate(transform, num: int = 4000):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (num, 7))
    labels = np.array([rng.choice(7, p=p) for p in softmax(transform(logits), axis=1)])
    return logits, labels, np.arange(num)


def test_a_known_temperature_and_bias_are_found() -> None:
    bias = np.array([0.5, -0.5, 0.0, 1.0, -2.0, 1.5, -0.5])
    logits, labels, groups = _simulate(lambda z: z / 2.5 + bias)
    found = fit_calibrator(logits, labels, groups)
    assert found.form == "temperature_bias"
    assert found.temperature == pytest.approx(2.5, rel=0.1)
    assert np.asarray(found.bias) - np.mean(found.bias) == pytest.approx(
        bias - bias.mean(), abs=0.25
    )


def test_calibrated_logits_are_left_nearly_alone() -> None:
    logits, labels, groups = _simulate(lambda z: z)
    found = fit_calibrator(logits, labels, groups)
    before = negative_log_likelihood(labels, softmax(logits, axis=1))
    assert negative_log_likelihood(labels, found(logits)) == pytest.approx(before, abs=0.005)


def test_class_weights_are_undone_where_temperature_cannot() -> None:
    """Weights shift the prior; after the map the mean probability of each class is its share
    again."""
    logits, labels, groups = _simulate(lambda z: z + np.array([0, 0, 0, 0, -3.0, 0, 0]))
    probabilities = fit_calibrator(logits, labels, groups)(logits)
    assert probabilities.mean(axis=0) == pytest.approx(
        np.bincount(labels, minlength=7) / len(labels), abs=0.01
    )
    assert expected_calibration_error(labels, probabilities) < expected_calibration_error(
        labels, softmax(logits, axis=1)
    )


def test_a_class_never_seen_keeps_a_finite_bias() -> None:
    logits, labels, groups = _simulate(lambda z: z - np.array([0, 0, 0, 99.0, 0, 0, 0]), num=300)
    assert np.isfinite(fit_calibrator(logits, labels, groups).bias).all()
