import itertools

import numpy as np
import pytest

from melanoma.evidence.plan import plan
from melanoma.evidence.sequential import chances_of_verdict, watch

PROMISE = 0.9


def _draw(sensitivity: float, num: int, *, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(num) < sensitivity


@pytest.mark.parametrize("promise", [0.4, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("verdict", ["holds", "broken"])
def test_a_verdict_is_wrong_at_any_time_with_the_promised_error_at_most(
    verdict: str, promise: float
) -> None:
    """At the promised sensitivity itself, the hardest case for both sides."""
    reached = chances_of_verdict(verdict, promise, target_sensitivity=promise)  # type: ignore[arg-type]
    *_, last = itertools.islice(reached, 400)
    assert 0.01 < last <= 0.05


def test_looking_after_every_outcome_with_a_fixed_test_would_be_wrong_more_often() -> None:
    """What the sequential test is for: the same data, judged again and again by binomial tests."""
    from melanoma.evidence.operating_point import check_contract

    runs = [_draw(PROMISE, 200, seed=seed) for seed in range(200)]

    def refuted(run: np.ndarray) -> bool:
        hits = np.cumsum(run)
        return any(
            check_contract(int(hits[n - 1]), n, target_sensitivity=PROMISE) == "refuted"
            for n in range(1, 201)
        )

    wrong = sum(map(refuted, runs))
    sequential = sum(watch(run, target_sensitivity=PROMISE).verdict == "broken" for run in runs)
    assert wrong > 0.1 * len(runs)
    assert sequential <= 0.08 * len(runs)  # 0.05 and the luck of 200 runs


def test_a_broken_promise_is_noticed() -> None:
    (ours,) = plan([PROMISE])
    runs = [_draw(0.8, ours.to_notice, seed=seed) for seed in range(300)]
    noticed = sum(watch(run, target_sensitivity=PROMISE).verdict == "broken" for run in runs)
    assert noticed / len(runs) == pytest.approx(0.8, abs=0.08)


def test_a_promise_that_is_kept_is_confirmed() -> None:
    found = watch(_draw(0.97, 400, seed=1), target_sensitivity=PROMISE)
    assert found.verdict == "holds"
    assert found.decided_after is not None
    assert found.decided_after < 400


def test_a_verdict_stands_once_it_is_reached() -> None:
    bad, good = np.zeros(20, bool), np.ones(500, bool)
    first = watch(bad, target_sensitivity=PROMISE)
    later = watch(np.concatenate([bad, good]), target_sensitivity=PROMISE)
    assert first.verdict == later.verdict == "broken"
    assert first.decided_after == later.decided_after


def test_misses_after_a_confirmed_promise_break_it() -> None:
    found = watch(
        np.concatenate([np.ones(200, bool), np.zeros(100, bool)]), target_sensitivity=PROMISE
    )
    assert found.verdict == "broken"
    assert found.decided_after is not None
    assert found.decided_after > 200


def test_nothing_is_open() -> None:
    found = watch(np.zeros(0, bool), target_sensitivity=PROMISE)
    assert (found.verdict, found.num_target, found.decided_after) == ("open", 0, None)


def test_many_outcomes_are_numbers() -> None:
    for sensitivity in (0.5, 0.999):
        found = watch(_draw(sensitivity, 20_000, seed=0), target_sensitivity=PROMISE)
        assert np.isfinite([found.against, found.in_favour]).all()


def test_a_larger_promise_takes_more() -> None:
    plans = plan()
    for name in ("to_notice",):
        assert sorted(getattr(each, name) for each in plans) == [
            getattr(each, name) for each in plans
        ]
    assert [each.to_promise[0] for each in plans] == [17, 23, 36, 72]
