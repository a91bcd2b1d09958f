import pytest
import torch

from melanoma.config import AugmentConfig
from melanoma.errors import SettingError
from melanoma.imaging.mixing import NUM_MIX_DRAWS, draw_mixing, mix


def _draws(num: int = 400) -> torch.Tensor:
    return torch.rand(num, NUM_MIX_DRAWS, generator=torch.Generator().manual_seed(0))


def _mixed(config: AugmentConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the shares, and how much of each image is left when white ones meet black ones."""
    mixing = draw_mixing(_draws(), config)
    white, black = torch.ones(400, 3, 60, 80), torch.zeros(400, 3, 60, 80)
    return mixing.share, mix(white, black, mixing).mean(dim=(1, 2, 3))


@pytest.mark.parametrize("config", [AugmentConfig(mixup=1), AugmentConfig(cutmix=1)])
def test_the_label_keeps_what_the_image_keeps(config: AugmentConfig) -> None:
    share, left = _mixed(config)
    assert (share - left).abs().max() < 0.04  # a box ends between pixels
    assert share.min() < 0.1
    assert share.max() > 0.9


def test_mixup_blends_and_cutmix_pastes() -> None:
    white, black = torch.ones(400, 3, 60, 80), torch.zeros(400, 3, 60, 80)
    blended = mix(white, black, draw_mixing(_draws(), AugmentConfig(mixup=1)))
    assert torch.allclose(blended.amin(dim=(1, 2, 3)), blended.amax(dim=(1, 2, 3)))
    pasted = mix(white, black, draw_mixing(_draws(), AugmentConfig(cutmix=1)))
    assert set(pasted.unique().tolist()) == {0.0, 1.0}


def test_the_settings_say_how_many_are_mixed() -> None:
    share = draw_mixing(_draws(), AugmentConfig(mixup=0.2, cutmix=0.3)).share
    assert (share < 1).float().mean() == pytest.approx(0.5, abs=0.08)
    assert (draw_mixing(_draws(), AugmentConfig()).share == 1).all()


def test_more_than_all_images_cannot_be_mixed() -> None:
    with pytest.raises(SettingError, match=r"augment\.mixup \+ augment\.cutmix"):
        AugmentConfig(mixup=0.7, cutmix=0.7)
