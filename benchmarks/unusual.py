"""How many images of several kinds a bundle refuses to assess.

Spoiled copies of the images of the validation fold, which set the limit at 5 % of false alarms;
pictures that are no skin at all; and folders of other photographs.

    python -m benchmarks.unusual BUNDLE DATASET [--folder NAME=DIR ...] [--keep]
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images

from benchmarks.figures import keep
from melanoma.arrays import Uint8Array
from melanoma.bundle.bundle import load_bundle
from melanoma.data.dataset import ImageDataset, open_prepared
from melanoma.evidence.intervals import clopper_pearson
from melanoma.imaging.preprocess import Preprocess

NUM_IMAGES, NUM_CROPS = 200, 40
Spoil = Callable[[Uint8Array], Uint8Array]


def blurred(share: float) -> Spoil:
    """Return a function that blurs an image; the radius is a share of its width."""

    def spoil(image: Uint8Array) -> Uint8Array:
        radius = image.shape[1] * share
        return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))

    return spoil


def brighter(factor: float) -> Spoil:
    """Return a function that multiplies the brightness."""
    return lambda image: np.clip(image * factor, 0, 255).astype(np.uint8)


def black_frame(image: Uint8Array) -> Uint8Array:
    """Return the image with all but a disc in its middle black."""
    height, width, _ = image.shape
    y, x = np.mgrid[:height, :width]
    inside = np.hypot(x - width / 2, y - height / 2) < height / 6
    return np.where(inside[..., None], image, 3).astype(np.uint8)


def grey(image: Uint8Array) -> Uint8Array:
    """Return the image without colours."""
    return np.asarray(Image.fromarray(image).convert("L").convert("RGB"))


SPOILED: dict[str, Spoil] = {
    "blurred by 1 % of the width": blurred(0.01),
    "blurred by 2 %": blurred(0.02),
    "blurred by 4 %": blurred(0.04),
    "half as bright": brighter(0.5),
    "twice as bright": brighter(2),
    "nearly black": brighter(0.08),
    "black but for a disc": black_frame,
    "without colours": grey,
    "colours inverted": lambda image: 255 - image,
}


def no_skin(preprocess: Preprocess) -> Iterator[tuple[str, list[Uint8Array]]]:
    """Yield pictures that show no skin, by kind."""
    rng, (height, width) = np.random.default_rng(0), preprocess.stored_shape
    photographs = [Image.fromarray(picture) for picture in load_sample_images().images]
    page = Image.open(Path(__file__).parents[1] / "docs" / "page.png").convert("RGB")
    for name, pictures in (("photographs of other things", photographs), ("a screen", [page])):
        crops = [_crop(picture, rng) for picture in pictures for _ in range(NUM_CROPS)]
        yield name, [preprocess.stored(crop) for crop in crops]
    yield "noise", list(rng.integers(0, 256, (NUM_CROPS, height, width, 3), dtype=np.uint8))
    ramp = np.linspace(0, 1, width)[None, :, None] * np.ones((height, 1, 1))
    ends = rng.integers(0, 256, (NUM_CROPS, 2, 3))
    yield (
        "colour gradients",
        [(first * (1 - ramp) + last * ramp).astype(np.uint8) for first, last in ends],
    )


def _crop(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    width = int(picture.width * rng.uniform(0.25, 1))
    height = min(picture.height, width * 3 // 4)
    left = int(rng.integers(0, picture.width - width + 1))
    top = int(rng.integers(0, picture.height - height + 1))
    return picture.crop((left, top, left + width, top + height))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--folder", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--keep", action="store_true", help="keep the figures for the docs")
    args = parser.parse_args()
    bundle, data = load_bundle(args.bundle), open_prepared(args.dataset)
    usual, preprocess = bundle.manifest.usual_images, bundle.preprocess
    rows = data.rows("train", fold=bundle.manifest.training_config.data.validation_fold)
    order = np.random.default_rng(0).permutation(len(rows))[:NUM_IMAGES]
    images = list(ImageDataset(data, rows).images(order.tolist()).numpy())
    kinds = {"as they are": images}
    kinds |= {name: [spoil(image) for image in images] for name, spoil in SPOILED.items()}
    kinds |= dict(no_skin(preprocess))
    for folder in args.folder:
        name, _, path = folder.partition("=")
        files = sorted(Path(path).iterdir())
        kinds[name] = [preprocess.stored(Image.open(file).convert("RGB")) for file in files]
    found = []
    for name, pictures in kinds.items():
        num, total = int(usual.are_unusual(pictures).sum()), len(pictures)
        low, high = clopper_pearson(num, total)
        share = f"{num / total:.2f} [{low:.2f}, {high:.2f}]"
        found.append({"images": name, "number": str(total), "`cannot_assess`": share})
        print("  ".join(f"{cell:32}" for cell in found[-1].values()), flush=True)
    if args.keep:
        keep("unusual", found)


if __name__ == "__main__":
    main()
