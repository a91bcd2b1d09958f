import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from melanoma.imaging.fingerprint import BYTES, MAX_DISTANCE, fingerprint, nearest
from melanoma.imaging.letterbox import letterbox


def _again(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def _brighter(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(float) * 1.15 + 5
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


COPIES = {
    "the same": lambda image: image,
    "encoded again": lambda image: _again(image, 40),
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "brighter": _brighter,
    "squeezed to a square": lambda image: image.resize((image.height, image.height)),
}


def _stored(image: Image.Image) -> np.ndarray:
    return letterbox(image, (96, 128))


def _check(images: list[Image.Image], lesions: list[str]) -> dict[str, float]:
    """Return the share of each kind of copy that is found; no other lesion may be one."""
    prints = [fingerprint(_stored(image)) for image in images]
    for place, lesion in enumerate(lesions):
        others = [known for known, of in zip(prints, lesions, strict=True) if of != lesion]
        assert nearest([prints[place]], others)[0] > MAX_DISTANCE, lesion
    return {
        name: float(
            np.mean(
                [
                    nearest([fingerprint(_stored(change(image)))], [known])[0] <= MAX_DISTANCE
                    for image, known in zip(images, prints, strict=True)
                ]
            )
        )
        for name, change in COPIES.items()
    }


def test_copies_of_phantoms_are_found(phantom_source: Path) -> None:
    table = pd.read_csv(phantom_source / "metadata.csv").drop_duplicates("lesion_id").head(60)
    images = [
        Image.open(phantom_source / "images" / f"{name}.jpg").convert("RGB")
        for name in table["image_id"]
    ]
    found = _check(images, table["lesion_id"].tolist())
    assert min(found.values()) >= 0.98, found


def test_copies_of_real_images_are_found(shared: Path) -> None:
    folder = shared / "data" / "ham10000"
    table = pd.read_csv(next(folder.glob("*metadata*.csv"))).sample(400, random_state=0)
    files = {path.stem: path for path in folder.rglob("*.jpg")}
    images = [Image.open(files[name]).convert("RGB") for name in table["image_id"]]
    found = _check(images, table["lesion_id"].tolist())
    assert min(found.values()) >= 0.99, found


def test_nothing_is_near_nothing() -> None:
    assert nearest([], [bytes(BYTES)]).shape == (0,)


@pytest.mark.parametrize("bits", [0, 1, 9])
def test_the_distance_is_the_number_of_differing_bits(bits: int) -> None:
    other = np.packbits(np.arange(8 * BYTES) < bits).tobytes()
    assert nearest([bytes(BYTES)], [other, b"\xff" * BYTES]).tolist() == [bits]
