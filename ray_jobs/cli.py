"""The `melanoma` command: it parses the command line, checks paths and runs one of the commands.

Results go to stdout, as text or with --json as one JSON object. Progress and logs go to stderr.
Exit codes: 0 done; 1 done, and the check found something; 2 bad usage or input; 3 failure.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from melanoma import __version__
from melanoma.io.storage import is_address
from melanoma.places import (
    check_bundle,
    check_data,
    check_dataset,
    check_images,
    check_masks,
    check_source,
)
from ray_jobs.arguments import FAILED, NAMED_OR_PATH, Command, Parser, add_group
from ray_jobs.commands import audit, bundle, data, evaluation, inference, search, settings, training
from ray_jobs.failures import explain
from ray_jobs.progress import show_log
from ray_jobs.results import MARK


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; it stores the function of the chosen command as ``args.run``."""
    parser = Parser(
        prog="melanoma",
        description="Melanoma triage on Ray. Research use only; not a medical device.",
    )
    parser.add_argument("--version", action="version", version=f"melanoma {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    of_data = add_group(commands, "data", "make, prepare, describe and audit data sets")
    data.add_commands(of_data)
    audit.add_commands(of_data)
    settings.add_commands(commands)
    training.add_commands(commands)
    search.add_commands(commands)
    evaluation.add_commands(commands)
    inference.add_commands(commands)
    bundle.add_commands(add_group(commands, "bundle", "check bundles and watch their promises"))
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = build_parser().parse_args(argv)
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
