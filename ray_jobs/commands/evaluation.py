"""Commands that measure models on labelled images: `evaluate` and `compare`."""

import argparse
from typing import Any

from melanoma.errors import SettingError
from ray_jobs.arguments import (
    BUNDLE,
    DONE,
    FOUND,
    add_address,
    add_command,
    add_embeddings,
    add_scoring_workers,
    add_submission,
    named_or_path,
    names,
    path,
)
from ray_jobs.results import print_result


def add_commands(commands: Any) -> None:
    """Add `evaluate` and `compare` to the commands."""
    _evaluate_options(
        add_command(
            commands,
            "evaluate",
            _evaluate,
            "score a bundle and write the evidence; exit code 1: the contract is refuted",
        )
    )
    _compare_options(
        add_command(
            commands,
            "compare",
            _compare,
            "compare two models on the same images, from their tables of predictions",
        )
    )


def _evaluate_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("bundle", type=path, metavar="BUNDLE", help=BUNDLE)
    command.add_argument(
        "data",
        type=path,
        metavar="DATA",
        help="prepared data set, or folder of images with metadata",
    )
    command.add_argument(
        "out",
        type=path,
        metavar="OUT",
        help="folder to write; it replaces an earlier evaluation",
    )
    command.add_argument(
        "--split",
        choices=("train", "calibration", "test"),
        help="split of a prepared data set (default test; every access is logged)",
    )
    add_scoring_workers(command)
    command.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out bad rows of a folder of images and list them in the report",
    )
    command.add_argument(
        "--known",
        type=path,
        metavar="DATASET",
        help=(
            "prepared data set that the bundle was trained on; its records show what a model that"
            " sees no image reaches on DATA"
        ),
    )
    command.add_argument(
        "--scorecard",
        action="store_true",
        help="also measure what the heatmaps are worth, on up to 500 of the images",
    )
    command.add_argument(
        "--masks",
        type=path,
        metavar="DIR",
        help="folder of lesion masks, a PNG named after each image id, for --scorecard",
    )
    add_embeddings(command)
    add_submission(command)
    add_address(command)


def _evaluate(args: argparse.Namespace) -> int:
    if args.masks is not None and not args.scorecard:
        raise SettingError("--masks is for --scorecard, which is not given. Add --scorecard.")
    if args.scorecard and args.embeddings is not None:
        raise SettingError(
            "--scorecard measures heatmaps, and a bundle that judges embeddings has none. Leave it"
            " out."
        )
    from melanoma.data.left_out import left_out_sentence
    from melanoma.evaluation import evaluate
    from melanoma.evidence.summary import describe_evaluation
    from melanoma.task import task_of
    from ray_jobs.executor import RayExecutor
    from ray_jobs.progress import counted, say

    if args.scorecard:
        from melanoma.scorecard import check_scorecard

        check_scorecard(args.data, split=args.split, masks=args.masks)
    with counted("predicting") as progress:
        report = evaluate(
            args.bundle,
            args.data,
            args.out,
            split=args.split,
            num_workers=args.workers,
            skip_bad=args.skip_bad,
            known=args.known,
            embeddings=args.embeddings,
            submission=args.submission,
            executor=RayExecutor(),
            progress=progress,
        )
    if args.json and report["left_out"]:
        say(left_out_sentence(report["left_out"], task_of(report["task"])))
    text = describe_evaluation(report, args.out)
    if args.submission is not None:
        from melanoma.submission import submission_file

        table = str(args.out / submission_file(args.submission))
        report, text = report | {"submission": table}, f"{text}\nsubmission {table}"
    if args.scorecard:
        from melanoma.scorecard import describe_scorecard, write_scorecard

        with counted("explaining", "steps") as progress:
            scorecard = write_scorecard(
                args.bundle, args.data, args.out, masks=args.masks, progress=progress
            )
        report, text = report | {"scorecard": scorecard}, f"{text}\n{describe_scorecard(scorecard)}"
    print_result(args, report, text)
    return FOUND if report["contract"]["status"] == "refuted" else DONE


def _compare_options(command: argparse.ArgumentParser) -> None:
    for name in ("a", "b"):
        command.add_argument(
            name,
            type=path,
            metavar=name.upper(),
            help="predictions.parquet, or a CSV with an id, probabilities or scores, and a label",
        )
    command.add_argument(
        "--task",
        type=named_or_path("task"),
        metavar="NAME|FILE",
        help="task of the tables (default: that of the evaluations, or one with their classes)",
    )
    command.add_argument(
        "--group-by",
        metavar="COL,...",
        help=(
            "columns of A or B; images with an equal value in any of them belong together (default:"
            " group, or else patient_id and lesion_id)"
        ),
    )
    command.add_argument(
        "--common",
        action="store_true",
        help="compare the images that both tables have, and count the others",
    )
    command.add_argument(
        "--unassessed",
        action="store_true",
        help="count images too that a model answers with cannot_assess",
    )
    command.add_argument(
        "--out",
        type=path,
        metavar="DIR",
        help="folder for comparison.json and a page; it replaces an earlier comparison",
    )


def _compare(args: argparse.Namespace) -> int:
    from melanoma.comparison import compare, describe_comparison

    found = compare(
        args.a,
        args.b,
        task=args.task,
        group_by=names(args.group_by),
        common=args.common,
        unassessed=args.unassessed,
        out=args.out,
    )
    text = describe_comparison(found)
    print_result(args, found, text if args.out is None else f"{text}\nwritten to {args.out}")
    return DONE
