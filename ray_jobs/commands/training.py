"""The command `train`, and the options that it shares with the search."""

import argparse
from typing import TYPE_CHECKING, Any

from ray_jobs.arguments import (
    PREPARED,
    add_address,
    add_command,
    add_contract,
    contract_code,
    named_or_path,
    path,
    positive,
)
from ray_jobs.commands.settings import add_settings, config_of
from ray_jobs.results import print_result

if TYPE_CHECKING:
    from melanoma.training.job import TrainJob
    from melanoma.training.run import TrainResult


def add_commands(commands: Any) -> None:
    """Add `train` to the commands."""
    _train_options(
        add_command(
            commands,
            "train",
            _train,
            "train with DDP on Ray Train and write a bundle; run it again to resume",
        )
    )


def add_run(command: argparse.ArgumentParser) -> None:
    """Add the arguments that training and search share: data, output folder and settings."""
    command.add_argument("dataset", type=path, metavar="DATASET", help=PREPARED)
    command.add_argument(
        "out", type=path, metavar="OUT", help="folder of runs; this run is written to OUT/RUN"
    )
    add_settings(command)
    add_contract(command)
    command.add_argument("--gpu", action="store_true", help="train on GPUs, one for each worker")
    command.add_argument(
        "--cpus-per-worker",
        type=positive,
        metavar="N",
        help="CPUs and threads of each worker (default: as many as the nodes allow)",
    )
    command.add_argument(
        "--weights",
        type=named_or_path("weights"),
        default="none",
        metavar="none|imagenet|PATH",
        help=(
            "start weights: none (random), imagenet (published by timm), or a safetensors or"
            " tensors-only torch file (default %(default)s)"
        ),
    )


def _train_options(command: argparse.ArgumentParser) -> None:
    add_run(command)
    command.add_argument(
        "--name", metavar="RUN", help="folder below OUT (default: the preset's name)"
    )
    command.add_argument(
        "--workers",
        type=_workers,
        default=(1, 1),
        metavar="N[-M]",
        help=(
            "DDP workers that share every batch (default 1); with N-M, as many as the cluster has"
            " room for, adjusted while it changes"
        ),
    )
    command.add_argument(
        "--folds",
        choices=("all",),
        help=(
            "all: train one network for each fold, without that fold, and ship them as one ensemble"
            " (default: one network, without the fold data.validation_fold)"
        ),
    )
    command.add_argument(
        "--embeddings",
        type=path,
        metavar="TABLE",
        help=(
            "parquet or CSV file with image_id and the embedding of each image by a model outside,"
            " which stands in for the network; a linear head is trained on it"
        ),
    )
    command.add_argument(
        "--teacher",
        type=path,
        metavar="TABLE",
        help=(
            "parquet or CSV file with another model's probabilities for the training images, such"
            " as the out_of_fold.parquet of an ensemble; loss.teacher_share says how much they"
            " count beside the labels"
        ),
    )
    add_address(command)


def _workers(text: str) -> tuple[int, int]:
    """Return the fewest and the most workers from N or N-M."""
    least, dash, most = text.partition("-")
    bounds = positive(least), positive(most if dash else least)
    if bounds[0] > bounds[1]:
        raise argparse.ArgumentTypeError(f"must be N or N-M with N at most M; it is {text!r}")
    return bounds


def _train(args: argparse.Namespace) -> int:
    config = config_of(args)  # a wrong setting is refused before the slow imports
    from melanoma.training.job import TrainJob
    from melanoma.training.run import on_embeddings, run_job
    from ray_jobs.executor import RayExecutor

    if args.embeddings is not None:
        config = on_embeddings(config, args.embeddings)
    job = TrainJob(
        args.dataset,
        args.out / (args.name or args.preset),
        config,
        num_workers=args.workers[1],
        min_workers=args.workers[0],
        cpus_per_worker=args.cpus_per_worker,
        use_gpu=args.gpu,
        weights=args.weights,
        all_folds=args.folds == "all",
        teacher=args.teacher,
        embeddings=args.embeddings,
    )
    result = run_job(job, RayExecutor())
    print_result(args, result.as_dict(), _describe(job, result))
    return contract_code(args, result.contract.status)


def _describe(job: "TrainJob", result: "TrainResult") -> str:
    """Return the result as text for people."""
    scores = result.validation
    within = scores.get("within_source_auroc")
    also = "" if within is None else f", within sources {within:.3f}"
    best = ", ".join(map(str, result.best_epochs))
    epochs = f"epochs {best} of the folds" if job.all_folds else f"epoch {best}"
    copies = "" if job.config.data.tta == 1 else "with the mirrored copies of prediction; "
    lines = [
        f"best {epochs}; validation AUROC {scores['auroc']:.3f}{also}, specificity at 90 %"
        f" sensitivity {scores['specificity_at_sensitivity_90']:.3f} ({copies}optimistic, because"
        " they chose the epoch)",
        f"contract {result.contract.status}: {result.contract_sentence}",
        f"bundle {result.bundle}",
    ]
    if job.teacher is not None:
        share = job.config.loss.teacher_share
        lines.insert(0, f"{share:.0%} of each label came from the teacher {job.teacher.name}")
    return "\n".join(lines)
