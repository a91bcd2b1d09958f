"""The parser of the `melanoma` command line. It imports none of the code that the commands run."""

import argparse
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from melanoma.errors import UserError
from melanoma.io import storage
from melanoma.io.storage import AnyPath, redacted

DONE, FOUND, BAD_INPUT, FAILED = 0, 1, 2, 3  # exit codes
MARK = "MELANOMA_RESULT_MARK"
"""Environment variable of a job: the line before and after the result in the job's log."""
NEW_FOLDER = "folder to write, new or empty"
PREPARED = "folder written by `melanoma data prepare`"
BUNDLE = "folder written by `melanoma train` (OUT/RUN/bundle)"
NAMED_OR_PATH = {"weights": ("none", "imagenet"), "task": ("ham10000", "isic2019", "binary")}
"""Options that take one of these names, or a path."""
Command = Callable[[argparse.Namespace], int]


class _Parser(argparse.ArgumentParser):
    """Reports bad usage in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"melanoma: {redacted(message)}. See {self.prog} --help.\n")


def build_parser(run: Mapping[str, Command], version: str) -> argparse.ArgumentParser:
    """Return the parser.

    Args:
        run: the function of each command, by name. The parser stores the chosen one as
            ``args.run``.
        version: version of this package.
    """
    parser = _Parser(
        prog="melanoma",
        description="Melanoma triage on Ray. Research use only; not a medical device.",
    )
    parser.add_argument("--version", action="version", version=f"melanoma {version}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_data(_group(commands, "data", "make, prepare, describe and audit data sets"), run)
    _add_config(commands, run)
    _add_training(commands, run)
    _add_serving(commands, run)
    _add_bundle(_group(commands, "bundle", "check bundles and watch their promises"), run)
    return parser


def _group(commands: Any, name: str, description: str) -> Any:
    parser = commands.add_parser(name, help=description, description=description)
    return parser.add_subparsers(title="commands", required=True, metavar="COMMAND")


def _add(where: Any, name: str, run: Command, description: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = where.add_parser(
        name, help=description, description=description
    )
    command.add_argument("--json", action="store_true", help="print the result as one JSON object")
    command.set_defaults(run=run)
    return command


def path(text: str) -> AnyPath:
    """Return the path or address in `text`.

    Raises:
        argparse.ArgumentTypeError: if it is not allowed.
    """
    try:
        return storage.to_path(text)
    # argparse would replace the message of a ValueError by the typed text, which may hold a secret.
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from None


def _named_or_path(option: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        return text if text in NAMED_OR_PATH[option] else str(path(text))

    return read


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; it is {text!r}")
    return int(text)


def _between(low: float) -> Callable[[str], float]:
    """Return what reads a number between a bound and 1, without these two."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = low
        if not low < value < 1:
            raise argparse.ArgumentTypeError(f"must be between {low:g} and 1; it is {text!r}")
        return value

    return read


def _workers(text: str) -> tuple[int, int]:
    """Return the fewest and the most workers from N or N-M."""
    least, dash, most = text.partition("-")
    bounds = _positive(least), _positive(most if dash else least)
    if bounds[0] > bounds[1]:
        raise argparse.ArgumentTypeError(f"must be N or N-M with N at most M; it is {text!r}")
    return bounds


def _add_insecure(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--insecure-ray",
        action="store_true",
        help=(
            "start the local Ray without a token; anyone who can reach this machine over the"
            " network can then run code as you"
        ),
    )


def _address(text: str) -> str:
    if redacted(text) != text:
        raise argparse.ArgumentTypeError(
            "must not contain a password, because Ray stores the address; name a token file in"
            " RAY_AUTH_TOKEN_PATH"
        )
    return text


def _add_address(command: argparse.ArgumentParser) -> None:
    _add_insecure(command)
    command.add_argument(
        "--address",
        type=_address,
        metavar="http://HEAD:8265",
        help=(
            "run as a Ray job on this cluster and follow it; paths must then exist on its nodes, or"
            " be addresses such as s3://"
        ),
    )


def _port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"must be from 1 to 65535; it is {text!r}")
    return int(text)


