import dataclasses

import numpy as np
import pytest
from scipy.stats import beta, kstest, norm

from melanoma.errors import DataError
from melanoma.evidence.contract import error_at, misses_allowed, targets_needed, unit_of
from melanoma.evidence.operating_point import (
    OperatingPoint,
    Promise,
    check_contract,
    choose_units,
    decide,
    select_operating_point,
)
from melanoma.task import TASKS
from tests.bundles import INFORMATIVE
from tests.figures import keep_if_asked
from tests.tasks import HAM, MELANOMA_INDEX

UNINFORMATIVE = dataclasses.replace(INFORMATIVE, auroc=0.67, difference_low=-0.04)
PROMISE = Promise(HAM.targets, 0.9, INFORMATIVE, "one image per lesion", "simulated")
WHOLE = {"accesses_declared": 1}  # one access that spends the whole error


def _select(melanomas: np.ndarray, others: np.ndarray, **changes: object) -> OperatingPoint:
    return select_operating_point(melanomas, others, dataclasses.replace(PROMISE, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("num", "whole", "first", "second"),
    [
        (28, -1, -1, -1),
        (29, 0, -1, -1),
        (36, 0, 0, -1),
        (46, 1, 0, 0),
        (61, 2, 1, 0),
        (92, 4, 3, 2),
        (106, 5, 4, 3),
    ],
)
def test_misses_allowed_are_the_published_ones(
    num: int, whole: int, first: int, second: int
) -> None:
    errors = (0.05, error_at(1), error_at(2))
    found = [misses_allowed(num, target_sensitivity=0.9, error=error) for error in errors]
    assert found == [whole, first, second]


def test_each_access_needs_more_melanomas() -> None:
    errors = [0.05, error_at(1), error_at(2), error_at(3)]
    assert [targets_needed(target_sensitivity=0.9, error=error) for error in errors] == [
        29,
        36,
        46,
        53,
    ]
    assert targets_needed(target_sensitivity=0.9, error=0.0) == 0


def test_the_errors_of_all_accesses_sum_to_five_per_cent() -> None:
    assert sum(error_at(k) for k in range(1, 100_000)) == pytest.approx(0.05, abs=1e-5)
    assert [error_at(k, declared=4) for k in (1, 4, 5)] == pytest.approx([0.0125, 0.0125, 0.0])


def test_the_threshold_lies_midway_below_the_last_melanoma_that_must_be_caught() -> None:
    melanomas = np.linspace(
        0.5, 0.96, 47
    )  # one miss allowed: the second smallest, 0.51, must be caught
    others = np.array([0.1, 0.505, 0.7])
    point = _select(melanomas, others, **WHOLE)
    assert point.threshold == pytest.approx((0.51 + 0.505) / 2)
    assert sum(decide(score, point.threshold) == "refer" for score in melanomas) == 46
    assert point.contract.sensitivity_expected == pytest.approx(46 / 48)


def test_true_sensitivity_follows_the_beta_law() -> None:
    """Scores are uniform, so the true sensitivity of a threshold t is 1 - t; it must follow Beta(n
    - m, m + 1)."""
    rng, num = np.random.default_rng(0), 92
    melanomas = rng.random((3000, num))
    edge = np.sort(melanomas, axis=1)[:, 3]
    # With very many other units the threshold lies arbitrarily close below the edge.
    points = [_select(row, np.linspace(0, 1, 2001)) for row in melanomas]
    thresholds = np.array([point.threshold for point in points])
    assert np.abs(thresholds - edge).max() < 1e-3
    sensitivity = 1 - thresholds
    law = beta(num - 3, 4)
    assert kstest(sensitivity, law.cdf).pvalue > 0.001
    assert points[0].contract.sensitivity_expected == pytest.approx(law.mean())
    broken = (sensitivity < 0.9).mean()
    assert broken <= 0.025 + 3 * np.sqrt(0.025 * 0.975 / 3000)
    assert broken == pytest.approx(law.cdf(0.9), abs=0.01)


def _broken(
    rng: np.random.Generator, num: int, specificity: float, trials: int, decimals: int | None
) -> tuple[int, int]:
    """Return how many of some simulated contracts were met, and how many of those are broken.

    Args:
        rng: draws the scores.
        num: target units.
        specificity: of the network where its true sensitivity is 0.9.
        trials: simulated calibrations.
        decimals: scores are rounded to; None leaves them.
    """
    # Normal scores: targets N(shift, 1), others N(0, 1).
    shift = norm.ppf(specificity) - norm.ppf(0.1)
    met = broken = 0
    for _ in range(trials):
        scores = norm.cdf([*rng.normal(shift, 1, num), *rng.normal(0, 1, 8 * num)])
        if decimals is not None:
            scores = scores.round(decimals)
        point = _select(scores[:num], scores[num:])
        # A rounded score is referred from half a step below the threshold's next step on.
        threshold = point.threshold
        if decimals is not None:
            threshold = np.ceil(threshold * 10**decimals - 1e-9) / 10**decimals - 0.5 / 10**decimals
        met += point.contract.status == "met"
        missed = norm.cdf(norm.ppf(np.clip(threshold, 0, 1)) - shift)
        broken += point.contract.status == "met" and missed > 0.1
    return met, broken


@pytest.mark.parametrize("decimals", [None, 2, 1])
def test_a_met_contract_is_seldom_broken(decimals: int | None) -> None:
    """However little the network knows: calibration places the threshold and nothing else."""
    rng = np.random.default_rng(0)
    for num, specificity in ((41, 0.5), (89, 0.55), (89, 0.9)):
        met, broken = _broken(rng, num, specificity, 600, decimals)
        assert met == 600
        assert broken / met <= 0.025 + 3 * np.sqrt(0.025 * 0.975 / 600), (num, specificity)


@pytest.mark.drill
def test_a_met_contract_is_seldom_broken_over_a_grid() -> None:
    rng, lines = np.random.default_rng(1), []
    for num in (36, 41, 61, 89, 154):
        for specificity in (0.1, 0.3, 0.5, 0.55, 0.6, 0.7, 0.9):
            for decimals in (None, 2, 1):
                met, broken = _broken(rng, num, specificity, 2000, decimals)
                lines.append((num, specificity, decimals, met, broken / met))
    for num, specificity, decimals, met, share in lines:
        print(
            f"n {num:4} specificity {specificity:.2f} decimals {decimals}: met {met}, {share:.1%}"
        )
    keep_if_asked("broken", [_row(num, lines) for num in dict.fromkeys(num for num, *_ in lines)])
    assert max(share for *_, share in lines) <= 0.025 + 4 * np.sqrt(0.025 * 0.975 / 2000)


def _row(num: int, lines: list[tuple[int, float, int | None, int, float]]) -> dict[str, str]:
    """Return the largest share of broken promises over the rounding of the scores."""
    cells: dict[str, float] = {}
    for of, specificity, _, _, share in lines:
        if of == num:
            name = f"specificity {specificity:.2f}"
            cells[name] = max(cells.get(name, 0.0), share)
    return {"melanomas": str(num)} | {name: f"{share:.1%}" for name, share in cells.items()}


def _any_broken(rng: np.random.Generator, accesses: int, correlation: float, num: int) -> bool:
    """Return whether the best contract of several networks on one calibration split is broken."""
    shift = norm.ppf(0.7) - norm.ppf(0.1)
    common = rng.normal(size=9 * num)
    best = (-1.0, False)
    for access in range(1, accesses + 1):
        own = rng.normal(size=9 * num)
        scores = np.sqrt(correlation) * common + np.sqrt(1 - correlation) * own
        scores[:num] += shift
        point = _select(norm.cdf(scores[:num]), norm.cdf(scores[num:]), access=access)
        if point.contract.status == "met" and point.contract.specificity > best[0]:
            missed = norm.cdf(norm.ppf(point.threshold) - shift)
            best = (point.contract.specificity, missed > 0.1)
    return best[1]


@pytest.mark.parametrize(
    ("several", "trials"), [((4,), 300), pytest.param((1, 2, 5, 16), 1000, marks=pytest.mark.drill)]
)
def test_keeping_the_best_of_several_networks_is_paid_for(
    several: tuple[int, ...], trials: int
) -> None:
    rows = []
    for accesses in several:
        row = {"networks on one split, the best kept": str(accesses)}
        for correlation in (0.5, 0.8):
            rng = np.random.default_rng(accesses)
            broken = (
                sum(_any_broken(rng, accesses, correlation, 154) for _ in range(trials)) / trials
            )
            row[f"their scores correlate by {correlation}"] = f"{broken:.1%}"
            assert broken <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / trials)
        rows.append(row)
        print(row)
    keep_if_asked("best-of", rows)


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
    contract = _select(np.full(35, 0.9), np.full(50, 0.1)).contract
    assert (contract.status, contract.reason, contract.num_target_needed) == (
        "unmet",
        "too_few_targets",
        36,
    )
    assert "at least 36 melanomas, one image per lesion; there were 35" in contract.sentence(HAM)


