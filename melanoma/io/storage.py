"""Files and folders in object storage, with as much of pathlib's interface as this project uses.

An address is scheme://bucket/folder. Settings of the storage follow the last question mark, as
pyarrow takes them: s3://bucket/folder?endpoint_override=HOST:PORT&scheme=http. pyarrow reads s3 and
gs. fsspec reads any other scheme; tests cover only memory://. Writing one object is atomic. The
file that completes a folder is written last (melanoma/io/files.py). Knows nothing of what the files
hold.
"""

import functools
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any

from melanoma.errors import DataError, SettingError

if TYPE_CHECKING:  # Parsing a command line must not wait for this import.
    import pyarrow.fs

_BY_PYARROW = ("s3", "gs", "gcs")
_REFUSALS = re.compile(
    "ACCESS_DENIED|INVALID_ACCESS_KEY_ID|INVALID_SIGNATURE|SIGNATURE_DOES_NOT_MATCH|NO_SUCH_BUCKET"
    "|PERMISSION_DENIED|UNAUTHENTICATED|HTTP status 40[0134]"
)
"""What pyarrow says if an address or its credentials are wrong, not if storage is unreachable."""
_PASSWORD = re.compile(
    r"(?i)((?:s3|gs|gcs)://)[^\s/@:?]*:(?:[^\s?]*(?=@)|[^\s/?'\"]*)"  # A bucket has no colon.
    r"|([a-z][a-z0-9+.-]*://)[^\s/@:?]*:[^\s/@?]*(?=@)"
)
_SECRET = re.compile(
    r"(?i)(?<![a-z0-9])"
    r"((?:[\w-]*(?:secret|token|password|passwd|signature|credential|access_?key|api_?key)[\w-]*"
    r"|sig)(?:=|%3D))"
    r"[^&\s'\")\]}]+"
)
_HIDDEN = "***"
_CHUNK_BYTES = 1 << 20


def is_address(text: str) -> bool:
    """Return whether a text is an address in object storage, not a path of this machine."""
    return "://" in text


def redacted(text: str) -> str:
    """Return a text with the passwords and keys in its addresses hidden."""
    text = _PASSWORD.sub(lambda found: f"{found[1] or found[2]}{_HIDDEN}", text)
    return _SECRET.sub(lambda found: f"{found[1]}{_HIDDEN}", text)


def to_path(text: "str | AnyPath") -> "AnyPath":
    """Return the local or remote path that a text names; a path is returned as it is.

    Raises:
        SettingError: if an address holds a password or a key, which would end up in logs and in
            Ray's list of jobs.
        DataError: if a part of an address is `..`.
    """
    if not isinstance(text, str):
        return text
    return RemotePath(text) if is_address(text) else Path(text)


@functools.lru_cache(maxsize=32)
def _file_system(scheme: str, bucket: str, query: str) -> "pyarrow.fs.FileSystem":
    import pyarrow.fs

    if scheme in _BY_PYARROW:
        try:
            return pyarrow.fs.FileSystem.from_uri(
                f"{scheme}://{bucket}/{'?' + query if query else ''}"
            )[0]
        except (ValueError, OSError) as error:
            raise DataError(
                f"{scheme}://{bucket} must be an address that pyarrow can open; it is not"
                f" ({error}). Correct the address."
            ) from error
    import fsspec

    try:
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fsspec.filesystem(scheme)))
    except (ImportError, ValueError, TypeError) as error:
        raise DataError(
            f"{scheme}:// must be a kind of storage that pyarrow or fsspec knows here; it is not"
            f" ({error}). Correct it, or install the package that fsspec needs for it."
        ) from error


