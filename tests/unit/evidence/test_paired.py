"""Differences of two models on the same units, beside oracles."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, roc_auc_score

from melanoma.evidence.paired import (
    Answers,
    Truth,
    paired_differences,
    swap_test,
    tango_interval,
)
from tests.tasks import HAM, MELANOMA_INDEX

DRAWS = 200
N = 400


def _truth(rng: np.random.Generator, num: int = N, *, images: int = 2) -> Truth:
    """Return units of two images a group, a fifth of them targets."""
    labels = np.repeat(rng.permutation(np.arange(num // images) % 5), images)
    labels = np.where(labels == 0, MELANOMA_INDEX, labels % 4)
    groups = np.repeat(np.arange(num // images), images)
    return Truth(labels == MELANOMA_INDEX, groups, HAM, labels)


def _answers(truth: Truth, rng: np.random.Generator, skill: float = 1.0) -> Answers:
    logits = rng.normal(size=(len(truth.groups), HAM.num_classes))
    assert truth.labels is not None
    logits[np.arange(len(logits)), truth.labels] += skill
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    scores = HAM.target_scores(probabilities)
    return Answers(scores, probabilities, scores >= 0.15)


def test_a_model_does_not_differ_from_itself() -> None:
    rng = np.random.default_rng(0)
    truth = _truth(rng)
    same = _answers(truth, rng)
    found = paired_differences(truth, same, same, num_draws=DRAWS)
    assert len(found) == 9
    for each in found.values():
        assert each.value == 0
        assert each.low <= 0 <= each.high
        assert not each.shown
    # Equal decisions do not prove equal models: the share could still differ.
    assert found["sensitivity"].high == pytest.approx(-found["sensitivity"].low)
    assert found["sensitivity"].high > 0.02


def test_the_values_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    truth = _truth(rng)
    a, b = _answers(truth, rng, 0.5), _answers(truth, rng, 1.5)
    found = paired_differences(truth, a, b, num_draws=DRAWS)
    for model, side in ((a, "a"), (b, "b")):
        assert model.probabilities is not None
        assert model.referred is not None
        likeliest = model.probabilities.argmax(axis=1)
        expected = {
            "auroc": roc_auc_score(truth.is_target, model.scores),
            "average_precision": average_precision_score(truth.is_target, model.scores),
            "brier": brier_score_loss(truth.is_target, model.scores),
            "macro_f1": f1_score(
                truth.labels, likeliest, labels=np.unique(truth.labels), average="macro"
            ),
            "accuracy": (likeliest == truth.labels).mean(),
            "sensitivity": model.referred[truth.is_target].mean(),
            "specificity": (~model.referred[~truth.is_target]).mean(),
        }
        for name, value in expected.items():
            assert getattr(found[name], side) == pytest.approx(value), name
    for each in found.values():
        assert each.value == pytest.approx(each.b - each.a)
        assert each.low < each.value < each.high
    assert found["auroc"].shown
    # An interval of this width excludes 0 for a difference of 2.8 standard errors.
    width = found["auroc"].high - found["auroc"].low
    assert found["auroc"].detectable == pytest.approx(width / 2 * 2.8016 / 1.95996, rel=1e-3)


def test_swapped_models_flip_the_signs() -> None:
    rng = np.random.default_rng(2)
    truth = _truth(rng)
    a, b = _answers(truth, rng, 0.5), _answers(truth, rng, 1.0)
    forth = paired_differences(truth, a, b, num_draws=DRAWS)
    back = paired_differences(truth, b, a, num_draws=DRAWS)
    for name, each in forth.items():
        assert each.value == -back[name].value
        assert each.low == pytest.approx(-back[name].high, abs=1e-6), name
        assert each.high == pytest.approx(-back[name].low, abs=1e-6), name


def test_a_known_shift_gives_the_known_difference() -> None:
    """B refers ten targets and five others more than A does."""
    rng = np.random.default_rng(3)
    truth = _truth(rng, images=1)
    scores = np.full(N, 0.5)
    referred = np.zeros(N, dtype=bool)
    more = referred.copy()
    more[np.flatnonzero(truth.is_target)[:10]] = True
    more[np.flatnonzero(~truth.is_target)[:5]] = True
    found = paired_differences(
        truth, Answers(scores, None, referred), Answers(scores, None, more), num_draws=DRAWS
    )
    assert found["sensitivity"].value == pytest.approx(10 / 80)
    assert found["specificity"].value == pytest.approx(-5 / 320)
    assert found["auroc"].value == 0
    assert "accuracy" not in found  # nothing is known of the classes


def test_groups_widen_the_interval() -> None:
    rng = np.random.default_rng(4)
    truth = _truth(rng, images=1)
    a, b = _answers(truth, rng, 0.5), _answers(truth, rng, 0.8)
    alone = paired_differences(truth, a, b, num_draws=DRAWS)

    def four_times(model: Answers) -> Answers:
        assert model.probabilities is not None
        assert model.referred is not None
        return Answers(
            np.repeat(model.scores, 4),
            np.repeat(model.probabilities, 4, axis=0),
            np.repeat(model.referred, 4),
        )

    assert truth.labels is not None
    copied = Truth(
        np.repeat(truth.is_target, 4), np.repeat(truth.groups, 4), HAM, np.repeat(truth.labels, 4)
    )
    found = paired_differences(copied, four_times(a), four_times(b), num_draws=DRAWS)
    for name, each in found.items():
        assert (each.low, each.high) == pytest.approx((alone[name].low, alone[name].high)), name


def test_too_few_targets_give_no_interval() -> None:
    rng = np.random.default_rng(5)
    truth = _truth(rng, 40)
    found = paired_differences(truth, _answers(truth, rng), _answers(truth, rng), num_draws=DRAWS)
    assert np.isnan([found["auroc"].low, found["sensitivity"].low]).all()
    assert np.isnan(found["auroc"].detectable)
    assert np.isfinite(found["accuracy"].low)


def test_scores_outside_0_and_1_have_no_brier_score() -> None:
    rng = np.random.default_rng(6)
    truth = _truth(rng)
    logits = Answers(rng.normal(size=N))
    found = paired_differences(truth, logits, logits, num_draws=DRAWS)
    assert set(found) == {"auroc", "average_precision", "specificity_at_sensitivity_90"}


def test_of_pairs_that_never_differ_tango_s_interval_has_a_closed_form() -> None:
    end = 1.959964**2 / (44 + 1.959964**2)
    assert tango_interval(0, 0, 44) == pytest.approx((-end, end), abs=1e-6)


def test_of_tango_s_interval_the_ends_solve_the_score_equation() -> None:
    """At each end the data are 1.96 standard errors away, with the likeliest nuisance there."""
    gained, lost, num = 12.0, 5.0, 80.0
    grid = np.linspace(0, 1, 200_001)
    for end in tango_interval(gained, lost, num):
        only_first = grid[(grid + end >= 0) & (2 * grid + end <= 1)]
        with np.errstate(divide="ignore"):
            likelihood = (
                gained * np.log(only_first + end)
                + lost * np.log(only_first)
                + (num - gained - lost) * np.log(1 - 2 * only_first - end)
            )
        q = only_first[likelihood.argmax()]
        error = np.sqrt(num * (2 * q + end * (1 - end)))
        assert abs(gained - lost - num * end) / error == pytest.approx(1.96, abs=2e-3)


def test_the_ends_of_tango_s_interval() -> None:
    assert tango_interval(20, 0, 20)[1] == 1
    assert tango_interval(0, 20, 20)[0] == -1


def test_with_one_unit_in_a_group_the_swap_test_is_mcnemar_s() -> None:
    rng = np.random.default_rng(7)
    a, b = rng.random(60) < 0.6, rng.random(60) < 0.8
    gained, lost = int((b & ~a).sum()), int((a & ~b).sum())
    expected = binomtest(gained, gained + lost).pvalue
    assert swap_test(a, b, np.arange(60)) == pytest.approx(expected)
    assert swap_test(a, a, np.arange(60)) == 1


def test_copies_do_not_make_the_swap_test_surer() -> None:
    a, b = np.zeros(6, dtype=bool), np.ones(6, dtype=bool)
    assert swap_test(a, b, np.arange(6)) == pytest.approx(2 / 64)
    assert swap_test(a, b, np.zeros(6, dtype=int)) == 1
    assert swap_test(a, b, np.repeat([0, 1, 2], 2)) == pytest.approx(2 / 8)


@pytest.mark.drill
def test_the_intervals_hold_the_true_difference() -> None:
    """In simulated pairs of models, whose true difference a large sample gives."""
    rng = np.random.default_rng(8)

    def models(truth: Truth) -> tuple[Answers, Answers]:
        shared = rng.normal(size=truth.groups.max() + 1)[truth.groups]
        scores = [
            skill * truth.is_target + shared + rng.normal(size=len(shared)) for skill in (1.2, 1.6)
        ]
        a, b = (1 / (1 + np.exp(-each)) for each in scores)
        return Answers(a, None, a >= 0.5), Answers(b, None, b >= 0.5)

    def units(num_groups: int) -> Truth:
        sizes = rng.integers(1, 4, num_groups)
        groups = np.repeat(np.arange(num_groups), sizes)
        return Truth((np.arange(num_groups) % 6 == 0)[groups], groups)

    large = units(200_000)
    true = paired_differences(large, *models(large), num_draws=0)
    held: dict[str, list[bool]] = {}
    for _ in range(400):
        truth = units(600)
        for name, each in paired_differences(truth, *models(truth), num_draws=400).items():
            held.setdefault(name, []).append(each.low <= true[name].value <= each.high)
    shares = {name: float(np.mean(each)) for name, each in held.items()}
    print(shares)
    assert min(shares.values()) >= 0.92, shares
