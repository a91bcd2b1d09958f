"""Proposes which fold of which setting a search trains next, and estimates each setting's lead.

The result of one fold is noisy: another seed moves it by as much as good settings differ. So the
search spreads its trainings over many settings, one fold at a time, and a Gaussian process tells
the signal from the noise. A search that trusted single figures would choose the luckiest setting.

Knows nothing of networks, files or Ray.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.stats import norm

from melanoma.arrays import FloatArray
from tune.space import Sample, SearchSpace

NUM_RANDOM = 8
"""Settings drawn at random before the process proposes any."""
NUM_CANDIDATES = 256
_LENGTHS = (0.25, 0.5, 1.0)
_SIGNALS, _NOISES, _FOLDS = (0.01, 0.03, 0.1), (0.01, 0.03, 0.1), (0.0, 0.05)
"""The likeliest combination is used. Lengths are in sides of the unit cube; the others are standard
deviations of an objective in [0, 1]: of settings, of one training, and of folds."""

_SURPRISES = norm.ppf((np.arange(9) + 0.5) / 9)
"""Standard normal values that stand for all that a training may show."""

Draw = Callable[[np.random.Generator], Sequence[Sample]]
"""Draws the candidates of one proposal."""


@dataclasses.dataclass(frozen=True)
class Proposal:
    """One fold of one setting.

    Attributes:
        sample: the setting.
        fold: the fold that is held out.
    """

    sample: Sample
    fold: int


class Posterior:
    """What some trainings say about all settings: a Gaussian process.

    The objective of a training is the value of its setting, plus the effect of its fold, plus
    noise. The effect of a fold is what makes it hard or easy for every setting.

    Source: Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, chapters 2 and 5.

    Args:
        places: ``(N, D)``, the settings in the unit cube.
        folds: ``(N,)``, the fold of each training.
        values: ``(N,)``, the objective of each, in [0, 1].

    Attributes:
        noise: standard deviation of one training.
    """

    def __init__(self, places: FloatArray, folds: NDArray[np.int_], values: FloatArray) -> None:
        self._places, self._mean = places, float(values.mean())
        squared, same_fold = _squared(places, places), folds[:, None] == folds[None, :]
        best = -np.inf
        for length, signal, noise, fold in itertools.product(_LENGTHS, _SIGNALS, _NOISES, _FOLDS):
            covariance = _kernel(squared, length, signal) + fold**2 * same_fold
            covariance[np.diag_indices_from(covariance)] += noise**2
            factor = cho_factor(covariance, lower=True)
            weights = cho_solve(factor, values - self._mean)
            likelihood = -0.5 * (values - self._mean) @ weights - np.log(np.diag(factor[0])).sum()
            if likelihood > best:
                best, self._weights, self._factor = likelihood, weights, factor
                self._length, self._signal, self.noise = length, signal, noise

    def at(self, places: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return mean ``(M,)`` and covariance ``(M, M)`` of the values of settings ``(M, D)``."""
        cross = _kernel(_squared(places, self._places), self._length, self._signal)
        prior = _kernel(_squared(places, places), self._length, self._signal)
        return self._mean + cross @ self._weights, prior - cross @ cho_solve(self._factor, cross.T)

    def gains(self, places: FloatArray) -> FloatArray:
        """Return what one more training of each setting ``(M, D)`` would be worth, ``(M,)``.

        It is how high the best mean among all M settings is expected to be after that training: the
        knowledge gradient. It is high where a setting may become the best, and where a training
        says much about settings nearby.

        Source: Frazier, Powell and Dayanik, The Knowledge-Gradient Policy for Correlated Normal
        Beliefs, 2009.
        """
        mean, covariance = self.at(places)
        # Column j: how the means move with each standard deviation of what a training of j shows.
        moves = covariance / np.sqrt(np.diag(covariance) + self.noise**2)
        expected: FloatArray = np.mean(
            [(mean[:, None] + moves * z).max(axis=0) for z in _SURPRISES], axis=0
        )
        return expected


def _squared(a: FloatArray, b: FloatArray) -> FloatArray:
    distances: FloatArray = ((a[:, None] - b[None]) ** 2).sum(axis=2)
    return distances


def _kernel(squared: FloatArray, length: float, signal: float) -> FloatArray:
    covariance: FloatArray = signal**2 * np.exp(-0.5 * squared / length**2)
    return covariance


