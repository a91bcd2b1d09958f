import pytest
import torch

from melanoma.config import AugmentConfig
from melanoma.imaging.random_ops import OPS, num_op_draws, random_ops

CONFIG = AugmentConfig(random_ops=2, op_strength=1)


def _images(num: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(40, 200, (num, 24, 32, 3), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("name", list(OPS))
def test_every_operation_changes_an_image_and_keeps_its_form(name: str) -> None:
    image = _images(1)[0].permute(2, 0, 1)
    changed = OPS[name](image, 0.8)
    assert (changed.shape, changed.dtype) == (image.shape, torch.uint8)
    assert not torch.equal(changed, image)


@pytest.mark.parametrize("name", ["posterize", "solarize", "sharpness", "shear_x", "shear_y"])
def test_a_strength_of_zero_changes_nothing(name: str) -> None:
    image = _images(1)[0].permute(2, 0, 1)
    assert torch.equal(OPS[name](image, 0.0), image)


def test_an_image_is_changed_alike_in_any_batch() -> None:
    images = _images()
    draws = torch.rand(4, num_op_draws(CONFIG), generator=torch.Generator().manual_seed(1))
    whole = random_ops(images, draws, CONFIG)
    alone = torch.cat([random_ops(images[i : i + 1], draws[i : i + 1], CONFIG) for i in range(4)])
    assert torch.equal(whole, alone)
    assert not torch.equal(whole, images)


def test_none_is_the_default() -> None:
    assert torch.equal(random_ops(_images(), torch.zeros(4, 0), AugmentConfig()), _images())
