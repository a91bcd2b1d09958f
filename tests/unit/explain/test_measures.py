"""Each measure of a heatmap against cases whose answer is known."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from melanoma.explain.measures import (
    GRID,
    mean_over_groups,
    on_grid,
    points_inside,
    score_lost,
    share_inside,
    similarity,
)

RNG = np.random.default_rng(0)
LEFT = np.zeros((1, *GRID), dtype=bool)
LEFT[:, :, : GRID[1] // 2] = True


def _map(row: int, column: int) -> np.ndarray:
    values = np.zeros((1, *GRID), dtype=np.float32)
    values[0, row, column] = 1
    return values


def test_the_share_inside_is_that_of_the_sum() -> None:
    both = _map(3, 3) * 3 + _map(3, 60)
    assert share_inside(both, LEFT)[0] == pytest.approx(0.75)
    assert share_inside(np.ones((1, *GRID)), LEFT)[0] == pytest.approx(0.5)
    assert share_inside(np.zeros((1, *GRID)), LEFT)[0] == 0


def test_the_peak_is_inside_or_not() -> None:
    assert points_inside(_map(3, 3), LEFT).tolist() == [1]
    assert points_inside(_map(3, 60), LEFT).tolist() == [0]
    assert points_inside(np.zeros((1, *GRID)), np.ones((1, *GRID), bool)).tolist() == [0]


def test_similarity_is_scipys_rank_correlation() -> None:
    first, second = RNG.random((2, 3, *GRID))
    second += first
    expected = [spearmanr(a.ravel(), b.ravel())[0] for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(similarity(first, second), expected)
    assert np.isnan(similarity(first, np.zeros_like(first))).all()


def test_deleting_what_the_score_sees_costs_it() -> None:
    inputs = torch.zeros(1, 3, 96, 128)
    inputs[:, :, 40:50, 10:30] = 1

    def score(images: torch.Tensor) -> np.ndarray:
        return images[:, :, 40:50, 10:30].sum(dim=(1, 2, 3)).numpy()

    where = np.zeros((1, *GRID), dtype=np.float32)
    where[:, 20:25, 5:15] = 1
    elsewhere = np.roll(where, 30, axis=2)
    seen = score_lost(where, inputs, score)[0] / score(inputs)[0]
    # The rest of the 15 % lies anywhere, so it may cost a little too.
    assert seen > 0.8
    assert score_lost(elsewhere, inputs, score)[0] / score(inputs)[0] < 0.3


def test_bounds_hold_the_mean_of_groups_and_count_groups() -> None:
    groups = np.repeat(np.arange(200), 4)
    values = np.repeat(RNG.normal(1, 1, 200), 4)
    found = mean_over_groups(values, groups)
    alone = mean_over_groups(values[::4], groups[::4])
    assert found == alone  # copies add nothing
    assert found.low < 1 < found.high
    assert mean_over_groups(values[:4], groups[:4]).low == float("-inf")


def test_bounds_are_wrong_in_one_of_a_hundred_cases() -> None:
    above = [mean_over_groups(RNG.normal(0, 1, 60), np.arange(60)).low > 0 for _ in range(4000)]
    assert 0.005 < np.mean(above) < 0.02


def test_maps_of_any_size_come_to_the_grid() -> None:
    assert on_grid(np.ones((2, 3, 4))).shape == (2, *GRID)
    np.testing.assert_allclose(on_grid(np.ones((2, 120, 160))), 1, rtol=1e-6)
