"""Small SOURCE folders as people keep them: a table, and noise under the names that it should
have."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES_IN_TURN = ("mel", "nv", "nv", "bkl")


def draw(path: Path, seed: int = 0) -> Path:
    """Draw an image of noise that no other seed gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (36, 48, 3), dtype=np.uint8)).save(
        path
    )
    return path


def rows(num: int = 24, *, prefix: str = "ISIC_") -> list[dict[str, str]]:
    """Return rows of a table, a lesion and a patient an image."""
    return [
        {
            "image_id": f"{prefix}{i:04d}",
            "lesion_id": f"L{i}",
            "patient_id": f"P{i}",
            "dx": CLASSES_IN_TURN[i % 4],
            "sex": "female",
        }
        for i in range(num)
    ]


def write_table(path: Path, table: Iterable[Mapping[str, str]], *, separator: str = ",") -> None:
    """Write rows as a CSV."""
    lines = list(table)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "\n".join([separator.join(lines[0]), *(separator.join(row.values()) for row in lines)])
        + "\n"
    )


def write_source(
    folder: Path, table: list[dict[str, str]], *, names: Iterable[str] | None = None
) -> Path:
    """Write a SOURCE folder; names: of the files, where they are not the image ids with .jpg."""
    write_table(folder / "metadata.csv", table)
    for seed, name in enumerate(names or (f"{row['image_id']}.jpg" for row in table)):
        draw(folder / "images" / name, seed)
    return folder
