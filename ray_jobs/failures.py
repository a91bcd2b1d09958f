"""What a command says of an error, and its exit code: 2 for what the user can mend, 3 with a trace in a file for all else."""

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
"""Why a path cannot be read or written, whatever is done about the disk."""


def explain(error: Exception, args: argparse.Namespace) -> int:
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
    failed += re.findall("'(/[^']*)'", str(cause))  # as Arrow tells it
    return any(
        path == there or path in there.parents or there in path.parents
        for name in failed
        for path in {Path(name).absolute(), Path(name).resolve()}
        for there in named
    )
