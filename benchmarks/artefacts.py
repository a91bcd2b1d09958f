"""How many decisions change when an artefact is drawn on an image: paired changes, with a control.

The images are those of the validation fold, which chose the epoch and no weight. Test and
calibration are not read. An artefact says nothing of the lesion, so no decision should change. The
control adds the noise of a sensor; it shows how many decisions lie close to the threshold.

    python -m benchmarks.artefacts runs/cpu/bundle dataset [--keep]
"""

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from benchmarks.figures import keep
from melanoma.arrays import BoolArray, Uint8Array
from melanoma.bundle.bundle import load_bundle
from melanoma.bundle.held_out import group_codes
from melanoma.bundle.predictor import Predictor
from melanoma.data.dataset import ImageDataset, open_prepared
from melanoma.evidence.intervals import clopper_pearson
from melanoma.evidence.operating_point import choose_units

ObjectArray = npt.NDArray[np.object_]
Draw = Callable[[Image.Image, np.random.Generator], Image.Image]
BATCH = 64


def _noise(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    values = np.asarray(image) + rng.normal(0, 2, (image.height, image.width, 3))
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def _hair(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    drawn, (width, height) = image.copy(), image.size
    pen = ImageDraw.Draw(drawn)
    for _ in range(int(rng.integers(6, 16))):
        x, y, angle = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0, 2 * np.pi)
        points = []
        for _ in range(24):
            points.append((x, y))
            x, y = x + np.cos(angle) * width / 40, y + np.sin(angle) * width / 40
            angle += rng.normal(0, 0.06)
        pen.line(points, fill=(44, 34, 30), width=max(1, width // 150))
    return drawn


def _ruler(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    drawn, (width, height) = image.copy(), image.size
    pen, pitch = ImageDraw.Draw(drawn), width / rng.uniform(12, 20)
    for number in range(int(width / pitch) + 1):
        length = height * (0.12 if number % 5 == 0 else 0.07)
        pen.line(
            [(number * pitch, height * 0.04), (number * pitch, height * 0.04 + length)],
            fill=(40, 40, 44),
            width=max(1, width // 150),
        )
    return drawn


def _ink(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    layer, (width, height) = image.copy(), image.size
    side = rng.uniform(0.02, 0.1) * width
    ImageDraw.Draw(layer).line(
        [(side, 0), (side + rng.normal(0, 4), height)], fill=(92, 70, 150), width=width // 14
    )
    return Image.blend(image, layer.filter(ImageFilter.GaussianBlur(1)), 0.7)


def _gel(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    layer, (width, height) = image.copy(), image.size
    pen = ImageDraw.Draw(layer)
    for _ in range(int(rng.integers(4, 12))):
        x, y, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.015, 0.05) * width
        pen.ellipse(
            [x - r, y - r, x + r, y + r], outline=(246, 244, 240), width=max(1, width // 90)
        )
    return Image.blend(image, layer, 0.6)


def _blur(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(image.width / 130))


def _jpeg(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=30)
    return Image.open(buffer).convert("RGB")


def _vignette(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    y, x = np.mgrid[-1 : 1 : image.height * 1j, -1 : 1 : image.width * 1j]
    light = 1 - 0.6 * np.clip(np.hypot(x, y) - 0.6, 0, 1)
    return Image.fromarray((np.asarray(image) * light[..., None]).astype(np.uint8))


def _crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    x, y = image.width // 20, image.height // 20
    return image.crop((x, y, image.width - x, image.height - y)).resize(image.size)


ARTEFACTS: dict[str, Draw] = {
    "sensor noise (control)": _noise,
    "hair": _hair,
    "ruler": _ruler,
    "ink": _ink,
    "gel bubbles": _gel,
    "blur": _blur,
    "JPEG quality 30": _jpeg,
    "vignette": _vignette,
    "crop by a tenth": _crop,
}


def changes(
    before: ObjectArray, after: ObjectArray, is_target: BoolArray
) -> dict[str, dict[str, float]]:
    """Return the shares of targets lost, of others that flip and of refusals, with 95 % intervals.

    Args:
        before: ``(N,)``, the decisions.
        after: ``(N,)``, the decisions with the artefact.
        is_target: ``(N,)``.
    """
    decided, refused = before != "cannot_assess", after == "cannot_assess"
    both, referred = decided & ~refused, before == "refer"
    found = {}
    for name, at_risk, changed in (
        ("targets lost", both & referred & is_target, after == "no_referral"),
        ("others flipped", both & ~is_target, before != after),
        ("cannot_assess", decided, refused),
    ):
        lost = at_risk & changed
        num, total = int(lost.sum()), int(at_risk.sum())
        low, high = clopper_pearson(num, total)
        found[name] = {"num": num, "of": total, "low": low, "high": high}
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--keep", action="store_true", help="keep the figures for the docs")
    args = parser.parse_args()
    bundle, data = load_bundle(args.bundle), open_prepared(args.dataset)
    if data.manifest.split_hash != bundle.manifest.split_hash:
        parser.error("DATASET must be the one that the bundle was trained on; its splits differ.")
    rows = data.rows("train", fold=bundle.manifest.training_config.data.validation_fold)
    is_target = data.task.is_target(rows["label"].to_numpy())
    units = np.sort(np.concatenate(choose_units(is_target, group_codes(rows), seed=0)))
    images = ImageDataset(data, rows).images(units.tolist()).numpy()
    predictor = Predictor(bundle, allow_uncontracted=True)
    before = _decisions(predictor, images)
    print(f"{len(units)} images, {is_target[units].sum()} {data.task.noun[1]}")
    rows: list[dict[str, str]] = []
    for name, draw in ARTEFACTS.items():
        rng = np.random.default_rng(0)
        drawn = np.stack([np.asarray(draw(Image.fromarray(image), rng)) for image in images])
        found = changes(before, _decisions(predictor, drawn), is_target[units])
        cells = {
            title: f"{cell['num']} of {cell['of']} [{cell['low']:.3f}, {cell['high']:.3f}]"
            for title, cell in found.items()
        }
        rows.append({"artefact": name, **cells})
        print("  ".join(f"{cell:26}" for cell in rows[-1].values()), flush=True)
    if args.keep:
        keep("artefacts", rows)


def _decisions(predictor: Predictor, images: Uint8Array) -> ObjectArray:
    parts = [
        predictor.predict(list(images[start : start + BATCH]))
        for start in range(0, len(images), BATCH)
    ]
    return np.array([each.decision for part in parts for each in part], dtype=object)


if __name__ == "__main__":
    main()
