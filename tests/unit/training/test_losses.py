import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from melanoma.errors import SettingError
from melanoma.training.losses import (
    class_weights_from_counts,
    focal_terms,
    soft_labels,
    source_offsets,
)
from tests.tasks import CLASSES, MELANOMA_INDEX

WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 3.0, 4.0, 0.2, 1.5])


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 4 * torch.randn(64, 7, generator=generator), torch.randint(
        0, 7, (64,), generator=generator
    )


def _mean(logits: torch.Tensor, target: torch.Tensor, gamma: float) -> torch.Tensor:
    loss_sum, weight_sum = focal_terms(logits, WEIGHTS * F.one_hot(target, 7), gamma=gamma)
    return loss_sum / weight_sum


def test_gamma_zero_is_weighted_cross_entropy() -> None:
    logits, target = _batch()
    ours = _mean(logits, target, gamma=0)
    assert ours.item() == pytest.approx(
        F.cross_entropy(logits, target, weight=WEIGHTS).item(), abs=1e-6
    )


@pytest.mark.parametrize("gamma", [1.0, 2.0, 5.0])
def test_it_is_the_published_formula(gamma: float) -> None:
    logits, target = _batch()
    p = torch.softmax(logits.double(), dim=1)[torch.arange(64), target]
    weights = WEIGHTS.double()[target]
    expected = (weights * -((1 - p) ** gamma) * p.log()).sum() / weights.sum()
    assert _mean(logits, target, gamma=gamma).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1.5, 5.0])
@pytest.mark.parametrize("margin", [0.0, 30.0, 1e4, -1e4])
def test_value_and_gradient_stay_finite_at_certainty(gamma: float, margin: float) -> None:
    logits = torch.zeros(1, 7)
    logits[0, 4] = margin
    logits.requires_grad_()
    loss = _mean(logits, torch.tensor([4]), gamma=gamma)
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_halves_of_a_batch_join_to_the_mean_of_the_whole() -> None:
    logits, target = _batch()
    halves = [
        focal_terms(logits[part], WEIGHTS * F.one_hot(target[part], 7), gamma=2)
        for part in (slice(0, 20), slice(20, 64))
    ]
    joined = sum(loss for loss, _ in halves) / sum(weight for _, weight in halves)
    assert joined.item() == pytest.approx(_mean(logits, target, gamma=2).item(), rel=1e-6)


def test_gamma_between_zero_and_one_is_refused() -> None:
    with pytest.raises(SettingError, match="gamma"):
        _mean(*_batch(), gamma=0.5)


def test_class_weights_follow_the_counts() -> None:
    counts = [327, 514, 1099, 115, 1113, 6705, 0]
    weights = class_weights_from_counts(
        counts, targets=[MELANOMA_INDEX], tau=0.5, target_factor=2.0
    )
    nv, bcc = CLASSES.index("nv"), CLASSES.index("bcc")
    assert weights[bcc] / weights[nv] == pytest.approx((514 / 6705) ** -0.5, rel=1e-5)
    assert weights[MELANOMA_INDEX] / weights[nv] == pytest.approx(
        2 * (1113 / 6705) ** -0.5, rel=1e-5
    )
    assert weights[CLASSES.index("vasc")] == 0
    assert (weights * torch.tensor(counts)).sum() / sum(counts) == pytest.approx(1, rel=1e-5)


def test_offsets_are_what_the_source_says() -> None:
    """A network that adds nothing to them already predicts each source's own mix."""
    labels, sources = [0, 0, 0, 1, 1, 1, 1, 1], ["a"] * 4 + ["b"] * 4
    offsets = source_offsets(labels, sources, num_classes=2, strength=1.0)
    share = torch.tensor([3 / 8, 5 / 8])
    found = torch.softmax(offsets + share.log(), dim=1)
    expected_a = (torch.tensor([3.0, 1.0]) + share) / 5
    torch.testing.assert_close(found[0], expected_a)
    torch.testing.assert_close(found[4], (torch.tensor([0.0, 4.0]) + share) / 5)
    half = source_offsets(labels, sources, num_classes=2, strength=0.5)
    torch.testing.assert_close(half, offsets / 2)


def test_one_source_has_no_offsets() -> None:
    assert source_offsets([0, 1, 1], ["", "", ""], num_classes=3, strength=1.0).abs().max() < 1e-6


def test_a_soft_label_costs_the_mean_of_its_classes() -> None:
    logits, first = _batch()
    second = (first + 1) % 7
    shares = 0.3 * F.one_hot(first, 7) + 0.7 * F.one_hot(second, 7)
    ours, _ = focal_terms(logits, WEIGHTS * shares, gamma=2)
    parts = [
        focal_terms(logits, WEIGHTS * F.one_hot(each, 7), gamma=2)[0] for each in (first, second)
    ]
    assert ours.item() == pytest.approx((0.3 * parts[0] + 0.7 * parts[1]).item(), rel=1e-5)


def test_smoothing_spreads_a_share_of_the_label() -> None:
    labels = torch.tensor([4, 0])
    assert soft_labels(labels, 7, smoothing=0.14)[0].tolist() == pytest.approx(
        [0.02, 0.02, 0.02, 0.02, 0.88, 0.02, 0.02]
    )
    assert torch.equal(soft_labels(labels, 7), F.one_hot(labels, 7).float())
