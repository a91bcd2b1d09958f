"""The `melanoma` command: parses, calls, prints. The composition root, and the only file that may import the search and the server.

Results go to stdout, as text or with --json as one JSON object; progress and logs to stderr. Exit 0: done; 1: done, and the
check found something; 2: bad usage or input; 3: it failed.
"""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

DONE, FOUND, BAD_INPUT, FAILED = 0, 1, 2, 3
_Command = Callable[[argparse.Namespace], int]


class _Parser(argparse.ArgumentParser):
    """Says bad usage in one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"melanoma: {message}; see {self.prog} --help.\n")


def _print(args: argparse.Namespace, value: dict[str, Any], text: str) -> None:
    print(json.dumps(value) if args.json else text)


def _phantom(args: argparse.Namespace) -> int:
    from melanoma.data.phantom import PhantomConfig, write_phantom
    from ray_jobs.progress import counted

    config = PhantomConfig(num_lesions=args.lesions, seed=args.seed, leaks=args.leaks, shortcut=args.shortcut)
    with counted("drawing") as on_picture:
        num = write_phantom(config, args.out, on_picture=on_picture)
    _print(
        args,
        {"out": str(args.out), "num_images": num},
        f"{num} synthetic pictures of {args.lesions} lesions in {args.out}",
    )
    return DONE


def _prepare(args: argparse.Namespace) -> int:
    from ray_jobs.prepare import PrepareConfig, prepare
    from ray_jobs.progress import counted

    config = PrepareConfig(
        size=args.size,
        num_folds=args.folds,
        test_fraction=args.test_fraction,
        calibration_fraction=args.calibration_fraction,
        seed=args.seed,
        group_by=tuple(args.group_by.split(",")) if args.group_by else None,
        same_lesion=args.same_lesion,
        splits=args.splits,
        skip_bad=args.skip_bad,
    )
    with counted("decoding") as on_picture:
        manifest = prepare(args.source, args.out, config, on_picture=on_picture)
    text = f"{manifest['num_images']} pictures in {manifest['num_groups']} groups, split hash {manifest['split_hash'][:12]}, in {args.out}"
    _print(args, manifest, text)
    return DONE


def _describe(args: argparse.Namespace) -> int:
    import pandas as pd

    from melanoma.data.dataset import open_prepared

    data = open_prepared(args.dataset, verify=True)
    records = data.records
    part = records["split"].where(records["split"] != "train", "train, fold " + records["fold"].astype(str))
    by_class = pd.crosstab(part, records["dx"], margins=True, margins_name="all")
    by_source = pd.crosstab(records["source"].replace("", "(not named)"), records["split"])
    groups = records.groupby("split")["group"].nunique().to_dict()
    value = {**data.manifest, "groups": groups, "sources": by_source.T.to_dict()}
    text = (
        f"{data.manifest['name']}: {len(records)} pictures of {data.canvas[1]} x {data.canvas[0]} px in {data.manifest['num_groups']} groups "
        f"({', '.join(data.manifest['group_columns'])})\n\n{by_class}\n\n{by_source}\n\nsplit hash {data.manifest['split_hash']}"
    )
    _print(args, value, text)
    return DONE


def _train(args: argparse.Namespace) -> int:
    from melanoma.presets import preset
    from ray_jobs.train import TrainJob, train

    config = preset(args.preset)
    if args.set_file:
        config = type(config).from_dict(json.loads(args.set_file.read_text()))
    config = config.with_overrides(args.set)
    job = TrainJob(
        args.dataset,
        args.out / (args.name or args.preset),
        config,
        num_workers=args.workers,
        use_gpu=args.gpu,
        weights=args.weights,
    )
    result = train(job)
    validation = result["validation"]
    text = (
        f"best epoch {result['best_epoch']}; validation melanoma AUROC {validation['auroc']:.3f}, specificity at 90 % sensitivity "
        f"{validation['specificity_at_sensitivity_90']:.3f} (flattered: they chose the epoch)\n"
        f"contract {result['contract']['status']}: {result['contract_sentence']}\nbundle {result['bundle']}"
    )
    _print(args, result, text)
    return DONE if result["contract"]["status"] == "met" else FOUND


def _evaluate(args: argparse.Namespace) -> int:
    from ray_jobs.evaluate import describe_evaluation, evaluate
    from ray_jobs.progress import counted

    with counted("predicting") as on_picture:
        report = evaluate(
            args.bundle, args.data, args.out, split=args.split, num_workers=args.workers, on_picture=on_picture
        )
    _print(args, report, describe_evaluation(report, args.out))
    return FOUND if report["contract"]["status"] == "refuted" else DONE


def _predict(args: argparse.Namespace) -> int:
    from ray_jobs.predict import predict_files

    found = predict_files(
        args.bundle, args.image, explain=args.explain, out=args.out, allow_uncontracted=args.allow_uncontracted
    )
    lines = [
        f"{r['decision']:14} melanoma {r['probabilities']['mel']:.3f} (threshold {found['threshold']:.3f})  {r['image']}"
        for r in found["results"]
    ]
    _print(args, found, "\n".join([*lines, found["contract_sentence"]]))
    return DONE


def _serve(args: argparse.Namespace) -> int:
    from serve.local import serve_locally

    serve_locally(args.bundle, host=args.host, port=args.port, allow_uncontracted=args.allow_uncontracted)
    return DONE


def _verify(args: argparse.Namespace) -> int:
    from melanoma.bundle import verify_bundle

    findings = verify_bundle(args.bundle)
    text = "\n".join(findings) or f"{args.bundle} is whole, repeats its recorded outputs, and its contract is met"
    _print(args, {"ok": not findings, "findings": findings}, text)
    return FOUND if findings else DONE


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; each sub-command imports what it needs only when it runs, so that --help is instant."""
    parser = _Parser(prog="melanoma", description="Melanoma triage on Ray. Research use only; not a medical device.")
    parser.add_argument("--version", action="version", version="melanoma 0.1.0")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    data = commands.add_parser("data", help="make, prepare and describe data sets").add_subparsers(
        title="commands", required=True, metavar="COMMAND"
    )
    bundle = commands.add_parser("bundle", help="check bundles").add_subparsers(
        title="commands", required=True, metavar="COMMAND"
    )

    def add(where: Any, name: str, run: _Command, description: str) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = where.add_parser(name, help=description, description=description)
        command.add_argument("--json", action="store_true", help="print the result as one JSON object")
        command.set_defaults(run=run)
        return command

    phantom = add(data, "phantom", _phantom, "write a synthetic data set in HAM10000's layout")
    phantom.add_argument("out", type=Path, metavar="OUT")
    phantom.add_argument(
        "--lesions", type=_positive, default=2000, metavar="N", help="lesions in all (default %(default)s)"
    )
    phantom.add_argument("--seed", type=int, default=0, metavar="S")
    phantom.add_argument(
        "--leaks", type=int, default=0, metavar="N", help="plant a leak: show N lesions again under a second id"
    )
    phantom.add_argument(
        "--shortcut", action="store_true", help="plant a shortcut: one source holds nearly all melanomas"
    )

    prepare = add(data, "prepare", _prepare, "pictures and metadata -> checked, grouped, split, decoded shards")
    prepare.add_argument("source", type=Path, metavar="SOURCE")
    prepare.add_argument("out", type=Path, metavar="OUT")
    prepare.add_argument(
        "--size",
        type=_positive,
        default=256,
        metavar="PX",
        help="long side of the stored pictures (default %(default)s)",
    )
    prepare.add_argument("--folds", type=_positive, default=5, metavar="K", help="default %(default)s")
    prepare.add_argument("--test-fraction", type=float, default=0.15, metavar="F", help="default %(default)s")
    prepare.add_argument("--calibration-fraction", type=float, default=0.15, metavar="F", help="default %(default)s")
    prepare.add_argument("--seed", type=int, default=0, metavar="S")
    prepare.add_argument(
        "--group-by",
        metavar="COL,...",
        help="columns that must not be split (default: patient_id and lesion_id, whichever are there)",
    )
    prepare.add_argument(
        "--same-lesion", type=Path, metavar="FILE", help="CSV of known pairs of pictures of one lesion"
    )
    prepare.add_argument(
        "--splits",
        type=Path,
        metavar="FILE",
        help="CSV image_id,split (train, validation, calibration, test) instead of drawing",
    )
    prepare.add_argument(
        "--skip-bad", action="store_true", help="go on without the bad rows; they are listed in OUT/rejected.csv"
    )

    describe = add(data, "describe", _describe, "counts by class, split, group and source; checks every checksum")
    describe.add_argument("dataset", type=Path, metavar="DATASET")

    train = add(
        commands,
        "train",
        _train,
        "Ray Train DDP -> contracted bundle; the same command again resumes. Exit 1: the contract is unmet",
    )
    train.add_argument("dataset", type=Path, metavar="DATASET")
    train.add_argument("out", type=Path, metavar="OUT")
    train.add_argument(
        "--preset", default="cpu_quick", metavar="NAME", help="smoke, cpu_quick, cpu or gpu (default %(default)s)"
    )
    train.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. --set loss.gamma=2; may be repeated"
    )
    train.add_argument("--set-file", type=Path, metavar="FILE", help="a JSON file of settings in place of the preset")
    train.add_argument(
        "--workers",
        type=_positive,
        default=1,
        metavar="N",
        help="DDP workers sharing every batch (default %(default)s)",
    )
    train.add_argument("--gpu", action="store_true", help="one GPU a worker")
    train.add_argument(
        "--weights", default="none", metavar="none|imagenet|PATH", help="start weights (default %(default)s)"
    )
    train.add_argument("--name", metavar="RUN", help="folder below OUT (default: the preset's name)")

    evaluate = add(
        commands, "evaluate", _evaluate, "score a bundle and write the evidence. Exit 1: the contract is refuted"
    )
    evaluate.add_argument("bundle", type=Path, metavar="BUNDLE")
    evaluate.add_argument(
        "data", type=Path, metavar="DATA", help="a prepared data set, or a folder of pictures with metadata"
    )
    evaluate.add_argument("out", type=Path, metavar="OUT")
    evaluate.add_argument(
        "--split",
        choices=("train", "calibration", "test"),
        help="of a prepared data set (default test; every look is logged)",
    )
    evaluate.add_argument(
        "--workers", type=_positive, default=1, metavar="N", help="scoring actors (default %(default)s)"
    )

    predict = add(commands, "predict", _predict, "pictures -> decisions and heatmaps")
    predict.add_argument("bundle", type=Path, metavar="BUNDLE")
    predict.add_argument("image", type=Path, nargs="+", metavar="IMAGE")
    predict.add_argument("--explain", choices=("grad_cam",), help="also write the heatmap laid over the picture")
    predict.add_argument("--out", type=Path, metavar="DIR")
    predict.add_argument(
        "--allow-uncontracted", action="store_true", help="decide although the contract is unmet, and say so"
    )

    serve = add(commands, "serve", _serve, "serve a bundle on this machine with Ray Serve")
    serve.add_argument("bundle", type=Path, metavar="BUNDLE")
    serve.add_argument("--host", default="127.0.0.1", metavar="H")
    serve.add_argument("--port", type=int, default=8000, metavar="P")
    serve.add_argument(
        "--allow-uncontracted", action="store_true", help="decide although the contract is unmet, and say so"
    )

    verify = add(
        bundle, "verify", _verify, "check hashes, replay probes, recompute the contract. Exit 1: it must not be served"
    )
    verify.add_argument("bundle", type=Path, metavar="BUNDLE")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = build_parser().parse_args(argv)
    command: _Command = args.run
    try:
        return command(args)
    except KeyboardInterrupt:
        print("melanoma: stopped; the same command goes on where it can.", file=sys.stderr)
        return FAILED
    # The outermost frame: whatever gets here must become a sentence and an exit code.
    except Exception as error:
        return _explain(error)


def _explain(error: Exception) -> int:
    """Say an error in one sentence and return its exit code; bad input is any ValueError or OSError, ours or found by a worker."""
    if os.environ.get("MELANOMA_DEBUG") == "1":
        traceback.print_exception(error)
    cause = _root_cause(error)
    print(f"melanoma: {' '.join(str(cause).split()) or type(cause).__name__}", file=sys.stderr)
    return (
        BAD_INPUT if isinstance(cause, ValueError | FileNotFoundError | PermissionError | IsADirectoryError) else FAILED
    )


def _root_cause(error: BaseException) -> BaseException:
    """Return what went wrong in a Ray task or worker, where Ray has wrapped it."""
    for name in ("cause", "worker_failures"):
        inner = getattr(error, name, None)
        if isinstance(inner, dict) and inner:
            inner = next(iter(inner.values()))
        if isinstance(inner, BaseException):
            return _root_cause(inner)
    return error


if __name__ == "__main__":
    sys.exit(main())
