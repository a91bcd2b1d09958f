import numpy as np
import pytest

from melanoma.evidence.operating_point import check_contract
from melanoma.evidence.power import chances, targets_to_decide


@pytest.mark.parametrize("num", [29, 89, 170])
def test_chances_are_those_of_the_verdict_itself(num: int) -> None:
    rng = np.random.default_rng(0)
    verdicts = np.array([check_contract(k, num, target_sensitivity=0.9) for k in range(num + 1)])
    for row in chances(num, target_sensitivity=0.9):
        drawn = verdicts[rng.binomial(num, row["sensitivity"], 20_000)]
        for name in ("confirmed", "refuted"):
            assert row[name] == pytest.approx((drawn == name).mean(), abs=0.015)


def test_nothing_is_likely_without_targets() -> None:
    assert chances(0, target_sensitivity=0.9) == []


def test_the_number_that_decides_does() -> None:
    needed = targets_to_decide(target_sensitivity=0.9)
    (at,) = [row for row in chances(needed, target_sensitivity=0.9) if row["sensitivity"] == 0.95]
    assert at["confirmed"] >= 0.8
    (before,) = [
        row for row in chances(needed - 1, target_sensitivity=0.9) if row["sensitivity"] == 0.95
    ]
    assert before["confirmed"] < 0.8
    assert targets_to_decide(target_sensitivity=0.95) == 0
