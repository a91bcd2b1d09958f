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
from threadpoolctl import threadpool_limits

from melanoma.arrays import FloatArray
from tune.space import Sample, SearchSpace

NUM_RANDOM = 2
"""Settings drawn at random before the process proposes any."""
NUM_CANDIDATES = 256
_LENGTHS = (0.25, 0.5, 1.0)
_SIGNALS, _NOISES, _FOLDS = (0.15, 0.35, 0.7, 1.2), (0.25, 0.5, 0.75, 1.0), (0.0, 0.4, 0.8)
"""The scales that a process may have. Lengths are in sides of the unit cube. The others are
standard deviations of settings, trainings and folds, as shares of that of all objectives seen."""
_LEAST_WEIGHT = 1e-3  # scales that are less likely than this beside the likeliest are left out
_NORMAL = norm.ppf((np.arange(33) + 0.5) / 33)
"""Equally likely values of a standard normal variable."""

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


@dataclasses.dataclass(frozen=True)
class _Process:
    """A Gaussian process of known scales, conditioned on some trainings.

    Attributes:
        length: over which settings are alike.
        signal: standard deviation of settings.
        noise: standard deviation of a training.
        log_likelihood: of the trainings, without a constant.
        factor: the Cholesky factor of their covariance, as scipy returns it.
        weights: ``(N,)``, the inverse of that covariance times the objectives.
    """

    length: float
    signal: float
    noise: float
    log_likelihood: float
    factor: tuple[FloatArray, bool]
    weights: FloatArray

    def at(self, squared: FloatArray, cross: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return mean ``(M,)`` and covariance ``(M, M)`` of the values of M settings.

        Args:
            squared: ``(M, M)``, squared distances between them.
            cross: ``(M, N)``, squared distances to the settings of the trainings.
        """
        prior = _kernel(squared, self.length, self.signal)
        to_seen = _kernel(cross, self.length, self.signal)
        return to_seen @ self.weights, prior - to_seen @ cho_solve(self.factor, to_seen.T)


class Posterior:
    """What some trainings say about all settings: Gaussian processes of several scales.

    The objective of a training is the value of its setting, plus the effect of its fold, plus
    noise. The effect of a fold is what makes it hard or easy for every setting. Each process counts
    by the likelihood of what was seen. One process alone, the likeliest, would be too sure of
    itself.

    Source: Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, chapters 2 and 5.

    Args:
        places: ``(N, D)``, the settings in the unit cube.
        folds: ``(N,)``, the fold of each training.
        values: ``(N,)``, the objective of each.

    Attributes:
        noise: standard deviation of one training.
    """

    def __init__(self, places: FloatArray, folds: NDArray[np.int_], values: FloatArray) -> None:
        self._places, self._mean = places, float(values.mean())
        self._scale = float(values.std()) or 1.0
        scaled = (values - self._mean) / self._scale
        squared, same_fold = _squared(places, places), folds[:, None] == folds[None, :]
        scales = itertools.product(_LENGTHS, _SIGNALS, _NOISES, _FOLDS)
        with _one_thread():
            processes = [_condition(squared, same_fold, scaled, *each) for each in scales]
        likelihoods = np.array([process.log_likelihood for process in processes])
        weights = np.exp(likelihoods - likelihoods.max())
        kept = np.flatnonzero(weights > _LEAST_WEIGHT)
        self._processes = [processes[index] for index in kept]
        self._weights = weights[kept] / weights[kept].sum()
        variances = np.array([process.noise**2 for process in self._processes])
        self.noise = self._scale * float(np.sqrt(self._weights @ variances))

    def at(self, places: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return mean ``(M,)`` and covariance ``(M, M)`` of the values of settings ``(M, D)``."""
        squared, cross = _squared(places, places), _squared(places, self._places)
        with _one_thread():
            each = [process.at(squared, cross) for process in self._processes]
            means = np.array([mean for mean, _ in each])
            mean = self._weights @ means
            covariance = np.tensordot(self._weights, np.array([one for _, one in each]), 1)
            covariance += (self._weights[:, None] * (means - mean)).T @ (means - mean)
        return self._mean + self._scale * mean, self._scale**2 * covariance

    def gains(self, places: FloatArray) -> FloatArray:
        """Return what one more training of each setting ``(M, D)`` would be worth, ``(M,)``.

        It is by how much that training is expected to raise the best mean among these M settings:
        the knowledge gradient, computed for a normal posterior with the same mean and covariance.
        It is high where a setting may become the best, and where a training says much about
        settings nearby.

        Source: Frazier, Powell and Dayanik, The Knowledge-Gradient Policy for Correlated Normal
        Beliefs, 2009.
        """
        mean, covariance = self.at(places)
        # Column j: how the means move with each standard deviation of what a training of j shows.
        moves = covariance / np.sqrt(np.diag(covariance) + self.noise**2)
        best = np.mean([(mean[:, None] + moves * z).max(axis=0) for z in _NORMAL], axis=0)
        gains: FloatArray = best - mean.max()
        return gains


def _one_thread() -> threadpool_limits:
    """Return a context in which BLAS uses one thread: on small matrices several only wait."""
    return threadpool_limits(1, user_api="blas")


def _condition(
    squared: FloatArray,
    same_fold: NDArray[np.bool_],
    values: FloatArray,
    length: float,
    signal: float,
    noise: float,
    fold: float,
) -> _Process:
    covariance = _kernel(squared, length, signal) + fold**2 * same_fold
    covariance[np.diag_indices_from(covariance)] += noise**2
    factor = cho_factor(covariance, lower=True)
    weights = cho_solve(factor, values)
    log_likelihood = -0.5 * float(values @ weights) - float(np.log(np.diag(factor[0])).sum())
    return _Process(length, signal, noise, log_likelihood, factor, weights)


def _squared(a: FloatArray, b: FloatArray) -> FloatArray:
    distances: FloatArray = ((a[:, None] - b[None]) ** 2).sum(axis=2)
    return distances


def _kernel(squared: FloatArray, length: float, signal: float) -> FloatArray:
    covariance: FloatArray = signal**2 * np.exp(-0.5 * squared / length**2)
    return covariance


class Proposer:
    """Proposes one training after another.

    First come all folds of the given settings, then one fold of each of some random settings. After
    that each proposal is the setting whose training would be worth most, among random new settings
    and those tried that have a fold left. The fold is the one trained least. A training that has
    not ended counts as an average one on its fold, so that trainings at the same time do not repeat
    each other.

    A proposal depends on the seed, on its number and on the trainings so far. The same calls in the
    same order propose the same.

    Args:
        space: where settings lie.
        given: the settings that are trained on all folds; the first is the base.
        num_folds: number of folds.
        seed: seed of the draws.
        draw: draws the candidates; by default from the whole space.
        interrupted: the proposals of an interrupted search, which are made again before any other.
    """

    def __init__(
        self,
        space: SearchSpace,
        given: Sequence[Sample],
        *,
        num_folds: int,
        seed: int,
        draw: Draw | None = None,
        interrupted: Sequence[Proposal] = (),
    ) -> None:
        self._space, self._base, self._num_folds, self._seed = space, given[0], num_folds, seed
        self._draw = draw or (lambda rng: space.draw(rng, NUM_CANDIDATES))
        self._given = [Proposal(sample, fold) for sample in given for fold in range(num_folds)]
        self._interrupted, self._proposed = list(interrupted), list[Proposal]()
        self._ended: list[tuple[Proposal, float | None]] = []
        self._known: dict[tuple[int, int], Posterior] = {}  # the last, by what it rests on

    @property
    def proposals(self) -> list[Proposal]:
        """All proposals made so far, and those of an interrupted search that are still to come."""
        return self._proposed + self._interrupted[len(self._proposed) :]

    def propose(self) -> Proposal:
        """Return the next training."""
        number = len(self._proposed)
        if number < len(self._interrupted):
            proposal = self._interrupted[number]
        elif number < len(self._given):
            proposal = self._given[number]
        else:
            proposal = self._choose(np.random.default_rng([self._seed, number]))
        self._proposed.append(proposal)
        return proposal

    def tell(self, proposal: Proposal, value: float | None) -> None:
        """Record the objective of a training; None if it failed and would fail again."""
        self._ended.append((proposal, value))

    def leads(self, samples: Sequence[Sample]) -> tuple[FloatArray, FloatArray]:
        """Return the expected lead of each setting over the base, and its standard deviation.

        Both are ``(M,)``. They rest on all trainings, also on those of settings nearby.
        """
        places = self._places([self._base, *samples])
        mean, covariance = self._posterior().at(places)
        variance = np.diag(covariance) + covariance[0, 0] - 2 * covariance[0]
        return mean[1:] - mean[0], np.sqrt(np.maximum(variance[1:], 0.0))

    def _choose(self, rng: np.random.Generator) -> Proposal:
        candidates = [
            sample
            for sample in [*self._draw(rng), *_distinct(self._proposed)]
            if len(self._folds_of(sample)) < self._num_folds and not self._failed(sample)
        ]
        chosen = 0
        if len(self._proposed) >= len(self._given) + NUM_RANDOM and self._values():
            ended = [proposal for proposal, _ in self._ended]
            pending = [proposal for proposal in self._proposed if proposal not in ended]
            gains = self._posterior(pending).gains(self._places(candidates))
            chosen = int(gains.argmax())
        untrained = sorted(set(range(self._num_folds)) - self._folds_of(candidates[chosen]))
        trained = Counter(proposal.fold for proposal in self._proposed)
        fold = min(rng.permutation(untrained).tolist(), key=trained.__getitem__)
        return Proposal(candidates[chosen], fold)

    def _folds_of(self, sample: Sample) -> set[int]:
        return {proposal.fold for proposal in self._proposed if proposal.sample == sample}

    def _failed(self, sample: Sample) -> bool:
        return any(value is None for proposal, value in self._ended if proposal.sample == sample)

    def _values(self) -> list[float]:
        return [value for _, value in self._ended if value is not None]

    def _posterior(self, pending: Sequence[Proposal] = ()) -> Posterior:
        # A failed training counts as the worst that was seen, so that the search leaves its
        # neighbourhood.
        key = len(self._ended), len(pending)
        if key not in self._known:
            worst = min(self._values())
            trained = [(one, worst if value is None else value) for one, value in self._ended]
            trained += [(one, self._average(one.fold)) for one in pending]
            posterior = Posterior(
                self._places([proposal.sample for proposal, _ in trained]),
                np.array([proposal.fold for proposal, _ in trained]),
                np.array([value for _, value in trained]),
            )
            self._known = {key: posterior}
        return self._known[key]

    def _average(self, fold: int) -> float:
        on_fold = [value for one, value in self._ended if value is not None and one.fold == fold]
        return float(np.mean(on_fold or self._values()))

    def _places(self, samples: Sequence[Sample]) -> FloatArray:
        return np.array([self._space.places_of(sample) for sample in samples])


def _distinct(proposals: Sequence[Proposal]) -> list[Sample]:
    return list(
        {tuple(proposal.sample.items()): proposal.sample for proposal in proposals}.values()
    )
