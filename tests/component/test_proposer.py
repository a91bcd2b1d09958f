"""What the search proposes, and which setting it expects to be best: on surfaces that are known."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from melanoma.config import TrainConfig
from tune.proposer import NUM_RANDOM, Posterior, Proposal, Proposer
from tune.space import FACTOR, GAMMA, TAU, Sample, SearchSpace, plain

BASE = TrainConfig.from_dict({})
SPACE = SearchSpace.around(BASE)
GIVEN = [SPACE.sample_of(BASE), SPACE.sample_of(plain(BASE))]
NUM_FOLDS, NUM_TRIALS, NUM_SEARCHES = 5, 30, 5
FOLD_SPREAD, NOISE = 0.05, 0.04
Surface = Callable[[Sample], float]


def _proposer(seed: int = 0, proposed: list[Proposal] | None = None) -> Proposer:
    return Proposer(SPACE, GIVEN, num_folds=NUM_FOLDS, seed=seed, proposed=proposed or [])


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


def test_all_folds_of_the_given_settings_come_first() -> None:
    proposer = _proposer()
    proposals = [proposer.propose() for _ in range(2 * NUM_FOLDS)]
    assert [proposal.sample for proposal in proposals] == [GIVEN[0]] * 5 + [GIVEN[1]] * 5
    assert [proposal.fold for proposal in proposals] == [*range(5), *range(5)]


def test_a_planted_region_is_found() -> None:
    """Heavy targets and a moderate gamma are best, far from both given settings."""

    def surface(sample: Sample) -> float:
        return 0.75 - 0.1 * ((sample[GAMMA] - 2) / 5) ** 2 - _weights(sample)

    reached = [surface(_best(surface, seed)) for seed in range(NUM_SEARCHES)]
    assert np.mean(reached) > 0.75 - 0.02
    assert min(reached) > surface(GIVEN[0])


def test_where_focal_loss_hurts_gamma_is_zero() -> None:
    def surface(sample: Sample) -> float:
        return 0.75 - 0.04 * sample[GAMMA] - _weights(sample)

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
    places = np.array([[0.0], [0.0], [1.0], [1.0]])
    folds, values = np.array([0, 1, 0, 1]), np.array([0.80, 0.60, 0.82, 0.62])
    # The second setting is ahead on both folds. Seen on the hard one only, it would look worse.
    whole, _ = Posterior(places, folds, values).at(np.array([[0.0], [1.0]]))
    half, _ = Posterior(places[[0, 1, 3]], folds[[0, 1, 3]], values[[0, 1, 3]]).at(
        np.array([[0.0], [1.0]])
    )
    assert whole[1] > whole[0]
    assert half[1] > half[0] - 0.01


def test_a_training_is_worth_most_where_it_may_change_the_choice() -> None:
    """The expected best mean after one training, against drawing what that training shows."""
    rng = np.random.default_rng(0)
    places, folds = rng.random((12, 2)), np.arange(12) % 3
    values = 0.7 + 0.1 * places[:, 0] + rng.normal(0, 0.03, 12)
    posterior, at = Posterior(places, folds, values), rng.random((4, 2))
    mean, covariance = posterior.at(at)
    gains = posterior.gains(at)
    assert (gains >= mean.max() - 1e-12).all()
    noise = posterior.noise
    for index in range(4):
        shown = rng.normal(0, 1, 20_000)
        moved = mean + shown[:, None] * covariance[index] / np.sqrt(
            covariance[index, index] + noise**2
        )
        assert gains[index] == pytest.approx(moved.max(axis=1).mean(), abs=1e-3)


def test_trainings_at_the_same_time_are_no_copies() -> None:
    proposer, _ = _search(lambda sample: 0.7 - 0.15 * abs(sample[TAU] - 1), 0)
    together = [proposer.propose().sample for _ in range(4)]
    places = [SPACE.places_of(sample) for sample in together]
    apart = [float(np.abs(places[i] - places[j]).max()) for i in range(4) for j in range(i)]
    assert max(apart) > 0.1


def test_the_lead_of_the_base_is_zero() -> None:
    proposer, _ = _search(lambda sample: 0.7, 0)
    mean, sd = proposer.leads([GIVEN[0]])
    assert mean.tolist() == pytest.approx([0.0], abs=1e-12)
    assert sd.tolist() == pytest.approx([0.0], abs=1e-6)


def test_a_setting_that_failed_is_not_proposed_again() -> None:
    proposer = _proposer()
    failed = []
    for _ in range(60):
        proposal = proposer.propose()
        assert proposal.sample not in failed
        fails = proposal.sample[GAMMA] > 3
        failed += [proposal.sample] if fails else []
        proposer.tell(proposal, float("nan") if fails else 0.5 + proposal.sample[TAU] / 10)
    # It counts as the worst seen, so few trials go where others failed.
    later = [proposer.propose() for _ in range(10)]
    assert sum(proposal.sample[GAMMA] > 3 for proposal in later) <= 4


@pytest.mark.parametrize("cut", [3, 14, 30])
def test_an_interrupted_search_goes_on_as_if_it_had_not_been(cut: int) -> None:
    def play(proposer: Proposer, num: int) -> list[Proposal]:
        made = []
        for _ in range(num):
            made.append(proposer.propose())
            proposer.tell(made[-1], 0.7 - made[-1].sample[TAU] / 10 + made[-1].fold / 100)
        return made

    whole = play(_proposer(), 36)
    again = _proposer(proposed=whole[:cut])
    assert again.proposed == whole[:cut]
    assert play(again, 36) == whole
    assert again.proposed == whole
