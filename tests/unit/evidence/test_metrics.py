import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binomtest, norm
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    recall_score,
    roc_auc_score,
)

from melanoma.evidence.intervals import auroc_interval, clopper_pearson, effective_number
from melanoma.evidence.metrics import METRICS, Predicted, group_bootstrap, title_of
from melanoma.evidence.target_calibration import target_calibration
from tests.figures import keep_if_asked
from tests.tasks import HAM, MELANOMA_INDEX


def _predictions(seed: int = 0, num: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(7, num, p=[0.05, 0.05, 0.1, 0.05, 0.2, 0.5, 0.05])
    logits = rng.normal(0, 1, (num, 7)) + 1.2 * np.eye(7)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return labels, probabilities


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_metrics_are_those_of_scikit_learn(weighted: bool, tied: bool) -> None:
    labels, probabilities = _predictions()
    probabilities = probabilities.round(1) if tied else probabilities
    weights = (
        np.random.default_rng(1).integers(0, 4, len(labels)).astype(float)
        if weighted
        else np.ones(len(labels))
    )
    decided = probabilities.argmax(axis=1)
    expected = {
        "auroc": roc_auc_score(
            labels == MELANOMA_INDEX, probabilities[:, MELANOMA_INDEX], sample_weight=weights
        ),
        "average_precision": average_precision_score(
            labels == MELANOMA_INDEX, probabilities[:, MELANOMA_INDEX], sample_weight=weights
        ),
        "target_recall_argmax": recall_score(
            labels, decided, labels=[MELANOMA_INDEX], average="macro", sample_weight=weights
        ),
        "macro_f1": f1_score(labels, decided, average="macro", sample_weight=weights),
        "balanced_accuracy": balanced_accuracy_score(labels, decided, sample_weight=weights),
        "accuracy": accuracy_score(labels, decided, sample_weight=weights),
    }
    for name, value in expected.items():
        assert METRICS[name].value(Predicted(HAM, labels, probabilities), weights) == pytest.approx(
            value
        ), name


@pytest.mark.parametrize("name", ["auroc", "average_precision"])
def test_areas_without_targets_or_images_are_undefined(name: str) -> None:
    labels, probabilities = _predictions()
    others = labels != MELANOMA_INDEX
    for chosen in (others, np.zeros(len(labels), dtype=bool)):
        units = Predicted(HAM, labels[chosen], probabilities[chosen])
        assert np.isnan(METRICS[name].value(units, np.ones(len(units))))


def test_specificity_at_sensitivity_is_the_best_over_all_thresholds() -> None:
    labels, probabilities = _predictions()
    scores, is_melanoma = probabilities[:, MELANOMA_INDEX], labels == MELANOMA_INDEX
    allowed = [t for t in scores if (scores[is_melanoma] >= t).mean() >= 0.9]
    best = max((scores[~is_melanoma] < t).mean() for t in allowed)
    assert METRICS["specificity_at_sensitivity_90"].value(
        Predicted(HAM, labels, probabilities), np.ones(len(labels))
    ) == pytest.approx(best)


@pytest.mark.parametrize(("successes", "num"), [(0, 10), (10, 10), (127, 187), (1, 2)])
def test_clopper_pearson_is_that_of_scipy(successes: int, num: int) -> None:
    expected = binomtest(successes, num).proportion_ci(0.95, "exact")
    assert clopper_pearson(successes, num) == pytest.approx((expected.low, expected.high))


def test_nothing_observed_leaves_everything_open() -> None:
    assert clopper_pearson(0, 0) == (0.0, 1.0)


def test_copies_of_an_image_do_not_narrow_its_interval() -> None:
    labels, probabilities = _predictions(num=240)
    once = group_bootstrap(Predicted(HAM, labels, probabilities), np.arange(240), num_draws=200)
    thrice = group_bootstrap(
        Predicted(HAM, np.tile(labels, 3), np.tile(probabilities, (3, 1))),
        np.tile(np.arange(240), 3),
        num_draws=200,
    )
    assert thrice["auroc"] == pytest.approx(once["auroc"])


def _coverage(num_trials: int, num_draws: int) -> dict[str, float]:
    """Return how often each metric's bootstrap interval holds its true value, for groups of one to
    three alike images."""
    big_labels, big = _predictions(seed=999, num=200_000)
    truth = {
        name: metric.value(Predicted(HAM, big_labels, big), np.ones(len(big_labels)))
        for name, metric in METRICS.items()
    }
    covered = dict.fromkeys(METRICS, 0)
    for trial in range(num_trials):
        labels, probabilities = _predictions(seed=trial, num=250)
        repeats = np.random.default_rng(trial).integers(1, 4, 250)
        groups = np.repeat(np.arange(250), repeats)
        intervals = group_bootstrap(
            Predicted(HAM, labels[groups], probabilities[groups]),
            groups,
            num_draws=num_draws,
            seed=trial,
        )
        for name, interval in intervals.items():
            covered[name] += interval["low"] <= truth[name] <= interval["high"]
    return {name: count / num_trials for name, count in covered.items()}


@pytest.mark.drill
def test_the_bootstrap_covers_what_it_says() -> None:
    coverage = _coverage(num_trials=200, num_draws=200)
    lines = "\n".join(f"  {name:30} {share:.1%}" for name, share in coverage.items())
    print(
        "\ngroup bootstrap, nominal 95 %, 200 simulated data sets; the true value was covered"
        f" in\n{lines}"
    )
    assert min(coverage.values()) >= 0.88, coverage


def _covered(num_target: int, auroc: float, *, repeats: int, draws: int) -> dict[str, float]:
    """Return how often bootstrap intervals hold the true value, ten others for each target."""
    rng, prior = np.random.default_rng(0), 1 / 11
    distance = np.sqrt(2) * norm.ppf(auroc)

    def draw(targets: int) -> tuple[np.ndarray, np.ndarray]:
        is_target = np.arange(11 * targets) < targets
        values = rng.normal(size=len(is_target)) + distance * is_target
        true_logit = distance * values - distance**2 / 2 + np.log(prior / (1 - prior))
        return is_target, expit(true_logit)

    truth = {
        "specificity_at_sensitivity_90": norm.cdf(distance - norm.ppf(0.9)),
        "average_precision": average_precision_score(*draw(100_000)),
        "slope": 1.0,
    }
    held = dict.fromkeys(truth, 0)
    for _ in range(repeats):
        is_target, scores = draw(num_target)
        groups = np.arange(len(scores))
        probabilities = np.zeros((len(scores), HAM.num_classes))
        probabilities[:, MELANOMA_INDEX] = scores
        probabilities[:, MELANOMA_INDEX - 1] = 1 - scores
        labels = np.where(is_target, MELANOMA_INDEX, MELANOMA_INDEX - 1)
        units = Predicted(HAM, labels, probabilities)
        found = {
            **group_bootstrap(units, groups, metrics=list(truth)[:2], num_draws=draws),
            **target_calibration(is_target, scores, groups, num_draws=draws),
        }
        for name, value in truth.items():
            held[name] += found[name]["low"] <= value <= found[name]["high"]
    return {name: count / repeats for name, count in held.items()}


def test_a_bootstrap_interval_needs_thirty_targets() -> None:
    assert _covered(29, 0.9, repeats=1, draws=20) == dict.fromkeys(
        ("specificity_at_sensitivity_90", "average_precision", "slope"), 0
    )
    assert min(_covered(30, 0.9, repeats=60, draws=60).values()) > 0.8


@pytest.mark.drill
def test_bootstrap_intervals_cover_from_thirty_targets_on() -> None:
    rows = []
    for num_target in (30, 50, 89):
        for auroc in (0.8, 0.95):
            found = _covered(num_target, auroc, repeats=250, draws=200)
            assert min(found.values()) >= 0.9 - 2 * np.sqrt(0.9 * 0.1 / 250), (num_target, found)
            row = {"melanomas, others": f"{num_target}, {10 * num_target}", "AUROC": f"{auroc}"}
            rows.append(row | {title_of(name): f"{share:.1%}" for name, share in found.items()})
    keep_if_asked("bootstrap", rows)


def _auroc_misses(auroc: float, num_target: int, num_other: int, *, repeats: int) -> float:
    """Return the share of simulated data sets whose 95 % interval leaves the true AUROC out."""
    rng = np.random.default_rng(0)
    distance = np.sqrt(2) * norm.ppf(auroc)
    missed = 0
    for _ in range(repeats):
        targets, others = rng.normal(distance, size=num_target), rng.normal(size=num_other)
        found = np.searchsorted(np.sort(others), targets).mean() / num_other
        low, high = auroc_interval(float(found), num_target, num_other)
        missed += not low <= auroc <= high
    return missed / repeats


@pytest.mark.parametrize("auroc", [0.75, 0.95, 0.995])
def test_the_interval_of_an_auroc_covers_it_from_ten_targets_on(auroc: float) -> None:
    assert _auroc_misses(auroc, 10, 100, repeats=300) <= 0.07


@pytest.mark.drill
def test_the_interval_of_an_auroc_covers_it_over_a_grid() -> None:
    lines, rows = [], []
    for num_target, num_other in ((10, 30), (10, 1000), (15, 150), (30, 300), (89, 990)):
        row = {"melanomas, others": f"{num_target}, {num_other}"}
        rows.append(row)
        for auroc in (0.6, 0.75, 0.86, 0.95, 0.98, 0.995, 0.999):
            missed = _auroc_misses(auroc, num_target, num_other, repeats=1500)
            lines.append(
                f"  {num_target:3} targets, {num_other:4} others, {auroc}: {1 - missed:.1%}"
            )
            row[f"AUROC {auroc}"] = f"{1 - missed:.1%}"
            assert missed <= 0.07, lines[-1]
    keep_if_asked("auroc", rows)
    print("\nAUROC interval, nominal 95 %; the true value was covered in\n" + "\n".join(lines))


def test_an_auroc_of_one_has_an_interval_and_few_targets_have_none() -> None:
    low, high = auroc_interval(1.0, 20, 200)
    assert 0.8 < low < 0.99
    assert high == pytest.approx(1)
    mirrored = auroc_interval(0.0, 20, 200)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-6)
    assert np.isnan(auroc_interval(0.9, 9, 200)).all()


def test_units_of_a_group_are_worth_one() -> None:
    assert effective_number(np.array([0, 0, 1, 1])) == 2
    assert effective_number(np.array([0, 0, 1])) == pytest.approx(9 / 5)
    assert effective_number(np.array([], dtype=int)) == 0
