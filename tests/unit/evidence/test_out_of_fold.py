import dataclasses

import numpy as np
import pytest

from melanoma.evidence.metrics import Predicted
from melanoma.evidence.out_of_fold import choose_fold_scores, paired_difference
from tests.folds import RECALL, make_fold
from tests.tasks import HAM


def test_a_group_counts_once_a_side() -> None:
    labels, groups = np.array([4, 4, 5, 5, 4]), np.array(["a", "a", "a", "b", "c"])
    fold = choose_fold_scores(Predicted(HAM, labels, np.full((5, 7), 1 / 7)), groups, groups)
    assert sorted(fold.groups[fold.is_target]) == ["a", "c"]
    assert sorted(fold.groups[~fold.is_target]) == ["a", "b"]


def test_a_real_difference_is_shown_and_none_is_not() -> None:
    base = [make_fold(seed, num=400) for seed in range(3)]
    better = [dataclasses.replace(f, scores=f.scores + 1.0 * f.is_target) for f in base]
    found = paired_difference(RECALL, [better], [base], num_draws=200)
    assert found.shown
    assert found.low > 0
    rng = np.random.default_rng(0)
    alike = [
        dataclasses.replace(f, scores=f.scores + 0.3 * rng.normal(size=len(f.scores))) for f in base
    ]
    assert not paired_difference(RECALL, [alike], [base], num_draws=200).shown


def test_seeds_that_differ_widen_the_interval() -> None:
    base = [make_fold(seed, num=400) for seed in range(3)]
    lifted = [
        [dataclasses.replace(f, scores=f.scores + lift * f.is_target) for f in base]
        for lift in (-0.5, 0.0, 0.5)
    ]
    wide = paired_difference(RECALL, lifted, [base] * 3, num_draws=300)
    narrow = paired_difference(RECALL, [base] * 3, [base] * 3, num_draws=300)
    assert (narrow.low, narrow.high) == (0, 0)
    assert wide.low < min(wide.by_seed) / 2 < 0 < max(wide.by_seed) / 2 < wide.high


def test_other_units_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="same units"):
        paired_difference(RECALL, [[make_fold(0)]], [[make_fold(1)]])