def _add_data(data: Any, run: Mapping[str, Command]) -> None:
    _add_phantom(data, run)
    _add_prepare(data, run)
    describe = _add(
        data,
        "describe",
        run["describe"],
        "count images by class, split, group and source, and verify every checksum",
    )
    describe.add_argument("dataset", type=path, metavar="DATASET", help=PREPARED)

    audit = _add(
        data,
        "audit",
        run["audit"],
        "look for one lesion under several ids, and for shortcuts; exit code 1: a leak",
    )
    audit.add_argument("dataset", type=path, metavar="DATASET", help=PREPARED)
    audit.add_argument(
        "--out",
        type=path,
        metavar="DIR",
        help="folder for the page and the list of pairs; it replaces an earlier audit",
    )

    replay = _add(
        data,
        "seed-replay",
        run["seed_replay"],
        "rebuild the split of the seed system on HAM10000, and evaluate a bundle on its test",
    )
    replay.add_argument("source", type=path, metavar="SOURCE", help="folder of HAM10000")
    replay.add_argument(
        "--bundle",
        type=path,
        metavar="BUNDLE",
        help="bundle trained on this split, or on other images, to evaluate on its test",
    )
    replay.add_argument(
        "--same-lesion",
        type=path,
        metavar="FILE",
        help="CSV of known pairs of images of one lesion, to count those on two sides",
    )
    replay.add_argument(
        "--out",
        type=path,
        metavar="DIR",
        help="new folder for splits.csv, which prepare --splits takes, and for the evidence",
    )


def _add_phantom(data: Any, run: Mapping[str, Command]) -> None:
    phantom = _add(
        data, "phantom", run["phantom"], "write a synthetic data set in the layout of HAM10000"
    )
    phantom.add_argument("out", type=path, metavar="OUT", help=NEW_FOLDER)
    phantom.add_argument(
        "--lesions",
        type=_positive,
        default=2000,
        metavar="N",
        help="number of lesions (default %(default)s)",
    )
    phantom.add_argument(
        "--seed", type=int, default=0, metavar="S", help="random seed (default %(default)s)"
    )
    phantom.add_argument(
        "--leaks",
        type=int,
        default=0,
        metavar="N",
        help="plant a leak: add N lesions a second time under another id",
    )
    phantom.add_argument(
        "--shortcut",
        action="store_true",
        help="plant a shortcut: nearly all melanomas come from one source",
    )
    phantom.add_argument(
        "--melanomas",
        type=float,
        metavar="F",
        help=(
            "share of melanomas among the lesions (default: that of HAM10000, or more if a contract"
            " needs it)"
        ),
    )
    phantom.add_argument(
        "--mimics",
        type=float,
        default=0.0,
        metavar="F",
        help=(
            "share of melanomas that look like nevi, and of nevi that look like melanomas (default"
            " %(default)s)"
        ),
    )


def _add_prepare(data: Any, run: Mapping[str, Command]) -> None:
    prepare = _add(
        data,
        "prepare",
        run["prepare"],
        "check, group and split images and metadata, and write decoded shards",
    )
    prepare.add_argument(
        "source",
        type=path,
        metavar="SOURCE",
        help="folder with one metadata CSV and the images anywhere below it",
    )
    prepare.add_argument("out", type=path, metavar="OUT", help=NEW_FOLDER)
    prepare.add_argument(
        "--task",
        type=_named_or_path("task"),
        default="ham10000",
        metavar="NAME|FILE",
        help=(
            "classes and targets: ham10000 (7 classes), isic2019 (8), binary (benign, malignant),"
            " or a JSON file (default %(default)s)"
        ),
    )
    prepare.add_argument(
        "--population",
        metavar="TEXT",
        help="population that the images are a sample of (default: the name of SOURCE)",
    )
    prepare.add_argument(
        "--size",
        type=_positive,
        default=256,
        metavar="PX",
        help="long side of the stored images in pixels (default %(default)s)",
    )
    prepare.add_argument(
        "--folds",
        type=_positive,
        default=5,
        metavar="K",
        help="number of folds of the training split (default %(default)s)",
    )
    prepare.add_argument(
        "--test-fraction",
        type=float,
        default=0.15,
        metavar="F",
        help="share of the test split (default %(default)s)",
    )
    prepare.add_argument(
        "--calibration-fraction",
        type=float,
        default=0.15,
        metavar="F",
        help="share of the calibration split (default %(default)s)",
    )
    prepare.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="S",
        help="random seed of the splits (default %(default)s)",
    )
    prepare.add_argument(
        "--group-by",
        metavar="COL,...",
        help=(
            "metadata columns; images with an equal value in any of them stay in one split"
            " (default: patient_id and lesion_id, if present)"
        ),
    )
    prepare.add_argument(
        "--same-lesion",
        type=path,
        metavar="FILE",
        help="CSV of known pairs of images of one lesion: two image ids in each row",
    )
    prepare.add_argument(
        "--splits",
        type=path,
        metavar="FILE",
        help=(
            "CSV with the columns image_id and split (train, validation, calibration or test), to"
            " use instead of random splits"
        ),
    )
    prepare.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out bad rows and list them in OUT/rejected.csv",
    )

    _add_address(prepare)