@pytest.mark.parametrize(
    ("access", "declared", "said"),
    [(2, 0, "Number 2 needs 46 melanomas; there are 40"), (3, 2, "Number 3 has no error left")],
)
def test_accesses_can_be_spent(access: int, declared: int, said: str) -> None:
    scores = (np.full(40, 0.9), np.full(50, 0.1))
    assert _select(*scores, accesses_declared=declared).contract.status == "met"
    contract = _select(*scores, access=access, accesses_declared=declared).contract
    assert (contract.status, contract.reason) == ("unmet", "accesses_spent")
    assert said in contract.sentence(HAM)


@pytest.mark.parametrize(
    ("access", "declared", "said"),
    [
        (2, 1, "1 other network was calibrated on these images before. Number 2 has no error"),
        (4, 3, "no error left. Each declared network needs at least 39 melanomas"),
    ],
)
def test_all_that_stands_against_a_promise_is_said(access: int, declared: int, said: str) -> None:
    scores = (np.full(37, 0.9), np.full(50, 0.1))
    contract = _select(*scores, access=access, accesses_declared=declared).contract
    assert said in contract.sentence(HAM)


def test_a_network_that_knows_no_more_than_the_camera_promises_nothing() -> None:
    contract = _select(np.full(100, 0.9), np.full(500, 0.1), comparison=UNINFORMATIVE).contract
    assert (contract.status, contract.reason) == ("unmet", "uninformative")
    assert "AUROC 0.67 and 0.65" in contract.sentence(HAM)


