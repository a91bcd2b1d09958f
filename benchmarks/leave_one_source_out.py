"""Trains without one source at a time and evaluates on it: what another camera or clinic may cost.

Each source that holds enough targets becomes the test split of a data set of its own; the others
are dealt to train and calibration. The groups are those of DATASET, which SOURCE was prepared as;
its own splits are not used.

    python -m benchmarks.leave_one_source_out SOURCE DATASET OUT [--preset NAME] [--keep]
"""

import argparse
import json
from pathlib import Path

import pandas as pd

from benchmarks.figures import keep, number
from melanoma.data.dataset import open_prepared
from melanoma.data.prepare import prepare
from melanoma.data.prepare_config import PrepareConfig
from melanoma.data.splits import draw_splits
from melanoma.evaluation import evaluate
from melanoma.evidence.intervals import MIN_TARGETS
from melanoma.presets import preset
from melanoma.training.run import RESULT, train

NUM_FOLDS = 5
CALIBRATION_FRACTION = 0.2


def splits_without(records: pd.DataFrame, source: str, *, seed: int = 0) -> pd.DataFrame:
    """Return image_id and split for a data set whose test split is one source.

    A group that has images of that source and of others goes to test as a whole.

    Args:
        records: image_id, group, source and label of every image.
        source: the source to leave out.
        seed: of the other splits.
    """
    groups = set(records.loc[records["source"] == source, "group"])
    inside = records["group"].isin(groups)
    others = records[~inside]
    drawn = draw_splits(
        others["group"].tolist(),
        others["label"].tolist(),
        test_fraction=0.0,
        calibration_fraction=CALIBRATION_FRACTION,
        num_folds=NUM_FOLDS,
        seed=seed,
    )
    learned = pd.DataFrame(
        {"image_id": others["image_id"].tolist(), "split": drawn["split"].tolist()}
    )
    test = records.loc[inside, ["image_id"]].assign(split="test")
    return pd.concat([learned, test], ignore_index=True)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--preset", default="cpu_quick")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--keep", action="store_true", help="keep the figures for the docs")
    args = parser.parse_args()
    data, config = open_prepared(args.dataset), preset(args.preset).with_overrides(args.set)
    records, task = data.records, data.task
    targets = records[records["dx"].isin(task.targets)]["source"].value_counts()
    rows: list[dict[str, str]] = []
    for source, num in targets[targets >= MIN_TARGETS].items():
        folder = args.out / f"without_{source}"
        folder.mkdir(parents=True, exist_ok=True)
        splits_without(records, str(source)).to_csv(folder / "splits.csv", index=False)
        if not (folder / "dataset" / "manifest.json").is_file():
            settings = PrepareConfig(
                task=task,
                size=data.stored_shape[1],
                num_folds=NUM_FOLDS,
                splits=folder / "splits.csv",
                skip_bad=True,
            )
            prepare(args.source, folder / "dataset", settings)
        if not (folder / "run" / RESULT).is_file():
            train(folder / "dataset", folder / "run", config)
        if not (folder / "evidence" / "report.json").is_file():
            evaluate(folder / "run" / "bundle", folder / "dataset", folder / "evidence")
        report = json.loads((folder / "evidence" / "report.json").read_text())
        cells = {
            name: number(report["contract_unit"][key])
            for name, key in (
                ("AUROC", "auroc"),
                ("sensitivity at the threshold", "sensitivity"),
                ("specificity at the threshold", "specificity"),
            )
        }
        cells |= {
            "observed / expected": number(report["calibration"]["observed_expected"]),
            "cannot_assess": f"{report['flow']['cannot_assess']} of {report['flow']['images']}",
        }
        rows.append({"left out": str(source), "melanoma images": str(num), **cells})
        print("  ".join(rows[-1].values()), flush=True)
    if args.keep:
        keep("sources", rows)


if __name__ == "__main__":
    main()
