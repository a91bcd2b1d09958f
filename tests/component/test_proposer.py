"""What the search proposes, and which setting it expects to be best: on surfaces that are known."""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from melanoma.config import TrainConfig
from tune.proposer import NUM_RANDOM, Posterior, Proposal, Proposer
from tune.space import FACTOR, GAMMA, TAU, Sample, SearchSpace, plain

BASE = TrainConfig.from_dict({})
SPACE = SearchSpace.around(BASE)
GIVEN = [SPACE.sample_of(BASE), SPACE.sample_of(plain(BASE))]
NUM_FOLDS, NUM_TRIALS, NUM_SEARCHES = 5, 30, 4
FOLD_SPREAD, NOISE = 0.05, 0.04
Surface = Callable[[Sample], float]


def _proposer(seed: int = 0, interrupted: Sequence[Proposal] = ()) -> Proposer:
    return Proposer(SPACE, GIVEN, num_folds=NUM_FOLDS, seed=seed, interrupted=interrupted)


@functools.cache
def _search(surface: Surface, seed: int) -> tuple[Proposer, list[Proposal]]:
    """Search a surface whose folds are hard or easy for all settings, and whose trainings vary."""
    rng = np.random.default_rng(seed)
    hard, proposer, proposals = rng.normal(0, FOLD_SPREAD, NUM_FOLDS), _proposer(seed), []
    for _ in range(len(GIVEN) * NUM_FOLDS + NUM_TRIALS):
        proposals.append(proposer.propose())
        value = surface(proposals[-1].sample) + hard[proposals[-1].fold] + rng.normal(0, NOISE)
        proposer.tell(proposals[-1], value)
    return proposer, proposals


def _best(surface: Surface, seed: int) -> Sample:
    proposer, proposals = _search(surface, seed)
    samples = [proposal.sample for proposal in proposals]
    return samples[int(proposer.leads(samples)[0].argmax())]


def _weights(sample: Sample) -> float:
    return 0.15 * (sample[TAU] - 0.8) ** 2 + 0.15 * (math.log(sample[FACTOR], 8) - 0.7) ** 2


def _far_from_the_given(sample: Sample) -> float:
    """Heavy targets and a moderate gamma are best, far from both given settings."""
    return 0.75 - 0.1 * ((sample[GAMMA] - 2) / 5) ** 2 - _weights(sample)


def _gamma_hurts(sample: Sample) -> float:
    return 0.75 - 0.04 * sample[GAMMA] - _weights(sample)


def test_all_folds_of_the_given_settings_come_first() -> None:
    proposer = _proposer()
    proposals = [proposer.propose() for _ in range(2 * NUM_FOLDS)]
    assert [proposal.sample for proposal in proposals] == [GIVEN[0]] * 5 + [GIVEN[1]] * 5
    assert [proposal.fold for proposal in proposals] == [*range(5), *range(5)]


def test_a_planted_region_is_found() -> None:
    surface = _far_from_the_given
    reached = [surface(_best(surface, seed)) for seed in range(NUM_SEARCHES)]
    assert np.mean(reached) > 0.75 - 0.02
    assert min(reached) > surface(GIVEN[0])


def test_where_focal_loss_hurts_gamma_is_zero() -> None:
    surface = _gamma_hurts
    best = [_best(surface, seed) for seed in range(NUM_SEARCHES)]
    assert sum(sample[GAMMA] == 0 for sample in best) >= NUM_SEARCHES - 1
    # Not because the given settings, which have gamma 0, win by themselves.
    assert np.mean([surface(sample) for sample in best]) > max(map(surface, GIVEN)) + 0.02


def test_more_trials_go_where_the_lead_is() -> None:
    _, proposals = _search(lambda sample: 0.7 - 0.15 * abs(sample[TAU] - 1), 0)
    chosen = proposals[2 * NUM_FOLDS + NUM_RANDOM :]
    assert np.mean([proposal.sample[TAU] for proposal in chosen]) > 0.7
    assert len({(*proposal.sample.values(), proposal.fold) for proposal in proposals}) == len(
        proposals
    ), "a fold of a setting was proposed twice"


def test_a_hard_fold_says_nothing_about_a_setting() -> None:
    """Settings 0 and 1 are seen on easy folds, setting 2 only on a hard one, where it is ahead."""
    places = np.array([[0.0], [0.0], [0.0], [0.5], [0.5], [0.5], [1.0]])
    folds = np.array([0, 1, 2, 0, 1, 2, 2])
    values = np.array([0.80, 0.79, 0.60, 0.81, 0.80, 0.61, 0.66])
    assert values[6] < values[:6].mean()
    mean, _ = Posterior(places, folds, values).at(np.array([[0.0], [0.5], [1.0]]))
    assert mean[2] > mean[1] > mean[0]


