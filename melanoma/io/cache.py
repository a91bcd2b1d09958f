"""Caches files of object storage on a node's own disk, under their hash.

Only files whose hash is known are fetched. A cached copy is compared with that hash before its
first use in a process. Features of frozen networks lie in the same folder
(melanoma/training/head.py).
"""

import contextlib
import fcntl
import functools
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from melanoma.errors import DataError
from melanoma.io.files import new_file, sha256_of, write_bytes
from melanoma.io.storage import AnyPath, RemotePath, is_plain_name, is_sha256

CACHE = "MELANOMA_CACHE"
"""Environment variable that names the cache folder of each node.

Without it the cache is in the temporary folder.
"""


def cache_folder() -> Path:
    """Return the cache folder of this node; make it if it is missing.

    Raises:
        DataError: if it belongs to another user, or the default folder is a link, which any user
            can place in the temporary folder.
    """
    named = os.environ.get(CACHE)
    folder = Path(named or Path(tempfile.gettempdir(), f"melanoma-cache-{os.getuid()}"))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or (not named and folder.is_symlink()):
        raise DataError(
            f"The cache must be a folder of your own; {folder} is not. Name another one in {CACHE}."
        )
    return folder


def local_file(path: AnyPath, sha256: str, *, max_bytes: int) -> Path:
    """Return the path of a file on this node; fetch it unless it is cached.

    Args:
        path: the file. A path of this node is returned as it is.
        sha256: of its content.
        max_bytes: largest size that is fetched.

    Raises:
        DataError: if the fetched file has another hash, or is too large.
    """
    if isinstance(path, Path):
        return path
    kept = _cache_path(sha256)
    _fetch(path, kept, sha256, max_bytes)
    return kept


def local_folder(
    folder: RemotePath, first: tuple[str, bytes], files: Mapping[str, tuple[str, int]]
) -> Path:
    """Return a folder on this node with copies of some files of a remote folder.

    Args:
        folder: the remote folder.
        first: name and content of the file that lists the others. The caller has read and checked
            it.
        files: name -> (sha256, largest size in bytes) of the others. Nothing else is fetched.

    Raises:
        DataError: if a name is not a plain file name, or a fetched file has another hash or is too
            large.
    """
    marker, head = first
    digest = hashlib.sha256(head).hexdigest()
    kept = _cache_path(digest).with_name(f"{digest}.folder")
    kept.mkdir(mode=0o700, exist_ok=True)
    for name, (sha256, max_bytes) in files.items():
        if not is_plain_name(name):
            raise DataError(
                f"A file of {folder} must have a plain name; its name is {name!r}. Do not use"
                " this folder."
            )
        _fetch(folder / name, kept / name, sha256, max_bytes)
    with _locked(kept / marker):
        if not _is_whole(kept / marker, digest):
            write_bytes(kept / marker, head)
    return kept


def _cache_path(sha256: str) -> Path:
    """Return where the file with a hash is cached; a manifest's text is a path only if a hash."""
    if not is_sha256(sha256):
        raise DataError(
            f"A checksum must be a sha256 of 64 hex digits; it is {sha256!r}. Do not use"
            " this manifest."
        )
    return cache_folder() / sha256


@contextlib.contextmanager
def _locked(kept: Path) -> Iterator[None]:
    """Lock a cached file, so that no other process of this node fetches it meanwhile."""
    with _lock(kept).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _lock(kept: Path) -> Path:
    return kept.with_name(f".{kept.name}.lock")


def _fetch(source: RemotePath, kept: Path, sha256: str, max_bytes: int) -> None:
    """Fetch a file unless a whole copy of it is cached."""
    with _locked(kept):
        if _is_whole(kept, sha256):
            return
        # Remove what a killed fetch left behind.
        for left in set(kept.parent.glob(f".{kept.name}.*")) - {_lock(kept)}:
            left.unlink()
        digest, num_bytes = hashlib.sha256(), 0
        with new_file(kept) as file:
            for chunk in source.chunks():
                num_bytes += len(chunk)
                if num_bytes > max_bytes:
                    raise DataError(
                        f"{source.name} must have at most {max_bytes} bytes; it has more, so it is"
                        " not the file that the manifest lists."
                    )
                digest.update(chunk)
                file.write(chunk)
            if digest.hexdigest() != sha256:
                raise DataError(
                    f"{source.name} must match its checksum in the manifest; it does not. It was"
                    " changed in storage or is being replaced. Try again."
                )


def _is_whole(kept: Path, sha256: str) -> bool:
    """Return whether a copy has its hash.

    The hash is computed once in a process, and again if the file was touched.
    """
    if not kept.is_file():
        return False
    stat = kept.stat()
    return _hash_of(kept, (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)) == sha256


@functools.lru_cache(maxsize=4096)
def _hash_of(path: Path, identity: tuple[int, ...]) -> str:
    return sha256_of(path)
