"""A heatmap lies in the frame of the image that it explains."""

import json

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image

from melanoma.config import DataConfig
from melanoma.data.phantom.config import PhantomConfig
from melanoma.data.phantom.drawing import draw
from melanoma.data.phantom.layout import CAMERAS, lay_out
from melanoma.explain.grad_cam import render_heatmap
from melanoma.explain.overlay import COLOURS, FLOOR, MAX_SIDE_PX, OPACITY, heatmap_on, overlay
from melanoma.imaging.letterbox import letterbox_box
from melanoma.imaging.preprocess import Preprocess
from serve.openapi import PAGE

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


def test_low_values_leave_the_image_as_it_is_and_higher_ones_are_more_opaque() -> None:
    ramp = np.linspace(0, 1, 64, dtype=np.float32)[None].repeat(48, axis=0)
    on_white, on_black = (
        np.asarray(overlay(*heatmap_on(Image.new("RGB", (64, 48), colour), ramp, PREPROCESS)))
        for colour in ("white", "black")
    )
    seen = on_white[24].astype(int) - on_black[24]  # of what lies below
    assert (seen[:21] == 255).all()  # a third of 64
    assert (seen[24:] < 255).all()
    assert (np.diff(seen, axis=0) <= 1).all()  # of rounding
    assert np.abs(seen[-1] - (1 - OPACITY) * 255).max() <= 1


def test_colours_are_those_of_viridis_above_the_floor() -> None:
    above = np.clip((np.arange(256) / 255 - FLOOR) / (1 - FLOOR), 0, 1)
    viridis = colormaps["viridis"](above)[:, :3] * 255
    assert np.abs(COLOURS[:, :3] - viridis).max() <= 7  # interpolated between 16


def test_the_page_draws_with_the_same_colours() -> None:
    rgba = json.loads((PAGE / "map.json").read_text())["rgba"]
    assert bytes.fromhex(rgba) == COLOURS.tobytes()


def test_the_sample_of_the_page_is_marked_as_synthetic() -> None:
    with Image.open(PAGE / "sample.jpg") as sample:
        assert "SYNTHETIC" in sample.info["comment"].decode()
        assert "SYNTHETIC" in sample.getexif()[0x010E]


def test_the_sample_of_the_page_is_a_phantom_of_the_default_seed() -> None:
    lesions, _ = lay_out(PhantomConfig())
    drawn, _ = draw(lesions[842], CAMERAS["phantom_polarised"], view=0)
    with Image.open(PAGE / "sample.jpg") as sample:
        apart = np.abs(np.asarray(sample).astype(int) - drawn)
    assert apart.mean() < 3  # of JPEG