def test_what_a_training_is_worth_is_how_much_it_raises_the_best_mean() -> None:
    """Against drawing what the training may show, and conditioning on it."""
    rng = np.random.default_rng(0)
    places, folds = np.array([[0.1], [0.5], [0.9]]), np.zeros(3, dtype=int)
    posterior = Posterior(places, folds, np.array([0.70, 0.66, 0.71]))
    at = np.array([[0.1], [0.5], [0.9]])
    mean, covariance = posterior.at(at)
    gains = posterior.gains(at)
    expected = []
    for index in range(3):
        sd = math.sqrt(covariance[index, index] + posterior.noise**2)
        moved = mean + rng.normal(0, 1, (400_000, 1)) * covariance[index] / sd
        expected.append(moved.max(axis=1).mean() - mean.max())
    assert min(expected) > 1e-4
    assert gains.tolist() == pytest.approx(expected, rel=0.1)


def test_a_training_that_has_not_ended_is_taken_into_account() -> None:
    """Of two places that are worth the same, the one that is being trained is worth less."""
    low, high = ({GAMMA: gamma, TAU: 0.5, FACTOR: 1.0} for gamma in (0.0, 5.0))
    base = {GAMMA: 2.5, TAU: 0.5, FACTOR: 1.0}
    samples, folds = [base] * 6 + [low] * 4 + [high] * 4, [*range(6), *range(4), *range(4)]
    begun = [Proposal(sample, fold) for sample, fold in zip(samples, folds, strict=True)]
    proposer = Proposer(
        SPACE,
        [base],
        num_folds=6,
        seed=0,
        draw=lambda rng: [low, high],
        interrupted=begun,
    )
    for _ in begun:
        proposal = proposer.propose()
        proposer.tell(proposal, 0.7 + 0.01 * proposal.fold)
    chosen = Counter(proposer.propose().sample[GAMMA] for _ in range(2))
    assert chosen == {0.0: 1, 5.0: 1}


def test_what_is_stated_of_leads_holds() -> None:
    """Their standard deviation is that of their errors: 95 % of them are within two."""
    errors = []
    for surface, seed in itertools.product(
        (_far_from_the_given, _gamma_hurts), range(NUM_SEARCHES)
    ):
        proposer, proposals = _search(surface, seed)
        tried = [proposal.sample for proposal in proposals[2 * NUM_FOLDS :]]
        mean, sd = proposer.leads(tried)
        true = np.array([surface(sample) for sample in tried]) - surface(GIVEN[0])
        errors += ((mean - true) / sd).tolist()
    assert 0.6 < np.std(errors) < 1.5
    assert np.mean(np.abs(errors) < 2) > 0.85


def test_the_lead_of_the_base_is_zero() -> None:
    proposer, _ = _search(_gamma_hurts, 0)
    mean, sd = proposer.leads([GIVEN[0]])
    assert mean.tolist() == pytest.approx([0.0], abs=1e-12)
    assert sd.tolist() == pytest.approx([0.0], abs=1e-6)


def test_a_setting_that_failed_is_not_proposed_again() -> None:
    proposer = _proposer()
    failed = []
    for _ in range(40):
        proposal = proposer.propose()
        assert proposal.sample not in failed
        fails = proposal.sample[GAMMA] > 3
        failed += [proposal.sample] if fails else []
        proposer.tell(proposal, None if fails else 0.5 + proposal.sample[GAMMA] / 20)
    # It counts as the worst seen. Otherwise more would be expected of more gamma.
    leads, _ = proposer.leads([{GAMMA: g, TAU: 0.5, FACTOR: 1.0} for g in (2.5, 4.5)])
    assert leads[0] > leads[1]


@pytest.mark.parametrize("cut", [3, 14, 30])
def test_an_interrupted_search_goes_on_as_if_it_had_not_been(cut: int) -> None:
    def play(proposer: Proposer, num: int) -> list[Proposal]:
        made = []
        for _ in range(num):
            made.append(proposer.propose())
            proposer.tell(made[-1], 0.7 - made[-1].sample[TAU] / 10 + made[-1].fold / 100)
        return made

    whole = play(_proposer(), 36)
    again = _proposer(interrupted=whole[:cut])
    assert again.proposals == whole[:cut]
    assert play(again, 36) == whole
    assert again.proposals == whole


def test_objectives_that_are_all_equal_put_no_setting_ahead() -> None:
    proposer = _proposer()
    proposals = [proposer.propose() for _ in range(14)]
    for proposal in proposals:
        proposer.tell(proposal, 0.5)
    leads, _ = proposer.leads([proposal.sample for proposal in proposals])
    assert leads.tolist() == [0.0] * 14


def test_a_scale_of_the_objective_changes_nothing() -> None:
    """Partial AUROC lies in [0, 0.2], other objectives in [0, 1]."""
    places, folds = np.random.default_rng(0).random((9, 2)), np.arange(9) % 3
    values = np.sin(9 * places[:, 0])
    large, small = (Posterior(places, folds, scale * values).at(places) for scale in (1.0, 0.01))
    assert small[0] == pytest.approx(0.01 * large[0])
    assert small[1] == pytest.approx(1e-4 * large[1])