def _add_config(commands: Any, run: Mapping[str, Command]) -> None:
    config = _add(
        commands,
        "config",
        run["config"],
        "print every training setting with its value and meaning",
    )
    _add_settings(config)
    config.add_argument("--markdown", action="store_true", help="print a Markdown table")


def _add_training(commands: Any, run: Mapping[str, Command]) -> None:
    train = _add(
        commands,
        "train",
        run["train"],
        "train with DDP on Ray Train and write a bundle; run it again to resume",
    )
    _add_run(train)
    train.add_argument(
        "--name", metavar="RUN", help="folder below OUT (default: the preset's name)"
    )
    train.add_argument(
        "--workers",
        type=_workers,
        default=(1, 1),
        metavar="N[-M]",
        help=(
            "DDP workers that share every batch (default 1); with N-M, as many as the cluster has"
            " room for, adjusted while it changes"
        ),
    )
    train.add_argument(
        "--folds",
        choices=("all",),
        help=(
            "all: train one network for each fold, without that fold, and ship them as one ensemble"
            " (default: one network, without the fold data.validation_fold)"
        ),
    )
    train.add_argument(
        "--embeddings",
        type=path,
        metavar="TABLE",
        help=(
            "parquet file with image_id and the embedding of each image by a model outside, which"
            " stands in for the network; a linear head is trained on it"
        ),
    )
    train.add_argument(
        "--teacher",
        type=path,
        metavar="TABLE",
        help=(
            "parquet or CSV file with another model's probabilities for the training images, such"
            " as the out_of_fold.parquet of an ensemble; loss.teacher_share says how much they"
            " count beside the labels"
        ),
    )
    _add_address(train)

    tune = _add(
        commands,
        "tune",
        run["tune"],
        "search gamma and class weights with Ray Tune and grouped cross-validation, and write a"
        " bundle; run it again to resume",
    )
    _add_run(tune)
    tune.add_argument(
        "--name", metavar="RUN", help="folder below OUT (default: the preset's name and _tune)"
    )
    tune.add_argument(
        "--trials",
        type=_positive,
        default=40,
        metavar="N",
        help=(
            "number of trials, each one fold of one setting, besides all folds of the base and of"
            " plain cross-entropy (default %(default)s)"
        ),
    )
    tune.add_argument(
        "--objective",
        metavar="NAME",
        help=(
            "out-of-fold metric to maximise: melanoma_recall@specificity=S,"
            " specificity@sensitivity=S, auroc or partial_auroc; ,within=source behind it compares"
            " images of the same source only (default melanoma_recall@specificity=0.8, within"
            " sources where several have targets)"
        ),
    )
    tune.add_argument(
        "--also",
        action="append",
        default=[],
        choices=("lr", "drop_path"),
        help="also search this setting; may be repeated",
    )
    tune.add_argument(
        "--at-once",
        type=_positive,
        default=2,
        metavar="N",
        help=(
            "trials at a time (default %(default)s); with 1, a resumed search gives exactly the"
            " result of an uninterrupted one; with more, it may propose other settings"
        ),
    )
    tune.add_argument(
        "--workers",
        type=_positive,
        default=1,
        metavar="N",
        help="DDP workers of each trial (default %(default)s)",
    )
    _add_address(tune)
    _add_evaluation(commands, run)
    _add_compare(commands, run)


def _add_evaluation(commands: Any, run: Mapping[str, Command]) -> None:
    evaluate = _add(
        commands,
        "evaluate",
        run["evaluate"],
        "score a bundle and write the evidence; exit code 1: the contract is refuted",
    )
    evaluate.add_argument("bundle", type=path, metavar="BUNDLE", help=BUNDLE)
    evaluate.add_argument(
        "data",
        type=path,
        metavar="DATA",
        help="prepared data set, or folder of images with metadata",
    )
    evaluate.add_argument(
        "out",
        type=path,
        metavar="OUT",
        help="folder to write; it replaces an earlier evaluation",
    )
    evaluate.add_argument(
        "--split",
        choices=("train", "calibration", "test"),
        help="split of a prepared data set (default test; every access is logged)",
    )
    evaluate.add_argument(
        "--workers",
        type=_positive,
        default=1,
        metavar="N",
        help="scoring actors (default %(default)s)",
    )
    evaluate.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out bad rows of a folder of images and list them in the report",
    )
    evaluate.add_argument(
        "--known",
        type=path,
        metavar="DATASET",
        help=(
            "prepared data set that the bundle was trained on; its records show what a model that"
            " sees no image reaches on DATA"
        ),
    )
    evaluate.add_argument(
        "--scorecard",
        action="store_true",
        help="also measure what the heatmaps are worth, on up to 500 of the images",
    )
    evaluate.add_argument(
        "--masks",
        type=path,
        metavar="DIR",
        help="folder of lesion masks, a PNG named after each image id, for --scorecard",
    )
    _add_embeddings(evaluate)
    _add_submission(evaluate)
    _add_address(evaluate)


