"""The `melanoma` command: parses, calls, prints. The composition root, and the only file that may import the search and the server.

Results go to stdout, as text or with --json as one JSON object; progress and logs to stderr. Exit 0: done; 1: done, and the
check found something; 2: bad usage or input; 3: it failed.
"""

import argparse
import json
import os
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_jobs.arguments import Command, build_parser

if TYPE_CHECKING:
    from melanoma.config import TrainConfig

DONE, FOUND, BAD_INPUT, FAILED = 0, 1, 2, 3


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


def _config(args: argparse.Namespace) -> "TrainConfig":
    """Return the preset, or the file in its place, with what --set changes."""
    from melanoma.presets import preset

    config = preset(args.preset)
    if args.set_file:
        config = type(config).from_dict(json.loads(args.set_file.read_text()))
    return config.with_overrides(args.set)


def _train(args: argparse.Namespace) -> int:
    from ray_jobs.train import TrainJob, train

    config = _config(args)
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


def _tune(args: argparse.Namespace) -> int:
    """Compose the search with training and evaluation, which it is handed as two callables."""
    from melanoma.data.dataset import open_prepared
    from melanoma.evidence.out_of_fold import Objective
    from ray_jobs.cluster import connect, cpus_per_worker
    from ray_jobs.evaluate import evaluate
    from ray_jobs.train import TrainJob, train
    from tune.pipeline import tune_run
    from tune.search import Search
    from tune.space import SearchSpace
    from tune.trial import Study

    objective, config = Objective.parse(args.objective), _config(args)
    data = open_prepared(args.dataset)
    connect(num_workers=args.workers * args.at_once)
    run_dir, dataset = (args.out / (args.name or f"{args.preset}_tune")).resolve(), args.dataset.resolve()
    study = Study(
        dataset=dataset,
        folds_dir=run_dir / "folds",
        base=config,
        num_folds=data.manifest["num_folds"],
        weights=args.weights if args.weights in ("none", "imagenet") else str(Path(args.weights).resolve()),
        num_cpus=cpus_per_worker(args.at_once * args.workers),
        num_workers=args.workers,
        use_gpu=args.gpu,
    )
    space = SearchSpace(lr="lr" in args.also, drop_path="drop_path" in args.also)
    search = Search(run_dir, study, space, objective, args.trials, searcher=args.searcher, at_once=args.at_once)

    def train_bundle(config: "TrainConfig", folder: Path) -> Path:
        job = TrainJob(dataset, folder, config, num_workers=args.workers, use_gpu=args.gpu, weights=study.weights)
        return Path(train(job)["bundle"])

    def score_test(bundle: Path, folder: Path) -> Path:
        evaluate(bundle, dataset, folder)
        return folder / "predictions.parquet"

    result = tune_run(search, split_hash=data.manifest["split_hash"], train=train_bundle, score=score_test)
    _print(args, result, _search_text(result))
    return DONE


def _search_text(result: dict[str, Any]) -> str:
    loss, test = result["winner"]["loss"], result["test_difference"]
    return (
        f"{result['num_trials']} trials for {result['objective']}: best gamma {loss['gamma']:.2f}, tau {loss['tau']:.2f}, melanoma factor "
        f"{loss['melanoma_factor']:.2f}\n{result['verdict']} on test: winner minus base {test['value']:+.3f} "
        f"[{test['low']:+.3f}, {test['high']:+.3f}]\nsettings {result['best']}\nbundle {result['bundle']}"
    )


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


_COMMANDS: dict[str, Command] = {
    "phantom": _phantom,
    "prepare": _prepare,
    "describe": _describe,
    "train": _train,
    "tune": _tune,
    "evaluate": _evaluate,
    "predict": _predict,
    "serve": _serve,
    "verify": _verify,
}


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = build_parser(_COMMANDS, version("melanoma")).parse_args(argv)
    command: Command = args.run
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