class Proposer:
    """Proposes one training after another.

    First come all folds of the given settings, then one fold of each of some random settings. After
    that each proposal is the setting whose training would be worth most. A setting may be proposed
    again, on another fold; the fold is the one trained least. A training that has not ended counts
    as an average one, so that several at a time are no copies of each other.

    A proposal depends on the seed, on its number and on the trainings so far. The same calls in the
    same order propose the same.

    Args:
        space: where settings lie.
        given: the settings that are trained on all folds; the first is the base.
        num_folds: number of folds.
        seed: seed of the draws.
        draw: draws the candidates; by default from the whole space.
        proposed: proposals of an interrupted search, which are made again before any other.
    """

    def __init__(
        self,
        space: SearchSpace,
        given: Sequence[Sample],
        *,
        num_folds: int,
        seed: int,
        draw: Draw | None = None,
        proposed: Sequence[Proposal] = (),
    ) -> None:
        self._space, self._base, self._num_folds, self._seed = space, given[0], num_folds, seed
        self._draw = draw or (lambda rng: space.draw(rng, NUM_CANDIDATES))
        self._first = [Proposal(sample, fold) for sample in given for fold in range(num_folds)]
        self._again, self._made = list(proposed), list[Proposal]()
        self._seen: list[tuple[Proposal, float]] = []

    @property
    def proposed(self) -> list[Proposal]:
        """All proposals made so far, and those of an interrupted search that are still to come."""
        return self._made + self._again[len(self._made) :]

    def propose(self) -> Proposal:
        """Return the next training."""
        number = len(self._made)
        if number < len(self._again):
            proposal = self._again[number]
        elif number < len(self._first):
            proposal = self._first[number]
        else:
            rng = np.random.default_rng([self._seed, number])
            sample = self._next_sample(rng)
            untrained = sorted(set(range(self._num_folds)) - self._folds_of(sample))
            trained = Counter(proposal.fold for proposal in self._made)
            proposal = Proposal(
                sample, min(rng.permutation(untrained).tolist(), key=trained.__getitem__)
            )
        self._made.append(proposal)
        return proposal

    def tell(self, proposal: Proposal, value: float) -> None:
        """Record the objective of a training; NaN if its loss did not stay finite."""
        self._seen.append((proposal, value))

    def leads(self, samples: Sequence[Sample]) -> tuple[FloatArray, FloatArray]:
        """Return the expected lead of each setting over the base, and its standard deviation.

        Both are ``(M,)``. They rest on all trainings, also on those of settings nearby.
        """
        places = self._places([self._base, *samples])
        mean, covariance = self._posterior().at(places)
        variance = np.diag(covariance) + covariance[0, 0] - 2 * covariance[0]
        return mean[1:] - mean[0], np.sqrt(np.maximum(variance[1:], 0.0))

    def _next_sample(self, rng: np.random.Generator) -> Sample:
        open_ = [
            sample
            for sample in [*self._draw(rng), *_distinct(self._made)]
            if len(self._folds_of(sample)) < self._num_folds and not self._failed(sample)
        ]
        if len(self._made) < len(self._first) + NUM_RANDOM or not self._values():
            return open_[0]
        ended = [proposal for proposal, _ in self._seen]
        pending = [proposal for proposal in self._made if proposal not in ended]
        gains = self._posterior(pending).gains(self._places(open_))
        return open_[int(gains.argmax())]

    def _folds_of(self, sample: Sample) -> set[int]:
        return {proposal.fold for proposal in self._made if proposal.sample == sample}

    def _failed(self, sample: Sample) -> bool:
        return any(np.isnan(value) for proposal, value in self._seen if proposal.sample == sample)

    def _values(self) -> list[float]:
        return [value for _, value in self._seen if not np.isnan(value)]

    def _posterior(self, pending: Sequence[Proposal] = ()) -> Posterior:
        # A setting whose loss does not stay finite counts as the worst that was seen, so that the
        # search leaves its neighbourhood.
        worst, average = min(self._values()), float(np.mean(self._values()))
        trained = [(one, worst if np.isnan(value) else value) for one, value in self._seen]
        trained += [(one, average) for one in pending]
        return Posterior(
            self._places([proposal.sample for proposal, _ in trained]),
            np.array([proposal.fold for proposal, _ in trained]),
            np.array([value for _, value in trained]),
        )

    def _places(self, samples: Sequence[Sample]) -> FloatArray:
        return np.array([self._space.places_of(sample) for sample in samples])


def _distinct(proposals: Sequence[Proposal]) -> list[Sample]:
    return list(
        {tuple(proposal.sample.items()): proposal.sample for proposal in proposals}.values()
    )
