"""Synthetic dermoscopy with true lesion masks, in HAM10000's layout: the embedded data set.

Decides which patients, lesions, views and sources there are, and plants faults for testing the
leak auditor. `drawing` draws the images. Every image is marked as synthetic.
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from PIL import Image

from melanoma.data.phantom.camera import Camera
from melanoma.data.phantom.config import PhantomConfig
from melanoma.data.phantom.drawing import Lesion, draw
from melanoma.io.files import new_folder, write_text

# Lesions of each class among HAM10000's 7,470 (Tschandl, Rosendahl, Kittler, The HAM10000 dataset,
# 2018).
HAM10000_LESIONS = {
    "akiec": 228,
    "bcc": 327,
    "bkl": 727,
    "df": 73,
    "mel": 614,
    "nv": 5403,
    "vasc": 98,
}
# A contract rests on 15 to 25 % of the lesions and needs 60 melanomas there. HAM10000's own share
# of melanomas would give a small set far fewer.
LEAST_MELANOMAS = 330
CAMERAS = {
    "phantom_polarised": Camera((1.00, 1.00, 1.00), 0.10),
    "phantom_contact": Camera((1.05, 0.97, 0.93), 0.45),
    "phantom_scanner": Camera((0.96, 1.00, 1.06), 0.00),
    "phantom_slides": Camera((1.02, 0.95, 0.97), 0.75),
}
_SITES = ("back", "lower extremity", "trunk", "upper extremity", "abdomen", "face", "chest", "foot")
_LOOKS_LIKE = {"mel": "nv", "nv": "mel"}
_MARK = "SYNTHETIC phantom dermoscopy, not an image of a person"


def write_phantom(
    config: PhantomConfig, out: Path, *, on_image: Callable[[int, int], None] | None = None
) -> int:
    """Write a phantom data set into a new folder and return its number of images.

    The folder holds metadata.csv, images/*.jpg, masks/*.png and README.txt.

    Args:
        config: what to draw.
        out: the folder to write, new or empty.
        on_image: called with (images done, images in all).

    Raises:
        DataError: if out holds something else.
    """
    lesions, table = lay_out(config)
    with new_folder(out) as work:
        for name in ("images", "masks"):
            (work / name).mkdir()
        rows = table[["image_id", "lesion_index", "view", "dataset"]].itertuples(index=False)
        jobs = [
            (lesions[i], CAMERAS[source], view, str(work), image_id)
            for image_id, i, view, source in rows
        ]
        # Spawn, because fork would copy locks that threads of the caller hold.
        with ProcessPoolExecutor(
            max_workers=joblib.cpu_count(), mp_context=get_context("spawn")
        ) as pool:
            for done, _ in enumerate(pool.map(_write_image, jobs, chunksize=16), start=1):
                if on_image is not None:
                    on_image(done, len(jobs))
        write_text(
            work / "metadata.csv", table.drop(columns=["lesion_index", "view"]).to_csv(index=False)
        )
        write_text(
            work / "README.txt",
            f"{_MARK}. Made by `melanoma data phantom` with seed {config.seed}.\n",
        )
    return len(jobs)


def _write_image(job: tuple[Lesion, Camera, int, str, str]) -> None:
    lesion, camera, view, folder, image_id = job
    pixels, mask = draw(lesion, camera, view)
    exif = Image.Exif()
    exif[0x010E] = _MARK  # ImageDescription
    Image.fromarray(pixels).save(
        Path(folder, "images", f"{image_id}.jpg"), quality=90, exif=exif, comment=_MARK.encode()
    )
    Image.fromarray((mask * 255).astype(np.uint8)).save(Path(folder, "masks", f"{image_id}.png"))


def class_counts(num_lesions: int, melanoma_share: float | None = None) -> dict[str, int]:
    """Return the number of lesions of each class.

    The classes other than melanoma keep HAM10000's balance.

    Args:
        num_lesions: lesions in all.
        melanoma_share: share of melanomas. None takes HAM10000's share, raised to what a contract
            needs but not above a fifth of all lesions.
    """
    total = sum(HAM10000_LESIONS.values())
    melanomas = (
        max(
            round(num_lesions * HAM10000_LESIONS["mel"] / total),
            min(LEAST_MELANOMAS, num_lesions // 5),
        )
        if melanoma_share is None
        else max(2, round(num_lesions * melanoma_share))
    )
    rest = {dx: count for dx, count in HAM10000_LESIONS.items() if dx not in ("mel", "nv")}
    scale = (num_lesions - melanomas) / (total - HAM10000_LESIONS["mel"])
    counts = {dx: max(2, round(count * scale)) for dx, count in rest.items()}
    counts["mel"] = melanomas
    counts["nv"] = num_lesions - sum(counts.values())
    return {dx: counts[dx] for dx in HAM10000_LESIONS}


def lay_out(config: PhantomConfig) -> tuple[list[Lesion], pd.DataFrame]:
    """Return the lesions, and a table with a row for each image.

    The table has HAM10000's columns and patient_id. Its lesion_index and view are for drawing.
    """
    rng = np.random.default_rng([config.seed, 7])
    counts = class_counts(config.num_lesions, config.melanomas)
    diagnoses = rng.permutation([dx for dx, count in counts.items() for _ in range(count)])
    patients = np.repeat(
        np.arange(config.num_lesions),
        rng.choice([1, 2, 3], config.num_lesions, p=[0.8, 0.14, 0.06]),
    )[: config.num_lesions]
    skins = np.clip(rng.beta(1.4, 2.2, config.num_lesions), 0, 1)
    # Mimics have their own generator, so that data sets without them do not change.
    mimics = np.random.default_rng([config.seed, 13]).random(config.num_lesions) < config.mimics
    looks = [
        _LOOKS_LIKE.get(str(dx), str(dx)) if mimic else str(dx)
        for dx, mimic in zip(diagnoses, mimics, strict=True)
    ]
    lesions = [
        Lesion(
            str(dx),
            _strength(looks[i], rng),
            float(skins[patients[i]]),
            int(config.seed * 1_000_003 + i),
        )
        for i, dx in enumerate(diagnoses)
    ]
    rows = [
        row
        for i, lesion in enumerate(lesions)
        for row in _rows_of_lesion(i, lesion, int(patients[i]), rng, shortcut=config.shortcut)
    ]
    rows += _planted_leaks(config, lesions, patients, rng)
    table = pd.DataFrame(rows)
    table.insert(1, "image_id", [f"PHANTOM_{number:07d}" for number in rng.permutation(len(table))])
    return lesions, table.sort_values("image_id", ignore_index=True)


def _strength(dx: str, rng: np.random.Generator) -> float:
    """Draw how strongly signs of melanoma show; the classes overlap, so no one is always right."""
    shape = {"mel": (8.5, 1.8), "nv": (1.8, 5.8)}.get(dx, (1.6, 5.2))
    return float(rng.beta(*shape))


def _rows_of_lesion(
    index: int, lesion: Lesion, patient: int, rng: np.random.Generator, *, shortcut: bool
) -> list[dict[str, object]]:
    sources = list(CAMERAS)
    source = sources[rng.choice(len(sources), p=[0.45, 0.25, 0.2, 0.1])]
    if shortcut:
        source = (
            sources[-1]
            if lesion.dx == "mel" and rng.random() < 0.95
            else sources[rng.integers(0, len(sources) - 1)]
        )
    person = np.random.default_rng([patient, 11])
    age, sex = 5 * person.integers(4, 18), ("male", "female")[person.integers(2)]
    common = {
        "lesion_id": f"PHL_{index:06d}",
        "patient_id": f"PHP_{patient:06d}",
        "dx": lesion.dx,
        "dx_type": "synthetic",
        "age": float(age),
        "sex": sex,
        "localization": _SITES[rng.integers(len(_SITES))],
        "dataset": source,
        "lesion_index": index,
    }
    return [{**common, "view": view} for view in range(rng.choice([1, 2, 3], p=[0.74, 0.19, 0.07]))]


def _planted_leaks(
    config: PhantomConfig, lesions: list[Lesion], patients: np.ndarray, rng: np.random.Generator
) -> list[dict[str, object]]:
    """Return rows that show a lesion again as if it were another lesion of another patient.

    Each row is a new view, so its file differs from every other.
    """
    rows = []
    for number, index in enumerate(rng.choice(config.num_lesions, config.leaks, replace=False)):
        row = _rows_of_lesion(
            int(index), lesions[index], int(patients[index]), rng, shortcut=config.shortcut
        )[0]
        rows.append(
            {
                **row,
                "view": 9,
                "lesion_id": f"PHL_9{number:05d}",
                "patient_id": f"PHP_9{number:05d}",
            }
        )
    return rows
