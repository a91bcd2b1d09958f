"""Finished runs on the seed system's split: on its 1,494 test images, and out of fold.

A run is evaluated once on the test images: its figures stay in OUT, so that no bundle sees them
twice. Out of fold, every development image is predicted by the network that was not trained on its
fold. The minutes are those of all epochs of all networks of a run, validation included.

    python -m benchmarks.seed_bundles test SOURCE OUT TITLE=RUN [TITLE=RUN ...] [--keep]
    python -m benchmarks.seed_bundles folds DATASET TITLE=RUN [TITLE=RUN ...] [--keep]
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.figures import keep, number, write_pages
from melanoma.data.dataset import PreparedData, open_prepared
from melanoma.evidence.metrics import validation_scores
from melanoma.io.files import write_json
from melanoma.seed_replay import seed_replay
from ray_jobs.executor import RayExecutor
from ray_jobs.progress import counted

ROWS = {
    "auroc": "AUROC of melanoma",
    "specificity_at_sensitivity_90": "specificity at 90 % sensitivity",
    "macro_f1": "macro-F1",
    "target_recall_argmax": "melanoma recall, likeliest class",
    "accuracy": "accuracy",
    "sensitivity": "sensitivity at the threshold",
    "specificity": "specificity at the threshold",
}
FOLD_COLUMNS = {
    "within_source_auroc": "within sources",
    "specificity_at_sensitivity_90": "specificity at 90 %",
    "macro_f1": "macro-F1",
    "nll": "nll",
}
SEED_SYSTEM = {"macro_f1": "0.73", "target_recall_argmax": "0.68", "accuracy": "0.83"}
"""What the seed system published of the same images, without intervals."""


def minutes(run: Path) -> float:
    """Return how long the networks of a run trained, one after another."""
    histories = [run / "history.jsonl", *sorted(run.glob("fold_*/history.jsonl"))]
    epochs = pd.concat(
        [pd.read_json(path, lines=True) for path in histories if path.is_file()], ignore_index=True
    )
    seconds = epochs["train_seconds"] + epochs["validation_seconds"]
    return float(seconds.sum()) / 60


def evaluated(source: Path, out: Path, run: Path) -> dict[str, Any]:
    """Return the figures of a run's bundle on the images, from its first evaluation."""
    path = out / f"{run.name}.json"
    if not path.is_file():
        found = seed_replay(source, bundle=run / "bundle", executor=RayExecutor(), counted=counted)
        write_json(path, {**found["ours"], "minutes": minutes(run)})
    kept: dict[str, Any] = json.loads(path.read_text())
    return kept


def out_of_fold(data: PreparedData, run: Path) -> dict[str, str]:
    """Return the mean over the folds of what a network scored on the fold that it did not see."""
    found = pd.read_parquet(run / "out_of_fold.parquet").set_index("image_id")
    scores = []
    for fold in range(data.manifest.num_folds):
        rows = data.rows("train", fold=fold)
        columns = [f"probability_{name}" for name in data.task.classes]
        logits = np.log(found.loc[rows["image_id"], columns].to_numpy())
        scores.append(
            validation_scores(data.task, rows["label"].to_numpy(), logits, rows["source"].tolist())
        )
    table = pd.DataFrame(scores)
    by_fold = ", ".join(f"{value:.3f}" for value in table["auroc"])
    return {
        "AUROC, mean of the folds": f"{table['auroc'].mean():.3f} ({by_fold})",
        **{title: f"{table[metric].mean():.3f}" for metric, title in FOLD_COLUMNS.items()},
        "minutes": f"{minutes(run):.0f}",
    }


def on_test(args: argparse.Namespace) -> None:
    """Evaluate what was not evaluated yet, and print the table."""
    args.out.mkdir(parents=True, exist_ok=True)
    found = {
        title: evaluated(args.source, args.out, run) for title, run in titled(args.runs).items()
    }
    cells = [
        {
            "for each image": title,
            **{name: number(ours[metric]) for name, ours in found.items()},
            "seed system": SEED_SYSTEM.get(metric, "not published"),
        }
        for metric, title in ROWS.items()
    ]
    spent = {name: f"{ours['minutes']:.0f}" for name, ours in found.items()}
    cells.append({"for each image": "minutes of training", **spent, "seed system": "-"})
    show(cells, keep_as="seed-bundles" if args.keep else None)


def on_folds(args: argparse.Namespace) -> None:
    """Print what the networks of some runs score out of fold."""
    data = open_prepared(args.dataset)
    cells = [{"run": name, **out_of_fold(data, run)} for name, run in titled(args.runs).items()]
    show(cells, keep_as="seed-folds" if args.keep else None)


def titled(runs: list[str]) -> dict[str, Path]:
    """Return the folder of each run by its title."""
    named = dict(each.split("=", 1) for each in runs)
    return {title: Path(run).resolve() for title, run in named.items()}


def show(cells: list[dict[str, str]], *, keep_as: str | None) -> None:
    """Print a table, and keep it for the docs."""
    print(pd.DataFrame(cells).to_string(index=False))
    if keep_as is not None:
        keep(keep_as, cells)
        write_pages()


def main() -> None:
    """Print one of the two tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    test = commands.add_parser("test")
    test.add_argument("source", type=Path)
    test.add_argument("out", type=Path)
    test.set_defaults(run=on_test)
    folds = commands.add_parser("folds")
    folds.add_argument("dataset", type=Path)
    folds.set_defaults(run=on_folds)
    for command in (test, folds):
        command.add_argument("runs", nargs="+", metavar="TITLE=RUN")
        command.add_argument("--keep", action="store_true", help="keep the figures for the docs")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
