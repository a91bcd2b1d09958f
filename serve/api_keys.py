"""API keys: decide who may send requests. Knows only hashes; rate limits belong to the gateway.

MELANOMA_API_KEYS_FILE names a file with one line for each key. A line begins with the sha256 of the
key in hex (`printf %s "$KEY" | sha256sum`). The rest of the line is a comment, and so is a line
that begins with #. Keys are long random strings, so that a plain hash cannot be reversed by
guessing. A changed file takes effect with the next request. A removed key is refused from then on,
even if other lines of the file are invalid.
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
MAKE_ONE = 'Make one with: printf %s "$KEY" | sha256sum'
_HASH = re.compile(rb"[0-9a-f]{64}")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SETTLED_NS = 2_000_000_000
"""A file changed less than this before it was read may change again within one clock tick."""
logger = logging.getLogger("ray.serve")


class ApiKeys:
    """The keys of one file, read again when it changes. Its state is what was read last.

    Attributes:
        trouble: why every request is refused; empty while at least one key is valid.
        invalid_lines: the numbers of the lines that do not begin with a hash. They are skipped; the
            other lines stay valid.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity: tuple[int, ...] | None = None
        self._hashes: list[str] = []
        self._last_message = ""
        self.trouble = ""
        self.invalid_lines: list[int] = []
        self.refresh()

    def allow(self, key: str) -> bool:
        """Return whether a key is in the file, without leaking anything through timing."""
        digest = hashlib.sha256(key.encode()).hexdigest()
        # Compare with all hashes: stopping at the first match would leak its position.
        found = [hmac.compare_digest(digest, known) for known in self._hashes]
        return any(found)

    def refresh(self) -> None:
        """Read the file again if it has changed. If it cannot be read, no key is valid."""
        try:
            if self._identity is None or _identity(os.stat(self._path)) != self._identity:
                self._read()
        except OSError as error:
            self._identity, self._hashes, self.invalid_lines = None, [], []
            self.trouble = f"{VARIABLE} must name a readable file: {error.strerror}."
        self._log_changes()

    def _read(self) -> None:
        with self._path.open("rb") as file:
            stat, data = os.fstat(file.fileno()), file.read()
        # A file that was changed just now is read again at the next request, because two changes
        # may have the same time stamp.
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
            else f"{VARIABLE} must hold at least one key; its file has none. {MAKE_ONE}."
        )

    def _log_changes(self) -> None:
        """Log what is wrong with the file, once for each change.

        A line is named only by its number, because it may hold a key in clear text.
        """
        numbers = ", ".join(map(str, self.invalid_lines[:20]))
        messages = (
            [f"Line {numbers} of the API keys must begin with a sha256 in hex; it is ignored."]
            if numbers
            else []
        )
        messages += [f"{self.trouble} Until then all requests are refused."] if self.trouble else []
        if (message := " ".join(messages)) != self._last_message:
            self._last_message = message
            logger.warning("%s", message or "All lines of the API keys are valid again.")


def _identity(stat: os.stat_result) -> tuple[int, ...]:
    """Return a tuple that changes when the file is written or replaced.

    It also changes when the target of a link is replaced, as Kubernetes does with secrets.
    """
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def keys_of_environment() -> ApiKeys | None:
    """Return the keys, or None if no file is named, so that every request is allowed."""
    path = os.environ.get(VARIABLE)
    return ApiKeys(Path(path)) if path else None


def check_keys() -> bool:
    """Return whether requests need a key. Call it before anything is served.

    Raises:
        SettingError: if the named file cannot be read or holds no key.
    """
    keys = keys_of_environment()
    if keys is not None and keys.trouble:
        raise SettingError(keys.trouble)
    return keys is not None


def key_of(headers: Mapping[str, str]) -> str | None:
    """Return the key of `Authorization: Bearer KEY` or `X-API-Key: KEY`, or None.

    A key in the address is not accepted, because addresses are written to logs.
    """
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key:
        return key.strip()
    return headers.get("x-api-key") or None
