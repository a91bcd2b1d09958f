"""Local features agree between two photographs of one lesion, and not between two lesions."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from melanoma.arrays import Uint8Array
from melanoma.audit.local_features import agreeing_features, local_features
from melanoma.audit.second_views import CONFIRMED, POSSIBLE
from melanoma.data.phantom.camera import Camera
from melanoma.data.phantom.drawing import Lesion, draw

CAMERA = Camera((1.0, 1.0, 1.0), 0.1)


def _photograph(seed: int, view: int = 0) -> Uint8Array:
    pixels, _ = draw(Lesion("mel", 0.9, 0.3, seed), CAMERA, view)
    return pixels


def _turned(pixels: Uint8Array, angle: float, scale: float) -> Uint8Array:
    image = Image.fromarray(pixels)
    size = (round(image.width * scale), round(image.height * scale))
    turned = image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=(216, 168, 144))
    return np.asarray(turned.resize(size, Image.Resampling.BICUBIC))


@pytest.mark.parametrize(("angle", "scale"), [(0, 1.0), (25, 1.0), (180, 1.0), (10, 0.7)])
def test_a_turned_and_scaled_photograph_agrees(angle: float, scale: float) -> None:
    first = _photograph(1)
    second = _turned(first, angle, scale)
    assert agreeing_features(local_features(first), local_features(second)) >= CONFIRMED


def test_photographs_of_other_lesions_do_not_agree() -> None:
    features = [local_features(_photograph(seed)) for seed in range(12)]
    found = [agreeing_features(a, b) for i, a in enumerate(features) for b in features[:i]]
    assert max(found) < POSSIBLE


def _with_ruler(pixels: Uint8Array) -> Uint8Array:
    image = Image.fromarray(pixels)
    drawing = ImageDraw.Draw(image)
    for tick in range(0, image.width, 9):
        length = 16 if tick % 45 == 0 else 9
        drawing.line([(tick, 6), (tick, 6 + length)], fill=(30, 30, 34), width=2)
    return np.asarray(image)


def test_the_same_ruler_is_no_sign_of_the_same_lesion() -> None:
    features = [local_features(_with_ruler(_photograph(seed))) for seed in range(6)]
    found = [agreeing_features(a, b) for i, a in enumerate(features) for b in features[:i]]
    assert max(found) < CONFIRMED


def test_an_image_without_features_agrees_with_none() -> None:
    plain = local_features(np.full((96, 128, 3), 180, np.uint8))
    assert agreeing_features(plain, local_features(_photograph(0))) == 0
    assert agreeing_features(plain, plain) == 0
