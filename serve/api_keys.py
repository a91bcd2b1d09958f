"""API keys: who may ask. Knows hashes only; how often somebody may ask is the gateway's business.

MELANOMA_API_KEYS_FILE names a file with one line a key: the sha256 of the key in hex (`printf %s
"$KEY" | sha256sum`), the rest of the line and lines beginning with # are for people. Keys are long
random strings, so a plain hash cannot be guessed back. A changed file counts from the next request
on: a key that is withdrawn lets nobody in any more, whatever else is wrong with the file.
"""

import hashlib
import hmac
import logging
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

from melanoma.errors import SettingError

VARIABLE = "MELANOMA_API_KEYS_FILE"
MAKE_ONE = 'make one with: printf %s "$KEY" | sha256sum'
_HASH = re.compile(rb"[0-9a-f]{64}")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SETTLED_NS = 2_000_000_000
"""A file that was changed less than this before it was read may change again within the same tick of its clock."""
logger = logging.getLogger("ray.serve")


class ApiKeys:
    """The keys of one file, read again whenever it changes; state: what was read last.

    Attributes:
        trouble: why nobody can be let in; empty while at least one key counts.
        invalid_lines: the numbers of the lines that are no hash; they let nobody in, the others
            count.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity: tuple[int, ...] | None = None
        self._hashes: list[str] = []
        self._told = ""
        self.trouble = ""
        self.invalid_lines: list[int] = []
        self.refresh()

    def allow(self, key: str) -> bool:
        """Say whether a key is one of the file's, in a time that tells nothing of how near it was."""
        digest = hashlib.sha256(key.encode()).hexdigest()
        found = [
            hmac.compare_digest(digest, known) for known in self._hashes
        ]  # all of them, not up to the first
        return any(found)

    def refresh(self) -> None:
        """Read the file again if it is another one; if it cannot be read, no key counts."""
        try:
            if self._identity is None or _identity(os.stat(self._path)) != self._identity:
                self._read()
        except OSError as error:
            self._identity, self._hashes, self.invalid_lines = None, [], []
            self.trouble = f"{VARIABLE} must name a readable file, it does not ({error.strerror})."
        self._tell()

    def _read(self) -> None:
        with self._path.open("rb") as file:
            stat, data = os.fstat(file.fileno()), file.read()
        # What was changed just now is read again at the next request: two changes may bear the same
        # time.
        settled = time.time_ns() - stat.st_ctime_ns > _SETTLED_NS
        self._identity, self._hashes, self.invalid_lines = (
            _identity(stat) if settled else None,
            [],
            [],
        )
        for number, line in enumerate(data.removeprefix(_BYTE_ORDER_MARK).splitlines(), start=1):
            words = line.split()
            if not words or words[0].startswith(b"#"):
                continue
            if _HASH.fullmatch(words[0]):
                self._hashes.append(words[0].decode())
            else:
                self.invalid_lines.append(number)
        self.trouble = (
            ""
            if self._hashes
            else f"{VARIABLE} must hold at least one key, its file has none; {MAKE_ONE}."
        )

    def _tell(self) -> None:
        """Log what is wrong with the file, once for each change; a line by its number only, because it may hold a key in clear."""
        numbers = ", ".join(map(str, self.invalid_lines[:20]))
        told = (
            [f"line {numbers} of the API keys must begin with a sha256 in hex, it lets nobody in"]
            if numbers
            else []
        )
        told += [f"{self.trouble} Nobody is let in until it does."] if self.trouble else []
        if (words := "; ".join(told)) != self._told:
            self._told = words
            logger.warning("%s", words or "every line of the API keys counts again")


def _identity(stat: os.stat_result) -> tuple[int, ...]:
    """Return what changes whenever a file is written or replaced, also behind a link, as Kubernetes replaces it."""
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def keys_of_environment() -> ApiKeys | None:
    """Return the keys, or None where no file is named: everybody may ask."""
    path = os.environ.get(VARIABLE)
    return ApiKeys(Path(path)) if path else None


def check_keys() -> bool:
    """Return whether keys are asked for, before anything is served.

    Raises:
        SettingError: if a file is named that cannot be read or holds no key.
    """
    keys = keys_of_environment()
    if keys is not None and keys.trouble:
        raise SettingError(keys.trouble)
    return keys is not None


def key_of(headers: Mapping[str, str]) -> str | None:
    """Return the key of `Authorization: Bearer KEY` or `X-API-Key: KEY`; never one from the address, which ends in logs."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key:
        return key.strip()
    return headers.get("x-api-key") or None
