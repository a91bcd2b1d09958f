"""A source folder of small images of coloured noise, which is drawn far faster than a phantom."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from melanoma.task import DEFAULT_TASK, TASKS


def draw_images(num: int, folder: Path, *, size: tuple[int, int]) -> None:
    """Write JPEGs of coloured noise and their metadata; each lesion has one image.

    Args:
        num: number of images.
        folder: the folder to write.
        size: (width, height) of the images, px.
    """
    (folder / "images").mkdir(parents=True)
    classes, rng = TASKS[DEFAULT_TASK].classes, np.random.default_rng(num)
    labels = rng.choice(len(classes), num, p=[0.05, 0.05, 0.1, 0.02, 0.11, 0.65, 0.02])
    for index, label in enumerate(labels):
        small = rng.integers(40, 216, (6, 8, 3)).astype(np.uint8)
        small[..., label % 3] >>= int(label) // 3  # so that there is something to learn
        image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
        image.save(folder / "images" / f"image_{index:06d}.jpg", quality=90)
    table = {
        "image_id": [f"image_{index:06d}" for index in range(num)],
        "lesion_id": [f"lesion_{index:06d}" for index in range(num)],
        "dx": [classes[label] for label in labels],
        "dataset": "noise",
    }
    pd.DataFrame(table).to_csv(folder / "metadata.csv", index=False)
