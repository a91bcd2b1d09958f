"""Muon: matrices step along their orthogonalised momentum, all other parameters use AdamW.

timm has the same optimiser, but it orthogonalises in bfloat16 on every device. A CPU without
bfloat16 instructions takes 25 times as long for that, and results would depend on the processor.
Here CPUs use float32, and the ranks of a run share the matrices. Knows no network by name.
"""

from collections.abc import Iterable
from typing import Any

import torch
from timm.optim.muon import get_lr_scale, zeropower_via_newtonschulz
from torch import Tensor

from melanoma.training.distributed import World

# Cesista, Squeezing 1-2 % efficiency gains out of Muon by optimizing the Newton-Schulz
# coefficients, 2025; timm's "quintic".
_COEFFICIENTS = [
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
]
_EPS = 1e-7
_MIN_SIDE, _MAX_ASPECT_RATIO = 4, 128
_MIN_GRAM_RATIO = 1.5
"""Ratio of the sides from which products with the Gram matrix alone are cheaper."""


class Muon(torch.optim.AdamW):
    """Muon for matrices, and AdamW for all other parameters.

    Source: Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024.

    Every rank must hold the same gradients, as it does after DDP's backward pass. Each rank
    orthogonalises its share of the matrices, and the shares are then summed. The step therefore
    does not depend on the number of ranks.

    Args:
        params: parameters or groups of them, as for AdamW.
        lr: learning rate.
        momentum: momentum of the gradients of matrices, in [0, 1).
        world: the ranks that share the work; None means this process alone.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        momentum: float = 0.95,
        world: World | None = None,
    ) -> None:
        super().__init__(params, lr=lr, betas=(0.9, 0.95), eps=_EPS, weight_decay=0.0, fused=True)
        self._momentum, self._world = momentum, world or World()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step; a closure is not supported."""
        matrices = [
            (parameter, group)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and is_matrix(parameter)
        ]
        momenta = [self._update_momentum(parameter) for parameter, _ in matrices]
        for (parameter, group), update in zip(matrices, self._orthogonalise(momenta), strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            scale = get_lr_scale(update.shape, "match_rms_adamw")
            parameter.add_(update.view_as(parameter), alpha=-group["lr"] * scale)
        gradients = [parameter.grad for parameter, _ in matrices]
        for parameter, _ in matrices:
            parameter.grad = None  # AdamW skips parameters without a gradient
        super().step()
        for (parameter, _), gradient in zip(matrices, gradients, strict=True):
            parameter.grad = gradient

    def _update_momentum(self, parameter: Tensor) -> Tensor:
        """Add a parameter's gradient to its momentum.

        Returns:
            The momentum as a matrix, ``(out, in * height * width)``.
        """
        state = self.state[parameter]
        if not state:
            # When AdamW loads a saved state, it expects a "step" for every parameter.
            state |= {"step": torch.tensor(0.0), "momentum": torch.zeros_like(parameter)}
        state["step"] += 1
        state["momentum"].lerp_(parameter.grad, 1 - self._momentum)
        matrix: Tensor = state["momentum"].flatten(1)
        return matrix

    def _orthogonalise(self, momenta: list[Tensor]) -> list[Tensor]:
        """Return the semi-orthogonal matrix nearest to each momentum.

        Each rank computes its share. The sum over ranks fills in the other shares, because every
        matrix is zero on all ranks but its owner.
        """
        if not momenta:
            return []
        owners = share_out([_cost(momentum) for momentum in momenta], self._world.size)
        sizes = [momentum.numel() for momentum in momenta]
        whole = torch.zeros(sum(sizes), device=momenta[0].device)
        parts = [
            part.view_as(momentum)
            for part, momentum in zip(torch.split(whole, sizes), momenta, strict=True)
        ]
        for part, momentum, owner in zip(parts, momenta, owners, strict=True):
            if owner == self._world.rank:
                # GPUs have bfloat16 in hardware; most CPUs do not.
                dtype = torch.bfloat16 if momentum.is_cuda else torch.float32
                part.copy_(orthogonalised(momentum.to(dtype)))
        self._world.sum_(whole)
        return parts


def orthogonalised(matrix: Tensor) -> Tensor:
    """Return nearly the semi-orthogonal matrix that is nearest to a matrix ``(m, n)``.

    Each Newton-Schulz iteration multiplies the matrix X by a polynomial of its Gram matrix
    G = X X', so all iterations together multiply it by one symmetric matrix of the smaller side.
    For long matrices it is cheaper to compute that one first: X itself then enters two products
    instead of ten. In bfloat16 that is not done: rounding makes small eigenvalues of G negative,
    and the iterations would enlarge them.

    Source of the iterations: Jordan et al., Muon: an optimizer for hidden layers in neural
    networks, 2024.
    """
    short, long = sorted(matrix.shape)
    if long < _MIN_GRAM_RATIO * short or matrix.dtype != torch.float32:
        direct: Tensor = zeropower_via_newtonschulz(
            matrix, len(_COEFFICIENTS), _COEFFICIENTS, eps=_EPS, dtype=matrix.dtype
        )
        return direct
    rows = matrix if len(matrix) == short else matrix.T
    rows = rows / (rows.norm() + _EPS)
    gram = rows @ rows.T
    whole = torch.eye(short, dtype=rows.dtype, device=rows.device)
    for number, (a, b, c) in enumerate(_COEFFICIENTS):
        # The polynomial by which this iteration multiplies X: a + b G + c G^2.
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal().add_(a)
        whole = polynomial if number == 0 else polynomial @ whole
        if number + 1 < len(_COEFFICIENTS):
            gram = polynomial @ gram @ polynomial
    found: Tensor = whole @ rows
    return found if len(matrix) == short else found.T


def is_matrix(parameter: Tensor) -> bool:
    """Return whether the rows of a parameter can be made orthogonal.

    That holds for matrices and for convolutions that mix channels, unless they are very small or
    very elongated.
    """
    if parameter.ndim < 2 or 1 in parameter.shape[:2]:
        return False
    short, long = sorted((parameter.shape[0], parameter[0].numel()))
    return short >= _MIN_SIDE and long <= _MAX_ASPECT_RATIO * short


def share_out(costs: list[int], num_ranks: int) -> list[int]:
    """Return the rank that takes each item.

    The items are dealt in order of falling cost, each to the rank with the least work so far.
    """
    owners, loads = [0] * len(costs), [0] * num_ranks
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        owners[index] = loads.index(min(loads))
        loads[owners[index]] += costs[index]
    return owners


def _cost(matrix: Tensor) -> int:
    """Return the cost of orthogonalising a matrix, up to a constant factor.

    It counts the multiplications in `orthogonalised`.
    """
    short, long = sorted(matrix.shape)
    direct, by_gram = 5 * (2 * long + short), 2 * long + 17 * short
    return short * short * (by_gram if long >= _MIN_GRAM_RATIO * short else direct)