class RemotePath:
    """A file or folder in object storage; an immutable value, like a path."""

    def __init__(self, address: str) -> None:
        # Names of images are not ours, so one may hold any character, even # and ?. The settings
        # follow the last ?.
        name, _, self._query = address.rpartition("?") if "?" in address else (address, "", "")
        self._scheme, _, name = name.partition("://")
        self._bucket, _, path = name.partition("/")
        self._path = _checked(PurePosixPath("/", path.strip("/")))
        _checked(PurePosixPath(self._bucket))
        without_name = f"{self._scheme}://{self._bucket}/?{self._query}"
        if redacted(without_name) != without_name:
            raise SettingError(
                f"{redacted(address)} must not hold a password or a key, because addresses are"
                " logged and kept. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use the"
                " workload identity of the machine."
            )

    def __str__(self) -> str:
        name = f"{self._scheme}://{self._bucket}{self._path if self._path.name else ''}"
        return f"{name}?{self._query}" if self._query or "?" in name else name

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __lt__(self, other: "RemotePath") -> bool:
        return str(self) < str(other)

    def __truediv__(self, name: str) -> "RemotePath":
        if not name or name.startswith("/"):
            raise DataError(
                f"A name below {self} must be relative and not empty; it is {name!r}. Correct it."
            )
        return self._at(self._path / name)

    def _at(self, path: PurePosixPath) -> "RemotePath":
        made = RemotePath.__new__(RemotePath)
        made._scheme, made._bucket, made._query, made._path = (
            self._scheme,
            self._bucket,
            self._query,
            _checked(path),
        )
        return made

    @property
    def file_system(self) -> "pyarrow.fs.FileSystem":
        """The storage that holds it."""
        return _file_system(self._scheme, self._bucket, self._query)

    @property
    def key(self) -> str:
        """Its name in the storage: bucket/folder/file."""
        return f"{self._bucket}{self._path}".rstrip("/")

    @property
    def is_bucket(self) -> bool:
        """Whether it is the whole bucket."""
        return not self._path.name

    @property
    def name(self) -> str:
        """Its last part."""
        return self._path.name or self._bucket

    @property
    def suffix(self) -> str:
        """The suffix of its name, with the dot."""
        return self._path.suffix

    @property
    def stem(self) -> str:
        """Its name without the suffix."""
        return self._path.stem

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of its path inside the bucket."""
        return self._path.parts

    @property
    def parent(self) -> "RemotePath":
        """The folder that holds it."""
        return self._at(self._path.parent)

    def resolve(self) -> "RemotePath":
        """Return itself: an address is absolute."""
        return self

    def is_absolute(self) -> bool:
        """Return True."""
        return True

    def relative_to(self, folder: "RemotePath") -> PurePosixPath:
        """Return its path inside a folder."""
        return self._path.relative_to(folder._path)

    def _kind(self) -> str:
        try:
            return str(self.file_system.get_file_info(self.key).type.name)
        except OSError as error:
            if _REFUSALS.search(str(error)):
                raise DataError(
                    f"{self._scheme}://{self._bucket} must exist and be open to the credentials"
                    f" here; it is not ({error}). Check the name and the credentials."
                ) from error
            raise OSError(
                f"{self._scheme}://{self._bucket} must answer; it does not ({error})"
            ) from error

    def is_file(self) -> bool:
        """Return whether it is a file."""
        return self._kind() == "File"

    def is_dir(self) -> bool:
        """Return whether it is a folder, which means that something is below it."""
        return self._kind() == "Directory"

    def exists(self) -> bool:
        """Return whether it is a file or a folder."""
        return self._kind() != "NotFound"

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing, because a folder exists as soon as something is in it."""

    def open(self, mode: str = "rb") -> Any:
        """Open for reading, as bytes."""
        assert mode == "rb"
        return self.file_system.open_input_file(self.key)

    def chunks(self) -> Iterator[bytes]:
        """Yield the file in pieces of at most a megabyte."""
        with self.file_system.open_input_stream(self.key) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                yield bytes(chunk)

    def read_bytes(self) -> bytes:
        """Return the whole file."""
        with self.file_system.open_input_stream(self.key) as stream:
            return bytes(stream.read())

    def read_text(self) -> str:
        """Return the whole file as UTF-8."""
        return self.read_bytes().decode()

    def write_bytes(self, data: "bytes | pyarrow.Buffer") -> None:
        """Write the whole file; readers see the old one or the new one."""
        if self._scheme not in _BY_PYARROW:  # Some file systems of fsspec have real folders.
            self.file_system.create_dir(self.parent.key, recursive=True)
        with self.file_system.open_output_stream(self.key) as stream:
            stream.write(data)

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Remove the file."""
        if not missing_ok or self.is_file():
            self.file_system.delete_file(self.key)

    def remove_folder(self) -> None:
        """Remove it and everything below it, if it is there."""
        if self.is_dir():
            self.file_system.delete_dir(self.key)

    def rename(self, target: "RemotePath") -> None:
        """Move it and everything below it to another name.

        Every object is copied, because object storage cannot rename a folder.
        """
        found = [self] if self.is_file() else list(self.files())
        for file in found:
            there = target._at(target._path / file._path.relative_to(self._path))
            there.write_bytes(file.read_bytes())
        for file in found:
            file.unlink()

    def iterdir(self) -> Iterator["RemotePath"]:
        """Yield what is directly in it."""
        yield from self._list(recursive=False)

    def files(self) -> Iterator["RemotePath"]:
        """Yield the files anywhere below it."""
        yield from self._list(recursive=True, only_files=True)

    def _list(self, *, recursive: bool, only_files: bool = False) -> Iterator["RemotePath"]:
        import pyarrow.fs

        selector = pyarrow.fs.FileSelector(self.key, allow_not_found=True, recursive=recursive)
        for info in self.file_system.get_file_info(selector):
            if not only_files or info.type == pyarrow.fs.FileType.File:
                yield self._at(
                    PurePosixPath("/", info.path.strip("/").removeprefix(f"{self._bucket}/"))
                )


def _checked(path: PurePosixPath) -> PurePosixPath:
    """Return a path inside a bucket.

    Raises:
        DataError: if a part is `..`, which could lead out of a folder.
    """
    if ".." in path.parts:
        raise DataError(
            f"No part of an address may be ..; the path is {str(path)!r}. Write it without"
            " such parts."
        )
    return path


AnyPath = Path | RemotePath


def is_plain_name(name: object) -> bool:
    """Return whether a name, read from a file, can only name a file inside its folder."""
    return isinstance(name, str) and re.fullmatch(r"(?!\.)[A-Za-z0-9._-]{1,255}", name) is not None


def is_sha256(text: object) -> bool:
    """Return whether a text is a sha256 in hex, as `sha256sum` prints it."""
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{64}", text) is not None


_NOT_OURS = {
    "__MACOSX",
    "Thumbs.db",
    "desktop.ini",
    "@eaDir",
    "#recycle",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
}
"""What other programs leave in folders. It is ignored, like names that start with a dot."""


def files_below(folder: AnyPath, suffixes: Collection[str] | None = None) -> list[AnyPath]:
    """Return the files anywhere below a folder, in order.

    Hidden files and folders are ignored. Links are followed.

    Args:
        folder: where to look.
        suffixes: suffixes of names in lower case, "" for no suffix; None takes every file.
    """
    found: Iterable[AnyPath] = _walk(folder) if isinstance(folder, Path) else _shown_files(folder)
    return sorted(
        (path for path in found if suffixes is None or path.suffix.lower() in suffixes), key=str
    )


def _shown_files(folder: RemotePath) -> Iterator[RemotePath]:
    return (
        path for path in folder.files() if not any(map(_is_hidden, path.relative_to(folder).parts))
    )


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _NOT_OURS


def _walk(folder: Path) -> Iterator[Path]:
    """Yield every file below a folder once.

    Its own folders come first, then the targets of links. A link to a folder above is not followed,
    because that would leave the folder and never end.
    """
    above = {
        (status.st_dev, status.st_ino)
        for status in (path.stat() for path in folder.resolve().parents)
    }
    own, linked, seen = [folder] if folder.is_dir() else [], list[Path](), set(above)
    while own or linked:
        here = own.pop() if own else linked.pop(0)
        status = here.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in sorted(here.iterdir()):
            if _is_hidden(entry.name):
                continue
            if entry.is_dir():
                (linked if entry.is_symlink() else own).append(entry)
            elif entry.is_file():
                yield entry


def publish(folder: Path, target: RemotePath, *, last: str | None = None) -> None:
    """Write the files of a folder of this node to object storage.

    Args:
        folder: the folder of this node.
        target: the folder in object storage.
        last: name of the file that completes the folder; it is written after all others.
    """
    files = sorted(
        (path for path in folder.rglob("*") if path.is_file()),
        key=lambda path: (path.name == last, path),
    )
    for path in files:
        _below(target, path.relative_to(folder)).write_bytes(path.read_bytes())


def _below(folder: RemotePath, relative: PurePath) -> RemotePath:
    for part in relative.parts:
        folder = folder / part
    return folder


class SyncedFolder:
    """A folder of this node for a library that can only write local files.

    `push` copies its files to their target.
    """

    def __init__(self, target: AnyPath) -> None:
        self._target = target
        self._scratch = (
            tempfile.TemporaryDirectory(prefix="melanoma-")
            if isinstance(target, RemotePath)
            else None
        )
        self.folder = (
            target
            if isinstance(target, Path)
            else Path(self._scratch.name if self._scratch else "")
        )

    def push(self) -> None:
        """Copy what was written so far to the target, unless the folder is the target."""
        if isinstance(self._target, RemotePath):
            publish(self.folder, self._target)


def as_file_system(path: AnyPath) -> "tuple[str, pyarrow.fs.FileSystem | None]":
    """Return a path in the form of libraries that write to object storage themselves.

    Returns:
        The path as text, and its storage; None for a path of this machine.
    """
    return (str(path.resolve()), None) if isinstance(path, Path) else (path.key, path.file_system)


def remove_folder(folder: AnyPath) -> None:
    """Remove a folder and everything below it, if it is there."""
    if isinstance(folder, RemotePath):
        folder.remove_folder()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def rename(path: AnyPath, target: AnyPath) -> None:
    """Move a file or a folder to a new name in the same storage."""
    if isinstance(path, RemotePath):
        assert isinstance(target, RemotePath)
        path.rename(target)
        return
    assert isinstance(target, Path)
    target.parent.mkdir(parents=True, exist_ok=True)
    path.rename(target)


def check_free(folder: AnyPath, *, but: str | None = None) -> None:
    """Raise DataError unless an output folder on this machine is new or empty.

    Args:
        folder: the folder.
        but: name of a file that it may hold.
    """
    if folder.exists() and (
        not folder.is_dir() or any(path.name != but for path in folder.iterdir())
    ):
        raise occupied(folder)


def occupied(folder: AnyPath) -> DataError:
    """Return the error of an output folder that holds something."""
    return DataError(
        f"The output folder must be new or empty; {folder} is not. Name another one or remove it."
    )
