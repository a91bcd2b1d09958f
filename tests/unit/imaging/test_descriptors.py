"""What an image looks like without a network: its descriptors and the tone of its skin."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from melanoma.imaging.descriptors import NUM_DESCRIPTORS, descriptors, without_padding
from melanoma.imaging.letterbox import PADDING_RGB, letterbox
from melanoma.imaging.skin_tone import BANDS, band_of, skin_tone

LIGHT, DARK = (228, 190, 170), (120, 80, 60)


def _lesion(skin: tuple[int, int, int], size: tuple[int, int] = (256, 192)) -> Image.Image:
    """Return a dark disc on skin, with a little noise."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    inside = np.hypot(x - width / 2, y - height / 2) < height / 4
    pixels = np.where(inside[..., None], (70, 40, 35), skin)
    noise = np.random.default_rng(0).normal(0, 3, pixels.shape)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


def test_padding_changes_nothing() -> None:
    square = _lesion(LIGHT, (192, 192))
    framed = letterbox(square, (192, 256))
    assert (framed == PADDING_RGB).all(axis=2).any()
    assert without_padding(framed).shape == (192, 192, 3)
    assert descriptors(framed) == pytest.approx(descriptors(np.asarray(square)))


def test_a_larger_file_of_the_same_picture_is_described_alike() -> None:
    small, large = _lesion(LIGHT, (256, 192)), _lesion(LIGHT, (1024, 768))
    apart = np.abs(
        descriptors(letterbox(small, (192, 256))) - descriptors(letterbox(large, (192, 256)))
    )
    assert apart[:6].max() < 0.01


@pytest.mark.parametrize("image", [np.zeros((48, 64, 3), "u1"), np.full((48, 64, 3), 255, "u1")])
def test_an_image_without_any_structure_has_finite_descriptors(image: np.ndarray) -> None:
    values = descriptors(image)
    assert values.shape == (NUM_DESCRIPTORS,)
    assert np.isfinite(values).all()


def test_an_image_of_padding_alone_is_described_whole() -> None:
    image = np.broadcast_to(np.array(PADDING_RGB, np.uint8), (48, 64, 3))
    assert without_padding(image) is image


def test_blur_lowers_the_sharpness() -> None:
    sharp = _lesion(LIGHT)
    blurred = sharp.filter(ImageFilter.GaussianBlur(8))
    before, after = (descriptors(np.asarray(image))[6:9] for image in (sharp, blurred))
    assert (after < before).all()


def test_darker_skin_has_a_smaller_angle_and_the_lesion_does_not_count() -> None:
    light, dark = skin_tone(np.asarray(_lesion(LIGHT))), skin_tone(np.asarray(_lesion(DARK)))
    assert band_of(light) in ("very light", "light")
    assert band_of(dark) in ("brown", "dark")
    plain = np.broadcast_to(np.array(LIGHT, np.uint8), (192, 256, 3)).copy()
    plain[0] = (70, 40, 35)
    assert light == pytest.approx(skin_tone(plain), abs=3)


def test_the_tone_is_the_angle_of_the_median_colour() -> None:
    """Computed again in floats, from the two halves of an image that Otsu's threshold parts."""
    image = np.full((100, 101, 3), LIGHT, dtype=np.uint8)
    image[:50] = DARK
    red, green, blue = (np.array(LIGHT) / 255).tolist()
    linear = [((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    # sRGB to XYZ, adapted to D50, the white of profiles (ICC.1:2022, Bradford).
    y = 0.2225 * linear[0] + 0.7169 * linear[1] + 0.0606 * linear[2]
    z = (0.0139 * linear[0] + 0.0971 * linear[1] + 0.7141 * linear[2]) / 0.8249
    lightness, yellow = 116 * np.cbrt(y) - 16, 200 * (np.cbrt(y) - np.cbrt(z))
    assert skin_tone(image) == pytest.approx(
        np.degrees(np.arctan2(lightness - 50, yellow)), abs=1.5
    )


def test_where_no_skin_is_seen_there_is_no_tone() -> None:
    assert np.isnan(skin_tone(np.zeros((48, 64, 3), "u1")))
    assert band_of(float("nan")) == ""
    assert [band_of(least + 1) for least in BANDS.values()] == list(BANDS)


def test_ham10000_skin_tone_is_that_outside_the_published_masks(shared: Path) -> None:
    """The mask of the lesion, painted with the colour of the skin, may change little."""
    folder = shared / "data/ham10000"
    masks = np.load(folder / "lesion_masks_200x150.npz")
    chosen = np.random.default_rng(0).permutation(len(masks["image_id"]))[:120]
    packed, ids = masks["masks_packed"][chosen], masks["image_id"][chosen]
    apart = []
    for bits, image_id in zip(packed, ids, strict=True):
        image = np.asarray(Image.open(folder / "images" / f"{image_id}.jpg").convert("RGB"))
        lesion = np.unpackbits(bits)[: 150 * 200].reshape(150, 200).astype(bool)
        if lesion.mean() < 0.6:
            painted = image.copy()
            painted[lesion] = np.median(image[~lesion], axis=0)
            apart.append(abs(skin_tone(image) - skin_tone(painted)))
    assert len(apart) > 60
    assert np.mean(apart) < 4


@pytest.mark.parametrize("edges", range(16))
def test_padding_is_found_behind_any_of_the_four_edges(edges: int) -> None:
    stored = np.random.default_rng(0).integers(0, 100, (24, 32, 3), dtype=np.uint8)
    top, bottom, left, right = (2 * bool(edges & bit) for bit in (1, 2, 4, 8))
    whole = np.empty_like(stored)
    whole[:] = PADDING_RGB
    box = np.s_[top : 24 - bottom, left : 32 - right]
    whole[box] = stored[box]
    np.testing.assert_array_equal(without_padding(whole), stored[box])
