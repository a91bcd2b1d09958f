"""What a node keeps of object storage on its own disk: fetched once, and found by its hash from then on.

Nothing is fetched but what is named with its hash, and a kept copy is compared with that hash
before its first use in a process.
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
"""Environment variable: the folder where each node keeps what it fetched; by default one in the temporary folder."""


def cache_folder() -> Path:
    """Return, and make, the folder where this node keeps what it fetched.

    Raises:
        DataError: if it is another user's, or the default one is a link that somebody left in the
            temporary folder.
    """
    named = os.environ.get(CACHE)
    folder = Path(named or Path(tempfile.gettempdir(), f"melanoma-cache-{os.getuid()}"))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or (not named and folder.is_symlink()):
        raise DataError(
            f"the cache must be a folder of your own, {folder} is another's; name one in {CACHE}."
        )
    return folder


def local_file(path: AnyPath, sha256: str, *, max_bytes: int) -> Path:
    """Return the path of a file on this node, fetched once and found by its hash from then on.

    Args:
        path: a file of this node is returned as it is.
        sha256: of its content.
        max_bytes: no more than that is fetched.

    Raises:
        DataError: if what was fetched has another hash, or is too large.
    """
    if isinstance(path, Path):
        return path
    kept = _kept(sha256)
    _fetch(path, kept, sha256, max_bytes)
    return kept


def local_folder(
    folder: RemotePath, first: tuple[str, bytes], files: Mapping[str, tuple[str, int]]
) -> Path:
    """Return a folder on this node with copies of some files of another.

    Args:
        folder: where they lie.
        first: name and content of the file that lists the others; already read, and checked by the
            caller.
        files: the others by name: the sha256 and the most bytes of each. Nothing else is fetched.

    Raises:
        DataError: if a name is none, or what was fetched has another hash, or is too large.
    """
    marker, head = first
    digest = hashlib.sha256(head).hexdigest()
    kept = _kept(digest).with_name(f"{digest}.folder")
    kept.mkdir(mode=0o700, exist_ok=True)
    for name, (sha256, max_bytes) in files.items():
        if not is_plain_name(name):
            raise DataError(f"a file of {folder} must have a plain name, got {name!r}.")
        _fetch(folder / name, kept / name, sha256, max_bytes)
    with _held(kept / marker):
        if not _is_whole(kept / marker, digest):
            write_bytes(kept / marker, head)
    return kept


def _kept(sha256: str) -> Path:
    """Return where a content is kept; what comes from a manifest becomes a path only if it is a hash."""
    if not is_sha256(sha256):
        raise DataError(f"a checksum must be a sha256, 64 hex digits, got {sha256!r}.")
    return cache_folder() / sha256


@contextlib.contextmanager
def _held(kept: Path) -> Iterator[None]:
    """Keep other processes of this node from fetching the same meanwhile."""
    with _lock(kept).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _lock(kept: Path) -> Path:
    return kept.with_name(f".{kept.name}.lock")


def _fetch(source: RemotePath, kept: Path, sha256: str, max_bytes: int) -> None:
    """Fetch a file unless a whole copy of it is kept."""
    with _held(kept):
        if _is_whole(kept, sha256):
            return
        for left in set(kept.parent.glob(f".{kept.name}.*")) - {
            _lock(kept)
        }:  # by a fetch that was killed
            left.unlink()
        digest, num_bytes = hashlib.sha256(), 0
        with new_file(kept) as file:
            for chunk in source.chunks():
                num_bytes += len(chunk)
                if num_bytes > max_bytes:
                    raise DataError(
                        f"{source.name} must have at most {max_bytes} bytes, it has more; it is"
                        " another file."
                    )
                digest.update(chunk)
                file.write(chunk)
            if digest.hexdigest() != sha256:
                raise DataError(
                    f"{source.name} must match its checksum in the manifest, it does not; it was"
                    " changed where it is stored, or is being replaced: try again."
                )


def _is_whole(kept: Path, sha256: str) -> bool:
    """Return whether a copy has its hash; computed again if the file was touched, and once in a process otherwise."""
    if not kept.is_file():
        return False
    stat = kept.stat()
    return _hash_of(kept, (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)) == sha256


@functools.lru_cache(maxsize=4096)
def _hash_of(path: Path, identity: tuple[int, ...]) -> str:
    return sha256_of(path)
