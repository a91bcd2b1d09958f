"""What a node keeps of object storage on its own disk: fetched once by whoever comes first, found by its hash from then on."""

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from melanoma.errors import DataError
from melanoma.storage import Place

CACHE = "MELANOMA_CACHE"
"""Environment variable: the folder where each node keeps what it fetched; by default one in the temporary folder."""


def cache_folder() -> Path:
    """Return, and make, the folder where this node keeps what it fetched."""
    folder = Path(os.environ.get(CACHE) or Path(tempfile.gettempdir(), f"melanoma-cache-{os.getuid()}"))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise DataError(f"the cache must be a folder of your own, {folder} is another's; name one in {CACHE}.")
    return folder


def local_file(path: Place, sha256: str) -> Path:
    """Return the path of a file on this node, fetched once by whoever comes first and found by its hash from then on.

    Raises:
        DataError: if what was fetched has another hash.
    """
    if isinstance(path, Path):
        return path
    kept = cache_folder() / sha256
    with _held(kept):
        if not kept.is_file():
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != sha256:
                raise DataError(
                    f"{path.name} must match its checksum in the manifest, it does not; it was changed where it is stored."
                )
            _keep(kept, data)
    return kept


def local_folder(folder: Place, marker: str) -> Path:
    """Return a small folder on this node, fetched once for each content of its marker, the file that was written last.

    Raises:
        DataError: if it is not there or not whole.
    """
    if isinstance(folder, Path):
        return folder
    if not (folder / marker).is_file():
        raise DataError(f"{folder} must be a whole folder with its {marker}, which is not there; check the address.")
    head = (folder / marker).read_bytes()
    kept = cache_folder() / hashlib.sha256(str(folder).encode() + head).hexdigest()
    with _held(kept):
        if not (kept / marker).is_file():
            for file in folder.files():
                if file.name != marker:
                    _keep(kept / file.relative_to(folder), file.read_bytes())
            if (folder / marker).read_bytes() != head:
                raise DataError(f"{folder} must stay as it is while it is fetched, it was replaced; try again.")
            _keep(kept / marker, head)
    return kept


@contextlib.contextmanager
def _held(kept: Path) -> Iterator[None]:
    """Keep other processes of this node from fetching the same meanwhile."""
    with kept.with_name(f".{kept.name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _keep(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".")
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    os.replace(name, path)
