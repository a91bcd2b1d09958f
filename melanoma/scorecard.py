"""Writes the scorecard of a bundle's heatmaps, on images of an evaluation.

The evaluation has logged its access and told which images the bundle assesses; no other is read.
"""

from typing import Any

import numpy as np
import pandas as pd

from melanoma.bundle.bundle import Bundle, load_bundle
from melanoma.data.dataset import open_prepared
from melanoma.errors import DataError
from melanoma.evaluation import EVALUATION, ScoreRows, read_asked
from melanoma.executor import Progress
from melanoma.explain.masks import MASKS, mask_name, read_mask
from melanoma.explain.scorecard import Shown, measure_maps
from melanoma.explain.scorecard_page import FAILED, scorecard_page
from melanoma.io.files import read_json, read_parquet, write_json, write_text
from melanoma.io.storage import AnyPath, to_path
from melanoma.places import MANIFEST, check_masks

REPORT, PAGE = "scorecard.json", "scorecard.html"
MAX_IMAGES = 500
_SEED = 0


def write_scorecard(
    bundle_dir: str | AnyPath,
    data_dir: str | AnyPath,
    out: str | AnyPath,
    *,
    masks: str | AnyPath | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure the heatmaps of a bundle and write scorecard.json and scorecard.html.

    Args:
        bundle_dir: folder of the bundle.
        data_dir: the data of the evaluation.
        out: folder of the evaluation of this bundle on these data.
        masks: folder of lesion masks, a PNG with the id of each image. None takes the folder
            ``masks`` of a SOURCE folder; without masks no map is supported.
        progress: called with (steps done, steps in all).

    Returns:
        The content of scorecard.json: methods (kind of heatmap -> measures, failed, claim),
        num_images, num_groups, num_masks, auroc_low, and the bundle's version and weights.

    Raises:
        DataError: if the evaluation is of other data or another bundle, or a mask is no image.
    """
    bundle_dir, data_dir, out = to_path(bundle_dir), to_path(data_dir), to_path(out)
    bundle, report = load_bundle(bundle_dir), read_json(out / EVALUATION)
    if report["bundle"]["weights_sha256"] != bundle.manifest.weights_sha256:
        raise DataError(f"{out} must hold the evaluation of BUNDLE; it holds that of another.")
    if report["flow"]["known_to_the_bundle"]:
        raise DataError(
            "A scorecard needs images that BUNDLE does not know;"
            f" {report['flow']['known_to_the_bundle']} of DATA are of the data set that it was made"
            " from. Leave them out."
        )
    folder = masks_of(data_dir, masks)
    predictions = read_parquet(out / "predictions.parquet")
    split = None if report["split"] == "external" else report["split"]
    asked = read_asked(bundle, data_dir, split=split, skip_bad=True)
    judged = predictions["decision"] != "cannot_assess"
    rows = asked.rows[asked.rows["image_id"].isin(predictions.loc[judged, "image_id"])]
    chosen = _choose(rows, folder, bundle)
    score = ScoreRows(str(bundle_dir.resolve()), str(data_dir.resolve()), chosen)
    shown = _shown(score, folder, bundle.preprocess.stored_shape)
    within, unit = report["within_source"], report["contract_unit"]["auroc"]
    auroc_low = within["low"] if within["low"] is not None else unit["low"]
    found = {
        "bundle": report["bundle"],
        "population": report["population"],
        "target": bundle.task.noun[0],
        "num_images": len(chosen),
        "num_groups": len(np.unique(shown.groups)),
        "num_masks": 0 if shown.masks is None else len(shown.masks),
        "auroc_low": auroc_low,
        "methods": measure_maps(
            bundle.subject(),
            shown,
            auroc_low=0.0 if auroc_low is None else auroc_low,
            progress=progress or (lambda done, total: None),
        ),
    }
    write_json(out / REPORT, found)
    write_text(out / PAGE, scorecard_page(found))
    return found


def check_scorecard(
    data_dir: str | AnyPath, *, split: str | None, masks: str | AnyPath | None
) -> None:
    """Check, before an access is logged, what a scorecard needs.

    Raises:
        DataError: if the split was trained on, or no image of it has a mask in the folder.
    """
    if split == "train":
        raise DataError(
            "--scorecard needs images that the network was not trained on; --split is train. Take"
            " test."
        )
    data_dir = to_path(data_dir)
    folder = masks_of(data_dir, masks)
    if folder is not None and (data_dir / MANIFEST).is_file():
        _with_masks(open_prepared(data_dir).rows(split or "test"), folder)


def masks_of(data_dir: AnyPath, masks: str | AnyPath | None) -> AnyPath | None:
    """Return the folder of the masks of some data, or None if there is none.

    Raises:
        DataError: if one is named that is no folder.
    """
    if masks is not None:
        check_masks(to_path(masks))
        return to_path(masks)
    beside = data_dir / MASKS
    return beside if beside.is_dir() else None


def _choose(rows: pd.DataFrame, folder: AnyPath | None, bundle: Bundle) -> pd.DataFrame:
    """Return one image of each group at random, at most 500, up to half of them targets.

    With masks only images that have one.

    Raises:
        DataError: if masks are given and no image has one.
    """
    if folder is not None:
        rows = _with_masks(rows, folder)
    drawn = rows.sample(frac=1, random_state=_SEED).drop_duplicates("group")
    is_target = bundle.task.is_target(drawn["label"].to_numpy())
    targets, others = drawn[is_target], drawn[~is_target]
    most = max(MAX_IMAGES // 2, MAX_IMAGES - len(others))
    targets = targets.head(most)
    return pd.concat([targets, others.head(MAX_IMAGES - len(targets))]).reset_index(drop=True)


def _with_masks(rows: pd.DataFrame, folder: AnyPath) -> pd.DataFrame:
    names = frozenset(path.name for path in folder.iterdir())
    masked = rows.assign(mask=[mask_name(image_id, names) for image_id in rows["image_id"]])
    masked = masked[masked["mask"] != ""]
    if masked.empty:
        raise DataError(
            f"--masks must hold masks of these images, such as {rows['image_id'].iloc[0]}.png;"
            f" {folder} holds none."
        )
    return masked


def _shown(score: ScoreRows, folder: AnyPath | None, shape: tuple[int, int]) -> Shown:
    rows = score.rows
    images = score.images(range(len(rows)))
    sizes: list[tuple[int, int] | None] = [None] * len(rows)
    if "width_px" in rows:
        sizes = list(zip(rows["width_px"], rows["height_px"], strict=True))
    masks = []
    if folder is not None:
        masks = [
            read_mask(folder / name, shape, size=size)
            for name, size in zip(rows["mask"], sizes, strict=True)
        ]
    return Shown(
        np.stack([image for image in images if isinstance(image, np.ndarray)]),
        rows["label"].to_numpy(),
        pd.factorize(rows["group"])[0],
        np.stack(masks) if masks else None,
    )


def describe_scorecard(found: dict[str, Any]) -> str:
    """Return what the maps are worth, as text for a terminal."""
    lines = [f"heatmaps on {found['num_images']} images, {found['num_masks']} of them with a mask:"]
    for name, method in found["methods"].items():
        if reason := method.get("unavailable"):
            lines.append(f"{name}: {reason}")
            continue
        failed = ", ".join(FAILED[check] for check in method["failed"])
        lines.append(f"{name}: lesion_claim {method['claim']}{f' ({failed})' if failed else ''}")
    return "\n".join(lines)
