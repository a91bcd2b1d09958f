"""Commands that use a bundle on images without labels: `score`, `predict` and `serve`."""

import argparse
import sys
from typing import Any

from ray_jobs.arguments import (
    BAD_INPUT,
    BUNDLE,
    DONE,
    add_address,
    add_command,
    add_embeddings,
    add_insecure,
    add_scoring_workers,
    add_submission,
    path,
)
from ray_jobs.results import print_result


def add_commands(commands: Any) -> None:
    """Add `score`, `predict` and `serve` to the commands."""
    _score_options(
        add_command(
            commands,
            "score",
            _score,
            "score a folder of images without labels; run it again to resume",
        )
    )
    _predict_options(
        add_command(
            commands,
            "predict",
            _predict,
            "print decisions for images, write heatmaps and DICOM reports",
        )
    )
    _serve_options(
        add_command(commands, "serve", _serve, "serve a bundle on this machine with Ray Serve")
    )


def _score_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("bundle", type=path, metavar="BUNDLE", help=BUNDLE)
    command.add_argument(
        "folder", type=path, metavar="FOLDER", help="folder with images anywhere below it"
    )
    command.add_argument(
        "out",
        type=path,
        metavar="OUT",
        help="folder for scores.parquet, new or of the same scoring",
    )
    add_scoring_workers(command)
    command.add_argument(
        "--lesions",
        type=path,
        metavar="TABLE",
        help=(
            "CSV or parquet file with the columns image and lesion_id: also judge the images of"
            " each lesion together and write lesions.parquet"
        ),
    )
    add_embeddings(command)
    add_submission(command)
    add_address(command)


def _score(args: argparse.Namespace) -> int:
    from melanoma.scoring import describe_scores, score
    from ray_jobs.executor import RayExecutor
    from ray_jobs.progress import counted

    with counted("scoring") as progress:
        table = score(
            args.bundle,
            args.folder,
            args.out,
            num_workers=args.workers,
            submission=args.submission,
            lesions=args.lesions,
            embeddings=args.embeddings,
            executor=RayExecutor(),
            progress=progress,
        )
    found, text = describe_scores(
        table, args.out, submission=args.submission, with_lesions=args.lesions is not None
    )
    print_result(args, found, text)
    return DONE


def _predict_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("bundle", type=path, metavar="BUNDLE", help=BUNDLE)
    command.add_argument(
        "image", type=path, nargs="+", metavar="IMAGE", help="JPEG, PNG, WebP or DICOM"
    )
    command.add_argument(
        "--explain",
        metavar="METHOD",
        help="also write a heatmap over the image, such as grad_cam (needs --out)",
    )
    command.add_argument(
        "--dicom",
        action="store_true",
        help=(
            "for each DICOM image also write a structured report and, with --explain, the heatmap"
            " as DICOM (needs --out, and pip install 'melanoma[dicom]')"
        ),
    )
    command.add_argument(
        "--one-lesion",
        action="store_true",
        help="judge all images together, as images of one lesion (at most 6)",
    )
    command.add_argument("--out", type=path, metavar="DIR", help="folder for what is written")
    _add_uncontracted(command)


def _predict(args: argparse.Namespace) -> int:
    from melanoma.predict import describe_predictions, predict_files

    found = predict_files(
        args.bundle,
        args.image,
        explain=args.explain,
        out=args.out,
        allow_uncontracted=args.allow_uncontracted,
        dicom=args.dicom,
        one_lesion=args.one_lesion,
    )
    unusable = [result for result in found["results"] if "error" in result]
    if args.json or len(unusable) < len(found["results"]):
        print_result(args, found, describe_predictions(found))
    for result in unusable:
        print(f"melanoma: {result['image']}: {result['error']}", file=sys.stderr)
    return BAD_INPUT if unusable else DONE


def _add_uncontracted(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--allow-uncontracted",
        action="store_true",
        help="give decisions although the contract is not met, with a warning",
    )


def _serve_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("bundle", type=path, metavar="BUNDLE", help=BUNDLE)
    command.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="H",
        help="address to listen on (default %(default)s)",
    )
    command.add_argument(
        "--port",
        type=_port,
        default=8000,
        metavar="P",
        help="port to listen on (default %(default)s)",
    )
    _add_uncontracted(command)
    add_insecure(command)


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"must be from 1 to 65535; it is {text!r}")
    return int(text)


def _serve(args: argparse.Namespace) -> int:
    from serve.environment import set_environment

    set_environment()  # before Ray Serve is imported
    from ray_jobs.local_ray import safe_defaults
    from ray_jobs.preflight import check_temp_dir
    from serve.local import serve_locally

    check_temp_dir()
    with safe_defaults():
        serve_locally(
            args.bundle, host=args.host, port=args.port, allow_uncontracted=args.allow_uncontracted
        )
    return DONE
