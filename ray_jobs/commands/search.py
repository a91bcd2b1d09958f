"""The command `tune`: it composes the search with training and evaluation."""

import argparse
from typing import TYPE_CHECKING, Any

from ray_jobs.arguments import add_address, add_command, contract_code, positive
from ray_jobs.commands.settings import config_of
from ray_jobs.commands.training import add_run
from ray_jobs.results import print_result

if TYPE_CHECKING:
    from melanoma.config import TrainConfig
    from melanoma.data.dataset import PreparedData
    from melanoma.io.storage import AnyPath
    from melanoma.training.job import TrainJob
    from ray_jobs.cluster import Bundle
    from tune.search import SearchPlan


def add_commands(commands: Any) -> None:
    """Add `tune` to the commands."""
    _tune_options(
        add_command(
            commands,
            "tune",
            _tune,
            "search gamma and class weights with Ray Tune and grouped cross-validation, and write a"
            " bundle; run it again to resume",
        )
    )


def _tune_options(command: argparse.ArgumentParser) -> None:
    add_run(command)
    command.add_argument(
        "--name", metavar="RUN", help="folder below OUT (default: the preset's name and _tune)"
    )
    command.add_argument(
        "--trials",
        type=positive,
        default=40,
        metavar="N",
        help=(
            "number of trials, each one fold of one setting, besides all folds of the base and of"
            " plain cross-entropy (default %(default)s)"
        ),
    )
    command.add_argument(
        "--objective",
        metavar="NAME",
        help=(
            "out-of-fold metric to maximise: melanoma_recall@specificity=S,"
            " specificity@sensitivity=S, auroc or partial_auroc; ,within=source behind it compares"
            " images of the same source only (default melanoma_recall@specificity=0.8, within"
            " sources where several have targets)"
        ),
    )
    command.add_argument(
        "--also",
        action="append",
        default=[],
        choices=("lr", "drop_path"),
        help="also search this setting; may be repeated",
    )
    command.add_argument(
        "--at-once",
        type=positive,
        default=2,
        metavar="N",
        help=(
            "trials at a time (default %(default)s); with 1, a resumed search gives exactly the"
            " result of an uninterrupted one; with more, it may propose other settings"
        ),
    )
    command.add_argument(
        "--workers",
        type=positive,
        default=1,
        metavar="N",
        help="DDP workers of each trial (default %(default)s)",
    )
    add_address(command)


def _tune(args: argparse.Namespace) -> int:
    """Compose the search with training and evaluation, which it gets as two callables."""
    config, run_dir = config_of(args), args.out / _tune_name(args)
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
    print_result(args, result | paths, describe_search(result, run_dir))
    return contract_code(args, result["contract"]["status"])


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
