"""Writing so that a killed process leaves either the old file or folder, or the whole new one."""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd
import pyarrow as pa

from melanoma.errors import DataError
from melanoma.io.storage import AnyPath, RemotePath, publish, remove_folder

INCOMPLETE = ".incomplete"
"""In object storage, where a folder has no name to change: it is being written, or was when its writer was killed."""
_NO_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST}
"""Why a folder cannot be made where somebody wants it, whatever is done about the disk."""


def write_text(path: AnyPath, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode())


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write into, which takes its place, flushed to disk, only when the block ends well; the umask sets its mode."""
    work = path.with_name(_hidden(path.name))
    try:
        with work.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(work, path)
    except BaseException:
        work.unlink(missing_ok=True)
        raise


def _hidden(name: str) -> str:
    """Return a new name for what will have another; of `tempfile`'s files and folders nobody but their owner could read the result."""
    return f".{name[:200]}.{secrets.token_hex(8)}"


def write_bytes(path: AnyPath, data: bytes | pa.Buffer) -> None:
    """Write a file atomically: into a neighbour, flushed to disk, renamed over it; in object storage as one object."""
    if isinstance(path, RemotePath):
        path.write_bytes(data)
        return
    with new_file(path) as file:
        file.write(data)


def write_json(path: AnyPath, value: Any) -> None:
    """Write a JSON file atomically; NaN is refused, because JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: AnyPath) -> Any:
    """Read a JSON file of this product.

    Raises:
        DataError: if it is damaged.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:  # no JSON, or no UTF-8
        raise DataError(f"{path} must be JSON, it is damaged ({error}).") from error


def write_parquet(path: AnyPath, table: pd.DataFrame) -> None:
    """Write a table as parquet atomically."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    write_bytes(path, buffer.getvalue())


def read_parquet(path: AnyPath) -> pd.DataFrame:
    """Read a parquet table.

    Raises:
        DataError: if it is damaged.
    """
    data = path.read_bytes()
    try:
        return pd.read_parquet(io.BytesIO(data))
    except (pa.ArrowException, OSError) as error:  # of a damaged page Arrow says OSError
        raise DataError(f"{path} must be a parquet table, it is damaged ({error}).") from error


def claim_folder(folder: AnyPath, described: Any) -> bool:
    """Tie a run's folder to its settings, so that another run never goes on from what lies there.

    Args:
        folder: made if it is not there.
        described: plain values that say which run it is; kept in run.json.

    Returns:
        Whether this run was there before.

    Raises:
        DataError: if the folder holds another run or something else.
    """
    path, described = folder / "run.json", json.loads(json.dumps(described))
    with _made_there(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        if any(not path.name.startswith(".") for path in folder.iterdir()):
            raise DataError(
                f"the run folder must be new or hold this run, {folder} holds something else;"
                " choose another --name."
            )
        write_json(path, described)
        return False
    differing = _differing(read_json(path), described)
    if differing:
        raise DataError(
            f"{folder} must hold a run with the same settings and data, it holds one that differs"
            f" in {', '.join(differing[:4])}; choose another --name."
        )
    return True


def _differing(old: Any, new: Any, path: str = "") -> list[str]:
    """Return the dotted names under which two nested dicts of plain values differ."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [path]
    names = [*old, *(name for name in new if name not in old)]
    return [
        found
        for name in names
        for found in _differing(old.get(name), new.get(name), f"{path}.{name}".strip("."))
    ]


@contextlib.contextmanager
def _made_there(folder: AnyPath) -> Iterator[None]:
    """Raise DataError where a folder cannot be made in its place, and leave a disk that is full alone."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_PLACE:
            raise
        raise DataError(
            f"{folder} must be a folder that can be made and written, it is not ({error.strerror})."
        ) from error


@contextlib.contextmanager
def locked(folder: AnyPath) -> Iterator[None]:
    """Hold a folder, made if it is not there, against every other process until the block ends.

    Object storage has no locks that end with their holder: there it is the caller's business not to
    run two commands at once.

    Raises:
        DataError: if another process holds it, or it cannot be made.
    """
    if isinstance(folder, RemotePath):
        yield
        return
    with _made_there(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a")  # not "w": a access to a finished run changes nothing
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"one command at a time may work on {folder}, another is at it; wait for it or"
                " choose another --name."
            ) from error
        yield


@contextlib.contextmanager
def new_folder(path: AnyPath, *, replace_if: str | None = None) -> Iterator[Path]:
    """Give a folder of this node to write into, which takes its place only when the block ends well.

    Args:
        path: the folder to make.
        replace_if: a file whose presence marks an older folder of the same kind, which is then
            replaced; in object storage, where a folder has no name to change, it is written last.

    Raises:
        DataError: if something else stands there already, or it cannot be made.
    """
    if isinstance(path, RemotePath):
        with _new_remote_folder(path, replace_if=replace_if) as work:
            yield work
        return
    occupied = path.exists() and (not path.is_dir() or any(path.iterdir()))
    replaceable = replace_if is not None and path.is_dir() and (path / replace_if).is_file()
    if occupied and not replaceable:
        raise _occupied(path)
    with _made_there(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        work = path.with_name(_hidden(path.name))
        work.mkdir()
    old = work.with_name(f"{work.name}.old")
    try:
        yield work
        if path.exists():
            os.replace(path, old)
        os.replace(work, path)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _new_remote_folder(path: RemotePath, *, replace_if: str | None) -> Iterator[Path]:
    _check_free(path, replace_if=replace_if)  # before anything is computed for it
    with tempfile.TemporaryDirectory(prefix="melanoma-") as folder:
        yield Path(folder)
        with shared_folder(path, replace_if=replace_if):
            publish(Path(folder), path, last=replace_if)


@contextlib.contextmanager
def shared_folder(path: RemotePath, *, replace_if: str | None = None) -> Iterator[RemotePath]:
    """Give a new folder in object storage to write into from every node; it holds a mark until the block ends well.

    Raises:
        DataError: if something else stands there, which is then left as it is.
    """
    _check_free(path, replace_if=replace_if)
    remove_folder(path)
    write_text(path / INCOMPLETE, "")
    try:
        yield path
    except BaseException:
        remove_folder(path)
        raise
    (path / INCOMPLETE).unlink()


def _check_free(path: RemotePath, *, replace_if: str | None) -> None:
    """Raise DataError unless nothing is there, or what a kill has left, or something of the same kind that may be replaced."""
    allowed = [INCOMPLETE, *([replace_if] if replace_if else [])]
    if path.is_bucket or (path.exists() and not any((path / name).is_file() for name in allowed)):
        raise _occupied(path)


def _occupied(path: AnyPath) -> DataError:
    return DataError(
        f"the output folder must be new or empty, {path} is not; name another one or remove it."
    )


def sha256_of(path: AnyPath) -> str:
    """Return the sha256 of a file."""
    if isinstance(path, RemotePath):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
