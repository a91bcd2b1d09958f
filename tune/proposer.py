"""Proposes which fold of which setting a search trains next, and estimates each setting's lead.

The result of one fold is noisy: another seed moves it by as much as good settings differ. So the
search spreads its trainings over many settings, one fold at a time, and a Gaussian process tells
the signal from the noise. A search that trusted single figures would choose the luckiest setting.

Knows nothing of networks, files or Ray.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from melanoma.arrays import FloatArray
from tune.space import Sample, SearchSpace

NUM_RANDOM = 8
"""Settings drawn at random before the process proposes any."""
NUM_CANDIDATES = 256
_LENGTHS = (0.25, 0.5, 1.0)
_SIGNALS, _NOISES, _FOLDS = (0.01, 0.03, 0.1), (0.01, 0.03, 0.1), (0.0, 0.05)
"""The likeliest combination is used. Lengths are in sides of the unit cube; the others are standard
deviations of an objective in [0, 1]: of settings, of one training, and of folds."""

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
                self._length, self._signal = length, signal

    def at(self, places: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return mean ``(M,)`` and covariance ``(M, M)`` of the values of settings ``(M, D)``."""
        cross = _kernel(_squared(places, self._places), self._length, self._signal)
        prior = _kernel(_squared(places, places), self._length, self._signal)
        return self._mean + cross @ self._weights, prior - cross @ cho_solve(self._factor, cross.T)

    def draw(self, places: FloatArray, rng: np.random.Generator) -> FloatArray:
        """Return one draw of the values of settings ``(M, D)``, ``(M,)``."""
        mean, covariance = self.at(places)
        values, vectors = np.linalg.eigh(covariance)
        scaled = np.sqrt(np.maximum(values, 0.0)) * rng.standard_normal(len(values))
        drawn: FloatArray = mean + vectors @ scaled
        return drawn


def _squared(a: FloatArray, b: FloatArray) -> FloatArray:
    distances: FloatArray = ((a[:, None] - b[None]) ** 2).sum(axis=2)
    return distances


def _kernel(squared: FloatArray, length: float, signal: float) -> FloatArray:
    covariance: FloatArray = signal**2 * np.exp(-0.5 * squared / length**2)
    return covariance


class Proposer:
    """Proposes one training after another.

    First come all folds of the given settings, then one fold of each of some random settings. After
    that each proposal draws one surface from the posterior and takes its best setting (Thompson
    sampling). So several trainings at a time are no copies of each other. A setting may be proposed
    again, on another fold.

    A proposal depends on the seed, on its number and on the trainings so far. The same calls in the
    same order propose the same.

    Source: Thompson, On the likelihood that one unknown probability exceeds another, 1933.

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
        self._known: Posterior | None = None  # from what was seen; None if more was seen since

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
            proposal = Proposal(sample, int(rng.choice(untrained)))
        self._made.append(proposal)
        return proposal

    def tell(self, proposal: Proposal, value: float) -> None:
        """Record the objective of a training; NaN if its loss did not stay finite."""
        self._seen.append((proposal, value))
        self._known = None

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
        drawn = self._posterior().draw(self._places(open_), rng)
        return open_[int(drawn.argmax())]

    def _folds_of(self, sample: Sample) -> set[int]:
        return {proposal.fold for proposal in self._made if proposal.sample == sample}

    def _failed(self, sample: Sample) -> bool:
        return any(np.isnan(value) for proposal, value in self._seen if proposal.sample == sample)

    def _values(self) -> list[float]:
        return [value for _, value in self._seen if not np.isnan(value)]

    def _posterior(self) -> Posterior:
        # A setting whose loss does not stay finite counts as the worst that was seen, so that the
        # search leaves its neighbourhood.
        if self._known is None:
            worst = min(self._values())
            self._known = Posterior(
                self._places([proposal.sample for proposal, _ in self._seen]),
                np.array([proposal.fold for proposal, _ in self._seen]),
                np.array([worst if np.isnan(value) else value for _, value in self._seen]),
            )
        return self._known

    def _places(self, samples: Sequence[Sample]) -> FloatArray:
        return np.array([self._space.places_of(sample) for sample in samples])


def _distinct(proposals: Sequence[Proposal]) -> list[Sample]:
    return list(
        {tuple(proposal.sample.items()): proposal.sample for proposal in proposals}.values()
    )