def test_the_status_does_not_depend_on_the_calibration_scores() -> None:
    """Otherwise 95 % would not hold for the contracts that are met."""
    rng = np.random.default_rng(0)
    assert {_select(rng.random(60), rng.random(100)).contract.status for _ in range(50)} == {"met"}


@pytest.mark.parametrize(
    ("columns", "unit", "task", "counted"),
    [
        (("lesion_id",), "one image per lesion", "ham10000", "40 lesions with melanoma"),
        (("patient_id",), "one image per patient", "ham10000", "40 patients with melanoma"),
        (("lesion_id", "patient_id"), "one image per patient", "ham10000", "40 patients with"),
        (("lesion_id", "clinic"), "one image per group", "ham10000", "40 groups with melanoma"),
        (("image_id",), "one image", "ham10000", "40 images with melanoma"),
        (("lesion_id",), "one image per lesion", "binary", "40 malignant lesions"),
    ],
)
def test_the_promise_names_its_unit(
    columns: tuple[str, ...], unit: str, task: str, counted: str
) -> None:
    assert unit_of(columns) == unit
    sentence = _select(np.full(40, 0.9), np.full(9, 0.1), unit=unit).contract.sentence(TASKS[task])
    assert counted in sentence
    assert ("Other cancers are not looked for" in sentence) == (task == "ham10000")


def test_the_promise_in_words() -> None:
    sentence = _select(np.full(92, 0.9), np.full(9, 0.1)).contract.sentence(HAM)
    assert sentence == (
        "On images like those it was calibrated on (simulated, 92 lesions with melanoma), with 95%"
        " confidence at least 90% of melanomas are referred. Other cancers are not looked for. Not"
        " checked for your clinic or camera."
    )


def test_a_promise_of_other_networks_is_called_approximate() -> None:
    point = _select(np.full(92, 0.9), np.full(9, 0.1), basis="out_of_fold")
    assert "approximate" in point.contract.sentence(HAM)


def test_ties_are_referred_together() -> None:
    point = _select(np.full(40, 0.3), np.array([0.3] * 10 + [0.1] * 90))
    assert point.contract.misses_allowed == 0
    assert decide(0.3, point.threshold) == "refer"
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