def _add_compare(commands: Any, run: Mapping[str, Command]) -> None:
    compare = _add(
        commands,
        "compare",
        run["compare"],
        "compare two models on the same images, from their tables of predictions",
    )
    for name in ("a", "b"):
        compare.add_argument(
            name,
            type=path,
            metavar=name.upper(),
            help="predictions.parquet, or a CSV with an id, probabilities or scores, and a label",
        )
    compare.add_argument(
        "--task",
        type=_named_or_path("task"),
        metavar="NAME|FILE",
        help="task of the tables (default: that of the evaluations, or one with their classes)",
    )
    compare.add_argument(
        "--group-by",
        metavar="COL,...",
        help=(
            "columns of A or B; images with an equal value in any of them belong together (default:"
            " group, or else patient_id and lesion_id)"
        ),
    )
    compare.add_argument(
        "--common",
        action="store_true",
        help="compare the images that both tables have, and count the others",
    )
    compare.add_argument(
        "--unassessed",
        action="store_true",
        help="count images too that a model answers with cannot_assess",
    )
    compare.add_argument(
        "--out",
        type=path,
        metavar="DIR",
        help="folder for comparison.json and a page; it replaces an earlier comparison",
    )


def _add_embeddings(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--embeddings",
        type=path,
        metavar="TABLE",
        help="parquet file with the embeddings of the images, for a bundle trained on embeddings",
    )


def _add_submission(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--submission",
        choices=("isic2018", "isic2019", "isic2020"),
        help="also write the table that this challenge takes, OUT/submission_<challenge>.csv",
    )


def _add_settings(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--preset",
        default="cpu_quick",
        metavar="NAME",
        help="smoke, cpu_quick, cpu or gpu (default %(default)s)",
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one setting, for example --set loss.gamma=2; may be repeated",
    )
    command.add_argument(
        "--set-file",
        type=path,
        metavar="FILE",
        help="JSON file of settings that replaces the preset",
    )


def _add_run(command: argparse.ArgumentParser) -> None:
    """Add the arguments that training and search share: data, output folder and settings."""
    command.add_argument("dataset", type=path, metavar="DATASET", help=PREPARED)
    command.add_argument(
        "out", type=path, metavar="OUT", help="folder of runs; this run is written to OUT/RUN"
    )
    _add_settings(command)
    _add_contract(command)
    command.add_argument("--gpu", action="store_true", help="train on GPUs, one for each worker")
    command.add_argument(
        "--cpus-per-worker",
        type=_positive,
        metavar="N",
        help="CPUs and threads of each worker (default: as many as the nodes allow)",
    )
    command.add_argument(
        "--weights",
        type=_named_or_path("weights"),
        default="none",
        metavar="none|imagenet|PATH",
        help=(
            "start weights: none (random), imagenet (published by timm), or a safetensors or"
            " tensors-only torch file (default %(default)s)"
        ),
    )


def _add_contract(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--require-contract",
        action="store_true",
        help="exit with code 1 if the bundle's contract is not met",
    )
    command.add_argument(
        "--accesses",
        type=_positive,
        metavar="N",
        help=(
            "declare, before the first, how many networks will be calibrated on this data set; each"
            " may then be wrong about its promise with a probability of 0.05 / N (default: the k-th"
            " with 0.05 / (k (k + 1)))"
        ),
    )


