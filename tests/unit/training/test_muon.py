import copy
import functools
import math

import pytest
import timm.optim.muon
import torch

from melanoma.config import ModelConfig, OptimConfig
from melanoma.training import muon
from melanoma.training.muon import Muon, is_matrix, share_out
from melanoma.training.networks import build_model, parameter_groups
from tests.tasks import CLASSES


def _gradients(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("backbone", ["test_convnext", "test_efficientnet", "test_resnet"])
def test_it_steps_as_timms_does_in_float32(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_float32 = functools.partial(timm.optim.muon.zeropower_via_newtonschulz, dtype=torch.float32)
    monkeypatch.setattr(timm.optim.muon, "zeropower_via_newtonschulz", in_float32)
    config = ModelConfig(backbone=backbone)
    torch.manual_seed(0)
    ours, theirs = build_model(config, len(CLASSES)), build_model(config, len(CLASSES))
    theirs.load_state_dict(ours.state_dict())
    optim = OptimConfig(layer_decay=0.8)
    steps = [
        Muon(parameter_groups(ours, optim), lr=0.01),
        timm.optim.muon.Muon(parameter_groups(theirs, optim), lr=0.01),
    ]
    for seed in range(3):
        for model, optimizer in zip((ours, theirs), steps, strict=True):
            _gradients(model, seed)
            optimizer.step()
    for name, value in ours.state_dict().items():
        assert torch.allclose(value, theirs.state_dict()[name], atol=1e-6), name


def test_every_product_on_a_cpu_is_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without bfloat16 instructions one product takes 25 times as long in it."""
    kinds = set()

    def watched(matrix: torch.Tensor) -> torch.Tensor:
        kinds.add(matrix.dtype)
        return matrix

    monkeypatch.setattr("melanoma.training.muon.orthogonalised", watched)
    model = build_model(ModelConfig(backbone="test_convnext"), len(CLASSES))
    _gradients(model, 0)
    Muon(model.parameters(), lr=0.01).step()
    assert kinds == {torch.float32}


def test_a_saved_state_goes_on_bit_for_bit() -> None:
    torch.manual_seed(0)
    first, second = (
        build_model(ModelConfig(backbone="test_convnext"), len(CLASSES)) for _ in range(2)
    )
    second.load_state_dict(first.state_dict())
    one, two = Muon(first.parameters(), lr=0.01), Muon(second.parameters(), lr=0.01)
    _gradients(first, 0)
    one.step()
    second.load_state_dict(first.state_dict())
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    for model, optimizer in ((first, one), (second, two)):
        _gradients(model, 1)
        optimizer.step()
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@pytest.mark.parametrize("shape", [(40, 160), (160, 40), (64, 64), (96, 48), (7, 300)])
@pytest.mark.parametrize("condition", [1e1, 1e3, 1e8])
def test_what_is_orthogonalised_is_what_newton_and_schulz_give(
    shape: tuple[int, int], condition: float
) -> None:
    """On the smaller Gram matrix as on the matrix itself, for matrices of any condition."""
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(side, min(shape), generator=generator, dtype=torch.float64))[0]
        for side in shape
    )
    values = torch.logspace(0, -math.log10(condition), min(shape), dtype=torch.float64)
    matrix = (left * values) @ right.T
    expected = timm.optim.muon.zeropower_via_newtonschulz(
        matrix, 5, muon._COEFFICIENTS, eps=1e-7, dtype=torch.float64
    )
    found = muon.orthogonalised(matrix.float())
    short = muon.orthogonalised(matrix.bfloat16())  # as on a GPU
    assert short.dtype == torch.bfloat16
    assert float(torch.linalg.matrix_norm(short.double(), 2)) < 1.5
    # Directions that hold less than 1e-3 of the norm are noise in float32.
    kept = values > 1e-3
    difference = left[:, kept].T @ (found.double() - expected) @ right[:, kept]
    assert float(difference.abs().max()) < 0.02
    assert float(torch.linalg.matrix_norm(found.double(), 2)) < 1.3


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((64, 128), True),
        ((96, 3, 4, 4), True),
        ((64, 1, 7, 7), False),
        ((64,), False),
        ((3, 9), False),
        ((4, 2048), False),
    ],
)
def test_what_is_a_matrix(shape: tuple[int, ...], expected: bool) -> None:
    assert is_matrix(torch.zeros(shape)) is expected


def test_work_is_shared_out_evenly() -> None:
    owners = share_out([5, 1, 4, 3, 3], 2)
    loads = [
        sum(cost for cost, owner in zip([5, 1, 4, 3, 3], owners, strict=True) if owner == rank)
        for rank in (0, 1)
    ]
    assert loads == [8, 8]
