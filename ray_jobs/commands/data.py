"""Commands that make data sets: `data phantom` and `data prepare`."""

import argparse
from typing import Any

from melanoma.places import REJECTED
from ray_jobs.arguments import (
    DONE,
    NEW_FOLDER,
    add_address,
    add_command,
    check_new,
    named_or_path,
    names,
    path,
    positive,
)
from ray_jobs.results import print_result


def add_commands(commands: Any) -> None:
    """Add `phantom` and `prepare` to the group `data`."""
    _phantom_options(
        add_command(
            commands, "phantom", _phantom, "write a synthetic data set in the layout of HAM10000"
        )
    )
    _prepare_options(
        add_command(
            commands,
            "prepare",
            _prepare,
            "check, group and split images and metadata, and write decoded shards",
        )
    )


def _phantom_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("out", type=path, metavar="OUT", help=NEW_FOLDER)
    command.add_argument(
        "--lesions",
        type=positive,
        default=2000,
        metavar="N",
        help="number of lesions (default %(default)s)",
    )
    command.add_argument(
        "--seed", type=int, default=0, metavar="S", help="random seed (default %(default)s)"
    )
    command.add_argument(
        "--leaks",
        type=int,
        default=0,
        metavar="N",
        help="plant a leak: add N lesions a second time under another id",
    )
    command.add_argument(
        "--shortcut",
        action="store_true",
        help="plant a shortcut: nearly all melanomas come from one source",
    )
    command.add_argument(
        "--melanomas",
        type=float,
        metavar="F",
        help=(
            "share of melanomas among the lesions (default: that of HAM10000, or more if a contract"
            " needs it)"
        ),
    )
    command.add_argument(
        "--mimics",
        type=float,
        default=0.0,
        metavar="F",
        help=(
            "share of melanomas that look like nevi, and of nevi that look like melanomas (default"
            " %(default)s)"
        ),
    )


def _phantom(args: argparse.Namespace) -> int:
    from melanoma.data.phantom.config import PhantomConfig

    check_new(args.out)  # before the slow imports, as are the settings
    config = PhantomConfig(
        num_lesions=args.lesions,
        seed=args.seed,
        leaks=args.leaks,
        shortcut=args.shortcut,
        melanomas=args.melanomas,
        mimics=args.mimics,
    )
    from melanoma.data.phantom.layout import write_phantom
    from ray_jobs.progress import counted

    with counted("drawing") as on_image:
        num = write_phantom(config, args.out, on_image=on_image)
    print_result(
        args,
        {"out": str(args.out), "num_images": num},
        f"{num} synthetic images of {args.lesions} lesions in {args.out}",
    )
    return DONE


def _prepare_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "source",
        type=path,
        metavar="SOURCE",
        help="folder with one metadata CSV and the images anywhere below it",
    )
    command.add_argument("out", type=path, metavar="OUT", help=NEW_FOLDER)
    command.add_argument(
        "--task",
        type=named_or_path("task"),
        default="ham10000",
        metavar="NAME|FILE",
        help=(
            "classes and targets: ham10000 (7 classes), isic2019 (8), binary (benign, malignant),"
            " or a JSON file (default %(default)s)"
        ),
    )
    command.add_argument(
        "--population",
        metavar="TEXT",
        help="population that the images are a sample of (default: the name of SOURCE)",
    )
    command.add_argument(
        "--size",
        type=positive,
        default=256,
        metavar="PX",
        help="long side of the stored images in pixels (default %(default)s)",
    )
    _split_options(command)
    command.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out bad rows and list them in OUT/rejected.csv",
    )
    add_address(command)


def _split_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--folds",
        type=positive,
        default=5,
        metavar="K",
        help="number of folds of the training split (default %(default)s)",
    )
    command.add_argument(
        "--test-fraction",
        type=float,
        default=0.15,
        metavar="F",
        help="share of the test split (default %(default)s)",
    )
    command.add_argument(
        "--calibration-fraction",
        type=float,
        default=0.15,
        metavar="F",
        help="share of the calibration split (default %(default)s)",
    )
    command.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="S",
        help="random seed of the splits (default %(default)s)",
    )
    command.add_argument(
        "--group-by",
        metavar="COL,...",
        help=(
            "metadata columns; images with an equal value in any of them stay in one split"
            " (default: patient_id and lesion_id, if present)"
        ),
    )
    command.add_argument(
        "--same-lesion",
        type=path,
        metavar="FILE",
        help="CSV of known pairs of images of one lesion: two image ids in each row",
    )
    command.add_argument(
        "--splits",
        type=path,
        metavar="FILE",
        help=(
            "CSV with the columns image_id and split (train, validation, calibration or test), to"
            " use instead of random splits"
        ),
    )


def _prepare(args: argparse.Namespace) -> int:
    from melanoma.data.prepare_config import PrepareConfig
    from melanoma.task import read_task

    check_new(args.out, but=REJECTED)  # before the slow imports, as are the settings
    config = PrepareConfig(
        task=read_task(args.task),
        population=args.population,
        size=args.size,
        num_folds=args.folds,
        test_fraction=args.test_fraction,
        calibration_fraction=args.calibration_fraction,
        seed=args.seed,
        group_by=names(args.group_by),
        same_lesion=args.same_lesion,
        splits=args.splits,
        skip_bad=args.skip_bad,
    )
    from melanoma.data.left_out import left_out_sentence
    from melanoma.data.prepare import prepare, read_notes
    from melanoma.io.typed import to_plain
    from ray_jobs.executor import RayExecutor
    from ray_jobs.progress import counted, say

    with counted("decoding") as progress:
        manifest = prepare(args.source, args.out, config, executor=RayExecutor(), progress=progress)
    left_out, notes = left_out_sentence(manifest.left_out, manifest.task), read_notes(args.out)
    for line in (*notes, *([left_out] if args.json and left_out else [])):
        say(line)
    pairs = ", known pairs" if manifest.num_known_pairs else ""
    lines = [
        (
            f"{manifest.num_images} images in {manifest.num_groups} groups"
            f" ({', '.join(manifest.group_columns)}, identical images{pairs})"
        ),
        (
            f"task {manifest.task.name}: {', '.join(manifest.task.classes)}; targets"
            f" {', '.join(manifest.task.targets)}"
        ),
        *(
            [f"{manifest.num_without_group_id} images have no group id and form their own group"]
            if manifest.num_without_group_id
            else []
        ),
        *([f"{left_out} They are listed in {args.out / 'rejected.csv'}."] if left_out else []),
        f"split hash {manifest.split_hash[:12]}, in {args.out}",
    ]
    print_result(args, {**to_plain(manifest), "notes": notes}, "\n".join(lines))
    return DONE
