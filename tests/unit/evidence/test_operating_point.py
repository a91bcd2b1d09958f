import numpy as np
import pytest
from scipy.stats import beta, kstest

from melanoma.errors import DataError
from melanoma.evidence.operating_point import (
    Promise,
    check_contract,
    choose_units,
    decide,
    misses_allowed,
    select_operating_point,
    targets_needed,
)
from tests.tasks import HAM, MELANOMA_INDEX


def _select(melanomas: np.ndarray, others: np.ndarray, **settings: float):  # type: ignore[no-untyped-def]
    options = {"target_sensitivity": 0.9, "min_specificity": 0.5, **settings}
    return select_operating_point(
        melanomas, others, Promise(HAM.targets, population="simulated", **options)
    )


@pytest.mark.parametrize(
    ("num", "allowed"),
    [
        (28, -1),
        (29, 0),
        (45, 0),
        (46, 1),
        (61, 2),
        (92, 4),
        (106, 5),
        (154, 9),
        (187, 11),
        (614, 48),
    ],
)
def test_misses_allowed_are_the_published_ones(num: int, allowed: int) -> None:
    assert misses_allowed(num, target_sensitivity=0.9) == allowed


def test_29_melanomas_are_needed() -> None:
    assert targets_needed(target_sensitivity=0.9) == 29


def test_the_threshold_lies_midway_below_the_last_melanoma_that_must_be_caught() -> None:
    melanomas = np.linspace(
        0.5, 0.96, 47
    )  # one miss allowed: the second smallest, 0.51, must be caught
    others = np.array([0.1, 0.505, 0.7])
    point = _select(melanomas, others, min_specificity=0.0)
    assert point.threshold == pytest.approx((0.51 + 0.505) / 2)
    assert sum(decide(score, point.threshold) == "refer" for score in melanomas) == 46


def test_true_sensitivity_follows_the_beta_law() -> None:
    """Scores are uniform, so the true sensitivity of a threshold t is 1 - t; it must follow Beta(n
    - m, m + 1)."""
    rng, num = np.random.default_rng(0), 92
    melanomas = rng.random((3000, num))
    edge = np.sort(melanomas, axis=1)[:, 4]
    # With very many other units the threshold lies arbitrarily close below the edge.
    thresholds = np.array([_select(row, np.linspace(0, 1, 2001)).threshold for row in melanomas])
    assert np.abs(thresholds - edge).max() < 1e-3
    sensitivity = 1 - thresholds
    assert kstest(sensitivity, beta(num - 4, 5).cdf).pvalue > 0.001
    broken = (sensitivity < 0.9).mean()
    assert broken <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 3000)
    assert broken == pytest.approx(beta(num - 4, 5).cdf(0.9), abs=0.015)


@pytest.mark.drill
def test_choosing_the_epoch_on_calibration_breaks_the_contract() -> None:
    """What the order of steps protects from: the best of 10 correlated networks, chosen on the
    calibration split itself."""
    rng, num, trials, broken = np.random.default_rng(1), 92, 2000, 0
    for _ in range(trials):
        melanomas = 0.5 * rng.normal(size=num) + rng.normal(size=(10, num))
        points = [np.sort(row)[4] for row in melanomas]
        best = int(np.argmax(points))
        true_sensitivity = float((rng.normal(0, np.sqrt(1.25), 20_000) >= points[best]).mean())
        broken += true_sensitivity < 0.9
    print(
        f"\nbest of 10 epochs chosen on calibration: promise broken in {broken / trials:.1%} of"
        " simulations, 5 % promised"
    )
    assert broken / trials > 0.08


def test_too_few_targets_promise_nothing() -> None:
    contract = _select(np.full(28, 0.9), np.full(50, 0.1)).contract
    assert (contract.status, contract.reason, contract.num_target_needed) == (
        "unmet",
        "too_few_targets",
        29,
    )
    assert "29" in contract.sentence(HAM)


def test_a_network_that_knows_nothing_promises_nothing() -> None:
    rng = np.random.default_rng(0)
    contract = _select(rng.random(100), rng.random(500)).contract
    assert (contract.status, contract.reason) == ("unmet", "uninformative")


def test_ties_are_referred_together() -> None:
    point = _select(np.full(40, 0.3), np.array([0.3] * 10 + [0.1] * 90))
    assert point.contract.sensitivity == 1
    assert point.contract.specificity == 0.9


@pytest.mark.parametrize(
    ("melanomas", "error", "message"),
    [
        (np.array([]), DataError, "must hold targets"),
        (np.array([np.nan] * 40), FloatingPointError, "finite"),
    ],
)
def test_undefined_scores_are_refused(
    melanomas: np.ndarray, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        _select(melanomas, np.array([0.1]))


def test_units_are_one_image_a_group() -> None:
    labels = np.array([4, 4, 4, 5, 5, 4])
    groups = np.array([0, 0, 1, 1, 2, 3])
    melanomas, others = choose_units(labels == MELANOMA_INDEX, groups, seed=0)
    assert sorted(groups[melanomas]) == [0, 1, 3]
    assert sorted(groups[others]) == [1, 2]
    assert {
        choose_units(labels == MELANOMA_INDEX, groups, seed=seed)[0][0] for seed in range(20)
    } == {0, 1}


@pytest.mark.parametrize(
    ("referred", "num", "expected"),
    [(104, 106, "confirmed"), (70, 100, "refuted"), (93, 100, "undecided"), (0, 0, "undecided")],
)
def test_other_data_confirm_refute_or_leave_open(referred: int, num: int, expected: str) -> None:
    assert check_contract(referred, num, target_sensitivity=0.9) == expected
