"""Arguments that several commands share: their types, options and checks, and the exit codes.

It imports none of the code that the commands run.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from melanoma.errors import UserError
from melanoma.io import storage
from melanoma.io.storage import AnyPath, check_free, redacted

DONE, FOUND, BAD_INPUT, FAILED = 0, 1, 2, 3  # exit codes
NEW_FOLDER = "folder to write, new or empty"
PREPARED = "folder written by `melanoma data prepare`"
BUNDLE = "folder written by `melanoma train` (OUT/RUN/bundle)"
NAMED_OR_PATH = {"weights": ("none", "imagenet"), "task": ("ham10000", "isic2019", "binary")}
"""Options that take one of these names, or a path."""
Command = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """Reports bad usage in one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message and end with the exit code for bad usage."""
        self.exit(BAD_INPUT, f"melanoma: {redacted(message)}. See {self.prog} --help.\n")


def add_group(commands: Any, name: str, description: str) -> Any:
    """Add a group of commands, and return what its commands are added to."""
    parser = commands.add_parser(name, help=description, description=description)
    return parser.add_subparsers(title="commands", required=True, metavar="COMMAND")


def add_command(
    commands: Any, name: str, run: Command, description: str
) -> argparse.ArgumentParser:
    """Add a command, and return its parser, which stores `run` as ``args.run``."""
    command: argparse.ArgumentParser = commands.add_parser(
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


def named_or_path(option: str) -> Callable[[str], str]:
    """Return what reads one of the names of an option, or a path."""

    def read(text: str) -> str:
        return text if text in NAMED_OR_PATH[option] else str(path(text))

    return read


def positive(text: str) -> int:
    """Return the whole number in `text`.

    Raises:
        argparse.ArgumentTypeError: if it is not at least 1.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; it is {text!r}")
    return int(text)


def names(text: str | None) -> tuple[str, ...] | None:
    """Return the names in a list with commas, or None if there is none."""
    return tuple(filter(None, map(str.strip, text.split(",")))) if text else None


def add_insecure(command: argparse.ArgumentParser) -> None:
    """Add the option of commands that start a local Ray."""
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


def add_address(command: argparse.ArgumentParser) -> None:
    """Add the options of commands that run on a local Ray or on a cluster."""
    add_insecure(command)
    command.add_argument(
        "--address",
        type=_address,
        metavar="http://HEAD:8265",
        help=(
            "run as a Ray job on this cluster and follow it; paths must then exist on its nodes, or"
            " be addresses such as s3://"
        ),
    )


def add_contract(command: argparse.ArgumentParser) -> None:
    """Add the options of commands that give a network its contract."""
    command.add_argument(
        "--require-contract",
        action="store_true",
        help="exit with code 1 if the bundle's contract is not met",
    )
    command.add_argument(
        "--accesses",
        type=positive,
        metavar="N",
        help=(
            "declare, before the first, how many networks will be calibrated on this data set; each"
            " may then be wrong about its promise with a probability of 0.05 / N (default: the k-th"
            " with 0.05 / (k (k + 1)))"
        ),
    )


def contract_code(args: argparse.Namespace, status: str) -> int:
    """Return FOUND if the command requires a contract that is not met, otherwise DONE."""
    return FOUND if args.require_contract and status != "met" else DONE


def add_scoring_workers(command: argparse.ArgumentParser) -> None:
    """Add the number of workers that score images."""
    command.add_argument(
        "--workers",
        type=positive,
        default=1,
        metavar="N",
        help="scoring actors (default %(default)s)",
    )


def add_embeddings(command: argparse.ArgumentParser) -> None:
    """Add the option that names the embeddings of the images."""
    command.add_argument(
        "--embeddings",
        type=path,
        metavar="TABLE",
        help="table with the embeddings of the images, for a bundle trained on embeddings",
    )


def add_submission(command: argparse.ArgumentParser) -> None:
    """Add the option that writes the table of a public challenge."""
    command.add_argument(
        "--submission",
        choices=("isic2018", "isic2019", "isic2020"),
        help="also write the table that this challenge takes, OUT/submission_<challenge>.csv",
    )


def check_new(folder: AnyPath, *, but: str | None = None) -> None:
    """Check an output folder on this machine; one in object storage is checked later.

    Args:
        folder: the folder.
        but: name of a file that it may hold.

    Raises:
        DataError: if it is neither new nor empty.
    """
    if isinstance(folder, Path):
        check_free(folder, but=but)
