"""Evaluates finished runs once each on the 1,494 test images of the seed system's split.

A run's figures stay in OUT, so that no bundle sees the images twice. The minutes are those of all
epochs of all its networks, validation included.

    python -m benchmarks.seed_bundles SOURCE OUT TITLE=RUN [TITLE=RUN ...] [--keep]
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.figures import keep, number, write_pages
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


def main() -> None:
    """Evaluate what was not evaluated yet, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", nargs="+", metavar="TITLE=RUN")
    parser.add_argument("--keep", action="store_true", help="keep the figures for the docs")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    named = dict(each.split("=", 1) for each in args.runs)
    found = {
        title: evaluated(args.source, args.out, Path(run).resolve()) for title, run in named.items()
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
    print(pd.DataFrame(cells).to_string(index=False))
    if args.keep:
        keep("seed-bundles", cells)
        write_pages()


if __name__ == "__main__":
    main()
