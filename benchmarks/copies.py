"""Measures how often copies of known images are recognised, and how far other images are from them.

    python -m benchmarks.copies HAM10000 [--known-pairs known_duplicates.csv] [--keep]

HAM10000 is a folder with HAM10000_metadata.csv and images.
"""

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageEnhance

from benchmarks.figures import keep
from melanoma.arrays import IntArray
from melanoma.evidence.intervals import clopper_pearson
from melanoma.imaging.fingerprint import MAX_DISTANCE, fingerprint, nearest
from melanoma.imaging.letterbox import letterbox

NUM_ASKED, NUM_OTHERS, SEED = 400, 3000, 0
STORED = (192, 256)
"""Height and width of the stored images, px."""
Change = Callable[[Image.Image], Image.Image]


def _again(quality: int) -> Change:
    def change(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(io.BytesIO(buffer.getvalue()))

    return change


def _cropped(share: float) -> Change:
    def change(image: Image.Image) -> Image.Image:
        left, top = round(image.width * share), round(image.height * share)
        return image.crop((left, top, image.width - left, image.height - top))

    return change


CHANGES: dict[str, Change] = {
    "encoded again, JPEG quality 40": _again(40),
    "half as large": lambda image: image.resize((image.width // 2, image.height // 2)),
    "squeezed to a square": lambda image: image.resize((image.height, image.height)),
    "15 % brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "cropped by 1 % on each side": _cropped(0.01),
    "cropped by 2 % on each side": _cropped(0.02),
    "cropped by 5 % on each side": _cropped(0.05),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


def distances(asked: list[bytes], known: list[bytes]) -> IntArray:
    """Return the differing bits of each of N pairs, ``(N,)``."""
    return np.array([nearest([a], [b])[0] for a, b in zip(asked, known, strict=True)])


def row(title: str, found: IntArray) -> dict[str, str]:
    """Return how many of some pairs count as copies, and how far they lie apart."""
    close = int((found <= MAX_DISTANCE).sum())
    low, high = clopper_pearson(close, len(found))
    return {
        "images": title,
        "taken for copies": f"{close} of {len(found)} [{low:.3f}, {high:.3f}]",
        "differing bits, least": str(found.min()),
        "median": f"{np.median(found):.0f}",
        "most": str(found.max()),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("--known-pairs", type=Path, help="two columns of image ids of one lesion")
    parser.add_argument("--keep", action="store_true", help="keep the figures for the docs")
    args = parser.parse_args()
    table = pd.read_csv(args.source / "HAM10000_metadata.csv")
    table = table.sample(NUM_ASKED + NUM_OTHERS, random_state=SEED)
    lesions = table["lesion_id"].to_numpy()

    def load(name: str) -> Image.Image:
        return Image.open(args.source / "images" / f"{name}.jpg").convert("RGB")

    def mark(image: Image.Image) -> bytes:
        return fingerprint(letterbox(image.convert("RGB"), STORED))

    known = [mark(load(name)) for name in table["image_id"]]
    asked = table["image_id"][:NUM_ASKED]
    rows = [
        row(title, distances([mark(change(load(name))) for name in asked], known[:NUM_ASKED]))
        for title, change in CHANGES.items()
    ]
    if args.known_pairs:
        pairs = pd.read_csv(args.known_pairs, dtype=str).iloc[:, :2]
        left, right = ([mark(load(name)) for name in pairs[column]] for column in pairs)
        rows.append(row("known pairs: one lesion under two lesion ids", distances(left, right)))
    same, others = [], []
    for position in range(NUM_ASKED):
        of_lesion = lesions == lesions[position]
        others.append(
            nearest([known[position]], [known[at] for at in np.flatnonzero(~of_lesion)])[0]
        )
        of_lesion[position] = False
        if of_lesion.any():
            same.append(
                nearest([known[position]], [known[at] for at in np.flatnonzero(of_lesion)])[0]
            )
    rows.append(row("another image of the same lesion, the nearest", np.array(same)))
    rows.append(row(f"the nearest of {NUM_OTHERS:,} images of other lesions", np.array(others)))
    print(pd.DataFrame(rows).to_string(index=False))
    if args.keep:
        keep("copies", rows)


if __name__ == "__main__":
    main()
