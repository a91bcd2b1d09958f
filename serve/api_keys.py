"""API keys: who may ask. Knows hashes only; how often somebody may ask is the gateway's business.

MELANOMA_API_KEYS_FILE names a file with one line a key: the sha256 of the key in hex (`printf %s "$KEY" | sha256sum`), the rest of
the line and lines beginning with # are for people. Keys are long random strings, so a plain hash cannot be guessed back.
A changed file is taken up at once, so that keys can be changed without a restart.
"""

import hashlib
import hmac
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path

from melanoma.errors import SettingError

VARIABLE = "MELANOMA_API_KEYS_FILE"
_HASH = re.compile(r"[0-9a-f]{64}")
logger = logging.getLogger("ray.serve")


class ApiKeys:
    """The keys of one file.

    Raises:
        SettingError: if a line is no hash, or there is none.
        OSError: if the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed, self._hashes = self._read()

    def allow(self, key: str) -> bool:
        """Say whether a key is one of the file's, in a time that tells nothing of how near it was."""
        self._refresh()
        digest = hashlib.sha256(key.encode()).hexdigest()
        found = [hmac.compare_digest(digest, known) for known in self._hashes]  # all of them, not up to the first
        return any(found)

    def _refresh(self) -> None:
        try:
            if self._path.stat().st_mtime_ns != self._changed:
                self._changed, self._hashes = self._read()
        except (OSError, ValueError) as error:
            logger.warning("the API keys stay as they were, for their file cannot be taken up: %s", error)

    def _read(self) -> tuple[int, list[str]]:
        changed = self._path.stat().st_mtime_ns
        hashes = []
        for number, line in enumerate(self._path.read_text().splitlines(), start=1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if not _HASH.fullmatch(words[0]):
                raise SettingError(
                    f"{VARIABLE} must hold a sha256 in hex a line, line {number} begins otherwise; "
                    'make one with: printf %s "$KEY" | sha256sum'
                )
            hashes.append(words[0])
        if not hashes:
            raise SettingError(f"{VARIABLE} must hold at least one key, its file has none.")
        return changed, hashes


def keys_from_environment() -> ApiKeys | None:
    """Return the keys, or None where no file is named: everybody may ask.

    Raises:
        SettingError: if the file is named but cannot be used.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return None
    try:
        return ApiKeys(Path(path))
    except OSError as error:
        raise SettingError(f"{VARIABLE} must name a readable file, it does not ({error.strerror}).") from error


def key_of(headers: Mapping[str, str]) -> str | None:
    """Return the key of `Authorization: Bearer KEY` or `X-API-Key: KEY`; never one from the address, which ends in logs."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key:
        return key.strip()
    return headers.get("x-api-key") or None
