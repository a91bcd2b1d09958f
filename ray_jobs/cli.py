"""The `melanoma` command: parses, calls, prints. The composition root, and the only file that may import the search and the server.

Results go to stdout, as text or with --json as one JSON object; progress and logs to stderr. Exit 0: done; 1: done, and the
check found something; 2: bad usage or input; 3: it failed.
"""

import argparse
import dataclasses
import errno
import json
import os
import re
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from melanoma import __version__
from melanoma.errors import SettingError, UserError, root_cause
from melanoma.io.storage import RemotePath, is_address, redacted, to_path
from ray_jobs.arguments import BAD_INPUT, DONE, FAILED, FOUND, MARK, Command, build_parser

_OF_PATHS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_ERRNO_OF_PATHS = (errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)
"""Why a path cannot be read or written, whatever is done about the disk."""

if TYPE_CHECKING:
    from melanoma.config import TrainConfig
    from melanoma.io.storage import AnyPath
    from tune.pipeline import TrainBundle
    from tune.search import Search


def _print(args: argparse.Namespace, value: dict[str, Any], text: str) -> None:
    told, mark = json.dumps(value) if args.json else text, os.environ.get(MARK)
    # In a job the log holds the result as well: on lines of its own, written at once, whatever else writes there. (Ray leaves stdout without
    # a buffer there: an end that `print` adds would be a write of its own.)
    print(f"\n{mark}\n{told}\n{mark}\n" if mark else f"{told}\n", end="", flush=True)


def _phantom(args: argparse.Namespace) -> int:
    from melanoma.data.phantom.layout import PhantomConfig, write_phantom
    from ray_jobs.progress import counted

    config = PhantomConfig(
        num_lesions=args.lesions,
        seed=args.seed,
        leaks=args.leaks,
        shortcut=args.shortcut,
        melanomas=args.melanomas,
        mimics=args.mimics,
    )
    with counted("drawing") as on_image:
        num = write_phantom(config, args.out, on_image=on_image)
    _print(
        args,
        {"out": str(args.out), "num_images": num},
        f"{num} synthetic images of {args.lesions} lesions in {args.out}",
    )
    return DONE


def _prepare(args: argparse.Namespace) -> int:
    from melanoma.data.left_out import left_out_sentence
    from ray_jobs.prepare import PrepareConfig, prepare
    from ray_jobs.progress import counted, say

    config = PrepareConfig(
        size=args.size,
        num_folds=args.folds,
        test_fraction=args.test_fraction,
        calibration_fraction=args.calibration_fraction,
        seed=args.seed,
        group_by=tuple(filter(None, map(str.strip, args.group_by.split(",")))) if args.group_by else None,
        same_lesion=args.same_lesion,
        splits=args.splits,
        skip_bad=args.skip_bad,
    )
    with counted("decoding") as on_image:
        manifest = prepare(args.source, args.out, config, on_image=on_image)
    left_out = left_out_sentence(manifest["left_out"])
    for line in (*manifest["notes"], *([left_out] if left_out else [])):
        say(line)
    text = (
        f"{manifest['num_images']} images in {manifest['num_groups']} groups ({', '.join(manifest['group_columns'])}, identical images"
        f"{', known pairs' if manifest['num_known_pairs'] else ''}), split hash {manifest['split_hash'][:12]}, in {args.out}"
        + (f"\n{alone} of them have no group id and stand alone" if (alone := manifest["num_without_group_id"]) else "")
        + (f"\n{left_out} They are listed in {args.out / 'rejected.csv'}" if left_out else "")
    )
    _print(args, manifest, text)
    return DONE


