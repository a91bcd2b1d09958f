"""The `melanoma` command: it parses the command line, calls the pipelines and prints the result.

This is the composition root: only this file may import both the search and the server.

Results go to stdout, as text or with --json as one JSON object. Progress and logs go to stderr.
Exit codes: 0 done; 1 done, and the check found something; 2 bad usage or input; 3 failure.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from melanoma import __version__
from melanoma.errors import SettingError
from melanoma.io.storage import check_free, is_address
from melanoma.places import (
    check_bundle,
    check_data,
    check_dataset,
    check_images,
    check_masks,
    check_source,
)
from ray_jobs.arguments import (
    BAD_INPUT,
    DONE,
    FAILED,
    FOUND,
    MARK,
    NAMED_OR_PATH,
    Command,
    build_parser,
)
from ray_jobs.failures import explain
from ray_jobs.progress import show_log

if TYPE_CHECKING:
    from melanoma.config import TrainConfig
    from melanoma.data.dataset import PreparedData
    from melanoma.io.storage import AnyPath
    from melanoma.training.job import TrainJob
    from ray_jobs.cluster import Bundle
    from tune.search import SearchPlan


def _print(args: argparse.Namespace, value: dict[str, Any], text: str) -> None:
    result, mark = json.dumps(value) if args.json else text, os.environ.get(MARK)
    # The log of a job holds the result too. It is written at once and on its own lines, because
    # other processes write to the same log. `end` is empty because Ray leaves stdout unbuffered, so
    # that `print` would write the end separately.
    text = f"\n{mark}\n{result}\n{mark}\n" if mark else f"{result}\n"
    print(text, end="", flush=True, file=args.stdout)


def _phantom(args: argparse.Namespace) -> int:
    from melanoma.data.phantom.config import PhantomConfig

    _check_new(args.out)  # before the slow imports, as are the settings
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
    _print(
        args,
        {"out": str(args.out), "num_images": num},
        f"{num} synthetic images of {args.lesions} lesions in {args.out}",
    )
    return DONE


def _prepare(args: argparse.Namespace) -> int:
    from melanoma.data.prepare_config import PrepareConfig
    from melanoma.task import read_task

    _check_new(args.out)  # before the slow imports, as are the settings
    config = PrepareConfig(
        task=read_task(args.task),
        population=args.population,
        size=args.size,
        num_folds=args.folds,
        test_fraction=args.test_fraction,
        calibration_fraction=args.calibration_fraction,
        seed=args.seed,
        group_by=_names(args.group_by),
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
    _print(args, {**to_plain(manifest), "notes": notes}, "\n".join(lines))
    return DONE


def _describe(args: argparse.Namespace) -> int:
    import pandas as pd

    from melanoma.data.dataset import open_prepared
    from melanoma.data.left_out import left_out_sentence
    from melanoma.data.prepare import read_notes
    from melanoma.io.typed import to_plain

    data = open_prepared(args.dataset, verify=True)
    manifest, records, notes = data.manifest, data.records, read_notes(args.dataset)
    part = records["split"].where(
        records["split"] != "train", "train, fold " + records["fold"].astype(str)
    )
    by_class = pd.crosstab(part, records["dx"], margins=True, margins_name="all")
    by_source = pd.crosstab(records["source"].replace("", "(not named)"), records["split"])
    value = {
        **to_plain(manifest),
        "groups": records.groupby("split")["group"].nunique().to_dict(),
        "sources": by_source.T.to_dict(),
        "notes": notes,
    }
    largest = ", ".join(
        f"{found.num_images} ({found.num_images / len(records):.1%}, {found.split}, with"
        f" {found.group})"
        for found in manifest.largest_groups
    )
    lines = [
        (
            f"{manifest.population}: {len(records)} images of {data.stored_shape[1]} x"
            f" {data.stored_shape[0]} px in {manifest.num_groups} groups"
            f" ({', '.join(manifest.group_columns)})"
        ),
        f"task {manifest.task.name}: targets {', '.join(manifest.task.targets)}",
        f"\n{by_class}\n\n{by_source}\n",
        f"largest groups: {largest}",
        *(line for line in (left_out_sentence(manifest.left_out, manifest.task), *notes) if line),
        f"split hash {manifest.split_hash}",
    ]
    _print(args, value, "\n".join(lines))
    return DONE


def _audit(args: argparse.Namespace) -> int:
    from melanoma.audit.pipeline import audit, describe_audit
    from ray_jobs.progress import counted

    found = audit(args.dataset, args.out, counted=counted)
    text = describe_audit(found)
    _print(args, found, text if args.out is None else f"{text}\nwritten to {args.out}")
    return FOUND if found["leak"] else DONE


def _seed_replay(args: argparse.Namespace) -> int:
    if args.out is not None:
        _check_new(args.out)
    from melanoma.seed_replay import describe_seed_replay, seed_replay
    from ray_jobs.progress import counted

    found = seed_replay(
        args.source,
        bundle=args.bundle,
        same_lesion=args.same_lesion,
        out=args.out,
        counted=counted,
    )
    _print(args, found, describe_seed_replay(found))
    return DONE


def _config(args: argparse.Namespace) -> int:

    from melanoma.config import settings_of

    config = _config_of(args)
    settings = settings_of(config)
    if args.markdown:
        rows = [
            f"| `{found.name}` | `{json.dumps(found.value)}` | {found.meaning} |"
            for found in settings
        ]
        text = "\n".join(["| setting | value | meaning |", "|---|---|---|", *rows])
    else:
        width = max(len(f"{found.name} = {json.dumps(found.value)}") for found in settings)
        text = "\n".join(
            f"{f'{found.name} = {json.dumps(found.value)}':{width}}  {found.meaning}"
            for found in settings
        )
    _print(args, dataclasses.asdict(config), text)
    return DONE


def _config_of(args: argparse.Namespace) -> "TrainConfig":
    """Return the preset, or the file that replaces it, changed by --set."""
    from melanoma.presets import preset

    config = preset(args.preset)
    if args.set_file:
        config = type(config).from_dict(_settings(args.set_file))
    declared = [f"accesses={args.accesses}"] if getattr(args, "accesses", None) else []
    return config.with_overrides([*args.set, *declared])


def _settings(path: "AnyPath") -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SettingError(
            f"--set-file must be a JSON file of settings; {path.name} is not ({error}). Correct it."
        ) from error
    if not isinstance(values, dict):
        raise SettingError(
            f"--set-file must hold a JSON object of settings; {path.name} holds a"
            f" {type(values).__name__}."
        )
    return values


def _train(args: argparse.Namespace) -> int:
    config = _config_of(args)  # a wrong setting is refused before the slow imports
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
    validation = result.validation
    within = validation.get("within_source_auroc")
    also = "" if within is None else f", within sources {within:.3f}"
    best = ", ".join(map(str, result.best_epochs))
    epochs = f"epochs {best} of the folds" if args.folds else f"epoch {best}"
    text = (
        f"best {epochs}; validation AUROC {validation['auroc']:.3f}{also},"
        " specificity at 90 % sensitivity"
        f" {validation['specificity_at_sensitivity_90']:.3f} (with the mirrored copies of"
        " prediction; optimistic, because they chose the epoch)\ncontract"
        f" {result.contract.status}: {result.contract_sentence}\nbundle {result.bundle}"
    )
    _print(args, result.as_dict(), text)
    return _contract_code(args, result.contract.status)


def _contract_code(args: argparse.Namespace, status: str) -> int:
    return FOUND if args.require_contract and status != "met" else DONE


def _tune(args: argparse.Namespace) -> int:
    """Compose the search with training and evaluation, which it gets as two callables."""
    config, run_dir = _config_of(args), args.out / _tune_name(args)
    from melanoma.evidence.objective import Objective

    objective = Objective.parse(args.objective) if args.objective else None
    from melanoma.data.dataset import open_prepared  # slow, so after the settings
    from melanoma.io.files import locked
    from melanoma.training.run import RESULT, check_data, check_network
    from ray_jobs.progress import say
    from tune.checks import check_objective, check_verdict, usual_objective
    from tune.pipeline import claim_search, describe_search
    from tune.search import SearchPlan
    from tune.space import SearchSpace

    data = open_prepared(args.dataset)
    plan = SearchPlan(
        run_dir,
        config,
        args.weights,
        SearchSpace.around(config, also=args.also),
        objective or usual_objective(data),
        args.trials,
    )
    check_verdict(data)
    check_objective(data, plan.objective)
    for fold in range(data.manifest.num_folds):
        on_fold = config.with_overrides([f"data.validation_fold={fold}"])
        check_data(_tune_job(args, on_fold, run_dir), data)
    with locked(run_dir):
        if not (run_dir / RESULT).is_file():
            data.check_writable()
            check_network(_tune_job(args, config, run_dir), data.task.num_classes)
        result = claim_search(plan, content=data.content_hash)
        if result is None:
            result = _run_search(args, plan, data)
        else:
            say(f"{run_dir} is finished; nothing is left to do.")
    paths = {name: str(run_dir / result[name]) for name in ("bundle", "best")}
    _print(args, result | paths, describe_search(result, run_dir))
    return _contract_code(args, result["contract"]["status"])


def _tune_job(args: argparse.Namespace, config: "TrainConfig", folder: "AnyPath") -> "TrainJob":
    from melanoma.training.job import TrainJob

    return TrainJob(
        args.dataset,
        folder,
        config,
        num_workers=args.workers,
        cpus_per_worker=args.cpus_per_worker,
        use_gpu=args.gpu,
        weights=args.weights,
    )


def _run_search(
    args: argparse.Namespace, plan: "SearchPlan", data: "PreparedData"
) -> dict[str, Any]:
    """Run the search on the cluster; `evaluate` scores its bundles on the test split."""
    from melanoma.evaluation import evaluate
    from melanoma.training.run import TrainResult, run_job
    from ray_jobs.executor import RayExecutor
    from ray_jobs.progress import counted
    from tune.pipeline import tune_run
    from tune.search import Search
    from tune.trial import Study

    bundle = _room_for_trials(args)
    study = Study(
        args.dataset,
        data.task,
        plan.folds_dir,
        plan.base,
        data.manifest.num_folds,
        plan.weights,
        args.at_once,
        num_cpus=bundle.cpus,
        num_gpus=bundle.gpus,
        num_workers=args.workers,
    )

    def train(config: "TrainConfig", folder: "AnyPath") -> TrainResult:
        return run_job(_tune_job(args, config, folder), RayExecutor())

    def score(bundle: "AnyPath", folder: "AnyPath") -> "AnyPath":
        evaluate(bundle, args.dataset, folder, executor=RayExecutor())
        return folder / "predictions.parquet"

    return tune_run(Search(plan, study), train=train, score=score, counted=counted)


def _room_for_trials(args: argparse.Namespace) -> "Bundle":
    """Return what each worker of a trial holds, once the cluster has room for it."""
    from ray_jobs.cluster import (
        Bundle,
        connect,
        cpus_per_worker,
        gpus_per_trial,
        node_resources,
        wait_for_room,
    )

    num_processes = args.at_once * args.workers
    connect(num_workers=num_processes)
    nodes, gpus = node_resources(), 0.0
    if args.gpu:
        # Two ranks of one trial cannot share a GPU, but trials with one worker each can.
        gpus = 1.0 if args.workers > 1 else gpus_per_trial(nodes, args.at_once) or 1.0
    bundle = Bundle(args.cpus_per_worker or cpus_per_worker(nodes, num_processes, gpus=gpus), gpus)
    wait_for_room(bundle, args.workers)
    return bundle


def _tune_name(args: argparse.Namespace) -> str:
    return args.name or f"{args.preset}_tune"


def _evaluate(args: argparse.Namespace) -> int:
    if args.masks is not None and not args.scorecard:
        raise SettingError("--masks is for --scorecard, which is not given. Add --scorecard.")
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

        path = str(args.out / submission_file(args.submission))
        report, text = report | {"submission": path}, f"{text}\nsubmission {path}"
    if args.scorecard:
        from melanoma.scorecard import describe_scorecard, write_scorecard

        with counted("explaining", "steps") as progress:
            scorecard = write_scorecard(
                args.bundle, args.data, args.out, masks=args.masks, progress=progress
            )
        report, text = report | {"scorecard": scorecard}, f"{text}\n{describe_scorecard(scorecard)}"
    _print(args, report, text)
    return FOUND if report["contract"]["status"] == "refuted" else DONE


def _compare(args: argparse.Namespace) -> int:
    from melanoma.comparison import compare, describe_comparison

    found = compare(
        args.a,
        args.b,
        task=args.task,
        group_by=_names(args.group_by),
        common=args.common,
        unassessed=args.unassessed,
        out=args.out,
    )
    text = describe_comparison(found)
    _print(args, found, text if args.out is None else f"{text}\nwritten to {args.out}")
    return DONE


def _names(text: str | None) -> tuple[str, ...] | None:
    """Return the names in a list with commas, or None if there is none."""
    return tuple(filter(None, map(str.strip, text.split(",")))) if text else None


def _score(args: argparse.Namespace) -> int:
    from melanoma.lesion_scores import LESION_SCORES
    from melanoma.scoring import SCORES, score
    from melanoma.submission import submission_file
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
    decisions = {str(name): int(num) for name, num in table["decision"].value_counts().items()}
    unusable = int((table["reason"] != "").sum())
    path = args.out / SCORES
    value = {
        "scores": str(path),
        "num_images": len(table),
        "decisions": decisions,
        "num_unusable": unusable,
    }
    counts = ", ".join(f"{num} {name}" for name, num in sorted(decisions.items()))
    text = f"{len(table)} images: {counts}; {unusable} could not be scored\nscores {path}"
    if args.submission is not None:
        value["submission"] = str(args.out / submission_file(args.submission))
        text += f"\nsubmission {value['submission']}"
    if args.lesions is not None:
        value["lesions"] = str(args.out / LESION_SCORES)
        text += f"\nlesions {value['lesions']}"
    _print(args, value, text)
    return DONE


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
        serve_locally(
            args.bundle, host=args.host, port=args.port, allow_uncontracted=args.allow_uncontracted
        )
    return DONE


def _verify(args: argparse.Namespace) -> int:
    from melanoma.bundle.bundle import verify_bundle

    findings = verify_bundle(args.bundle)
    text = (
        "\n".join(findings)
        or f"{args.bundle} is complete, reproduces its recorded outputs, and its contract is met"
    )
    _print(args, {"ok": not findings, "findings": findings}, text)
    return FOUND if findings else DONE


def _recontract(args: argparse.Namespace) -> int:
    from melanoma.recontract import recontract

    _check_new(args.out)
    manifest = recontract(
        args.bundle,
        args.dataset,
        args.out,
        promise=args.promise,
        accesses=args.accesses or 0,
    )
    point, origin = manifest.operating_point, manifest.origin
    assert origin is not None
    before, now = (
        each.contract.sentence(manifest.task) for each in (origin.operating_point, point)
    )
    value = {
        "bundle": str(args.out),
        "version": manifest.version,
        "origin": dataclasses.asdict(origin),
        "threshold": point.threshold,
        "contract": dataclasses.asdict(point.contract),
        "contract_sentence": now,
    }
    _print(
        args,
        value,
        f"before: {before}\nnow: contract {point.contract.status}. {now}\nbundle {args.out}",
    )
    return _contract_code(args, point.contract.status)


def _add_scorecard(args: argparse.Namespace) -> int:
    from melanoma.bundle.claims import add_scorecard

    _check_new(args.out)
    manifest = add_scorecard(args.bundle, args.scorecard, args.out)
    value = {
        "bundle": str(args.out),
        "version": manifest.version,
        "lesion_claims": manifest.lesion_claims,
    }
    claims = ", ".join(f"{name} {claim}" for name, claim in manifest.lesion_claims.items())
    _print(args, value, f"heatmaps: {claims}\nbundle {args.out}")
    return DONE


def _monitor(args: argparse.Namespace) -> int:
    from melanoma.monitoring import describe_monitoring, monitor

    found = monitor(args.bundle, args.outcomes)
    _print(args, found, describe_monitoring(found))
    return FOUND if found["verdict"] == "broken" else DONE


def _plan(args: argparse.Namespace) -> int:
    from melanoma.evidence.plan import PROMISES, describe_plan, plan

    plans = plan(args.promise or PROMISES)
    value = {"promises": [dataclasses.asdict(each) for each in plans]}
    _print(args, value, describe_plan(plans, args.share))
    return DONE


_COMMANDS: dict[str, Command] = {
    "phantom": _phantom,
    "prepare": _prepare,
    "describe": _describe,
    "audit": _audit,
    "seed_replay": _seed_replay,
    "config": _config,
    "train": _train,
    "tune": _tune,
    "evaluate": _evaluate,
    "compare": _compare,
    "score": _score,
    "predict": _predict,
    "serve": _serve,
    "verify": _verify,
    "recontract": _recontract,
    "add_scorecard": _add_scorecard,
    "monitor": _monitor,
    "plan": _plan,
}


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = build_parser(_COMMANDS, __version__).parse_args(argv)
    command: Command = args.run
    try:
        if getattr(args, "address", None) is not None and MARK not in os.environ:
            return _submit(args, sys.argv[1:] if argv is None else argv)
        _resolve_paths(args)
        _check_paths(args)
        show_log()
        if getattr(args, "insecure_ray", False):
            from ray_jobs.local_ray import allow_insecure_ray

            allow_insecure_ray()
        # Ray prints warnings of its own to stdout, which belongs to the result.
        args.stdout = sys.stdout
        with contextlib.redirect_stdout(sys.stderr):
            return command(args)
    except KeyboardInterrupt:
        print(
            "melanoma: Stopped. Run the same command again; it continues where it can.",
            file=sys.stderr,
        )
        return FAILED
    # The outermost frame: every error becomes a message and an exit code.
    except Exception as error:
        return explain(error, args)


def _submit(args: argparse.Namespace, words: list[str]) -> int:
    from ray_jobs.submit import submit

    return submit(args.address, args, words)


def _resolve_paths(args: argparse.Namespace) -> None:
    """Make every path absolute, because workers of a cluster have other working folders."""
    for name, value in vars(args).items():
        if isinstance(value, Path):
            setattr(args, name, value.resolve())
        elif isinstance(value, list) and value and all(isinstance(item, Path) for item in value):
            setattr(args, name, [item.resolve() for item in value])
    for name, value in NAMED_OR_PATH.items():
        text = getattr(args, name, None)
        if text is not None and text not in value and not is_address(text):
            setattr(args, name, str(Path(text).resolve()))


def _check_paths(args: argparse.Namespace) -> None:
    """Check the folders on this machine that a command reads, before its slow imports.

    Raises:
        UserError: if one is not what the command takes.
    """
    for name, check in _CHECKS.items():
        folder = getattr(args, name, None)
        if isinstance(folder, Path):
            check(folder)


def _check_new(folder: "AnyPath") -> None:
    """Check an output folder on this machine; one in object storage is checked later."""
    if isinstance(folder, Path):
        check_free(folder)


_CHECKS: dict[str, Callable[[Path], None]] = {
    "bundle": check_bundle,
    "dataset": check_dataset,
    "source": check_source,
    "data": check_data,
    "folder": check_images,
    "masks": check_masks,
}


if __name__ == "__main__":
    sys.exit(main())
