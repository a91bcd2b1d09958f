"""Commands about a bundle and its promise: the group `bundle`."""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

from ray_jobs.arguments import (
    BUNDLE,
    DONE,
    FOUND,
    NEW_FOLDER,
    PREPARED,
    add_command,
    add_contract,
    check_new,
    contract_code,
    path,
)
from ray_jobs.results import print_result


def add_commands(commands: Any) -> None:
    """Add the commands of the group `bundle` to it."""
    _verify_options(
        add_command(
            commands,
            "verify",
            _verify,
            "check hashes, replay probes and recompute the contract; exit code 1: do not serve it",
        )
    )
    _recontract_options(
        add_command(
            commands,
            "recontract",
            _recontract,
            "give a bundle's network a contract on another site's data",
        )
    )
    _add_scorecard_options(
        add_command(
            commands,
            "add-scorecard",
            _add_scorecard,
            "write a bundle that says which of its heatmaps a scorecard supports",
        )
    )
    _monitor_options(
        add_command(
            commands,
            "monitor",
            _monitor,
            "test a bundle's promise on outcomes that came in later; exit code 1: it is broken",
        )
    )
    _plan_options(
        add_command(
            commands,
            "plan",
            _plan,
            "print how many targets a promise takes: to make it, to confirm it, to watch it",
        )
    )


def _verify_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("bundle", type=path, metavar="BUNDLE", help=BUNDLE)


def _verify(args: argparse.Namespace) -> int:
    from melanoma.bundle.bundle import verify_bundle

    findings = verify_bundle(args.bundle)
    text = (
        "\n".join(findings)
        or f"{args.bundle} is complete, reproduces its recorded outputs, and its contract is met"
    )
    print_result(args, {"ok": not findings, "findings": findings}, text)
    return FOUND if findings else DONE


def _recontract_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("bundle", type=path, metavar="BUNDLE", help=BUNDLE)
    command.add_argument("dataset", type=path, metavar="DATASET", help=PREPARED)
    command.add_argument("out", type=path, metavar="OUT", help=NEW_FOLDER)
    command.add_argument(
        "--promise",
        type=_between(0.5),
        metavar="S",
        help="sensitivity to promise, between 0.5 and 1 (default: that of the bundle)",
    )
    add_contract(command)


def _recontract(args: argparse.Namespace) -> int:
    from melanoma.recontract import recontract

    check_new(args.out)
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
    print_result(
        args,
        value,
        f"before: {before}\nnow: contract {point.contract.status}. {now}\nbundle {args.out}",
    )
    return contract_code(args, point.contract.status)


def _add_scorecard_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("bundle", type=path, metavar="BUNDLE", help=BUNDLE)
    command.add_argument(
        "scorecard",
        type=path,
        metavar="SCORECARD",
        help="scorecard.json of evaluate --scorecard",
    )
    command.add_argument("out", type=path, metavar="OUT", help=NEW_FOLDER)


def _add_scorecard(args: argparse.Namespace) -> int:
    from melanoma.bundle.claims import add_scorecard

    check_new(args.out)
    manifest = add_scorecard(args.bundle, args.scorecard, args.out)
    value = {
        "bundle": str(args.out),
        "version": manifest.version,
        "lesion_claims": manifest.lesion_claims,
    }
    claims = ", ".join(f"{name} {claim}" for name, claim in manifest.lesion_claims.items())
    print_result(args, value, f"heatmaps: {claims}\nbundle {args.out}")
    return DONE


def _monitor_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("bundle", type=path, metavar="BUNDLE", help=BUNDLE)
    command.add_argument(
        "outcomes",
        type=path,
        metavar="OUTCOMES",
        help=(
            "CSV in the order of arrival: request_id or image_id, score, a diagnosis (blank while"
            " not known); if there are any, patient_id or lesion_id, decision, version"
        ),
    )


def _monitor(args: argparse.Namespace) -> int:
    from melanoma.monitoring import describe_monitoring, monitor

    found = monitor(args.bundle, args.outcomes)
    print_result(args, found, describe_monitoring(found))
    return FOUND if found["verdict"] == "broken" else DONE


def _plan_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--promise",
        type=_between(0.5),
        action="append",
        metavar="S",
        help="sensitivity to promise, between 0.5 and 1; may be repeated (default 0.8 to 0.95)",
    )
    command.add_argument(
        "--share",
        type=_between(0.0),
        metavar="F",
        help="share of targets at the site, between 0 and 1, to print how many units hold them",
    )


def _plan(args: argparse.Namespace) -> int:
    from melanoma.evidence.plan import PROMISES, describe_plan, plan

    plans = plan(args.promise or PROMISES)
    value = {"promises": [dataclasses.asdict(each) for each in plans]}
    print_result(args, value, describe_plan(plans, args.share))
    return DONE


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
