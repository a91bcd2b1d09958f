import pytest

from melanoma.evidence.prevalence import per_thousand, shifted


def test_a_thousand_lesions_are_all_counted() -> None:
    found = per_thousand(0.031, sensitivity=0.9, specificity=0.62)
    assert found.referred + found.not_referred == pytest.approx(1000)
    assert (found.found + found.missed, found.missed) == pytest.approx((31, 3.1))
    assert found.target_if_not_referred == pytest.approx(3.1 / (3.1 + 969 * 0.62))


def test_nothing_is_divided_by_nothing() -> None:
    assert per_thousand(0.0, sensitivity=0.9, specificity=1.0).target_if_referred == 0
    assert per_thousand(1.0, sensitivity=1.0, specificity=1.0).target_if_not_referred == 0
    assert shifted(1.0, calibrated_at=0.1, prevalence=0.0) == 1.0


def test_twenty_per_cent_of_a_mix_with_many_melanomas_are_few_in_a_clinic() -> None:
    assert shifted(0.2, calibrated_at=0.11, prevalence=0.03) == pytest.approx(0.0589, abs=1e-4)
    assert shifted(0.2, calibrated_at=0.11, prevalence=0.11) == pytest.approx(0.2)
