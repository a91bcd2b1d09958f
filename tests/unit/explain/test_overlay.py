"""A heatmap lies in the frame of the image that it explains."""

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image

from melanoma.config import DataConfig
from melanoma.explain.grad_cam import render_heatmap
from melanoma.explain.overlay import COLOURS, MAX_SIDE_PX, OPACITY, heatmap_on, overlay
from melanoma.imaging.letterbox import letterbox_box
from melanoma.imaging.preprocess import Preprocess

PREPROCESS = Preprocess((48, 64), DataConfig(input_height=48, input_width=64))


def _noise(size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(60, 45), (200, 50), (40, 90), (32, 32)])
def test_the_heatmap_is_what_pillow_makes_of_the_frame(size: tuple[int, int]) -> None:
    heatmap = np.random.default_rng(1).random((3, 4)).astype(np.float32)
    shown, found = heatmap_on(_noise(size), heatmap, PREPROCESS)
    framed = render_heatmap(torch.from_numpy(heatmap), PREPROCESS.stored_shape)
    cut = Image.fromarray(framed.values).crop(letterbox_box(size, PREPROCESS.stored_shape))
    expected = np.asarray(cut.resize(size, Image.Resampling.BILINEAR)).astype(int)
    assert shown.size == size
    assert found.values.shape == size[::-1]
    assert np.abs(found.values - expected).max() <= 1  # processors may round differently


def test_a_large_image_is_reduced_with_its_heatmap() -> None:
    shown, found = heatmap_on(_noise((2048, 512)), np.eye(3, dtype=np.float32), PREPROCESS)
    assert shown.size == (MAX_SIDE_PX, 256)
    assert found.values.shape == (256, MAX_SIDE_PX)


def test_an_empty_heatmap_does_not_change_the_image() -> None:
    image = _noise((64, 48))
    drawn = overlay(*heatmap_on(image, np.zeros((3, 4), np.float32), PREPROCESS))
    assert np.array_equal(np.asarray(drawn), np.asarray(image))


def test_higher_values_are_more_opaque() -> None:
    ramp = np.linspace(0, 1, 64, dtype=np.float32)[None].repeat(48, axis=0)
    on_white, on_black = (
        np.asarray(overlay(*heatmap_on(Image.new("RGB", (64, 48), colour), ramp, PREPROCESS)))
        for colour in ("white", "black")
    )
    seen = on_white[24].astype(int) - on_black[24]  # of what lies below
    assert (seen[0] == 255).all()
    assert (np.diff(seen, axis=0) <= 1).all()  # of rounding
    assert np.abs(seen[-1] - (1 - OPACITY) * 255).max() <= 1


def test_colours_are_those_of_magma() -> None:
    magma = colormaps["magma"](np.arange(256))[:, :3] * 255
    assert np.abs(COLOURS - magma).max() <= 4