def _describe(args: argparse.Namespace) -> int:
    import pandas as pd

    from melanoma.data.dataset import open_prepared
    from melanoma.data.groups import largest_groups
    from melanoma.data.left_out import left_out_sentence

    data = open_prepared(args.dataset, verify=True)
    records = data.records
    part = records["split"].where(records["split"] != "train", "train, fold " + records["fold"].astype(str))
    by_class = pd.crosstab(part, records["dx"], margins=True, margins_name="all")
    by_source = pd.crosstab(records["source"].replace("", "(not named)"), records["split"])
    groups = records.groupby("split")["group"].nunique().to_dict()
    left_out, notes = data.manifest.get("left_out", {}), data.manifest.get("notes", [])
    largest = largest_groups(records, data.manifest["group_columns"])
    value = {
        **data.manifest,
        "left_out": left_out,
        "groups": groups,
        "sources": by_source.T.to_dict(),
        "largest_groups": largest,
    }
    text = (
        f"{data.manifest['name']}: {len(records)} images of {data.stored_shape[1]} x {data.stored_shape[0]} px in {data.manifest['num_groups']} groups "
        f"({', '.join(data.manifest['group_columns'])})\n\n{by_class}\n\n{by_source}\n\n{_largest(largest, len(records))}\n"
        + "".join(f"{line}\n" for line in (left_out_sentence(left_out), *notes) if line)
        + f"split hash {data.manifest['split_hash']}"
    )
    _print(args, value, text)
    return DONE


def _largest(groups: list[dict[str, Any]], num_images: int) -> str:
    shown = ", ".join(
        f"{found['num_images']} ({found['num_images'] / num_images:.1%}, {found['split']}, with {found['group']})"
        for found in groups
    )
    return f"largest groups: {shown}"


def _config(args: argparse.Namespace) -> "TrainConfig":
    """Return the preset, or the file in its place, with what --set changes."""
    from melanoma.presets import preset

    config = preset(args.preset)
    if args.set_file:
        config = type(config).from_dict(_settings(args.set_file))
    return config.with_overrides(args.set)


def _settings(path: "AnyPath") -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SettingError(f"--set-file must be a JSON file of settings, {path.name} is not ({error}).") from error
    if not isinstance(values, dict):
        raise SettingError(
            f"--set-file must be a JSON object of settings, {path.name} holds a {type(values).__name__}."
        )
    return values


