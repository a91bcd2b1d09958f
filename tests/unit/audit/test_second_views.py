"""Pairs are proposed by details and by layout; both find a copy among many images."""

import numpy as np
from scipy import sparse

from melanoma.audit import second_views
from melanoma.audit.local_features import LocalFeatures
from melanoma.audit.second_views import BY_DETAILS, BY_LAYOUT, in_chunks, proposed_pairs

RNG = np.random.default_rng(0)
NUM = 80


def _features(num: int) -> LocalFeatures:
    descriptors = RNG.integers(0, 160, (num, 128)).astype(np.uint8)
    return LocalFeatures(np.zeros((num, 2), np.float32), np.ones((num, 2), np.float32), descriptors)


def _layouts(num: int) -> np.ndarray:
    values = RNG.normal(size=(num, 192)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def _silently(done: int, total: int) -> None:
    assert done <= total


def _proposed(features: list[LocalFeatures], layouts: np.ndarray) -> set[tuple[int, int]]:
    return {(int(a), int(b)) for a, b in proposed_pairs(features, layouts, _silently)}


def test_images_with_the_same_details_are_proposed() -> None:
    features = [_features(60) for _ in range(NUM)]
    features[70] = features[5]
    found = _proposed(features, _layouts(NUM))
    assert (5, 70) in found
    assert len(found) <= NUM * (BY_DETAILS + BY_LAYOUT)
    assert all(first < second for first, second in found)


def test_images_with_the_same_layout_are_proposed_although_they_show_no_details() -> None:
    layouts = _layouts(NUM)
    layouts[33] = layouts[2]
    assert (2, 33) in _proposed([_features(0) for _ in range(NUM)], layouts)


def test_few_images_are_all_compared() -> None:
    assert len(_proposed([_features(3) for _ in range(7)], _layouts(7))) == 21


def test_rows_of_words_have_length_1_and_a_word_of_one_image_is_left_out() -> None:
    features = [_features(60) for _ in range(40)]
    features[1] = features[0]
    words = second_views._words(features)
    lengths = sparse.linalg.norm(words, axis=1)
    np.testing.assert_allclose(lengths[:2], 1, rtol=1e-6)
    assert np.bincount(words.indices, minlength=words.shape[1]).min() > 1
    assert float(words[[0]].multiply(words[[1]]).sum()) > 0.99


def test_results_of_threads_are_in_order() -> None:
    seen: list[tuple[int, int]] = []
    results = in_chunks(
        lambda value: 2 * value, range(600), lambda done, total: seen.append((done, total))
    )
    assert results == [2 * value for value in range(600)]
    assert seen[-1] == (600, 600)