def _add_serving(commands: Any, run: Mapping[str, Command]) -> None:
    score = _add(
        commands,
        "score",
        run["score"],
        "score a folder of images without labels; run it again to resume",
    )
    score.add_argument("bundle", type=path, metavar="BUNDLE", help=BUNDLE)
    score.add_argument(
        "folder", type=path, metavar="FOLDER", help="folder with images anywhere below it"
    )
    score.add_argument(
        "out",
        type=path,
        metavar="OUT",
        help="folder for scores.parquet, new or of the same scoring",
    )
    score.add_argument(
        "--workers",
        type=_positive,
        default=1,
        metavar="N",
        help="scoring actors (default %(default)s)",
    )
    score.add_argument(
        "--lesions",
        type=path,
        metavar="CSV",
        help=(
            "CSV with the columns image and lesion_id: also judge the images of each lesion"
            " together and write lesions.parquet"
        ),
    )
    _add_embeddings(score)
    _add_submission(score)
    _add_address(score)

    predict = _add(
        commands,
        "predict",
        run["predict"],
        "print decisions for images, write heatmaps and DICOM reports",
    )
    predict.add_argument("bundle", type=path, metavar="BUNDLE", help=BUNDLE)
    predict.add_argument(
        "image", type=path, nargs="+", metavar="IMAGE", help="JPEG, PNG, WebP or DICOM"
    )
    predict.add_argument(
        "--explain",
        metavar="METHOD",
        help="also write a heatmap over the image, such as grad_cam (needs --out)",
    )
    predict.add_argument(
        "--dicom",
        action="store_true",
        help=(
            "for each DICOM image also write a structured report and, with --explain, the heatmap"
            " as DICOM (needs --out, and pip install 'melanoma[dicom]')"
        ),
    )
    predict.add_argument(
        "--one-lesion",
        action="store_true",
        help="judge all images together, as images of one lesion (at most 6)",
    )
    predict.add_argument("--out", type=path, metavar="DIR", help="folder for what is written")
    predict.add_argument(
        "--allow-uncontracted",
        action="store_true",
        help="give decisions although the contract is not met, with a warning",
    )

    serve = _add(commands, "serve", run["serve"], "serve a bundle on this machine with Ray Serve")
    serve.add_argument("bundle", type=path, metavar="BUNDLE", help=BUNDLE)
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="H",
        help="address to listen on (default %(default)s)",
    )
    serve.add_argument(
        "--port",
        type=_port,
        default=8000,
        metavar="P",
        help="port to listen on (default %(default)s)",
    )
    serve.add_argument(
        "--allow-uncontracted",
        action="store_true",
        help="give decisions although the contract is not met, with a warning",
    )
    _add_insecure(serve)


def _add_bundle(bundle: Any, run: Mapping[str, Command]) -> None:
    verify = _add(
        bundle,
        "verify",
        run["verify"],
        "check hashes, replay probes and recompute the contract; exit code 1: do not serve it",
    )
    verify.add_argument("bundle", type=path, metavar="BUNDLE", help=BUNDLE)

    recontract = _add(
        bundle,
        "recontract",
        run["recontract"],
        "give a bundle's network a contract on another site's data",
    )
    recontract.add_argument("bundle", type=path, metavar="BUNDLE", help=BUNDLE)
    recontract.add_argument("dataset", type=path, metavar="DATASET", help=PREPARED)
    recontract.add_argument("out", type=path, metavar="OUT", help=NEW_FOLDER)
    recontract.add_argument(
        "--promise",
        type=_between(0.5),
        metavar="S",
        help="sensitivity to promise, between 0.5 and 1 (default: that of the bundle)",
    )
    _add_contract(recontract)

    scorecard = _add(
        bundle,
        "add-scorecard",
        run["add_scorecard"],
        "write a bundle that says which of its heatmaps a scorecard supports",
    )
    scorecard.add_argument("bundle", type=path, metavar="BUNDLE", help=BUNDLE)
    scorecard.add_argument(
        "scorecard",
        type=path,
        metavar="SCORECARD",
        help="scorecard.json of evaluate --scorecard",
    )
    scorecard.add_argument("out", type=path, metavar="OUT", help=NEW_FOLDER)

    monitor = _add(
        bundle,
        "monitor",
        run["monitor"],
        "test a bundle's promise on outcomes that came in later; exit code 1: it is broken",
    )
    monitor.add_argument("bundle", type=path, metavar="BUNDLE", help=BUNDLE)
    monitor.add_argument(
        "outcomes",
        type=path,
        metavar="OUTCOMES",
        help=(
            "CSV in the order of arrival: request_id or image_id, score, a diagnosis (blank while"
            " not known); if there are any, patient_id or lesion_id, decision, version"
        ),
    )

    plan = _add(
        bundle,
        "plan",
        run["plan"],
        "print how many targets a promise takes: to make it, to confirm it, to watch it",
    )
    plan.add_argument(
        "--promise",
        type=_between(0.5),
        action="append",
        metavar="S",
        help="sensitivity to promise, between 0.5 and 1; may be repeated (default 0.8 to 0.95)",
    )
    plan.add_argument(
        "--share",
        type=_between(0.0),
        metavar="F",
        help="share of targets at the site, between 0 and 1, to print how many units hold them",
    )
