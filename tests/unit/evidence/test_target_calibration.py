import numpy as np
import pytest
from scipy.special import expit

from melanoma.evidence.decision_curve import decision_curve
from melanoma.evidence.target_calibration import MIN_UNITS, target_calibration


def _draw(num: int, *, shift: float = 0.0, slope: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return labels, and probabilities that are wrong by a shift and a slope of the logit."""
    rng = np.random.default_rng(0)
    right = rng.normal(-2, 1.5, num)
    return rng.random(num) < expit(right), expit((right - shift) / slope)


@pytest.mark.parametrize(("shift", "slope"), [(0.0, 1.0), (0.0, 0.5), (1.0, 1.0)])
def test_a_wrong_calibration_is_measured(shift: float, slope: float) -> None:
    labels, scores = _draw(20_000, shift=shift, slope=slope)
    found = target_calibration(labels, scores, np.arange(len(labels)), num_draws=100)
    assert found["slope"]["value"] == pytest.approx(slope, abs=0.05)
    assert found["slope"]["low"] < slope < found["slope"]["high"]
    if slope == 1:
        assert found["intercept"]["value"] == pytest.approx(shift, abs=0.08)
        assert (found["observed_expected"]["value"] > 1.3) == (shift > 0)
    expected = labels.sum() / scores.sum()
    assert found["observed_expected"]["value"] == pytest.approx(expected)


def test_ten_targets_are_the_least() -> None:
    labels = np.arange(100) < MIN_UNITS - 1
    found = target_calibration(labels, np.full(100, 0.1), np.arange(100))
    assert np.isnan(found["slope"]["value"])


def test_groups_that_are_alike_widen_the_interval() -> None:
    labels, scores = _draw(400)
    alone = target_calibration(labels, scores, np.arange(400))
    thrice = target_calibration(np.tile(labels, 3), np.tile(scores, 3), np.tile(np.arange(400), 3))
    for name in alone:
        assert thrice[name] == pytest.approx(alone[name], rel=0.02)


def test_a_perfect_network_does_more_good_than_referring_all() -> None:
    labels = np.arange(100) < 20
    rows = decision_curve(labels, np.where(labels, 0.9, 0.001))
    assert all(row["network"] == pytest.approx(0.2) for row in rows)
    assert rows[0]["refer_all"] == pytest.approx(0.2 - 0.8 * 0.01 / 0.99)
    useless = decision_curve(labels, np.full(100, 0.2))
    assert useless[0]["network"] == pytest.approx(useless[0]["refer_all"])
    assert useless[-1]["network"] == 0
