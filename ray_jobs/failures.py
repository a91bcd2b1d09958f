"""Turns an exception into a message and an exit code.

The exit code is 2 if the user can correct the error. It is 3 for all other errors, whose traceback
is kept in a file.
"""

import argparse
import errno
import os
import re
import sys
import tempfile
import traceback
from pathlib import Path

from melanoma.errors import UserError, root_cause
from melanoma.io.storage import RemotePath, redacted, to_path
from ray_jobs.arguments import BAD_INPUT, FAILED, NAMED_OR_PATH

_OF_PATHS = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    FileExistsError,
)
_ERRNO_OF_PATHS = (errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)
"""Errors of a path itself, which more disk space would not solve."""


def explain(error: Exception, args: argparse.Namespace) -> int:
    """Print an error as one line and return the exit code.

    Args:
        error: what the command raised.
        args: the parsed command line.

    Returns:
        BAD_INPUT if the user can correct the error, otherwise FAILED. A failure leaves a traceback
        in a file.
    """
    trace = redacted("".join(traceback.format_exception(error)))
    if os.environ.get("MELANOMA_DEBUG") == "1":
        print(trace, file=sys.stderr)
    cause = root_cause(error)
    message = " ".join(str(cause).split()) or type(cause).__name__
    if isinstance(cause, UserError) or _is_named(cause, args):
        _print(f"melanoma: {message}")
        return BAD_INPUT
    _print(f"melanoma: {_failure(cause, message, args)}{_kept(trace)}")
    return FAILED


def _print(line: str) -> None:
    print(redacted(line), file=sys.stderr, flush=True)


def _failure(cause: BaseException, message: str, args: argparse.Namespace) -> str:
    """Return what failed and what to do about it, with a full stop."""
    message = (message if len(message) <= 500 else f"{message[:500]} ...").rstrip(".")
    command: str = args.run.__name__.strip("_")
    retry = (
        "run the same command again; it continues where it can"
        if hasattr(args, "address")
        else "try again"
    )
    if isinstance(cause, FloatingPointError):
        return f"{message}."
    if isinstance(cause, OSError):  # a disk or a storage that is full or cannot be reached
        return f"{message}. Correct that, then {retry}."
    if type(cause).__module__.startswith("ray."):
        return (
            f"{command} failed in Ray: {type(cause).__name__}: {message}."
            f" {retry[0].upper()}{retry[1:]}."
        )
    return f"{command} failed inside: {type(cause).__name__}: {message}. Please report it."


def _kept(trace: str) -> str:
    """Write a traceback to a file that only this user may read.

    Returns:
        A sentence that names the file; empty if it cannot be written, as on a full disk.
    """
    try:
        descriptor, name = tempfile.mkstemp(prefix="melanoma-trace-", suffix=".txt")
        with os.fdopen(descriptor, "w") as file:
            file.write(trace)
    except OSError:
        return ""
    return f" The trace is in {name}."


def _is_named(cause: BaseException, args: argparse.Namespace) -> bool:
    """Return whether an error is about a path on the command line, or one below or above it."""
    if not isinstance(cause, OSError) or not (
        isinstance(cause, _OF_PATHS) or cause.errno in _ERRNO_OF_PATHS
    ):
        return False
    given = [
        item
        for value in vars(args).values()
        for item in (value if isinstance(value, list) else [value])
    ]
    given += [
        to_path(text)
        for name, names in NAMED_OR_PATH.items()
        if (text := getattr(args, name, None)) and text not in names
    ]
    if any(there.key in str(cause) for there in given if isinstance(there, RemotePath)):
        return True
    named = [there.absolute() for there in given if isinstance(there, Path)]
    failed = [
        os.fsdecode(name)
        for name in (cause.filename, cause.filename2)
        if isinstance(name, str | bytes)
    ]
    failed += re.findall("'(/[^']*)'", str(cause))  # Arrow names the path only in its message
    return any(
        path == there or path in there.parents or there in path.parents
        for name in failed
        for path in {Path(name).absolute(), Path(name).resolve()}
        for there in named
    )
