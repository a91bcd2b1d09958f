import numpy as np
import torch

from melanoma.config import AugmentConfig
from melanoma.imaging.augmentation import NUM_DRAWS, _recolour, augment, image_keys, uniform_draws
from melanoma.imaging.preprocess import resize

IDS = [f"ISIC_{number:07d}" for number in range(4000)]


def _images(num: int) -> torch.Tensor:
    return torch.randint(
        0, 256, (num, 48, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )


def test_an_image_is_changed_alike_in_any_batch() -> None:
    keys, images = image_keys(IDS[:8]), _images(8)
    draws = uniform_draws(keys, seed=1, epoch=2)
    whole = augment(images, draws, AugmentConfig(), (24, 32))
    alone = augment(
        images[5:6], uniform_draws(keys[5:6], seed=1, epoch=2), AugmentConfig(), (24, 32)
    )
    assert torch.allclose(whole[5], alone[0], atol=1e-6)


def test_seed_epoch_and_image_each_change_the_draws() -> None:
    keys = image_keys(IDS[:2])
    base = uniform_draws(keys, seed=1, epoch=2)
    assert not torch.equal(base, uniform_draws(keys, seed=1, epoch=3))
    assert not torch.equal(base, uniform_draws(keys, seed=2, epoch=2))
    assert not torch.equal(base[0], base[1])


def test_draws_are_uniform_and_uncorrelated() -> None:
    draws = uniform_draws(image_keys(IDS), seed=0, epoch=0).numpy()
    assert draws.min() >= 0
    assert draws.max() < 1
    assert np.abs(draws.mean(axis=0) - 0.5).max() < 0.02
    assert np.abs(np.corrcoef(draws.T) - np.eye(NUM_DRAWS)).max() < 0.06


def test_turning_keeps_shapes_round() -> None:
    """Turning must happen in pixels, not in the stretched coordinates of a 4:3 image."""
    y, x = np.mgrid[0:96, 0:128]
    disc = np.where(np.hypot(x - 63.5, y - 47.5) < 30, 255, 0).astype(np.uint8)
    images = torch.from_numpy(disc)[None, :, :, None].repeat(16, 1, 1, 3)
    plain = AugmentConfig(zoom=1, shift=0, brightness=0, contrast=0, saturation=0, tint=0)
    turned = augment(images, uniform_draws(image_keys(IDS[:16]), seed=0, epoch=0), plain, (96, 128))
    centre = np.hypot(x - 63.5, y - 47.5) < 40  # beyond it the reflected border comes in
    assert (turned[:, 0] - images[:, :, :, 0] / 255).abs()[:, centre].mean() < 0.02


def test_colours_change_step_by_step_as_described() -> None:
    """Tint, brightness, contrast, saturation, each by itself, give what one matrix gives."""
    config = AugmentConfig(brightness=0.3, contrast=0.4, saturation=0.5, tint=0.2)
    images, draws = torch.rand(5, 3, 6, 8) * 255, torch.rand(5, NUM_DRAWS)

    def factor(column: int, amount: float) -> torch.Tensor:
        return (1 + (2 * draws[:, column] - 1) * amount).view(-1, 1, 1, 1)

    expected = images / 255
    expected = expected * (1 + (2 * draws[:, 8:11] - 1) * config.tint).view(-1, 3, 1, 1)
    expected = expected * factor(5, config.brightness)
    mean = expected.mean(dim=(1, 2, 3), keepdim=True)
    expected = mean + (expected - mean) * factor(6, config.contrast)
    grey = expected.mean(dim=1, keepdim=True)
    expected = (grey + (expected - grey) * factor(7, config.saturation)).clamp(0, 1)
    assert torch.allclose(_recolour(images, draws, config), expected, atol=1e-5)


def test_a_much_larger_image_is_shrunk_in_8_bits_as_in_floats() -> None:
    """Only rounding tells the two apart."""
    images = torch.randint(0, 256, (3, 96, 128, 3), dtype=torch.uint8)
    draws = torch.full((3, NUM_DRAWS), 0.5)  # changes no colour
    found = augment(images, draws, AugmentConfig(), (24, 32))
    shrunk = resize(images.permute(0, 3, 1, 2).float(), (48, 64))
    again = augment(shrunk.permute(0, 2, 3, 1), draws, AugmentConfig(), (24, 32))
    assert found.shape == (3, 3, 24, 32)
    assert (found - again).abs().max() <= 1 / 255