def _train(args: argparse.Namespace) -> int:
    from ray_jobs.train import TrainJob, train

    config = _config(args)
    job = TrainJob(
        args.dataset,
        args.out / (args.name or args.preset),
        config,
        num_workers=args.workers[1],
        min_workers=args.workers[0],
        cpus_per_worker=args.cpus_per_worker,
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
    from melanoma.io.files import locked
    from ray_jobs.progress import say
    from ray_jobs.train import TrainJob, check_data, check_network, train
    from tune.pipeline import RESULT, check_verdict, claim_search, describe_search
    from tune.search import Search
    from tune.space import SearchSpace
    from tune.trial import Study

    objective, data, run_dir = Objective.parse(args.objective), open_prepared(args.dataset), args.out / _tune_name(args)

    def job(config: "TrainConfig", folder: "AnyPath") -> TrainJob:
        return TrainJob(
            args.dataset,
            folder,
            config,
            num_workers=args.workers,
            cpus_per_worker=args.cpus_per_worker,
            use_gpu=args.gpu,
            weights=args.weights,
        )

    config, num_folds = _config(args), data.manifest["num_folds"]
    check_verdict(data)
    for fold in range(num_folds):
        check_data(job(config.with_overrides([f"data.validation_fold={fold}"]), run_dir), data)
    space = SearchSpace(lr="lr" in args.also, drop_path="drop_path" in args.also)
    study = Study(
        args.dataset, run_dir / "folds", config, num_folds, args.weights, args.at_once, num_workers=args.workers
    )
    search = Search(run_dir, study, space, objective, args.trials, searcher=args.searcher)
    with locked(run_dir):
        if not (run_dir / RESULT).is_file():
            data.check_writable()
            check_network(job(config, run_dir))
        result = claim_search(search, content=data.content_hash)
        if result is None:
            result = _run_search(args, search, train=lambda config, folder: train(job(config, folder)))
        else:
            say(f"{run_dir} is finished; nothing is left to do.")
    _print(args, result, describe_search(result))
    return DONE if result["contract"]["status"] == "met" else FOUND


def _run_search(args: argparse.Namespace, search: "Search", *, train: "TrainBundle") -> dict[str, Any]:
    """Search on the cluster, with bundles scored on test by `evaluate`."""
    from ray_jobs.cluster import Bundle, connect, cpus_per_worker, gpus_per_trial, node_resources, wait_for_room
    from ray_jobs.evaluate import evaluate
    from ray_jobs.progress import counted
    from tune.pipeline import tune_run

    num_processes = args.at_once * args.workers
    connect(num_workers=num_processes)
    nodes = node_resources()
    # Two ranks of one trial cannot share a GPU; trials that train alone can.
    gpus = 0.0 if not args.gpu else 1.0 if args.workers > 1 else gpus_per_trial(nodes, args.at_once) or 1.0
    bundle = Bundle(args.cpus_per_worker or cpus_per_worker(nodes, num_processes, gpus=gpus), gpus)
    wait_for_room(bundle, args.workers)
    placed = dataclasses.replace(search.study, num_cpus=bundle.cpus, num_gpus=bundle.gpus)

    def score(bundle: "AnyPath", folder: "AnyPath") -> "AnyPath":
        evaluate(bundle, args.dataset, folder)
        return folder / "predictions.parquet"

    return tune_run(dataclasses.replace(search, study=placed), train=train, score=score, counted=counted)


def _tune_name(args: argparse.Namespace) -> str:
    return args.name or f"{args.preset}_tune"


def _evaluate(args: argparse.Namespace) -> int:
    from melanoma.data.left_out import left_out_sentence
    from ray_jobs.evaluate import describe_evaluation, evaluate
    from ray_jobs.progress import counted, say

    with counted("predicting") as on_image:
        report = evaluate(
            args.bundle,
            args.data,
            args.out,
            split=args.split,
            num_workers=args.workers,
            skip_bad=args.skip_bad,
            on_image=on_image,
        )
    if report["left_out"]:
        say(left_out_sentence(report["left_out"]))
    _print(args, report, describe_evaluation(report, args.out))
    return FOUND if report["contract"]["status"] == "refuted" else DONE


def _predict(args: argparse.Namespace) -> int:
    from ray_jobs.predict import describe_predictions, predict_files

    found = predict_files(
        args.bundle, args.image, explain=args.explain, out=args.out, allow_uncontracted=args.allow_uncontracted
    )
    unusable = [result for result in found["results"] if "error" in result]
    if args.json or len(unusable) < len(found["results"]):
        _print(args, found, describe_predictions(found))
    for result in unusable:
        print(f"melanoma: {result['image']}: {result['error']}", file=sys.stderr)
    return BAD_INPUT if unusable else DONE


def _serve(args: argparse.Namespace) -> int:
    from serve.environment import set_environment

    set_environment()  # before Ray Serve is imported
    from ray_jobs.local_ray import safe_defaults
    from ray_jobs.preflight import check_temp_dir
    from serve.local import serve_locally

    check_temp_dir()
    with safe_defaults():
        serve_locally(args.bundle, host=args.host, port=args.port, allow_uncontracted=args.allow_uncontracted)
    return DONE


def _verify(args: argparse.Namespace) -> int:
    from melanoma.bundle.bundle import MANIFEST, verify_bundle
    from melanoma.errors import BundleError

    if not (args.bundle / MANIFEST).is_file():
        raise BundleError(
            f"BUNDLE must be a folder that `train` wrote, OUT/RUN/bundle; {args.bundle} has no {MANIFEST}."
        )
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
    args = build_parser(_COMMANDS, __version__).parse_args(argv)
    command: Command = args.run
    try:
        if getattr(args, "address", None) is not None and MARK not in os.environ:
            return _submit(args, sys.argv[1:] if argv is None else argv)
        _resolve_paths(args)
        if getattr(args, "insecure_ray", False):
            from ray_jobs.local_ray import allow_insecure_ray

            allow_insecure_ray()
        return command(args)
    except KeyboardInterrupt:
        print("melanoma: stopped; the same command goes on where it can.", file=sys.stderr)
        return FAILED
    # The outermost frame: whatever gets here must become a sentence and an exit code.
    except Exception as error:
        return _explain(error, args)


def _submit(args: argparse.Namespace, words: list[str]) -> int:
    from ray_jobs.submit import submit

    return submit(args.address, args, words)


def _resolve_paths(args: argparse.Namespace) -> None:
    """Make every path absolute: workers of a cluster have other working folders."""
    for name, value in vars(args).items():
        if isinstance(value, Path):
            setattr(args, name, value.resolve())
        elif isinstance(value, list) and value and all(isinstance(item, Path) for item in value):
            setattr(args, name, [item.resolve() for item in value])
    if getattr(args, "weights", "none") not in ("none", "imagenet") and not is_address(args.weights):
        args.weights = str(Path(args.weights).resolve())


def _explain(error: Exception, args: argparse.Namespace) -> int:
    """Say an error in one sentence and return its exit code; only what the user can mend is bad input, all else leaves a trace."""
    trace = redacted("".join(traceback.format_exception(error)))
    if os.environ.get("MELANOMA_DEBUG") == "1":
        print(trace, file=sys.stderr)
    cause = root_cause(error)
    told = " ".join(str(cause).split()) or type(cause).__name__
    if isinstance(cause, UserError) or _is_named(cause, args):
        _tell(f"melanoma: {told}")
        return BAD_INPUT
    _tell(f"melanoma: {_failure(cause, told, args)}{_kept(trace)}")
    return FAILED


def _tell(line: str) -> None:
    print(redacted(line), file=sys.stderr, flush=True)


def _failure(cause: BaseException, told: str, args: argparse.Namespace) -> str:
    """Return what failed, and what to do about it."""
    told = told if len(told) <= 500 else f"{told[:500]} ..."
    command: str = args.run.__name__.strip("_")
    goes_on = "the same command goes on where it can" if hasattr(args, "address") else "try again"
    if isinstance(cause, FloatingPointError):
        return told.rstrip(".")
    if isinstance(cause, OSError):  # a disk or a storage that is full or away
        return f"{told.rstrip('.')}; once that is mended, {goes_on}"
    if type(cause).__module__.startswith("ray."):
        return f"{command} failed in Ray: {type(cause).__name__}: {told.rstrip('.')}; {goes_on}"
    return f"{command} failed inside: {type(cause).__name__}: {told.rstrip('.')}; please report it"


def _kept(trace: str) -> str:
    """Keep a trace in a file that only this user may read, and return words for where; none if that fails, as on a full disk."""
    try:
        descriptor, name = tempfile.mkstemp(prefix="melanoma-trace-", suffix=".txt")
        with os.fdopen(descriptor, "w") as file:
            file.write(trace)
    except OSError:
        return "."
    return f"; the trace is in {name}."


def _is_named(cause: BaseException, args: argparse.Namespace) -> bool:
    """Return whether an error is of a path that the user named: that path itself, or one below or above it."""
    if not isinstance(cause, OSError) or not (isinstance(cause, _OF_PATHS) or cause.errno in _ERRNO_OF_PATHS):
        return False
    given = [item for value in vars(args).values() for item in (value if isinstance(value, list) else [value])]
    if (weights := getattr(args, "weights", "none")) not in ("none", "imagenet"):
        given.append(to_path(weights))
    if any(there.key in str(cause) for there in given if isinstance(there, RemotePath)):
        return True
    named = [there.absolute() for there in given if isinstance(there, Path)]
    failed = [os.fsdecode(name) for name in (cause.filename, cause.filename2) if isinstance(name, str | bytes)]
    failed += re.findall("'(/[^']*)'", str(cause))  # as Arrow tells it
    return any(
        path == there or path in there.parents or there in path.parents
        for name in failed
        for path in {Path(name).absolute(), Path(name).resolve()}
        for there in named
    )


if __name__ == "__main__":
    sys.exit(main())
