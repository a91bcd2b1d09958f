"""Which images a bundle assesses, on synthetic images and, where it is there, on HAM10000."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from melanoma.bundle.usual_images import (
    FALSE_ALARMS,
    UsualImages,
    every_image,
    fit_usual,
)
from melanoma.data.dataset import ImageDataset, PreparedData
from melanoma.errors import BundleError
from melanoma.imaging.decode import decode_image
from melanoma.imaging.descriptors import descriptors
from melanoma.imaging.letterbox import letterbox, letterbox_shape
from melanoma.io.typed import from_json, to_plain

SHAPE = letterbox_shape(256)


def _described(images: Iterable[np.ndarray]) -> np.ndarray:
    return np.stack([descriptors(image) for image in images])


def _black_frame(image: np.ndarray) -> np.ndarray:
    height, width, _ = image.shape
    y, x = np.mgrid[:height, :width]
    inside = np.hypot(x - width / 2, y - height / 2) < height / 6
    return np.where(inside[..., None], image, 3).astype(np.uint8)


def _blurred(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(image.shape[1] / 24)))


def _text(image: np.ndarray) -> np.ndarray:
    page = np.full_like(image, 255)
    page[::6, ::2] = 0
    return page


def _gradient(image: np.ndarray) -> np.ndarray:
    ramp = np.linspace(0, 255, image.shape[1])[None, :, None]
    return np.broadcast_to(ramp * np.array([0.2, 0.5, 1.0]), image.shape).astype(np.uint8)


SPOILED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "black frame": _black_frame,
    "much too dark": lambda image: (image * 0.08).astype(np.uint8),
    "blurred": _blurred,
    "a page of text": _text,
    "a gradient": _gradient,
    "inverted": lambda image: 255 - image,
    "noise": lambda image: np.random.default_rng(0).integers(0, 256, image.shape, dtype=np.uint8),
}


@pytest.fixture(scope="module")
def split(prepared: PreparedData) -> tuple[UsualImages, list[np.ndarray]]:
    """The description of the training images of the phantom, and its test images."""
    learned, held_out, other = (
        list(ImageDataset(prepared, rows).images(range(len(rows))).numpy())
        for rows in (
            prepared.rows("train", without_fold=0),
            prepared.rows("train", fold=0),
            prepared.rows("test"),
        )
    )
    return fit_usual(_described(learned), _described(held_out)), other


@pytest.mark.parametrize("kind", list(SPOILED))
def test_spoiled_images_are_not_assessed(
    kind: str, split: tuple[UsualImages, list[np.ndarray]]
) -> None:
    usual, images = split
    assert usual.are_unusual([SPOILED[kind](image) for image in images[:20]]).mean() > 0.9


def test_few_images_of_the_same_kind_are_refused(
    split: tuple[UsualImages, list[np.ndarray]],
) -> None:
    usual, images = split
    assert usual.are_unusual(images).mean() < 4 * FALSE_ALARMS


def test_the_limit_is_that_of_the_held_out_images() -> None:
    rng = np.random.default_rng(0)
    learned, held_out, fresh = (rng.normal(size=(num, 5)) for num in (500, 2000, 20_000))
    usual = fit_usual(learned, held_out)
    assert (usual.distances(held_out) > usual.limit).mean() == pytest.approx(FALSE_ALARMS, abs=1e-3)
    assert (usual.distances(fresh) > usual.limit).mean() == pytest.approx(FALSE_ALARMS, abs=0.015)


def test_a_description_survives_its_file() -> None:
    usual = every_image()
    text = json.dumps(to_plain(usual))
    assert from_json(UsualImages, text, what="x", error=BundleError, remedy="y.") == usual
    assert not usual.are_unusual([np.zeros((48, 64, 3), "u1")]).any()


def test_parts_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="same length"):
        UsualImages((0.0,), (1.0, 1.0), ((1.0,),), 1.0)


def test_ham10000_spoiled(shared: Path) -> None:
    """On real dermoscopy: other pictures are refused, and one image in twenty."""
    rng = np.random.default_rng(0)
    paths = sorted((shared / "data/ham10000/images").iterdir())
    chosen = [paths[place] for place in rng.permutation(len(paths))[:900]]
    stored = [letterbox(decode_image(path.read_bytes()), SHAPE) for path in chosen]
    usual = fit_usual(_described(stored[:400]), _described(stored[400:700]))
    assert usual.are_unusual(stored[700:]).mean() == pytest.approx(FALSE_ALARMS, abs=0.045)
    for kind, spoil in SPOILED.items():
        caught = usual.are_unusual([spoil(image) for image in stored[700:740]]).mean()
        assert caught > 0.9, kind
